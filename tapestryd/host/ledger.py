"""The ledger's files: what left the data side, and what was kept back, on disk before it happens (protocols/ledger.md).

    folder/                     checkpoint.dir/ledger; one trainer at a time
    ├── lock, key               Ed25519, 0400, made at the first start
    ├── 000000000001.ledger     lines, named by the first; full, it becomes read-only and the chain goes on
    └── 000000006214.ledger     in the next one
A line that a crash left unfinished is dropped at the next start, and the entry that says so takes its place in one step. Anything
else that is not as it was written is a fault: nothing leaves until somebody has looked. Knows nothing of vectors.
"""

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocols.canonical import digest, loads
from protocols.identity import peer_id
from protocols.ledger import LINE_BYTES, START, Chain, Entry, Opened, Recovered, Released, What, Withheld, line, parse
from protocols.refusal import Refused
from protocols.trainer import ALL_FRAGMENTS, Code
from tapestryd.config import Release
from tapestryd.errors import DiskFull, LocalFault
from tapestryd.host.files import locked, saying_disk_full, sync, write
from tapestryd.host.keys import make_key, read_key, verify

log = logging.getLogger(__name__)

SEGMENT_BYTES = 1 << 20
"""A file at most: some 1,700 entries, a week of rounds of six minutes. The last two are followed at a start."""

HOUR_MS = 3_600_000

_LOOK = "nothing leaves until that is cleared up; tapestry audit --verify says more"


class LedgerFault(LocalFault):
    code = Code.LEDGER
    exit_code = 78


def segments(folder: Path) -> list[Path]:
    """A ledger's files in the order of their entries. Raises OSError."""
    return sorted(file for file in folder.iterdir() if file.suffix == ".ledger" and file.stem.isascii() and file.stem.isdigit())


def read(file: Path) -> tuple[list[bytes], bytes]:
    """The lines of one file without their newlines, and what stands behind the last newline. Raises LedgerFault if it is larger than any
    is, OSError."""
    with file.open("rb") as opened:
        data = opened.read(SEGMENT_BYTES + LINE_BYTES)
    if len(data) == SEGMENT_BYTES + LINE_BYTES:
        raise LedgerFault(f"{file}: larger than a ledger's files are")
    *found, rest = data.split(b"\n")
    return found, rest


