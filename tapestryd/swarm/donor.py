"""Serve what makes a lineage: run rules, tokenizer, snapshots, log entries.

All of it is immutable and named by digest, so any peer may serve it and nobody is locked while it does. Those who catch up
take turns, and share what our own rounds and the operator's limit leave them. Formats are in protocols/lineage.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from protocols import limits
from protocols.lineage import Snapshot
from protocols.refusal import Reason, Refused
from tapestryd.swarm.line import Pace
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Busy, Stream

PIECES_AT_ONCE = 4
ENTRIES_AT_ONCE = 8
"""Transfers at once; rules and tokenizers take turns with pieces. More: each is slower, and a piece that is given up has cost more.
Fewer: a slow one leaves the link idle."""

YIELD_BYTES_PER_S = 64 * limits.KIB
"""What all snapshots with their manifests, rules and tokenizers together may take while our own round is averaged: enough that no
transfer is given up for it."""

_WAIT_S = 5.0
_RETRY_S = 1.0
"""Who has waited this long for a turn is told to ask again, and when; it keeps its place by when it was last served."""

_TURN_S = 30.0
"""A transfer that takes longer goes on, but no longer keeps others from their turn: a slow reader takes little of the link."""

_OPEN = 32
"""Transfers of one kind altogether, slow ones included; each holds a piece in memory. At so many, whoever is next takes the
place of the slow one that began first."""

_REMEMBERED = 1024


class Shelf(Protocol):
    """The files that this node can serve; implemented by the store."""

    def rules(self) -> bytes: ...
    def tokenizer(self) -> bytes: ...
    def snapshots(self) -> list[Snapshot]: ...
    def lend(self, snapshot: Snapshot) -> None: ...
    def read_snapshot(self, base: str, piece: int) -> bytes | None: ...
    def entry_size(self, height: int) -> int | None: ...
    def read_entry(self, height: int, offset: int, size: int) -> bytes: ...


@dataclass(eq=False)
class _Turn:
    peer: str
    task: "asyncio.Task[Any]"
    come: "asyncio.Future[None]"


class Turns:
    """Who is served next: of those who wait, the peer that was served the longest ago; one transfer a peer at a time."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._placed: dict[str, _Turn] = {}
        self._serving: dict[str, _Turn] = {}
        """Those with a place, and those who have given it up to others and are served still; in the order that they began."""
        self._waiting: list[_Turn] = []
        self._served: dict[str, None] = {}
        """Peers by when they were last served, the latest last."""

    @asynccontextmanager
    async def turn(self, peer: str) -> AsyncIterator[None]:
        """Raises Busy if it does not come soon. One that lasts too long is cancelled when others need its room."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        turn = _Turn(peer, task, loop.create_future())
        self._waiting.append(turn)
        self._next()
        try:
            await asyncio.wait([turn.come], timeout=_WAIT_S)
            if not turn.come.done():
                raise Busy(peer, _RETRY_S)
            loop.call_later(_TURN_S, self._leave, turn)
            yield
        finally:
            self._waiting.remove(turn)
            if turn.come.done():
                del self._serving[peer]
                self._leave(turn)

    def _leave(self, turn: _Turn) -> None:
        if self._placed.get(turn.peer) is turn:
            del self._placed[turn.peer]
        self._next()

    def _next(self) -> None:
        while len(self._placed) < self._at_once:
            able = [turn for turn in self._waiting if turn.peer not in self._serving and not turn.come.done()]
            if not able:
                return
            if len(self._serving) >= _OPEN:
                oldest = next(turn for turn in self._serving.values() if turn.peer not in self._placed)
                oldest.task.cancel()  # its end brings us here again
                return
            order = {peer: place for place, peer in enumerate(self._served)}
            turn = min(able, key=lambda one: order.get(one.peer, -1))
            self._served.pop(turn.peer, None)
            self._served[turn.peer] = None
            if len(self._served) > _REMEMBERED:
                del self._served[next(iter(self._served))]
            self._placed[turn.peer] = self._serving[turn.peer] = turn
            turn.come.set_result(None)


class Donor:
    """Answers the questions of those who catch up. `bytes_per_s()`: the operator's limit, 0 for none. `averaging()`: our own
    round is exchanging vectors, and all but log entries give way to it."""

    def __init__(
        self, node: Node, shelf: Shelf, bytes_per_s: Callable[[], int] = lambda: 0, averaging: Callable[[], bool] = lambda: False
    ) -> None:  # fmt: skip
        self._node = node
        self._shelf = shelf
        self._pieces = Turns(PIECES_AT_ONCE)
        self._entries = Turns(ENTRIES_AT_ONCE)
        self._pace = Pace(bytes_per_s)
        self._yielding = Pace(lambda: YIELD_BYTES_PER_S if averaging() else 0)

    async def serve(self) -> None:
        """Rules and tokenizer are read here: one copy in memory, however many ask for it."""
        small = {"rules": self._shelf.rules(), "tokenizer": await asyncio.to_thread(self._shelf.tokenizer)}
        for verb, data in small.items():
            await self._node.serve(verb, partial(self._whole, data))
        for verb, handler in (("snapshots", self._snapshots), ("piece", self._piece), ("entry", self._entry)):
            await self._node.serve(verb, handler)

    async def _whole(self, data: bytes, stream: Stream) -> None:
        await stream.question({})
        async with self._pieces.turn(stream.peer):
            await stream.send({}, data, self._give_way)

    async def _snapshots(self, stream: Stream) -> None:
        """The manifest of the snapshot asked for by base digest; without one, of the newest."""
        head = await stream.question({"base": str})
        found = [snapshot for snapshot in self._shelf.snapshots() if head["base"] in ("", snapshot.tip.base)]
        if not found:
            raise Refused(Reason.STALE, "we do not keep that snapshot")
        newest = max(found, key=lambda snapshot: snapshot.tip.height)
        self._shelf.lend(newest)
        await stream.send({}, newest.to_bytes(), self._give_way)

    async def _piece(self, stream: Stream) -> None:
        head = await stream.question({"base": str, "piece": int})
        async with self._pieces.turn(stream.peer):
            piece = await asyncio.to_thread(self._shelf.read_snapshot, head["base"], head["piece"])
            if piece is None:
                raise Refused(Reason.STALE, "we do not keep that piece")
            await stream.send({}, piece, self._give_way)

    async def _entry(self, stream: Stream) -> None:
        head = await stream.question({"height": int, "offset": int, "bytes": int})
        size = self._shelf.entry_size(head["height"])
        if size is None or not 0 <= head["offset"] < size:
            raise Refused(Reason.STALE, f"we do not keep entry {head['height']}")
        if not 0 < head["bytes"] <= limits.PIECE_BYTES:
            raise Refused(Reason.OUT_OF_RANGE, f"{head['bytes']} bytes of an entry")
        async with self._entries.turn(stream.peer):
            data = await asyncio.to_thread(self._shelf.read_entry, head["height"], head["offset"], head["bytes"])
            await stream.send({"size": size}, data, self._pace)

    async def _give_way(self, size: int) -> None:
        await self._yielding(size)
        await self._pace(size)
