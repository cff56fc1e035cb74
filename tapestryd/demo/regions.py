"""Regions: the private text of each peer of a demo, and the name it goes by.

Without folders of the user's, real text that every Python installation holds: prose of the language reference, source
of the standard library, and C headers (or, where there are none, the notices that installed packages carry). With more
peers than kinds, a kind is dealt out to several regions, document by document, so that no two have the same text.
Knows nothing of daemons.
"""

import importlib.metadata
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestryd.errors import LocalFault

PEERS = 16
"""More daemons than this on one machine show nothing that fewer do not."""

TEXT_BYTES = 1_500_000
"""Of one region at most: more than a demo's local steps read, and tokenised in a second."""
LEAST_BYTES = 20_000
"""Below this a region has next to nothing to hold out."""

_NAME = 24
_NOT_SOURCE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}
_NOTICES = re.compile(r"(^|/)(METADATA|LICEN[CS]E|COPYING|NOTICE|AUTHORS)|\.(txt|md|rst)$")


@dataclass(frozen=True, slots=True)
class Region:
    """`name` is a file name, and unique in its demo. `data`: the folder or file that its trainer reads."""

    name: str
    data: Path


def from_folders(folders: Sequence[Path]) -> list[Region]:
    """One region a folder, under its own name. Raises LocalFault naming every folder that will not do."""
    faults = [f"--data {folder}: no such folder" for folder in folders if not folder.is_dir()]
    absolute = [folder.resolve() for folder in folders]
    faults += [
        f"--data {folder}: given twice; each peer has its own text" for folder in sorted(set(absolute)) if absolute.count(folder) > 1
    ]
    if faults:
        raise LocalFault("\n".join(faults))
    names = [_word(folder.name) for folder in absolute]
    return [
        Region(name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}", folder)
        for place, (name, folder) in enumerate(zip(names, absolute, strict=True))
    ]


def from_python(peers: int, folder: Path) -> list[Region]:
    """`peers` regions of this Python's own text, each written to `folder`/NAME/data. Raises LocalFault where it holds too little."""
    most = TEXT_BYTES * (1 + peers // 3)
    kinds = {"prose": _prose(), "library": _source(most), "headers": _headers(most)}
    if sum(map(len, kinds["headers"])) < 2 * LEAST_BYTES * (1 + peers // 3):
        del kinds["headers"]
        kinds["notices"] = _notices(most)
    regions = []
    for place, (kind, documents) in enumerate(kinds.items()):
        shares = len(range(place, peers, len(kinds)))
        for share in range(shares):
            name = kind if shares == 1 else f"{kind}-{share + 1}"
            text = _bounded(documents[share::shares])
            if len(text) < LEAST_BYTES:
                raise LocalFault(
                    f"This Python holds too little text for {peers} peers; start fewer with --peers, or name folders with --data."
                )
            data = folder / name / "data"
            data.mkdir(parents=True)
            (data / "text.txt").write_bytes(text)
            regions.append(Region(name, data))
    return regions


def _bounded(documents: Iterable[bytes]) -> bytes:
    """Whole documents, as many as fit."""
    kept, room = [], TEXT_BYTES
    for document in documents:
        if len(document) <= room:
            kept.append(document)
            room -= len(document) + 2
    return b"\n\n".join(kept)


def _prose() -> list[bytes]:
    from pydoc_data.topics import topics  # 700 KB that nothing else needs

    return [text.encode() for _, text in sorted(topics.items())]


def _source(most: int) -> list[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    return _read((path for path in _files(root, ".py") if not _NOT_SOURCE & set(path.relative_to(root).parts)), most)


def _headers(most: int) -> list[bytes]:
    return _read(_files(Path(sysconfig.get_path("include")), ".h"), most)


def _notices(most: int) -> list[bytes]:
    """What installed packages say of themselves and their licences; a text that many share is taken once."""
    found = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if _NOTICES.search(str(file)):
                found[str(file)] = Path(str(distribution.locate_file(file)))
    return list(dict.fromkeys(_read((path for _, path in sorted(found.items())), most)))


def _files(root: Path, suffix: str) -> Iterator[Path]:
    """Nearest the root first, so that the best-known modules come before the corners."""
    return iter(sorted(root.rglob(f"*{suffix}"), key=lambda path: (len(path.parts), str(path))))


def _read(paths: Iterable[Path], most: int) -> list[bytes]:
    """The texts of `paths`, at most so many bytes together; what cannot be read is left out."""
    texts, room = [], most
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if text and len(text) <= room:
            texts.append(text)
            room -= len(text)
    return texts


def _word(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip(".-")[:_NAME] or "region"
