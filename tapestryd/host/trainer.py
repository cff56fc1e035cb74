"""The daemon's end of the trainer: open a channel, share two vectors, pass orders and reports.

The process at the other end is not ours: whoever listens at the socket (a steward) starts it, in a box of its own, and ends it when the
channel closes. Never imports torch: vectors are numpy views of memfds. Everything the trainer sends is checked as if it were
hostile; what is no report closes the channel. Beginning anew, and what a report means, are the caller's.
"""

import asyncio
import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.layout import Layout
from protocols.refusal import Reason, Refused
from protocols.trainer import (
    ABI,
    SIZE,
    Ended,
    Hello,
    Order,
    Quit,
    Ready,
    Report,
    pack,
    unpack,
)  # fmt: skip

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE = 0x10
"""Whoever has mapped it for writing may go on; nobody else may begin (Linux 5.1)."""
_MFD_NOEXEC_SEAL = 0x8
"""Cannot be executed, nor made so (Linux 6.3; older ones do not know it)."""

_BURST = 64
"""Reports read in one turn of the loop, so that a flooding trainer cannot hold it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a trainer is for. `rules`: canonical JSON. `tokenizer`: the run's tokenizer.json; empty for bytes."""

    layout: Layout
    rules: bytes
    tokenizer: bytes


class Trainer:
    """One channel to a trainer. Use `start`. `params` and `delta` stay readable after its end.

    `params` (n,) float32: ours to write, before a BASE. `delta` (n,) float32: the trainer's; copy, then validate.
    """

    params: NDArray[np.float32]
    delta: NDArray[np.float32]

    def __init__(self, elements: int, on_report: Callable[[Report], None], on_exit: Callable[[int | None], None]) -> None:
        self._elements, self._on_report, self._on_exit = elements, on_report, on_exit
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket
        self._status: int | None = None
        self._ended = asyncio.Event()
        self._more: asyncio.Handle | None = None

    @classmethod
    def start(cls, work: Work, where: Path, *, on_report: Callable[[Report], None], on_exit: Callable[[int | None], None]) -> "Trainer":
        """Connect to the socket at `where` and send HELLO; READY comes later, by `on_report`.

        `on_exit` is called exactly once, after the last report, with the trainer's exit status (negative: minus the signal; None: it
        is not known, as the channel was lost or closed), also after `stop`. Both run in this loop and must not raise.
        Raises OSError when nobody listens, or there is no memory or descriptor to be had; nothing is left behind then.
        """
        trainer = cls(work.layout.elements, on_report, on_exit)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        shared: list[int] = []
        try:
            ours.connect(str(where))
            shared.append(_memory("params", 4 * work.layout.elements))
            trainer.params = _mapped(shared[0])
            fcntl.fcntl(shared[0], fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
            shared.append(_memory("delta", 4 * work.layout.elements))
            trainer.delta = _mapped(shared[1])
            fcntl.fcntl(shared[1], fcntl.F_ADD_SEALS, _SEALS)
            for name, content in (("rules", work.rules), ("tokenizer", work.tokenizer)):
                shared.append(_memory(name, len(content)))
                os.pwrite(shared[-1], content, 0)
                fcntl.fcntl(shared[-1], fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_WRITE)
            hello = Hello(ABI, work.layout.fragments, work.layout.elements, bytes.fromhex(work.layout.digest()))
            socket.send_fds(ours, [pack(hello)], shared)
        except BaseException:
            ours.close()
            raise
        finally:
            for descriptor in shared:
                os.close(descriptor)
        trainer._socket = ours
        trainer._loop.add_reader(ours.fileno(), trainer._read)
        return trainer

    def send(self, order: Order) -> None:
        """Never blocks. A trainer that left some 200 orders unread is stuck: the channel closes. One that is gone hears nothing."""
        try:
            self._socket.send(pack(order))
        except BlockingIOError:
            self.close()
        except OSError:
            pass  # closed or reset: `on_exit` tells

    async def stop(self, timeout_s: float) -> None:
        """QUIT, so that it writes its checkpoint; after `timeout_s` the channel closes, and its steward sees to its end. Returns when
        `on_exit` has run. Idempotent."""
        self.send(Quit())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        self.close()

    def close(self) -> None:
        """Hear no more of it. Idempotent."""
        if self._ended.is_set():
            return
        self._loop.remove_reader(self._socket.fileno())
        if self._more is not None:
            self._more.cancel()
        self._socket.close()
        self._ended.set()
        self._on_exit(self._status)

    def _read(self) -> None:
        """Pass on the reports that have come, so many at most; what is left, in the next turn: uvloop does not watch a socket any more
        on which it has seen an error, which here means that the trainer ended with orders unread."""
        if self._more is not None:
            self._more.cancel()
            self._more = None
        for _ in range(_BURST):
            try:
                packet = self._socket.recv(SIZE + 1)
                report = self._checked(packet) if packet else None
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with orders unread; what had been sent before can still be read behind this error
            except Refused:  # not to be believed any more
                report = None
            if report is None:
                self.close()
                return
            if isinstance(report, Ended):
                self._status = report.status
            else:
                self._on_report(report)
            if self._ended.is_set():  # whoever heard it closed us
                return
        self._more = self._loop.call_soon(self._read)

    def _checked(self, packet: bytes) -> Report:
        report = unpack(packet)
        if not isinstance(report, Report):
            raise Refused(Reason.MALFORMED, f"a {type(report).__name__} is no report")
        if isinstance(report, Ready) and (report.abi, report.elements) != (ABI, self._elements):
            raise Refused(Reason.MALFORMED, "READY of another ABI or vector")
        return report


def _memory(name: str, size: int) -> int:
    """A memfd of `size` zeros, not sealed yet. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        made = os.memfd_create(f"tapestry-{name}", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        made = os.memfd_create(f"tapestry-{name}", flags)
    try:
        os.ftruncate(made, size)
    except BaseException:
        os.close(made)
        raise
    return made


def _mapped(descriptor: int) -> NDArray[np.float32]:
    return np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size), "<f4")
