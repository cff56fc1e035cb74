"""The trainer's end of the channel (protocols/trainer.md): orders in, reports out, two shared vectors, the run's rules.

Everything from the daemon is checked as if it were hostile. Knows nothing of models or torch.
"""

import fcntl
import mmap
import os
import select
import socket
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.layout import Layout
from protocols.refusal import Reason, Refused
from protocols.trainer import ABI, SIZE, Base, Hello, Quit, Report, Rest, Stop, Train, pack, unpack

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FINAL = _SEALS | fcntl.F_SEAL_WRITE

DESCRIPTORS = 4
"""With HELLO: params, delta, rules, tokenizer."""


class Shared:
    """The two vectors, (n,) float32: `params` is read-only here, `delta` is ours to write. Others may write `params` at any
    time: copy, then validate."""

    def __init__(self, params: NDArray[np.float32], delta: NDArray[np.float32]) -> None:
        self.params = params
        self.delta = delta


class Channel:
    """One SOCK_SEQPACKET socket. A daemon that is gone is a QUIT: `receive` says so for ever after."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close_inbound(self) -> None:
        """What a SIGTERM handler calls: orders already sent are still read, then comes QUIT. Reports still go out."""
        self._socket.shutdown(socket.SHUT_RD)

    def closing(self) -> bool:
        """Whether the daemon is gone or `close_inbound` was called, even behind unread orders."""
        return any(event & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, event in self._poll.poll(0))

    def receive(self, patience_s: float) -> Base | Train | Stop | Rest | Quit | None:
        """The next order; None when none comes within `patience_s`. Raises Refused for what is no order."""
        if not self._poll.poll(1000 * patience_s):
            return None
        try:
            packet = self._socket.recv(SIZE + 1)
        except ConnectionError:
            return Quit()
        if not packet:
            return Quit()
        message = unpack(packet)
        if not isinstance(message, Base | Train | Stop | Rest | Quit):
            raise Refused(Reason.MALFORMED, f"a {type(message).__name__} is no order for a running trainer")
        return message

    def send(self, report: Report) -> None:
        """Never blocks. A daemon that is gone is noticed by `receive`, not here; to one that left some 200 reports unread it comes to
        the same: QUIT, behind the orders that it has sent."""
        try:
            self._socket.send(pack(report), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.close_inbound()
        except ConnectionError:
            pass

    def hello(self) -> tuple[Hello, list[int]] | None:
        """The first packet, with the four descriptors that came along (ours to close); None when the daemon is gone already.
        Raises Refused."""
        packet, descriptors, flags, _ = socket.recv_fds(self._socket, SIZE + 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return None
        try:
            message = unpack(packet)
            if not isinstance(message, Hello) or message.abi != ABI:
                raise Refused(Reason.MALFORMED, f"the first packet is no HELLO of ABI {ABI}")
            if len(descriptors) != DESCRIPTORS or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise Refused(Reason.MALFORMED, f"{len(descriptors)} descriptors came with HELLO, not {DESCRIPTORS}")
        except Refused:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return message, descriptors


def content(descriptor: int, most: int) -> bytes:
    """All that a memfd holds, at most `most` bytes, which nobody can change any more. Raises Refused."""
    size = os.fstat(descriptor).st_size
    if _seals(descriptor) & _FINAL != _FINAL or size > most:
        raise Refused(Reason.TOO_LARGE if size > most else Reason.MALFORMED, f"rules or tokenizer of {size} bytes, or not sealed")
    return os.pread(descriptor, size, 0)


def share(hello: Hello, descriptors: Sequence[int], layout: Layout) -> Shared:
    """Check that HELLO is about `layout` and map its two vectors. Raises Refused."""
    if (hello.elements, hello.fragments, hello.layout.hex()) != (layout.elements, layout.fragments, layout.digest()):
        raise Refused(
            Reason.OTHER_RUN, f"the daemon's vector ({hello.elements} elements) is not of the run rules' layout ({layout.elements})"
        )
    size = 4 * layout.elements
    for descriptor in descriptors:
        if _seals(descriptor) & _SEALS != _SEALS or os.fstat(descriptor).st_size != size:
            raise Refused(Reason.MALFORMED, f"a shared vector is not a sealed memfd of {size} bytes")
    params = mmap.mmap(descriptors[0], size, prot=mmap.PROT_READ)
    delta = mmap.mmap(descriptors[1], size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return Shared(np.frombuffer(params, "<f4"), np.frombuffer(delta, "<f4"))


def _seals(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:  # no memfd
        return 0
