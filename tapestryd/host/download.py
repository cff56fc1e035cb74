"""A snapshot on its way: pieces lie at their places in one file, and each proves itself by its digest, so a restart goes
on where it was with nothing else remembered."""

import shutil
from pathlib import Path

from protocols import limits
from protocols.canonical import digest
from protocols.lineage import Snapshot
from tapestryd.errors import DiskFull
from tapestryd.host.files import saying_disk_full


class Download:
    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self.path = path
        self._snapshot = snapshot
        with saying_disk_full(path), path.open("ab") as file:
            file.truncate(snapshot.size)
        missing_bytes = snapshot.size - path.stat().st_blocks * 512  # a hole until its pieces come
        if missing_bytes > shutil.disk_usage(path).free:
            raise DiskFull(f"{path}: a snapshot of {snapshot.size / 1e9:.1f} GB does not fit on the disk; make room and it goes on")

    def wanted(self) -> list[int]:
        """Pieces that are not there yet. Reads the whole file: call it off the event loop."""
        return [piece for piece in range(len(self._snapshot.pieces)) if self._read(self.path, piece) is None]

    def adopt(self, other: Path) -> None:
        """Take the pieces that are the same in another download: fragments that have not moved since."""
        for piece in range(len(self._snapshot.pieces)):
            data = self._read(other, piece)
            if data is not None:
                self.keep(piece, data)

    def _read(self, path: Path, piece: int) -> bytes | None:
        """A piece if it is the one of our manifest."""
        with path.open("rb") as file:
            file.seek(piece * limits.PIECE_BYTES)
            data = file.read(limits.PIECE_BYTES)
        return data if digest(data) == self._snapshot.pieces[piece] else None

    def keep(self, piece: int, data: bytes) -> None:
        with saying_disk_full(self.path), self.path.open("r+b") as file:
            file.seek(piece * limits.PIECE_BYTES)
            file.write(data)
