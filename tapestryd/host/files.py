"""Files that are whole or not there: written temp, fsync, rename; moved all together or not at all; damaged ones set aside, and
unreadable ones left alone; and who may write them."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tapestryd.errors import DiskFull, StateFault, Unavailable

log = logging.getLogger(__name__)

Move = tuple[Path, Path]
"""From where, to where; both on one file system."""


def unwritten(error: DiskFull | OSError) -> str:
    """Why a file was not written, in a few words, for a sentence that says which."""
    return "the disk is full" if isinstance(error, DiskFull) else str(error.strerror)


@contextmanager
def saying_disk_full(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{what}: the disk is full; nothing was lost, make room and it goes on") from None
        raise


@contextmanager
def saying_unreadable(what: Path) -> Iterator[None]:
    """What cannot be read now may be whole all the same: nothing is concluded from it. Raises StateFault, Unavailable."""
    try:
        yield
    except PermissionError as error:
        raise StateFault(f"{what}: {error.strerror}; was tapestryd run here as another user? chown it back, nothing was changed") from None
    except OSError as error:
        raise Unavailable(f"{what} cannot be read ({error.strerror}); is the disk, or its connection, failing?") from None


def write(path: Path, *chunks: bytes | memoryview, mode: int = 0o666, like: os.stat_result | None = None) -> None:
    """Replace `path` whole, or not at all. `like`: the owner, group and mode that it is to have. Raises DiskFull, OSError."""
    temporary = path.with_name(path.name + ".new")
    with saying_disk_full(path):
        try:
            temporary.unlink(missing_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                if like is not None:
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                    os.fchmod(file.fileno(), like.st_mode & 0o7777)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


LOCK_S = 60.0
"""How long to wait for a trainer before us, which may still be writing its last checkpoint."""


def locked(path: Path, waiting: Callable[[], None]) -> int:
    """Lock `path`, until the descriptor that is returned is closed or the process ends. Waits up to LOCK_S for whoever has it,
    calling `waiting` (which may raise) ten times a second. Raises TimeoutError, OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        tries = int(LOCK_S * 10)
        for left in range(tries, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if left == tries:
                    log.info("%s: waiting for whoever has it to end", path)
                if left:
                    waiting()
                    time.sleep(0.1)
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
    except BaseException:
        os.close(file)
        raise


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def move_all(moves: Sequence[Move]) -> None:
    """Rename one after the other, into folders that are made if missing. If one cannot be, all go back. Raises OSError."""
    made = list(dict.fromkeys(there.parent for _, there in moves if not there.parent.exists()))
    moved: list[Move] = []
    try:
        for folder in made:
            folder.mkdir(parents=True)
        for here, there in moves:
            here.rename(there)
            moved.append((here, there))
        for folder in {path.parent for move in moves for path in move} | {folder.parent for folder in made}:
            sync(folder)
    except OSError:
        for here, there in reversed(moved):
            there.rename(here)
        for folder in [*made, *(folder.parent for folder in made)]:
            with suppress(OSError):  # not made yet, or somebody's
                folder.rmdir()
        raise


def set_aside(path: Path, why: str) -> None:
    log.warning("%s is damaged (%s): set aside as %s.damaged", path, why, path.name)
    with suppress(FileNotFoundError):  # pruned since it was read
        path.rename(path.with_name(path.name + ".damaged"))


_CHUNK_BYTES = 1 << 20


def last_lines(path: Path, count: int) -> list[bytes]:
    """The last `count` lines of a file, or all of them, however long it is by now: read from its end."""
    data = b""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at and data.count(b"\n") <= count:
            chunk = min(at, _CHUNK_BYTES)
            at = file.seek(at - chunk)
            data = file.read(chunk) + data
    return data.splitlines()[-count:]
