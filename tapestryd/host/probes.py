"""Trying the walls: what a process of either side does at start, and every hour, to see that it cannot do what it must not.

Each probe really tries, and says "held" (impossible, as it should be), "open" (possible) or nothing (it cannot be tried here).
A probe changes nothing. The data side's are protocols.trainer.Check; the network side's are words of our own.
"""

import ctypes
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISSOCK
from typing import ClassVar

from protocols.trainer import Check, Checks, Code
from tapestryd.errors import LocalFault
from tapestryd.host import seccomp

log = logging.getLogger(__name__)

EVERY_S = 3600.0

_FAMILIES = 46
"""Address families that Linux has had so far."""
_STREAMS = (0, 1, 2)
"""Under systemd these are sockets, too: of the journal."""
_PLACES = tuple(map(Path, ("/home", "/root", "/srv", "/mnt", "/media")))
"""Where people keep what is theirs."""
_GPUS = ("nvidia*", "kfd", "dri", "dxg")
_NETWORK_STATE = Path("/var/lib/tapestry/identity.key")

Verdicts = dict[str, bool]
"""Name of a probe → whether the wall held."""


class Open(LocalFault):
    """A wall that is required does not hold."""

    code: ClassVar[Code] = Code.ISOLATION
    exit_code = 78


@dataclass(slots=True)
class Walls:
    """What the data side tries, again and again. `channel`: the one socket that may be open, beside standard streams; `given`: what else
    may be open at first; `data`: folders and files of text; `required`: whether to go on with a wall open."""

    channel: int
    given: frozenset[int]
    data: tuple[Path, ...]
    required: bool
    clock: Callable[[], float]
    tried_s: float | None = None

    def due(self) -> Checks | None:
        """What was found, if it is time to try. Raises Open."""
        now, first = self.clock(), self.tried_s is None
        if self.tried_s is not None and now - self.tried_s < EVERY_S:
            return None
        self.tried_s = now
        held, open_ = data_side(self.channel, self.given if first else None, self.data)
        if open_:
            words = ", ".join(check.name.lower() for check in Check if open_ >> check & 1)
            sentence = f"the data side's box is open: {words}; use the systemd units, or see `tapestry doctor`"
            if self.required:
                raise Open(f"{sentence}. To train all the same: [sandbox] require = false in trainer.toml")
            log.warning("%s", sentence)
        return Checks(held, open_)


def data_side(channel: int, given: frozenset[int] | None, data: Sequence[Path]) -> tuple[int, int]:
    """The two bit sets of CHECKS; for `given` None: later on, when libraries have opened files of their own."""
    verdicts: dict[Check, bool | None] = {
        Check.INTERFACES: _interfaces() <= {"lo"},
        Check.SOCKETS: not any(map(_makes_socket, range(_FAMILIES))),
        Check.IO_URING: _no_io_uring(),
        Check.DESCRIPTORS: _sockets() <= {*_STREAMS, channel} and (given is None or _descriptors().keys() <= {*_STREAMS, channel} | given),
        Check.NETWORK_SIDE: not _opens(_NETWORK_STATE),
        Check.MEMORY: not any(map(_looks_into, _others({os.getpid(), os.getppid()}))),
        Check.PRIVILEGES: _powerless(),
        Check.WRITES: not any(map(_writes, (*map(Path, ("/", "/usr", "/etc")), *data))),
    }
    held = sum(1 << check for check, verdict in verdicts.items() if verdict is True)
    return held, sum(1 << check for check, verdict in verdicts.items() if verdict is False)


def network_side(config: Path, needed: Sequence[Path]) -> Verdicts:
    """`config`: the data side's configuration file. `needed`: what we may see where people keep what is theirs."""
    allowed = [path.resolve() for path in needed]
    return {
        "devices": not any(True for pattern in _GPUS for _ in Path("/dev").glob(pattern)),
        "families": not any(map(_makes_socket, set(range(_FAMILIES)) - set(seccomp.NETWORK))),
        "io_uring": _no_io_uring(),
        "places": not any(_strays(place, allowed) for place in _PLACES),
        "privileges": _powerless(),
        "processes": not any(map(_looks_into, _others({os.getpid()}))),
        "trainer_config": not _opens(config),
    }


def _interfaces() -> set[str]:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


def _makes_socket(family: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(family, kind).close()
            return True
        except OSError:
            continue
    return False


def _no_io_uring() -> bool:
    """Whether io_uring_setup(2) fails: with no entries it must say EINVAL where it is allowed, so nothing is made."""
    try:
        call = seccomp.number("io_uring_setup")
    except KeyError:
        call = 425  # everywhere
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(call, 0, None)
    return ctypes.get_errno() in (1, 38)  # EPERM, ENOSYS


def _descriptors() -> dict[int, int]:
    """Number → mode of what is open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself, and what another thread closes meanwhile
            found[int(name)] = os.fstat(int(name)).st_mode
    return found


def _sockets() -> set[int]:
    """Those that could speak to somebody. (One that listens cannot: CUDA's driver keeps one.)"""
    return {number for number, mode in _descriptors().items() if S_ISSOCK(mode) and not _listens(number)}


def _listens(number: int) -> bool:
    with socket.socket(fileno=os.dup(number)) as copy:
        return bool(copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _powerless() -> bool:
    """No capability, none to be had, and a filter of system calls."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return int(status["CapEff"], 16) == 0 == int(status["CapPrm"], 16) and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"


def _opens(path: Path) -> bool:
    return _does(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))


def _others(ours: set[int]) -> list[int]:
    """Processes that are to be seen here, without `ours` and what they have started."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # it has ended
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for process in parents:
        above = process
        while above and above not in ours:
            above = parents.get(above, 0)
        if not above:
            found.append(process)
    return found


def _looks_into(process: int) -> bool:
    """Whether a process's memory can be opened, or its root, or one of its descriptors. (That it is there may be seen.)"""
    place = Path(f"/proc/{process}")
    return _opens(place / "mem") or _holds(place / "root", lambda path: True) or _holds(place / "fd", _opens)


def _holds(folder: Path, what: Callable[[Path], bool]) -> bool:
    try:
        return any(map(what, folder.iterdir()))
    except OSError:
        return False


def _strays(folder: Path, allowed: Sequence[Path]) -> bool:
    """Whether anything can be seen in `folder` that neither is allowed nor leads there."""
    try:
        inside = list(folder.iterdir())
    except OSError:
        return False
    for path in inside:
        if any(path.is_relative_to(one) for one in allowed):
            continue
        if path.is_symlink() or not any(one.is_relative_to(path) for one in allowed) or _strays(path, allowed):
            return True
    return False


def _writes(path: Path) -> bool:
    """Into a folder, or to a file."""
    how = os.O_TMPFILE | os.O_WRONLY if path.is_dir() else os.O_WRONLY
    return _does(lambda: os.close(os.open(path, how, 0o600)))


def _does(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
