"""Announced tips on real nodes: only what is shown moves a Member, and who cannot show what it announces is passed over."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import limits
from protocols.lineage import Tip
from protocols.records import Presence
from protocols.rounds import BaseLoaded, CatchUp, Effect, Event, Member, PeersSeen, State, TrainerUp
from protocols.schedule import Schedule
from tapestryd import neighbours
from tapestryd.neighbours import Neighbours, look_s
from tapestryd.swarm.donor import Donor
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Stream
from tests.lineages import PEOPLE, Line
from tests.people import CAST, Person, verify
from tests.swarm.rooms import go, nodes, now_ms, until
from tests.swarm.test_lineage import Shelf, drip, fetcher, grown

MINUTE = Schedule(0, 10**14, 1000)
"""No boundary comes while a test lasts."""


class Watcher:
    """An honest peer on `line`: its neighbours, and the Member that hears of them. `told`: every state that it was in."""

    def __init__(self, node: Node, line: Line, fetch: Fetcher) -> None:
        self.node = node
        self.line = line
        self.neighbours = Neighbours(node, line.rules.run_id, verify, fetch, self.look)
        self.member = Member(MINUTE, 2)
        self.told: list[State] = []
        self.effects: list[Effect] = []
        self.moved = asyncio.Event()

    def feed(self, event: Event) -> None:
        self.effects += self.member.handle(event, now_ms())
        self.told.append(self.member.state)
        self.moved.set()

    def look(self) -> None:
        self.feed(PeersSeen(self.neighbours.seen()))

    async def round_of_looks(self) -> None:
        """What the session does every few seconds."""
        await self.neighbours.refresh()
        self.look()
        self.neighbours.scout(self.line.base.tip)
        await until(self.nothing_asked)

    async def nothing_asked(self) -> bool:
        return not self.neighbours._proving

    def begin(self) -> None:
        assert self.line.base.tip is not None
        for event in (BaseLoaded(self.line.base.tip), TrainerUp()):
            self.feed(event)


async def announce(node: Node, person: Person, run: str, tip: Tip | None, *, ahead_ms: int = 0) -> None:
    height, weight, base = (tip.height, tip.weight, tip.base) if tip else (0, 0, "")
    made_ms = now_ms() + ahead_ms
    told = Presence(run, person.peer, "x", "training", height, weight, base, tuple(await node.addresses()), "0", None, made_ms)
    await node.publish(told.to_bytes(person.sign))


@asynccontextmanager
async def watched(folder: Path, line: Line, shelves: Sequence[Shelf | None]) -> AsyncIterator[tuple[Watcher, list[Node]]]:
    """A watcher at where `line` is, and one donor a shelf (None: it serves nothing); all in one DHT."""
    async with nodes(folder, 1 + len(shelves)) as (here, *others):
        for node, shelf in zip(others, shelves, strict=True):
            if shelf is not None:
                await Donor(node, shelf).serve()
            for other in others:
                await until(lambda one=other: _greeted(here, one))
        fetch = fetcher(here, line.rules)
        yield Watcher(here, line, fetch), list(others)


async def _greeted(here: Node, other: Node) -> bool:
    here._bootstrap[other.peer_id] = f"{(await other.addresses())[0]}/p2p/{other.peer_id}"
    here._asked.clear()
    await here._meet()
    return other.peer_id in {peer.to_base58() for peer in here._dht.protocol.routing_table.peer_id_to_uid}


async def seen_by(watcher: Watcher, count: int) -> None:
    async def there() -> bool:
        await watcher.neighbours.refresh()
        return watcher.neighbours.count() == count

    await until(there)


LIES = ["weight", "base", "height", "other", "garbage", "genesis"]


@pytest.mark.parametrize("lie", LIES)
def test_a_false_heavy_tip_does_not_stop_training(tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The liar is asked for its certificate, fails, is passed over, and counted when it does not mend its ways."""
    line = grown(3)
    here = line.base.tip
    assert here is not None
    false = {
        "weight": replace(here, weight=10**9), "base": replace(here, weight=10**9, base="ab" * 32), "height": Tip(10**6, 10**9, "ab" * 32),
        "other": replace(here, height=2, weight=10**9), "garbage": Tip(4, 10**9, "ab" * 32), "genesis": Tip(0, 0, "00" * 32),
    }[lie]  # fmt: skip

    async def work() -> None:
        honest, liar = Shelf().put(line), Shelf().put(line)
        liar.entries[4] = b"garbage" * 100
        monkeypatch.setattr(neighbours, "_DOUBTED_S", (0.1, 600.0))
        async with watched(tmp_path, line if lie != "genesis" else line.fork(), [honest, liar]) as (watcher, (good, bad)):
            if lie == "genesis":  # to a joiner at genesis, a lower digest of the same weight is better
                watcher.line = Line.begin()
            await announce(good, PEOPLE[1], line.rules.run_id, watcher.line.base.tip)
            await announce(bad, PEOPLE[2], line.rules.run_id, false)
            watcher.begin()
            await seen_by(watcher, 2)
            for _ in range(4):
                await watcher.round_of_looks()
                await asyncio.sleep(0.12)
            begun = watcher.told.index(State.TRAINING)
            assert set(watcher.told[begun:]) == {State.TRAINING}
            assert not [effect for effect in watcher.effects if isinstance(effect, CatchUp)]
            faults = dict(watcher.node.refusals)
            assert faults.get("malformed" if lie == "garbage" else "no_quorum", 0) >= 1, faults
            assert set(faults) <= {"malformed", "no_quorum"}

    go(work)


