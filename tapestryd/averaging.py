"""One round on this node, from a delta to a committed base: what the Member's effects Gather, Reduce, Settle, Commit do.

Works on copies throughout: until `commit` nothing that anybody sees has changed, and `drop` forgets it all. What was
not sent, or was lost to the codec, is carried in `residual` into the fragment's next turn (error feedback).
"""

import asyncio
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protocols.canonical import Signed, digest
from protocols.grouping import ATTEMPTS, Roster
from protocols.lineage import Entry, Tip
from protocols.rules import RunRules
from protocols.settling import Vote, merkle
from tapestryd.base import Next
from tapestryd.exchange import Exchange
from tapestryd.keeper import Keeper
from tapestryd.swarm.gather import Gathering
from tapestryd.swarm.meeting import Meeting
from tapestryd.swarm.node import Node
from tapestryd.swarm.reduce import Reduction
from tapestryd.swarm.settle import Settlement


class Round:
    """What one round has come to so far. `present`: peers seen live on our base at the boundary, ourselves included."""

    def __init__(self, number: int, fragment: int, before: Tip, delta: Tensor, others: Sequence[str]) -> None:
        self.number = number
        self.fragment = fragment
        self.before = before
        self.delta = delta
        self.others = tuple(others)
        self.exchange: Exchange | None = None
        self.meeting: Meeting | None = None
        self.offers: list[bytes] = []
        self.step: Next | None = None
        self.vote: Vote | None = None
        self.certificate: list[Signed] = []

    @property
    def present(self) -> int:
        return 1 + len(self.others)


class Averaging:
    """Times handed in are seconds from now; the rooms below speak the event loop's clock."""

    def __init__(
        self, rules: RunRules, keeper: Keeper, node: Node, gathering: Gathering, reduction: Reduction, settlement: Settlement
    ) -> None:
        self.rules = rules
        self._keeper = keeper
        self._node = node
        self._gathering = gathering
        self._reduction = reduction
        self._settlement = settlement
        self.residual = torch.zeros(keeper.base.layout.elements, dtype=torch.float32)
        self.round: Round | None = None

    def begin(self, number: int, delta: Tensor, others: Sequence[str]) -> None:
        """`delta`: our own copy, (n_f,) float32, of the fragment whose turn it is."""
        assert self._keeper.base.tip is not None
        fragment = number % self._keeper.base.layout.fragments
        self.round = Round(number, fragment, self._keeper.base.tip, delta, others)

    async def gather(self, reducer: bool, window_s: float) -> Roster:
        """Raises Gone."""
        r = self._now()
        windows = [window_s * (attempt + 1) / ATTEMPTS for attempt in range(ATTEMPTS)]
        return await self._gathering.perform(r.number, r.fragment, r.before.base, r.others, reducer, windows)

    async def reduce(self, roster: Roster, by_s: float, give_up_s: float) -> None:
        r = self._now()
        here = self._keeper.base.slice(r.fragment)
        exchange = Exchange(self.rules, roster, self._node.peer_id, r.delta + self.residual[here])
        r.exchange = exchange
        r.meeting = Meeting(roster, exchange.owed.numel(), self.rules.codec.block)
        r.offers = await asyncio.to_thread(exchange.offers)
        now = asyncio.get_running_loop().time()

        async def aggregate(elements: int, offers: Mapping[int, bytes | bytearray]) -> bytes:
            blob, refused = await asyncio.to_thread(exchange.reduce, elements, offers)
            for place, fault in refused:
                self._node.refused(fault, "offer", roster.members[place])
            return blob

        await self._reduction.perform(r.meeting, r.offers, aggregate, now + by_s, now + give_up_s)

    async def settle(self, by_s: float) -> None:
        """Raises Unsettled."""
        r = self._now()
        assert r.exchange is not None
        assert r.meeting is not None
        exchange, roster = r.exchange, r.exchange.roster

        async def compute(blobs: list[bytes]) -> Vote:
            mean, coverage = await asyncio.to_thread(exchange.mean, blobs)
            r.step = await asyncio.to_thread(self._keeper.base.next, r.fragment, mean)
            return Vote(
                run=self.rules.run_id, round=r.number, fragment=r.fragment, roster=roster.digest,
                root=merkle([digest(blob) for blob in blobs]), coverage_ppm=coverage, before=r.before.base, after=r.step.base,
                height=r.before.height + 1, weight=r.before.weight + len(roster.members),
            )  # fmt: skip

        by = asyncio.get_running_loop().time() + by_s
        r.vote, r.certificate = await self._settlement.perform(r.meeting, compute, r.present, by)

    async def commit(self) -> Tip:
        """Raises DiskFull with nothing changed."""
        r = self._now()
        assert r.exchange is not None
        assert r.meeting is not None
        assert r.vote is not None
        assert r.step is not None
        blobs = [r.meeting.blobs[part] for part in range(len(r.meeting.slices))]
        left = await asyncio.to_thread(r.exchange.residual, blobs, r.offers)
        entry = Entry(r.vote, r.exchange.roster, tuple(map(digest, blobs)), tuple(map(len, blobs)), tuple(r.certificate))
        tip = await self._keeper.commit(entry, blobs, r.step)
        self.residual[self._keeper.base.slice(r.fragment)] = left
        return tip

    def drop(self) -> None:
        self.round = None

    def _now(self) -> Round:
        if self.round is None:
            raise asyncio.CancelledError("the round was dropped")
        return self.round
