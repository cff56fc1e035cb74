"""Data sets on this machine's disk: which manifest each file is under, what was recorded of it, and which may be trained on.

A data set is a folder with a tapestry-data.toml (manifest.py); all files below it belong to it, but for those below a folder
with one of its own. Beside it, tapestry-data.sha256 lists its files as `sha256sum` does, so that `sha256sum -c` checks them,
too. Standard library only: `tapestry data` uses this as well as the trainer. Logs name files, never text.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocols.trainer import Code
from tapestryd.errors import ConfigFault
from tapestryd.host.files import write
from tapestryd.host.manifest import UNDECLARED, Manifest, parse, refusal, written
from tapestryd.training.sources import DataForbidden, NoTier, find

log = logging.getLogger(__name__)

MANIFEST = "tapestry-data.toml"
RECORD = "tapestry-data.sha256"

_MANIFEST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Dataset:
    """`root`: its folder, or, undeclared, the path of data.paths. `files`: resolved → the SHA-256 recorded, "" for none."""

    root: Path
    manifest: Manifest | None
    files: Mapping[Path, str]


def datasets(paths: Iterable[Path]) -> list[Dataset]:
    """What is under `paths`, declared or not, by root. Opens manifests and records, no data. Raises DataForbidden for those that
    are faulty, and as `find`."""
    grouped: dict[tuple[Path, bool], list[Path]] = {}
    for file, path in find(paths).items():
        if whole := next((folder for folder in path.parents if (folder / MANIFEST).is_file()), None):
            raise DataForbidden(f"{path} is a part of the data set {whole}; name the whole in data.paths")
        inside = file.is_relative_to(path)  # or a link led out of it
        folders = [folder for folder in file.parents if not inside or folder.is_relative_to(path)]
        declared = next((folder for folder in folders if (folder / MANIFEST).is_file()), None)
        grouped.setdefault((declared or (path if inside else file), declared is not None), []).append(file)
    found = []
    for (root, is_declared), files in sorted(grouped.items()):
        recorded = record(root) if is_declared else {}
        found.append(Dataset(root, manifest(root) if is_declared else None, {file: recorded.get(file, "") for file in files}))
    return found


def admitted(paths: Iterable[Path], *, require_manifest: bool, volunteer: bool, budget: bool) -> list[Dataset]:
    """`datasets`, if all of them may be trained on for contribution, said in the log; `volunteer` and `budget` as for
    manifest.refusal. Raises DataForbidden and NoTier, and as `datasets`: before a file of data is opened."""
    found = datasets(paths)
    for dataset in found:
        if dataset.manifest is None and require_manifest:
            raise DataForbidden(
                f"{dataset.root}: no {MANIFEST}, and data.require_manifest is on; declare it: tapestry data add {dataset.root} --class …"
            )
        refused = refusal(dataset.manifest or UNDECLARED, volunteer=volunteer, budget=budget)
        if refused is not None:
            code, why = refused
            raise (NoTier if code == Code.TIER else DataForbidden)(f"{dataset.root}: {why}")
        if dataset.manifest is None:
            log.warning(
                "%s: no manifest: TAKEN AS %s DATA, free to be contributed, on your word; declare it with `tapestry data add`",
                dataset.root, UNDECLARED.data_class.upper(),
            )  # fmt: skip
            continue
        if strange := [file for file, digest in dataset.files.items() if not digest]:
            raise DataForbidden(
                f"{strange[0]} is not in {dataset.root / RECORD}, one of {len(strange)}; `tapestry data add {dataset.root}` records them"
            )
        said = dataset.manifest
        log.info(
            "data set %s: %s version %s, %s, tier %d, %s, files=%d",
            dataset.root, said.artifact_id, said.version, said.data_class, said.tier, said.rights or "no licence", len(dataset.files),
        )  # fmt: skip
    return found


def hidden(found: Iterable[Dataset]) -> dict[str, float]:
    """The data sets of tier 2: artifact_id → the most epsilon that may be spent of it, 0 for no bound of its own."""
    bounds: dict[str, float] = {}
    for said in (dataset.manifest for dataset in found):
        if said is not None and said.tier == 2:
            bounds[said.artifact_id] = min(filter(None, (bounds.get(said.artifact_id), said.epsilon)), default=0.0)
    return bounds


def manifest(root: Path) -> Manifest:
    """Raises DataForbidden: what a faulty manifest meant to forbid is not known."""
    path = root / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_BYTES + 1)
        if len(data) > _MANIFEST_BYTES:
            raise ConfigFault(f"larger than {_MANIFEST_BYTES} bytes")
        return parse(data)
    except OSError as error:
        raise DataForbidden(f"{path}: {error.strerror}") from None
    except ConfigFault as fault:
        raise DataForbidden(f"{path}: {fault}") from None


def record(root: Path) -> dict[Path, str]:
    """What was recorded of a data set: resolved file → SHA-256. Raises DataForbidden."""
    path = root / RECORD
    found = {}
    try:
        lines = path.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    except OSError as error:
        raise DataForbidden(f"{path}: {error.strerror}; `tapestry data add {root}` makes it") from None
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^\0]+)", line)
        if match is None:
            raise DataForbidden(f"{path}: line {number} is none of sha256sum; `tapestry data add {root}` makes it anew")
        found[(root / match[2]).resolve()] = match[1]
    return found


def declare(root: Path, manifest: Manifest) -> tuple[int, int]:
    """Record all files of `root` that are text we read, and write the manifest → (files, bytes). Raises DataForbidden, OSError."""
    lines, count = [], 0
    for file in _own(root):
        name = str(file.relative_to(root))
        if set("\n\r\\") & set(name):
            raise DataForbidden(f"{name!r}: a line break or a backslash in a file's name cannot be recorded; rename it")
        lines.append(f"{digest(file)}  {name}\n")
        count += file.stat().st_size
    write(root / RECORD, "".join(lines).encode("utf-8", "surrogateescape"))
    write(root / MANIFEST, written(manifest))
    return len(lines), count


def differences(root: Path) -> list[str]:
    """What is not as it was recorded, each in words; every file is read. Raises DataForbidden, OSError."""
    recorded = record(root)
    there = _own(root)
    found = [f"{file}: recorded, and not there" for file in sorted(set(recorded) - set(there))]
    found += [f"{file}: not recorded" for file in there if file not in recorded]
    found += [f"{file}: changed since it was recorded" for file in there if file in recorded and digest(file) != recorded[file]]
    return found


def _own(root: Path) -> list[Path]:
    """The files of the data set at `root`: not those of others below it, nor what links lead out to."""
    root = root.resolve()
    others = {path.parent for path in root.rglob(MANIFEST)} - {root}
    return [file for file in find([root]) if file.is_relative_to(root) and not others & set(file.parents)]


def digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