class Ledger:
    """Open for writing until `close`. `number`, `head`: of the latest entry."""

    def __init__(self, folder: Path, rules: Release, *, now_ms: Callable[[], int], waiting: Callable[[], None]) -> None:
        """Waits for another trainer to end, as `files.locked`. Raises LedgerFault, DiskFull."""
        self.folder = folder
        self.number, self.head = 0, START
        self._now_ms = now_ms
        self._hour: dict[type[What], deque[int]] = {Released: deque(), Withheld: deque()}
        self._batches: dict[tuple[str, int], int] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = locked(folder / "lock", waiting)
        except TimeoutError:
            raise LedgerFault(f"{folder}: another trainer writes to it; give each daemon its own checkpoint.dir") from None
        except OSError as error:
            raise LedgerFault(f"{folder}: {error.strerror}; set checkpoint.dir to a folder that can be written") from None
        try:
            with saying_disk_full(folder):
                files = segments(folder)
                self._file, self._size = files[-1] if files else self._named(1), 0
                self._key = self._unlock(begun=bool(files))
                self._follow(files[-2:])
            self.write(Opened(
                self.name, rules.min_steps, rules.min_examples, rules.delta_clip_norm, rules.delta_noise_std, rules.max_per_hour
            ))  # fmt: skip
        except OSError as error:
            self.close()
            raise LedgerFault(f"{error.filename or folder}: {error.strerror}") from None
        except LocalFault:
            self.close()
            raise

    def write(self, what: What) -> tuple[int, bytes]:
        """Append an entry → its number and its line's digest, once it is on disk. Raises DiskFull, with the ledger as it was before;
        LedgerFault, when nobody knows how it is now."""
        entry, data = self._next(what)
        try:
            self._append(data)
        except OSError as error:
            said = f"{self._file}: {error.strerror}; what cannot be written down does not leave"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT) and self._undone()
            raise DiskFull(said) if full else LedgerFault(said) from None
        self._size += len(data)
        self._took(entry, digest(data[:-1]))
        return self.number, bytes.fromhex(self.head)

    def last_hour(self, kind: type[What]) -> int:
        """How many such entries are less than an hour old, of all runs. A clock that was set by more than that is believed."""
        times, now = self._hour[kind], self._now_ms()
        while times and abs(now - times[0]) >= HOUR_MS:
            times.popleft()
        return len(times)

    def batches(self, run: str, fragment: int) -> int:
        """Batches that had been drawn when the fragment was last released; 0 if it never was, or long before the last two files."""
        return max(self._batches.get((run, which), 0) for which in (fragment, ALL_FRAGMENTS))

    def close(self) -> None:
        os.close(self._lock)

    def _named(self, first: int) -> Path:
        return self.folder / f"{first:012d}.ledger"

    def _unlock(self, *, begun: bool) -> Ed25519PrivateKey:
        """The key; made, where nothing was signed yet. Raises LedgerFault, OSError."""
        file = self.folder / "key"
        if not begun and not file.exists():
            make_key(file, 0o400)
        try:
            return read_key(file)
        except (FileNotFoundError, Refused) as error:
            why = "it is gone" if isinstance(error, FileNotFoundError) else error.detail
            raise LedgerFault(f"{file}: {why}; restore it, or begin anew by moving {self.folder} away (the network side notices)") from None

    def _follow(self, files: list[Path]) -> None:
        """Find our place behind the last entry. Raises LedgerFault, OSError."""
        chain: Chain | None = None
        for file in files:
            found, rest = read(file)
            if file == files[-1]:
                rest = rest or _unreadable(found)
            elif rest:
                raise LedgerFault(f"{file}: ends in the middle of a line, and another file follows; {_LOOK}")
            for data in found:
                try:
                    if chain is None:
                        first = parse(data)
                        chain = Chain(verify, number=first.number - 1, head=first.prev, key=self.name)
                    entry = chain.follow(data)
                except Refused as refused:
                    raise LedgerFault(f"{file}: {refused.detail}; {_LOOK}") from None
                self._took(entry, chain.head)
            self._size = sum(len(data) + 1 for data in found)
            if rest:
                self._recover(b"".join(data + b"\n" for data in found), rest)

    def _recover(self, kept: bytes, torn: bytes) -> None:
        """Drop what was never finished, and say so, in one step."""
        log.warning("%s: a line that a crash left unfinished, of %d bytes, is dropped; its vector had not left", self._file, len(torn))
        if not self.number:  # nobody knows whose ledger it is yet
            write(self._file, mode=0o600)
            return
        entry, data = self._next(Recovered(len(torn), digest(torn)))
        write(self._file, kept, data, mode=0o600)
        self._size += len(data)
        self._took(entry, digest(data[:-1]))

    def _next(self, what: What) -> tuple[Entry, bytes]:
        entry = Entry(self.number + 1, self.head, self._now_ms(), what)
        return entry, line(entry, self._key.sign) + b"\n"

    def _append(self, data: bytes) -> None:
        """Raises OSError; a part of `data` may be there then."""
        if self._size and self._size + len(data) > SEGMENT_BYTES:
            self._file.chmod(0o400)
            self._file, self._size = self._named(self.number + 1), 0
        with open(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        if not self._size:
            sync(self.folder)

    def _undone(self) -> bool:
        """Take away what is there of a line. False: it cannot be."""
        try:
            os.truncate(self._file, self._size)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _took(self, entry: Entry, head: str) -> None:
        self.number, self.head = entry.number, head
        what = entry.what
        if isinstance(what, Released | Withheld):
            self._hour[type(what)].append(entry.time_ms)
        if isinstance(what, Released):
            self._batches[what.run, what.fragment] = what.batches

    @property
    def name(self) -> str:
        """Of this machine's data side: its ledger's key's."""
        return peer_id(self._key.public_key().public_bytes_raw())


def _unreadable(found: list[bytes]) -> bytes:
    """A last line that is nothing at all, taken off `found`: the blocks of a file reach the disk in any order."""
    try:
        if found:
            loads(found[-1], LINE_BYTES)
    except Refused:
        return found.pop() + b"\n"
    return b""
