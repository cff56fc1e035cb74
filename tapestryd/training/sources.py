"""Which local files are text that we can read. Opens none of them: names, kinds and places only, and the faults of data.

Standard library only, so that `tapestry data` starts fast. Knows nothing of what may be done with a file.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from protocols.trainer import Code
from tapestryd.errors import DataFault

KINDS = (".txt", ".md", ".jsonl", ".parquet")
PACKED = (".gz", ".zst")


class DataMissing(DataFault):
    code: ClassVar[Code] = Code.DATA_MISSING


class DataUnreadable(DataFault):
    code: ClassVar[Code] = Code.DATA_UNREADABLE


class DataEmpty(DataFault):
    code: ClassVar[Code] = Code.DATA_EMPTY


class DataForbidden(DataFault):
    code: ClassVar[Code] = Code.DATA_FORBIDDEN


class NoTier(DataFault):
    code: ClassVar[Code] = Code.TIER


def kind_of(path: Path) -> str:
    """`.jsonl` for rows.jsonl.gz; "" for what we do not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    kind = "".join(suffixes[:-1][-1:] if packed else suffixes[-1:])
    return kind if kind in KINDS and not (packed and kind == ".parquet") else ""


def find(paths: Iterable[Path]) -> dict[Path, Path]:
    """Every file we can read under `paths`, sorted, hidden ones left out → which of `paths` it is under, the outermost; links
    are resolved. Raises DataMissing, DataUnreadable, DataEmpty."""
    found: dict[Path, Path] = {}
    paths = sorted(paths, key=lambda path: len(path.parts))
    for path in paths:
        try:
            if path.is_dir():
                inside = (file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts))
                os.listdir(path)  # rglob is silent about a folder it may not read
                files = [file for file in inside if kind_of(file) and file.is_file()]
            elif not path.exists():
                raise DataMissing(f"{path}: no such file or folder; set data.paths in trainer.toml")
            elif not kind_of(path):
                raise DataUnreadable(f"{path}: not one of {', '.join(KINDS)} (text kinds also .gz or .zst)")
            else:
                files = [path]
        except OSError as error:
            raise DataUnreadable(f"{path}: {error.strerror}") from None
        for file in files:
            found.setdefault(file.resolve(), path.resolve())
    if not found:
        raise DataEmpty(f"no {', '.join(KINDS)} file under {', '.join(map(str, paths)) or 'an empty data.paths'}")
    return dict(sorted(found.items()))
