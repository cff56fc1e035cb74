"""The files of settings, brought to a network side in a box: none of them is in there, and the other side's lie beside them.

It asks on a SOCK_SEQPACKET socket that it shares with the warden, and gets what the files hold at that moment in a memfd. That it asks
is all that is heard, so whoever has taken it over learns what it knows already.
"""

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tapestryd.errors import Unavailable
from tapestryd.layers import Source

_ANSWER_S = 10.0


def ask(warden: socket.socket) -> tuple[Source, ...]:
    """Raises Unavailable where nobody answers."""
    try:
        _forget(warden)
        warden.settimeout(_ANSWER_S)
        warden.send(b"?")
        _, descriptors, _, _ = socket.recv_fds(warden, 1, 1, socket.MSG_CMSG_CLOEXEC)
        with open(descriptors[0], "rb") as answer:
            answer.seek(0)
            return tuple(Source(Path(path), data.encode("latin-1"), fault) for path, data, fault in json.load(answer))
    except (OSError, IndexError) as error:
        raise Unavailable(f"the warden does not bring the files of settings ({error!r}); restart tapestryd") from None


def _forget(warden: socket.socket) -> None:
    """What came too late for whoever asked before us."""
    warden.setblocking(False)
    with suppress(BlockingIOError):
        while descriptors := socket.recv_fds(warden, 1, 1, socket.MSG_CMSG_CLOEXEC)[1]:
            os.close(*descriptors)


def answer(network: socket.socket, files: Sequence[Source]) -> None:
    """`network` does not block: whoever does not take the answer in gets none, the warden waits for nobody."""
    with open(os.memfd_create("settings"), "wb") as memory:
        memory.write(json.dumps([(str(file.path), file.data.decode("latin-1"), file.fault) for file in files]).encode())
        memory.flush()
        with suppress(OSError):
            socket.send_fds(network, [b"!"], [memory.fileno()])
