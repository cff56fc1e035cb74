"""One round on this node, from a delta to a committed base: what the Member's effects Gather, Reduce, Settle, Commit do.

Works on copies throughout: until `commit` nothing that anybody sees has changed, and `drop` forgets it all. What was
not sent, or was lost to the codec, is carried in `residual` into the fragment's next turn (error feedback).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import torch
from torch import Tensor

from protocols.canonical import Signed
from protocols.grouping import ATTEMPTS, Candidate, Roster
from protocols.lineage import Entry, Tip
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
from protocols.rounds import Committed, Event, Failed, Reduced, Rostered, Settled
from protocols.rules import RunRules
from protocols.settling import Vote, merkle
from tapestryd.base import Next
from tapestryd.errors import DiskFull
from tapestryd.exchange import BadPart, Exchange, Offer
from tapestryd.keeper import Keeper
from tapestryd.swarm.gather import Gathered, Gathering, NoRoster
from tapestryd.swarm.meeting import Meeting
from tapestryd.swarm.node import Node
from tapestryd.swarm.reduce import Reduction
from tapestryd.swarm.settle import Settlement, Unsettled
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)

_ENOUGH_MS = 50
"""Settling ends this long before the deadline, so that its own reason is told and not the deadline's."""


class Round:
    """What one round has come to so far. `others`: peers seen live on our base at the boundary; `present`: how many these
    are, ourselves included; `passed_over`: leaders that gave no roster, in order, and why."""

    def __init__(self, number: int, fragment: int, before: Tip, delta: Tensor, others: Mapping[str, Candidate], steps: int) -> None:
        self.number = number
        self.fragment = fragment
        self.before = before
        self.delta = delta
        self.others = others
        self.steps = steps
        self.offer: Offer | None = None
        self.gathered: Gathered | None = None
        self.passed_over: tuple[tuple[str, str], ...] = ()
        self.exchange: Exchange | None = None
        self.meeting: Meeting | None = None
        self.step: Next | None = None
        self.vote: Vote | None = None
        self.certificate: list[Signed] = []

    @property
    def present(self) -> int:
        return 1 + len(self.others)


