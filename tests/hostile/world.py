"""Honest members of one run, and a liar among them. Rounds as they come, without waiting for the clock to bring them."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from protocols.canonical import loads
from protocols.grouping import Claim, Roster, order
from protocols.lineage import Entry, Tip
from protocols.rounds import Committed, Event
from protocols.rules import RunRules
from protocols.schedule import Schedule
from tapestryd.exchange import Offer
from tapestryd.host.store import RunStore
from tests.hostile.liar import Liar
from tests.lineages import PEOPLE, fresh, noise
from tests.people import rules as plain_rules
from tests.people import verify
from tests.swarm.rooms import Peer, nodes, now_ms

VERBS = ("call", "reduce", "vote", "part")


@dataclass(frozen=True)
class Turn:
    """One round to be: its number, the base that all start from, and everybody's ids, in the order in which they lead."""

    number: int
    before: Tip
    order: tuple[str, ...]

    @property
    def fragment(self) -> int:
        return self.number % 2


class World:
    def __init__(self, honest: Sequence[Peer], liar: Liar, rules: RunRules) -> None:
        self.honest = list(honest)
        self.liar = liar
        self.rules = rules
        self.number = -1
        self._ahead_ms = 0

    def now_ms(self) -> int:
        return now_ms() + self._ahead_ms

    @property
    def ids(self) -> list[str]:
        return [*(peer.node.peer_id for peer in self.honest), self.liar.peer]

    def peer(self, of: str) -> Peer:
        return next(peer for peer in self.honest if peer.node.peer_id == of)

    def next(self, *, leads: bool = False) -> Turn:
        """The clock goes on to the boundary of the first round that the liar leads, or is last to lead."""
        place = 0 if leads else -1
        while True:
            self.number += 1
            ids = order(self.rules.run_id, self.number, self.ids)
            if ids[place] == self.liar.peer:
                break
        self._ahead_ms += self.rules.schedule.boundary(self.number) - self.now_ms()
        tip = self.honest[0].keeper.base.tip
        assert tip is not None
        return Turn(self.number, tip, tuple(ids))

    def offer(self, turn: Turn) -> Offer:
        """What an honest member could have brought: nothing marks it but its author."""
        return Offer(self.rules, noise(self.rules.layout().size(turn.fragment), 77))

    async def joins(self, turn: Turn, claim: Claim, *, leader: int = 0) -> Roster:
        """The liar calls the leader, or the second one, and gets its roster."""
        head = await self.liar.call(turn.order[leader], turn.number, turn.before.base, claim)
        return Roster.from_body(loads(head, 1 << 20)["roster"]["body"], verify)

    async def brings(self, roster: Roster, offer: Offer, bent: Callable[[bytes], bytes] = bytes) -> None:
        """The liar's offer goes to all other reducers, and what they answer is dropped."""
        slices = roster.slices(offer.owed.numel(), self.rules.codec.block)
        parts = [(peer, bent(offer.part(*here))) for peer, here in zip(roster.reducers, slices, strict=True) if peer != self.liar.peer]
        await asyncio.gather(*(self.liar.offer(peer, roster.digest, part) for peer, part in parts), return_exceptions=True)

    async def play(self, turn: Turn, lie: Coroutine[Any, Any, None]) -> list[Event]:
        """The honest peers' round, by the book, beside the liar's; how it ended for each of them."""
        lying = asyncio.ensure_future(lie)
        try:
            return list(
                await asyncio.gather(
                    *(peer.round([each for each in self.ids if each != peer.node.peer_id], turn.number) for peer in self.honest)
                )
            )
        finally:
            lying.cancel()
            self.liar.fall_silent()
            done, _ = await asyncio.wait([lying])
            for task in done:
                if not task.cancelled() and task.exception():
                    raise task.exception() or AssertionError

    def counted(self) -> list[dict[str, int]]:
        """What each honest peer has refused since the last time, by reason."""
        found = [dict(peer.node.refusals) for peer in self.honest]
        for peer in self.honest:
            peer.node.refusals.clear()
        return found

    def agreed(self, events: Sequence[Event]) -> None:
        """All honest peers committed, to the same bits."""
        assert all(isinstance(event, Committed) for event in events), events
        assert len({peer.keeper.base.tip for peer in self.honest}) == 1
        for peer in self.honest[1:]:
            assert torch.equal(peer.theta, self.honest[0].theta)
        assert all(peer.node.alive for peer in self.honest)

    def last(self) -> Entry:
        """The log entry of the last commit."""
        store, tip = self.honest[0].keeper.store, self.honest[0].keeper.base.tip
        assert tip is not None
        found = store.load_entry(tip.height, verify)
        assert found is not None
        return found[0]


async def idle() -> None:
    """The liar's part in a round that it leaves alone."""


@asynccontextmanager
async def world(folder: Path, count: int, *, average_ms: int, **averaging: object) -> AsyncIterator[World]:
    """`count` honest members at genesis, and a liar that knows where they live. Gathering takes at most a third of `average_ms`."""
    made, base = fresh(plain_rules(2, 8, aggregation="clipped", **averaging))
    prefix = "tapestry/1/hostile"
    async with nodes(folder, count, prefix) as started:
        evil = await Liar.start(PEOPLE[-1], folder, prefix)
        try:
            made = replace(made, schedule=Schedule(now_ms(), 1000, average_ms))
            here = World([], evil, made)
            await evil.serve(*VERBS)
            at = {node.peer_id: await node.addresses() for node in started}
            await evil.meet(at)
            for node, person in zip(started, PEOPLE, strict=False):
                node.hint({**{peer: found for peer, found in at.items() if peer != node.peer_id}, evil.peer: await evil.addresses()})
                store = RunStore(folder / person.name, made.run_id)
                store.keep_rules(made, b"")
                peer = Peer(node, person, made, store, clock=here.now_ms)
                peer.keeper.base.theta.copy_(base.theta)
                peer.keeper.base.pairs = list(base.pairs)
                peer.keeper.base.tip = Tip(0, 0, made.model.genesis)
                await peer.serve()
                here.honest.append(peer)
            yield here
        finally:
            await evil.stop()


@contextmanager
def quiet() -> Iterator[None]:
    """Nobody in this process logs an error or a traceback meanwhile: not ours, not hivemind's, not asyncio's."""
    gc.collect()  # what an earlier test left is complained of now, and not when somebody listens
    heard: list[logging.LogRecord] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR or record.exc_info:
                heard.append(record)

    ear = Ear()
    loggers = [logging.getLogger(name) for name in ("", "hivemind")]
    for logger in loggers:
        logger.addHandler(ear)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(ear)
    assert not heard, [logging.Formatter().format(record) for record in heard]


def fought(
    folder: Path, count: int, work: Callable[[World], Coroutine[Any, Any, None]], *, average_ms: int = 12_000, **averaging: object
) -> Callable[[], Coroutine[Any, Any, None]]:
    """`work` in a world that logs no error, and with all honest peers alive in the end."""

    async def main() -> None:
        with quiet():
            async with world(folder, count, average_ms=average_ms, **averaging) as here:
                await work(here)
                assert all(peer.node.alive for peer in here.honest)

    return main
