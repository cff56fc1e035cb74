"""What the kernel says of sockets and interfaces, asked on this machine: no root, loopback only."""

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from tapestryd.host.kernel import Kernel, Socket, inodes

SIZE = 300_000


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with closing(Kernel()) as made:
        yield made


def pair(family: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection on the loopback."""
    with socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family) as listening:
        here = socket.create_connection(listening.getsockname()[:2])
        return here, listening.accept()[0]


def move(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    while size:
        sender.sendall(bytes(chunk := min(size, 16_384)))
        while chunk:
            came = len(receiver.recv(chunk))
            chunk, size = chunk - came, size - came


def told(kernel: Kernel, cookie: int) -> Socket:
    """The end of that socket, when the kernel tells of it."""
    while select.select([kernel._destroyed], [], [], 5)[0]:
        for ended in kernel.destroyed():
            if ended.cookie == cookie:
                return ended
    raise AssertionError("the kernel does not tell of its end")


def cookie_of(kernel: Kernel, end: socket.socket) -> int:
    (found,) = [one.cookie for one in kernel.sockets() if one.inode == os.fstat(end.fileno()).st_ino]
    return found


@pytest.mark.parametrize(("family", "header"), [(socket.AF_INET, 52), (socket.AF_INET6, 72)])
def test_bytes_of_a_connection_are_counted_exactly(kernel: Kernel, family: int, header: int) -> None:
    try:
        here, there = pair(family)
    except OSError as absent:
        pytest.skip(f"no loopback address of this family: {absent}")
    with here, there:
        move(here, there, SIZE)
        move(there, here, 1000)
        local, remote = here.getsockname()[:2], there.getsockname()[:2]
        (found,) = [one for one in kernel.sockets() if one.local == local and one.remote == remote]
        assert (found.sent, found.received, found.header_bytes) == (SIZE, 1000, header)
        assert found.segments_sent > 2
        assert found.inode == os.fstat(here.fileno()).st_ino
        assert found.inode in inodes(os.getpid())


def test_the_end_of_a_connection_is_told_with_all_that_it_moved(kernel: Kernel) -> None:
    here, there = pair(socket.AF_INET)
    cookie, local = cookie_of(kernel, here), here.getsockname()
    move(here, there, SIZE)
    here.close()
    ended = told(kernel, cookie)
    there.close()
    assert (ended.local, ended.sent, ended.inode) == (local, SIZE, 0)


def test_who_cuts_a_connection_off_loses_its_counts_and_the_other_does_not(kernel: Kernel) -> None:
    """So libp2p ends its own; connections.py then goes by its last look."""
    here, there = pair(socket.AF_INET)
    ours, theirs = cookie_of(kernel, here), cookie_of(kernel, there)
    move(here, there, SIZE)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    here.close()
    assert told(kernel, ours).sent == 0
    there.close()
    assert told(kernel, theirs).received == SIZE


def test_interfaces_are_as_proc_has_them(kernel: Kernel) -> None:
    (loopback,) = [one for one in kernel.interfaces() if one.loopback]
    assert "127.0.0.1" in loopback.addresses
    here, there = pair(socket.AF_INET)
    with here, there:
        move(here, there, SIZE)
    (after,) = [one for one in kernel.interfaces() if one.loopback]
    assert after.sent - loopback.sent > SIZE
    assert after.packets_received > loopback.packets_received
    with open("/proc/net/dev") as file:
        assert {line.partition(":")[0].strip() for line in file if ":" in line} == {one.name for one in kernel.interfaces()}