def test_a_shown_tip_moves_the_member_at_once_and_is_not_fetched_again(tmp_path: Path) -> None:
    line = grown(3)
    behind = line.fork()
    line.grow()

    async def work() -> None:
        async with watched(tmp_path, behind, [Shelf().put(line), Shelf()]) as (watcher, (good, bad)):
            assert line.base.tip is not None
            false = replace(line.base.tip, weight=10**9)
            await announce(good, PEOPLE[1], line.rules.run_id, line.base.tip)
            await announce(bad, PEOPLE[2], line.rules.run_id, false)
            watcher.begin()
            await seen_by(watcher, 2)
            await watcher.round_of_looks()
            assert watcher.member.state is State.SYNCING
            assert watcher.effects.count(CatchUp(line.base.tip, (PEOPLE[1].peer,))) == 1
            asked = good.meter.sent["entry"]
            async with watcher.neighbours._fetcher.entries([good.peer_id], 4, line.base.tip) as coming:
                assert [(item, whole) async for item, _, whole in coming] == [(4, line.entries[3])]
            assert good.meter.sent["entry"] == asked
            assert watcher.neighbours._fetcher.proven(line.base.tip)

    go(work)


def test_a_new_certified_tip_each_time_does_not_clear_who_brings_nobody_there(tmp_path: Path) -> None:
    """Made up with invented peers; before an attempt ends it announces the next one. And an attempt that gets there clears it."""
    line = grown(3)

    async def work() -> None:
        liar = Shelf()
        false = line.fork()
        async with watched(tmp_path, line, [liar]) as (watcher, (bad,)):

            async def announced() -> Tip:
                """One more, of which the liar shows the certificate only."""
                entry = false.grow(PEOPLE[:5], seed=9)
                liar.entries = {entry.vote.height: entry.head()}
                await asyncio.sleep(0.002)  # presences of one millisecond are one
                await announce(bad, PEOPLE[1], line.rules.run_id, entry.tip)

                async def heard() -> bool:
                    await watcher.neighbours.refresh()
                    return any(known.presence.tip == entry.tip for known in watcher.neighbours._known.values())

                await until(heard)
                watcher.neighbours.scout(line.base.tip)
                await until(watcher.nothing_asked)
                return entry.tip

            first = await announced()
            assert [seen.tip for seen in watcher.neighbours.seen()] == [first]
            second = await announced()
            assert [seen.tip for seen in watcher.neighbours.seen()] == [second]
            watcher.neighbours.doubt([bad.peer_id])
            assert [seen.tip for seen in watcher.neighbours.seen()] == [None]
            watcher.neighbours.trust([bad.peer_id])
            assert [seen.tip for seen in watcher.neighbours.seen()] == [second]

    go(work)


