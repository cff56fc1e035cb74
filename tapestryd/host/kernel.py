"""What the kernel counts in this network namespace: bytes and segments of each TCP socket, bytes and packets of each interface.

By netlink alone, which asks for no privilege: sock_diag(7) lists the sockets, and tells of each that is destroyed what it had
moved by then, however short it lived; rtnetlink(7) lists the interfaces. Knows nothing of whose sockets they are. Linux 4.19.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

Endpoint = tuple[str, int]
"""IP address, port."""

_NETLINK_SOCK_DIAG = 4
_TCP_DESTROYED = 1 << 0 | 1 << 2
"""Groups SKNLGRP_INET_TCP_DESTROY and SKNLGRP_INET6_TCP_DESTROY."""
_ROOM_BYTES = 1 << 20
"""Asked for the messages of destroyed sockets that wait between two looks; the kernel may give less (net.core.rmem_max)."""

_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_DUMP = 0x301

_SOCK_DIAG_BY_FAMILY = 20
_DIAG_REQUEST = struct.Struct("=BBBxI48x")
_DIAG = struct.Struct("=BBxx 2s2s 16s16s I Q 12x II")
"""inet_diag_msg: family, state; ports, addresses, interface, cookie; uid, inode."""
_DIAG_INFO = 2
_STATES = 0xFFF & ~(1 << 6)
"""All but TIME_WAIT, which is a socket no more; pending handshakes come beyond these."""
_INFO = struct.Struct("=5xB122xQ II 56x QQ")
"""tcp_info: options, bytes_received, segs_out, segs_in, bytes_sent, bytes_retrans."""
_TIMESTAMPS = 1

_GET_LINK, _GET_ADDRESS = 18, 22
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_LINK_NAME, _LINK_STATISTICS, _ADDRESS_VALUE, _ADDRESS_LOCAL = 3, 23, 1, 2
_STATISTICS = struct.Struct("=4Q")
_ETHERNET, _LOOPBACK = 1, 772
_ETHERNET_HEADER = 14


@dataclass(frozen=True, slots=True)
class Socket:
    """`cookie`: the kernel's number of it, never used again. `inode`: as /proc/<pid>/fd shows it; 0 once it is closed, or not
    accepted yet. `remote`: of port 0, if it listens. `sent` goes without what was sent again, which is `resent`; `header_bytes`:
    IP and TCP, of one segment."""

    cookie: int
    inode: int
    local: Endpoint
    remote: Endpoint
    header_bytes: int = 0
    sent: int = 0
    resent: int = 0
    received: int = 0
    segments_sent: int = 0
    segments_received: int = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """`header_bytes`: what its link adds to each packet and counts; the loopback counts none."""

    index: int
    name: str
    loopback: bool
    header_bytes: int
    addresses: frozenset[str]
    sent: int
    received: int
    packets_sent: int
    packets_received: int


class Kernel:
    """Raises OSError where netlink cannot be had. Not for two threads at once. `missed`: how often there was no room for what the
    kernel had to tell of destroyed sockets."""

    def __init__(self) -> None:
        self.missed = 0
        self._destroyed = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG)
        try:
            self._destroyed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM_BYTES)
            self._destroyed.bind((0, _TCP_DESTROYED))
        except OSError:
            self._destroyed.close()
            raise

    def close(self) -> None:
        self._destroyed.close()

    def sockets(self) -> list[Socket]:
        """Those of TCP that are open, listening ones too."""
        found: list[Socket] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _DIAG_REQUEST.pack(family, socket.IPPROTO_TCP, 1 << _DIAG_INFO - 1, _STATES)
            found += [parse_socket(body) for body in _ask(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request)]
        return found

    def destroyed(self) -> list[Socket]:
        """Since the last call. One that its own side cut off (a reset instead of a farewell) has lost its counts."""
        found: list[Socket] = []
        while True:
            try:
                data = self._destroyed.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.missed += 1
                continue
            found += [parse_socket(body) for _, body in _messages(data)]

    def interfaces(self) -> list[Interface]:
        held: dict[int, set[str]] = {}
        for body in _ask(socket.NETLINK_ROUTE, _GET_ADDRESS, _ADDRESS.pack(0, 0, 0, 0, 0)):
            of = dict(_attributes(body[_ADDRESS.size :]))
            value = of.get(_ADDRESS_LOCAL) or of.get(_ADDRESS_VALUE)
            if value:
                held.setdefault(_ADDRESS.unpack_from(body)[-1], set()).add(str(ip_address(value)))
        return [
            parse_interface(body, frozenset(held.get(_LINK.unpack_from(body)[2], ())))
            for body in _ask(socket.NETLINK_ROUTE, _GET_LINK, _LINK.pack(0, 0, 0, 0, 0))
        ]


def inodes(process: int) -> frozenset[int]:
    """Of the sockets that a process has open. Raises OSError if it has ended, or is not ours to look into."""
    found = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed just now
            kind, _, number = os.readlink(entry).partition(":[")
            if kind == "socket":
                found.add(int(number.rstrip("]")))
    return frozenset(found)


def parse_socket(body: bytes) -> Socket:
    """An inet_diag_msg and its attributes."""
    family, _, local_port, remote_port, local_host, remote_host, _, cookie, _, inode = _DIAG.unpack_from(body)
    size = 4 if family == socket.AF_INET else 16
    local = _address(local_host[:size]), int.from_bytes(local_port, "big")
    remote = _address(remote_host[:size]), int.from_bytes(remote_port, "big")
    info = dict(_attributes(body[_DIAG.size :])).get(_DIAG_INFO, b"")
    if len(info) < _INFO.size:
        return Socket(cookie, inode, local, remote)
    options, received, segments_sent, segments_received, sent, resent = _INFO.unpack_from(info)
    header = (20 if family == socket.AF_INET else 40) + 20 + (12 if options & _TIMESTAMPS else 0)
    return Socket(cookie, inode, local, remote, header, sent - resent, resent, received, segments_sent, segments_received)


def parse_interface(body: bytes, addresses: frozenset[str]) -> Interface:
    """An ifinfomsg and its attributes."""
    _, kind, index, _, _ = _LINK.unpack_from(body)
    of = dict(_attributes(body[_LINK.size :]))
    packets_received, packets_sent, received, sent = _STATISTICS.unpack_from(of[_LINK_STATISTICS])
    name = of[_LINK_NAME].rstrip(b"\0").decode(errors="replace")
    header = _ETHERNET_HEADER if kind == _ETHERNET else 0
    return Interface(index, name, kind == _LOOPBACK, header, addresses, sent, received, packets_sent, packets_received)


def _address(packed: bytes) -> str:
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _ask(protocol: int, kind: int, request: bytes) -> Iterator[bytes]:
    """The bodies of what a dump answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asked:
        asked.sendto(_MESSAGE.pack(_MESSAGE.size + len(request), kind, _DUMP, 1, 0) + request, (0, 0))
        while True:
            for answer, body in _messages(asked.recv(1 << 18)):
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -int.from_bytes(body[:4], "little", signed=True)
                    raise OSError(code, os.strerror(code))
                yield body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each netlink message."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        size, kind, *_ = _MESSAGE.unpack_from(data, at)
        yield kind, data[at + _MESSAGE.size : at + size]
        at += max(_MESSAGE.size, size + 3 & ~3)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + size]
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
