"""Virtual time, a network that fails, and a notice board for presences: what all peers of one history share.

Everything random comes from one seed, so a history can be lived through again. Nothing here knows of rounds.
"""

import heapq
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from protocols import limits
from protocols.lineage import Tip
from protocols.rounds import Seen
from tests.simulation.ledger import Ledger
from tests.simulation.run import Rules, forget

if TYPE_CHECKING:
    from tests.simulation.peer import Peer


class Crash(Exception):
    """The power went, between any two effects. Caught by the world only."""


class Record:
    """A presence record. `hidden`: from whom the network kept it; None: nobody."""

    __slots__ = ("active", "hidden", "left", "made_ms", "peer", "ready_ms", "seen", "tip", "untold")

    def __init__(self, peer: str, tip: Tip | None, active: bool, left: bool, made_ms: int, ready_ms: int, hidden: set[str] | None) -> None:
        self.peer = peer
        self.tip = tip
        self.active = active
        self.left = left
        self.made_ms = made_ms
        self.ready_ms = ready_ms
        self.hidden = hidden
        self.seen = Seen(peer, tip, active)
        self.untold = Seen(peer, None, active)


class World:
    def __init__(self, seed: int, *, telling: bool = False) -> None:
        forget()
        self.rng = Random(seed)
        self.random = self.rng.random
        self.now = 0
        self.told: list[str] = []
        self.telling = telling
        self.peers: dict[str, Peer] = {}
        self.rules: Any = Rules()
        self.owners: dict[str, str] = {}
        """In roster mode, of every node its Member."""
        self.ledger = Ledger(self)
        self.skewed = False
        self.board: dict[str, list[Record]] = {}
        """By author, newest first; a few of each, for whom the newest has not reached."""
        self.loss = 0.0
        self.late_ms = 0
        """Delays grow up to this, each for itself: so messages overtake one another."""
        self._queue: list[tuple[int, int, Peer | None, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def tell(self, line: str) -> None:
        if self.telling:
            self.told.append(f"{self.now / 1000:8.3f} {line}")

    # Time.

    def at(self, when_ms: int, do: Callable[..., None], *args: Any) -> None:
        """At `when_ms`, whoever lives by then."""
        self._count += 1
        heapq.heappush(self._queue, (when_ms if when_ms > self.now else self.now, self._count, None, 0, do, args))

    def of(self, peer: "Peer", when_ms: int, do: Callable[..., None], *args: Any) -> None:
        """At `when_ms`, as a thing that `peer` does: not if it has crashed by then, and not while it sleeps."""
        self._count += 1
        heapq.heappush(self._queue, (when_ms if when_ms > self.now else self.now, self._count, peer, peer.life, do, args))

    def run(self, until_ms: int) -> None:
        queue = self._queue
        while queue and queue[0][0] <= until_ms:
            when, _, peer, life, do, args = heapq.heappop(queue)
            self.now = when
            if peer is not None:
                if peer.life != life:
                    continue
                if when < peer.asleep_ms:
                    self.of(peer, peer.asleep_ms, do, *args)
                    continue
            try:
                do(*args)
            except Crash:
                assert peer is not None
                peer.crash()
        self.now = until_ms

    # The network.

    def whole(self, one: "Peer", other: "Peer") -> bool:
        """Whether an open stream between the two still lives."""
        return one.up and other.up and not (other.name in one.cut and one.name in other.cut)

    def open(self, source: "Peer", to: str) -> "Peer | None":
        """The peer at the other end of a new stream, or None: it cannot be had. Whoever cannot be dialled keeps connections to
        all others, on which they reach it; but two such peers do not reach one another."""
        target = self.peers.get(to)
        if target is None or not target.up or (target.nat and source.nat) or to in source.cut or (self.loss and self.random() < self.loss):
            return None
        return target

    def delay_ms(self) -> int:
        return 5 + int(self.random() * (80 + self.late_ms * (self.random() < 0.1)))

    def send(self, source: "Peer", target: "Peer", do: Callable[..., None], *args: Any) -> None:
        """`do` happens at `target` in a while, or, if the stream has broken by now, never."""
        if self.whole(source, target):
            self.of(target, self.now + self.delay_ms(), do, *args)

    def gone_ms(self) -> int:
        """How long it takes to see that a peer cannot be reached: refused at once, or no answer."""
        return 30 if self.random() < 0.7 else int(limits.IO_S * 1000)

    # Presences.

    def publish(self, source: "Peer", record: Record) -> None:
        hidden: set[str] | None = None
        if self.loss or source.cut:
            hidden = {name for name, peer in self.peers.items() if name in source.cut or source.name in peer.cut}
            if self.loss:
                hidden |= {name for name in self.peers if self.random() < self.loss}
        record.hidden = hidden
        record.ready_ms = self.now + 20 + int(self.random() * (900 + self.late_ms))
        records = self.board.setdefault(record.peer, [])
        records.insert(0, record)
        del records[4:]
