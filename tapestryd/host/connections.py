"""What the TCP connections of one process have moved since we began to look, by peer, and the interfaces that they went by.

Fed with what the kernel counts (host/kernel.py) at every look. What a connection moved is never lost if the other side ended
it or it said farewell; of one that its own side cut off, what it moved after the last look is (`cut` counts those). One that
came and went between two looks is known to be ours by the port that we listen on, which libp2p dials from, too; else it is not.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tapestryd.host.balance import Carried
from tapestryd.host.kernel import Endpoint, Interface, Socket

UNKNOWN = "unknown"
"""The peer of a connection that was gone before anybody could say whose it was."""

_PEERS = 1024
_NOTHING = Carried()


@dataclass(frozen=True, slots=True)
class Traffic:
    sent: Carried = _NOTHING
    received: Carried = _NOTHING

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.sent + other.sent, self.received + other.received)


def _traffic(socket: Socket) -> Traffic:
    return Traffic(
        Carried(socket.sent, socket.segments_sent, socket.segments_sent * socket.header_bytes, socket.resent),
        Carried(socket.received, socket.segments_received, socket.segments_received * socket.header_bytes),
    )


class Connections:
    """`inodes()`: of the sockets that the process has open; asked only when there are sockets that we have not seen before."""

    def __init__(self, inodes: Callable[[], Collection[int]]) -> None:
        self.count = 0
        self.cut = 0
        self._inodes = inodes
        self._ports: set[int] = set()
        self._open: dict[int, Socket] = {}
        self._peers: dict[int, str] = {}
        self._set_aside: set[int] = set()
        """Sockets that are not ours, or listen."""
        self._missing: set[int] = set()
        """Open ones that were not listed any more; the kernel may have told of their end at the next look."""
        self._ended: dict[str, Traffic] = {}

    def look(self, alive: Sequence[Socket], destroyed: Sequence[Socket]) -> None:
        """`destroyed`: read after `alive`."""
        there = {socket.cookie: socket for socket in alive}
        self._meet(
            [socket for socket in alive if socket.inode and socket.cookie not in self._open and socket.cookie not in self._set_aside]
        )
        self._set_aside &= there.keys()
        self._open |= {cookie: there[cookie] for cookie in self._open.keys() & there.keys()}
        for socket in destroyed:
            if socket.cookie in self._open:
                self._end(socket.cookie, socket)
            elif socket.local[1] in self._ports and socket.segments_sent:
                self.count += 1
                self._book(UNKNOWN, socket)
        missing = self._open.keys() - there.keys()
        for cookie in missing & self._missing:
            self._end(cookie, None)
        self._missing = missing & self._open.keys()

    def _meet(self, strangers: Sequence[Socket]) -> None:
        inodes = self._inodes() if strangers else ()
        for socket in strangers:
            ours, listens = socket.inode in inodes, not socket.remote[1]
            if ours and listens:
                self._ports.add(socket.local[1])
            if ours and not listens:
                self._open[socket.cookie] = socket
                self.count += 1
            else:
                self._set_aside.add(socket.cookie)

    def _end(self, cookie: int, last: Socket | None) -> None:
        known = self._open.pop(cookie)
        if last is None or last.sent < known.sent or last.received < known.received:
            self.cut += 1
            last = known
        self._book(self._peers.pop(cookie, UNKNOWN), last)

    def _book(self, peer: str, socket: Socket) -> None:
        if peer not in self._ended and len(self._ended) >= _PEERS:
            peer = UNKNOWN
        self._ended[peer] = self._ended.get(peer, Traffic()) + _traffic(socket)

    @property
    def nameless(self) -> bool:
        """Whether there are connections whose peer is yet to be told."""
        return len(self._peers) < len(self._open)

    def name(self, peers: Mapping[Endpoint, str]) -> None:
        """Who is at the other end of each connection that is open."""
        for cookie, socket in self._open.items():
            if socket.remote in peers:
                self._peers.setdefault(cookie, peers[socket.remote])

    def by_peer(self) -> dict[str, Traffic]:
        found = dict(self._ended)
        for cookie, socket in self._open.items():
            peer = self._peers.get(cookie, UNKNOWN)
            found[peer] = found.get(peer, Traffic()) + _traffic(socket)
        return found

    def ends(self) -> set[tuple[str, str]]:
        """The addresses between which connections are open."""
        return {(socket.local[0], socket.remote[0]) for socket in self._open.values()}


class Interfaces:
    """What each interface has moved since the first look, all programs together; `used`: the names of those that connections of
    ours went by."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._seen: dict[int, Interface] = {}
        self._moved: dict[str, Traffic] = {}

    def look(self, listed: Sequence[Interface], ends: Collection[tuple[str, str]]) -> None:
        """`ends`: local and remote address of the connections that are open."""
        for now in listed:
            before = self._seen.get(now.index)
            if before and before.sent <= now.sent and before.received <= now.received:
                self._moved[now.name] = self._moved.get(now.name, Traffic()) + _difference(before, now)
        self._seen = {now.index: now for now in listed}
        at = {address: now for now in listed for address in now.addresses}
        for local, remote in ends:
            if remote in at:  # one machine talks to itself by its loopback, whatever the address
                self.used |= {now.name for now in listed if now.loopback}
            elif local in at:
                self.used.add(at[local].name)

    def moved(self) -> Traffic:
        """By those that are used."""
        return sum((self._moved.get(name, Traffic()) for name in self.used), Traffic())


def _difference(before: Interface, now: Interface) -> Traffic:
    sent, received = now.packets_sent - before.packets_sent, now.packets_received - before.packets_received
    return Traffic(
        Carried(now.sent - before.sent, sent, sent * now.header_bytes),
        Carried(now.received - before.received, received, received * now.header_bytes),
    )
