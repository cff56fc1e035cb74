"""Many files in one, with a list that says what each must be: a gzipped tar whose first member is manifest.json.

Knows nothing of what the files are for, nor of where they belong. What is read is not believed: names, sizes and digests are checked.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.control import SCHEMA
from tapestryd import __version__
from tapestryd.errors import LocalFault

FILE_BYTES = 256 << 20
_ALL_BYTES = 1 << 30
_TOP, _MANIFEST = "tapestry/", "manifest.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """One file. `mode`: its permissions; `user`, `group`: whose it was, by name; "" if they had none."""

    data: bytes
    mode: int
    user: str
    group: str


@dataclass(frozen=True, slots=True)
class Pack:
    """`peer_id`: whose it is; "": nobody's. `files`: name → file."""

    peer_id: str
    made_ms: int
    files: Mapping[str, Kept]


def pack(peer_id: str, now_ms: int, files: Mapping[str, Kept]) -> bytes:
    listed = {
        name: {"sha256": hashlib.sha256(kept.data).hexdigest(), "mode": kept.mode, "user": kept.user, "group": kept.group}
        for name, kept in files.items()
    }
    manifest = {"schema": SCHEMA, "version": __version__, "made_ms": now_ms, "peer_id": peer_id, "files": listed}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, data in ((_MANIFEST, json.dumps(manifest, indent=1).encode()), *((name, kept.data) for name, kept in files.items())):
            info = tarfile.TarInfo(_TOP + name)
            info.size, info.mode, info.mtime = len(data), 0o600, now_ms // 1000
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def unpack(path: Path) -> Pack:
    """Raises LocalFault for anything that is not as its own list says."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            return _read(archive)
    except OSError as error:
        raise LocalFault(f"{path}: {error.strerror or error}.") from None
    except (tarfile.TarError, zlib.error, EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LocalFault(f"{path}: not as `tapestry backup create` wrote it, or damaged ({str(error)[:200]}).") from None


def _read(archive: tarfile.TarFile) -> Pack:
    found: dict[str, bytes] = {}
    left = _ALL_BYTES
    for member in archive:
        left -= member.size
        content = archive.extractfile(member) if member.isfile() and member.size <= FILE_BYTES and left >= 0 else None
        if content is None or not _is_name(member.name):
            raise ValueError(f"{member.name[:80]!r} does not belong there")
        found[member.name.removeprefix(_TOP)] = content.read()
    manifest: Any = json.loads(found.pop(_MANIFEST))
    listed = dict(manifest["files"])
    if manifest["schema"] != SCHEMA or listed.keys() != found.keys():
        raise ValueError("its list of files is not of what is in it")
    for name, one in listed.items():
        if hashlib.sha256(found[name]).hexdigest() != one["sha256"]:
            raise ValueError(f"{name} is not what it was")
    if not (peer_id := str(manifest["peer_id"])).isprintable():
        raise ValueError("its peer is none")
    files = {name: Kept(found[name], one["mode"] & 0o777, str(one["user"]), str(one["group"])) for name, one in listed.items()}
    return Pack(peer_id, int(manifest["made_ms"]), files)


def _is_name(name: str) -> bool:
    return name.startswith(_TOP) and name.isprintable() and all(part not in ("", ".", "..") for part in name.split("/"))