def test_who_does_not_answer_hides_nobody_who_does(tmp_path: Path) -> None:
    """Many say the same true tip and let us wait for its certificate; whoever shows it is heard all the same."""
    line = grown(2)
    behind = line.fork()
    line.grow()

    async def work() -> None:
        async with watched(tmp_path, behind, [Shelf().put(line), None, None]) as (watcher, (good, *silent)):
            assert line.base.tip is not None
            told = Tip(9, 10**9, "ab" * 32)

            async def waits(stream: Stream) -> None:
                await stream.receive(0)
                await asyncio.sleep(60)

            for node in silent:
                await node.serve("entry", waits)
            await announce(good, PEOPLE[1], line.rules.run_id, line.base.tip)
            await announce(silent[0], PEOPLE[2], line.rules.run_id, line.base.tip)
            await announce(silent[1], PEOPLE[3], line.rules.run_id, told)
            watcher.begin()
            await seen_by(watcher, 3)
            watcher.neighbours.scout(behind.base.tip)
            async with asyncio.timeout(limits.IO_S - 1):  # none of the silent is given up by then
                while watcher.member.state is not State.SYNCING:
                    watcher.moved.clear()
                    await watcher.moved.wait()

    go(work)


@pytest.mark.parametrize("which", ["of a tip", "of all"])
def test_whoever_drips_a_proof_gives_way_to_others(tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then, and yet no place is theirs: not those for the true tip, nor those of all."""
    monkeypatch.setattr(neighbours, "_PROOF_S", 0.3)
    monkeypatch.setattr(neighbours, "_PROOFS", 8 if which == "of a tip" else 2)
    monkeypatch.setattr(limits, "IO_BYTES", 1)
    line = grown(2)
    behind = line.fork()
    line.grow()

    async def work() -> None:
        async with watched(tmp_path, behind, [Shelf().put(line), None, None]) as (watcher, (good, *dripping)):
            true = line.base.tip
            assert true is not None
            for number, node in enumerate(dripping):
                await node.serve("entry", lambda stream: drip(stream, bytes(20_000), every_s=0.2))
                await announce(
                    node, PEOPLE[2 + number], line.rules.run_id, true if which == "of a tip" else Tip(9, 900 + number, "ab" * 32)
                )
            watcher.begin()
            await seen_by(watcher, 2)
            watcher.neighbours.scout(behind.base.tip)
            assert set(watcher.neighbours._proving) == {node.peer_id for node in dripping}
            await announce(good, PEOPLE[1], line.rules.run_id, true)
            await seen_by(watcher, 3)
            watcher.neighbours.scout(behind.base.tip)

            async def shown() -> bool:
                watcher.neighbours.scout(behind.base.tip)
                return watcher.neighbours._fetcher.proven(true)

            await until(shown, 5)
            assert any(watcher.neighbours._doubted(node.peer_id) for node in dripping)

    go(work)


def test_alone_a_slow_proof_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_PROOF_S", 0.0)
    line = grown(2)
    behind = line.fork()
    line.grow()
    entry, parts = line.entries[-1]
    whole = entry.head() + b"".join(parts)

    async def work() -> None:
        async with watched(tmp_path, behind, [None]) as (watcher, (slow,)):
            true = line.base.tip
            assert true is not None
            await slow.serve("entry", lambda stream: drip(stream, whole, head={"size": len(whole)}, size=1 + len(whole) // 20))
            await announce(slow, PEOPLE[1], line.rules.run_id, true)
            watcher.begin()
            await seen_by(watcher, 1)

            async def shown() -> bool:
                watcher.neighbours.scout(behind.base.tip)
                return watcher.neighbours._fetcher.proven(true)

            await until(shown, 10)
            assert not watcher.neighbours._doubted(slow.peer_id)

    go(work)


def test_who_failed_less_is_asked_first(tmp_path: Path) -> None:
    line = grown(1)

    async def work() -> None:
        async with watched(tmp_path, line, [None, None]) as (watcher, (one, other)):
            assert line.base.tip is not None
            for node, person in ((one, PEOPLE[1]), (other, PEOPLE[2])):
                await announce(node, person, line.rules.run_id, line.base.tip)
            await seen_by(watcher, 2)
            for failed, first in (([one], other), ([other, other], one)):
                watcher.neighbours.doubt([node.peer_id for node in failed])
                assert watcher.neighbours.seen()[0].peer == first.peer_id

    go(work)


def test_looks_are_rarer_only_where_nothing_depends_on_them() -> None:
    minutes = Schedule(0, 300_000, 60_000)
    member = Member(minutes, 2)
    assert look_s(minutes, 0, None) == look_s(minutes, 0, member) == 5.0
    for state in State:
        member.state = state
        rests = state in (State.TRAINING, State.PAUSED)
        looks = [look_s(minutes, at_ms, member) for at_ms in (0, 280_000, 280_001, 330_000, 360_000)]
        assert looks == ([10.0, 10.0, 5.0, 5.0, 10.0] if rests else [5.0] * 5)
        assert look_s(Schedule(0, 20_000, 12_000), 0, member) == 4.0
        assert look_s(Schedule(0, 1000, 1000), 0, member) == 0.5
    serving = Member(minutes, 1)
    serving.handle(BaseLoaded(Tip(1, 1, "a" * 64)), 0)
    assert serving.reasons == ("trainer",)
    assert look_s(minutes, 0, serving) == 10.0


def test_slow_donors_are_waited_for_without_end_unless_rounds_could_be_had(tmp_path: Path) -> None:
    line = grown(1)
    rules, ours = line.rules, line.base.tip
    assert ours is not None

    async def work() -> None:
        async with watched(tmp_path, line, [None, None]) as (watcher, others):
            here = watcher.neighbours
            cases = (
                ("paused", ours),
                ("syncing", replace(ours, height=2, weight=9)),
                ("waiting", ours),
                ("syncing", ours),
                ("training", ours),
            )
            for other, (state, tip) in zip([*others, *others, others[0]], cases, strict=True):
                told = Presence(rules.run_id, other.peer_id, "x", state, tip.height, tip.weight, tip.base, (), "0", None, now_ms())
                await other.publish(told.to_bytes(CAST[other.peer_id].sign))

                async def heard(other: Node = other, told: Presence = told) -> bool:
                    await here.refresh()
                    return other.peer_id in here._known and here._known[other.peer_id].presence == told

                await until(heard)
                could = (state, tip) in cases[3:]
                assert here.patience_s(ours, rules) == (60.0 if could else math.inf), state
            assert here.patience_s(ours, replace(rules, schedule=Schedule(0, 300_000, 60_000))) == 720.0
            assert here.patience_s(None, rules) == math.inf

    go(work)


def test_who_says_nothing_new_is_gone_and_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last record is stored for longer than it counts."""
    monkeypatch.setattr(limits, "PRESENCE_MS", 2000)

    async def work() -> None:
        async with watched(tmp_path, line := Line.begin(), [None]) as (watcher, (dead,)):
            made = now_ms()
            await announce(dead, PEOPLE[1], line.rules.run_id, None)
            await seen_by(watcher, 1)
            await seen_by(watcher, 0)
            assert now_ms() - made < limits.PRESENCE_MS + 1000
            while now_ms() - made < limits.PRESENCE_MS + limits.CLOCK_SKEW_MS - 500:
                assert dead.peer_id in await watcher.node.look()
                await watcher.neighbours.refresh()
                assert watcher.neighbours.count() == 0
                await asyncio.sleep(0.2)

    go(work)


def test_what_an_earlier_life_said_with_a_clock_ahead_is_no_twin(tmp_path: Path) -> None:
    """But whoever says something newer still is alive."""

    async def work() -> None:
        async with watched(tmp_path, line := Line.begin(), [None]) as (watcher, _):
            for ahead_ms, twin in ((4000, False), (5000, True)):
                await announce(watcher.node, PEOPLE[0], line.rules.run_id, None, ahead_ms=ahead_ms)
                for _ in range(2):
                    await watcher.neighbours.refresh()
                assert watcher.neighbours.twin() == twin

    go(work)
