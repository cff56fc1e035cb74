"""The trainer's own checkpoint: one file per run, replaced whole or not at all, and one trainer at a time.

Temp, fsync, rename. It is as large as the model and more, and takes its time; beside it stands, in some bytes, what of it has been
overtaken since. A file that cannot be read back is set aside with a warning, and training starts from the
Shared Base: local progress is worth little, a wrong state much. Knows nothing of what the state means.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tapestryd.errors import DiskFull, StateFault
from tapestryd.host.files import locked, sync, write

log = logging.getLogger(__name__)

FORMAT = 2


class Checkpoint:
    """`folder`/<run_id>/local.pt, `replaced` beside it, and the lock that keeps a second trainer out; held until `close` or the process
    ends."""

    def __init__(self, folder: Path, run_id: str, *, waiting: Callable[[], None]) -> None:
        """Waits for another trainer to end, as `files.locked`. Raises StateFault."""
        self.folder = folder / run_id
        self._run_id = run_id
        self._file = self.folder / "local.pt"
        self._overtaken = self.folder / "replaced"
        self._replaced: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder / "lock", waiting)
        except TimeoutError:
            raise StateFault(f"{self.folder}: another trainer of this run uses it; give each daemon its own checkpoint.dir") from None
        except OSError as error:
            raise StateFault(f"{self.folder}: {error.strerror}; set checkpoint.dir to a folder that can be written") from None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file. A failure (disk full) is a warning: what was there before stays, and training can go on."""
        partial = self._file.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save({"format": FORMAT, "run_id": self._run_id, **state}, file)
            with partial.open("r+b") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
                file.seek(0, os.SEEK_END)
                file.write(digest)  # behind the archive, where its reader does not look: torch checks no sums itself
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._file)
            sync(self.folder)
            self._forget()
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            partial.unlink(missing_ok=True)
            log.warning("checkpoint not written to %s (%s); local progress since the last one would die with a crash", self._file, error)

    def replaced(self, fragment: int) -> None:
        """The base took the place of a fragment's local progress, and so of what is saved of it. Where that cannot be written down, what is
        saved is set aside: it would be learned twice."""
        if not self._file.exists():
            return
        self._replaced.add(fragment)
        try:
            write(self._overtaken, json.dumps(sorted(self._replaced)).encode())
        except (OSError, DiskFull) as error:
            log.warning("%s cannot be written (%s): the checkpoint is set aside", self._overtaken, error)
            self.set_aside()

    def load(self, restore: Callable[[dict[str, Any]], None]) -> bool:
        """Hand what was saved for this run to `restore`, with the fragments of it that were `replaced` since → True. False: there was
        nothing, or it could not be read back or restored; then it is set aside as local.damaged. Raises MemoryError and torch's own."""
        if not self._file.exists():
            return False
        try:
            with self._file.open("rb") as file:
                size = os.fstat(file.fileno()).st_size - hashlib.sha256().digest_size
                if size <= 0 or _digest(file, size) != file.read():
                    raise ValueError("it does not match its digest")
            state = torch.load(self._file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or (state.get("format"), state.get("run_id")) != (FORMAT, self._run_id):
                raise ValueError("it is of another run or another version")
            if self._overtaken.exists():
                self._replaced = set(json.loads(self._overtaken.read_bytes()))
            restore(state | {"replaced": sorted(self._replaced)})
            return True
        except (MemoryError, torch.OutOfMemoryError):
            raise  # another program's doing, more likely than not: the next start may have room
        except Exception as error:  # damaged in any way at all: the Shared Base is the way on
            log.warning("%s cannot be used (%s): set aside, training starts from the Shared Base", self._file, error)
            self.set_aside()
            return False

    def set_aside(self) -> None:
        """Rename what is saved to local.damaged, so that the next start begins at the Shared Base."""
        if self._file.exists():
            self._file.replace(self._file.with_suffix(".damaged"))
        self._forget()

    def _forget(self) -> None:
        self._overtaken.unlink(missing_ok=True)
        self._replaced.clear()

    def close(self) -> None:
        os.close(self._lock)


def _digest(file: io.BufferedReader, size: int) -> bytes:
    """SHA-256 of the next `size` bytes."""
    found = hashlib.sha256()
    while size > 0 and (data := file.read(min(size, 1 << 20))):
        found.update(data)
        size -= len(data)
    return found.digest()