class Averaging:
    """Each stage ends in the event that the Member waits for. `now_ms` is swarm time; the rooms below speak the loop's clock."""

    def __init__(
        self, rules: RunRules, keeper: Keeper, node: Node, gathering: Gathering, reduction: Reduction, settlement: Settlement,
        now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.rules = rules
        self.round: Round | None = None
        self._last: Round | None = None
        self._keeper = keeper
        self._node = node
        self._gathering = gathering
        self._reduction = reduction
        self._settlement = settlement
        self._now_ms = now_ms
        self._residual = torch.zeros(keeper.base.layout.elements, dtype=torch.float32)

    def begin(self, number: int, delta: Tensor, others: Mapping[str, Candidate], steps: int) -> None:
        """`delta`: our own copy, (n_f,) float32, of the fragment whose turn it is, after `steps` local steps. `others`: peers
        seen on our base."""
        assert self._keeper.base.tip is not None
        fragment = number % self._keeper.base.layout.fragments
        self.round = Round(number, fragment, self._keeper.base.tip, delta, others, steps)

    async def run(self, stage: Coroutine[Any, Any, Event], number: int) -> Event:
        """A stage's event, or Failed with the reason that status and log will show."""
        try:
            return await stage
        except Gone as gone:
            log.info("round=%d %s", number, gone)
            return Failed(number, "no_roster")
        except Refused as refused:
            log.info("round=%d %s", number, refused)
            return Failed(number, refused.reason.value)
        except Unsettled as unsettled:
            return Failed(number, str(unsettled))
        except DiskFull as full:
            log.error("round=%d %s", number, full)
            return Failed(number, "disk_full")

    async def gather(self, rate: int, delegation: Delegation | None) -> Event:
        """`rate`: bytes per second that we can reduce a part with; 0 if others cannot dial us. `delegation`: ours."""
        r = self._at_hand()
        if r.number <= self._keeper.round:  # a clock was set back; nobody could follow a log with such an entry
            raise Refused(Reason.OTHER_ROUND, f"our base has come from round {self._keeper.round} already")
        owed = await asyncio.to_thread(torch.add, r.delta, self._residual[self._keeper.base.slice(r.fragment)])
        r.offer = await asyncio.to_thread(Offer, self.rules, owed)
        window_s = (self.rules.schedule.gather_by(r.number) - self._now_ms()) / 1000
        windows = [window_s * (attempt + 1) / ATTEMPTS for attempt in range(ATTEMPTS)]
        claim = r.offer.claim(r.steps, rate, delegation)
        try:
            r.gathered = await self._gathering.perform(r.number, r.fragment, r.before.base, r.others, claim, windows)
        except NoRoster as none:
            r.passed_over = none.passed_over
            raise
        r.passed_over, roster = r.gathered.passed_over, r.gathered.roster
        log.info("round=%d roster of %d, %d reduce", roster.round, len(roster.members), len(roster.reducers))
        return Rostered(roster)

    async def reduce(self, roster: Roster) -> Event:
        r = self._at_hand()
        assert r.offer is not None
        schedule = self.rules.schedule
        exchange = Exchange(self.rules, roster, self._node.peer_id, r.offer)
        r.exchange = exchange
        meeting = Meeting(roster, r.offer.owed.numel(), self.rules.codec.block, self._loop_time(schedule.deadline(r.number)))
        r.meeting = meeting

        async def aggregate(part: int, offers: Mapping[int, bytes | bytearray]) -> bytes:
            blob, refused = await asyncio.to_thread(exchange.reduce, part, offers)
            for place, fault in refused:
                self._node.refused(fault, "offer", roster.members[place])
                meeting.refused[roster.members[place]] = str(fault)
            return blob

        closes = schedule.reduce_by(r.number)
        by, give_up = self._loop_time(closes), self._loop_time((closes + schedule.deadline(r.number)) // 2)
        await self._reduction.perform(meeting, exchange.offers(), aggregate, by, give_up)
        return Reduced(r.number)

    async def settle(self) -> Event:
        r = self._at_hand()
        assert r.exchange is not None
        assert r.meeting is not None
        exchange, meeting, roster = r.exchange, r.meeting, r.exchange.roster

        failed: set[int] = set()

        async def compute(blobs: list[bytes]) -> Vote:
            try:
                mean, coverage = await asyncio.to_thread(exchange.mean, blobs)
            except BadPart as fault:
                failed.add(fault.part)
                self._node.refused(fault, "part", roster.reducers[fault.part])
                raise
            except Refused:  # coverage: whose parts leave out so many?
                failed.update(exchange.thin(blobs))
                raise
            r.step = await asyncio.to_thread(self._keeper.base.next, r.fragment, mean)
            return Vote(
                run=self.rules.run_id, round=r.number, fragment=r.fragment, roster=roster.digest,
                root=merkle(meeting.digests()), coverage_ppm=coverage, before=r.before.base, after=r.step.base,
                height=r.before.height + 1, weight=r.before.weight + len(roster.members),
            )  # fmt: skip

        by = self._loop_time(self.rules.schedule.deadline(r.number) - _ENOUGH_MS)
        try:
            r.vote, r.certificate = await self._settlement.perform(meeting, compute, r.present, by)
        except Unsettled:
            if self._settlement.result(meeting, r.present) is None:  # else it is lost to us alone, whoever's line it was
                failed |= {part for part in range(len(roster.reducers)) if part not in meeting.blobs or part in meeting.repaired}
            self._gathering.lost(roster, [roster.reducers[part] for part in failed])
            raise
        return Settled(r.number)

    async def commit(self) -> Event:
        r = self._at_hand()
        assert r.exchange is not None
        assert r.meeting is not None
        assert r.vote is not None
        assert r.step is not None
        blobs = [r.meeting.blobs[part] for part in range(len(r.meeting.slices))]
        left = await asyncio.to_thread(r.exchange.residual, blobs)
        entry = Entry(r.vote, r.exchange.roster, r.meeting.digests(), tuple(map(len, blobs)), tuple(r.certificate))
        tip = await self._keeper.commit(entry, blobs, r.step)
        self._residual[self._keeper.base.slice(r.fragment)] = left
        return Committed(r.number, tip)

    def drop(self) -> None:
        """The round at hand is over, or given up; the others may still commit the last one that our offers went to (`followed`)."""
        if self.round is not None and self.round.exchange is not None:
            self._last = self.round
        self.round = None

    def forget(self) -> None:
        """A snapshot took the base's place: what we still owed was owed to another base."""
        self._residual.zero_()
        self._last = None

    def followed(self, entry: Entry, parts: list[bytes]) -> None:
        """A round came by replay. If it is one that we gave up when our offers were out already, what is in its mean must not
        be sent again: our local progress, which the replay leaves in place, still contains it."""
        r = self._last
        if r is not None and r.exchange is not None and r.exchange.roster.digest == entry.vote.roster:
            self._residual[self._keeper.base.slice(r.fragment)] += r.exchange.residual(parts) - r.exchange.offer.owed
            self._last = None

    def _loop_time(self, swarm_ms: int) -> float:
        return asyncio.get_running_loop().time() + (swarm_ms - self._now_ms()) / 1000

    def _at_hand(self) -> Round:
        assert self.round is not None, "stages run between begin and drop"
        return self.round
