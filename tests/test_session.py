"""Sessions on real nodes, without a trainer: what they do when the DHT is slow and the disk full."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import limits
from protocols.canonical import loads
from protocols.rounds import CatchUpFailed, Event, Failed, Haste, Held, Hindered, State
from tapestryd import arrival
from tapestryd import session as session_module
from tapestryd.config import DaemonConfig, TrainerChoice
from tapestryd.errors import DiskFull
from tapestryd.host.clock import now_ms
from tapestryd.host.keys import Identity
from tapestryd.host.store import RunStore
from tapestryd.host.trainer import Work
from tapestryd.host.watch import Watch
from tapestryd.isolation import Isolation
from tapestryd.session import Session
from tapestryd.supervisor import Supervisor
from tapestryd.swarm import draw
from tapestryd.swarm import node as node_module
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream
from tests.lineages import PEOPLE, Line
from tests.people import Person
from tests.scripted import STATUS
from tests.swarm.rooms import address, go, start, until
from tests.swarm.test_lineage import drip, grown
from tests.test_keeper import begin

NO_BOX = Isolation("none", Path("/nowhere"), (), required=False)


@asynccontextmanager
async def session(
    person: Person, folder: Path, store: RunStore, *there: Node, ends: str = ""
) -> AsyncIterator[Session]:  # fmt: skip
    """One that knows `there`. `ends`: what it must have said when it ended before its time; empty: it must not have."""
    failures: list[BaseException] = []
    node = await start(person, folder, f"tapestry/1/{store.run_id}", [await address(other) for other in there])
    identity = Identity.load_or_make(folder / f"{person.name}.key")
    config = replace(DaemonConfig(), trainer=TrainerChoice(enabled=False))
    made = Session(config, identity, store, node, NO_BOX, Watch(lambda: STATUS, now_ms), lambda _: None, failures.append)
    await made.start()
    try:
        yield made
    finally:
        await made.stop(4)
    assert "".join(map(str, failures)) == ends


async def begun(*sessions: Session) -> None:
    async def all_are() -> bool:
        return all(one.member for one in sessions)

    await until(all_are)


def test_a_joiner_outlasts_a_slow_dht(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        line = Line.begin()
        async with session(PEOPLE[0], tmp_path, begin(line, tmp_path / "there")) as there:
            await begun(there)
            with monkeypatch.context() as slow:
                slow.setattr(node_module, "_DHT_S", 0.0)
                async with session(PEOPLE[1], tmp_path, RunStore(tmp_path / "here", line.rules.run_id), there.node) as here:
                    await asyncio.sleep(0.5)
                    assert here.rules is None
                    slow.undo()
                    await begun(here)
                    assert here.rules == line.rules

    go(work)


def test_a_joiner_without_p2pd_ends(tmp_path: Path) -> None:
    """Nobody would ever answer it."""

    async def work() -> None:
        ended = "p2pd, the libp2p process, ended by itself"
        async with session(PEOPLE[0], tmp_path, RunStore(tmp_path / "here", Line.begin().rules.run_id), ends=ended) as here:
            here.node._libp2p.process.kill()

            async def over() -> bool:
                return not here._beside._tasks

            await until(over)

    go(work)


def test_who_drips_the_rules_alone_does_so_until_others_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "_PATIENCE_S", 2.0)
    monkeypatch.setattr(draw, "SLOW_S", 0.5)

    async def work() -> None:
        line = Line.begin()
        begun_to = asyncio.Event()

        async def drips(stream: Stream) -> None:
            begun_to.set()
            await drip(stream, bytes(limits.RULES_BYTES), size=2000)

        bad = await start(PEOPLE[2], tmp_path, f"tapestry/1/{line.rules.run_id}")
        try:
            await bad.serve("rules", drips)
            async with session(PEOPLE[1], tmp_path, RunStore(tmp_path / "here", line.rules.run_id), bad) as here:
                await begun_to.wait()
                async with session(PEOPLE[0], tmp_path, begin(line, tmp_path / "there"), bad):
                    await begun(here)
        finally:
            await bad.stop()

    go(work)  # the drip alone takes longer than `begun` waits


def test_without_room_on_the_disk_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often we look; with room, it catches up. Held meanwhile, it does not even try."""
    monkeypatch.setattr(session_module, "_ROOM_S", 4.0)

    async def work() -> None:
        line = grown(3)
        store = begin(line, tmp_path / "there")
        for entry, parts in line.entries:
            store.write_entry(entry, *parts)
        here_store = RunStore(tmp_path / "here", line.rules.run_id)
        async with (
            session(PEOPLE[0], tmp_path, store) as there,
            session(PEOPLE[1], tmp_path, here_store, there.node) as here,
        ):
            fed: list[Event] = []
            feed = here.feed
            monkeypatch.setattr(here, "feed", lambda event: (fed.append(event), feed(event)))
            here.hold(Held(("disk_low",), Haste.STEPS))
            await begun(here)

            def count(kind: type[Event]) -> int:
                return sum(isinstance(event, kind) for event in fed)

            async def looked() -> bool:
                return count(CatchUpFailed) >= fails and count(Hindered) >= looks

            async def full(*_: object) -> None:
                raise DiskFull("no room")

            fails, looks = 0, 4
            await until(looked)
            assert here.member
            assert here.member.reasons == ("disk_low",)
            assert not count(CatchUpFailed)
            with monkeypatch.context() as disk:
                disk.setattr(here.keeper, "catch_up", full)
                here.hold(Held(()))
                fails = 1
                await until(looked)
                began, looks = time.monotonic(), count(Hindered) + 3
                await until(looked)
                assert count(CatchUpFailed) <= 1 + (time.monotonic() - began) / 4
                assert set(here.member.reasons) >= {"behind", "disk_full"}
                assert "snapshots" not in there.node.meter.sent

            async def caught_up() -> bool:
                return here.keeper.base.tip == line.base.tip

            await until(caught_up)

    go(work)


def test_a_presence_is_published_anew_in_a_third_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that are lost cost nothing, and nor does one that nobody takes."""
    monkeypatch.setattr(limits, "PRESENCE_MS", 3000)

    async def work() -> None:
        async with session(PEOPLE[0], tmp_path, begin(Line.begin(), tmp_path / "here")) as here:
            await begun(here)
            at: list[float] = []
            publish = here.node.publish

            async def counting(record: bytes) -> None:
                at.append(time.monotonic())
                if len(at) == 2:
                    raise Gone("the DHT takes no record")
                await publish(record)

            monkeypatch.setattr(here.node, "publish", counting)

            async def enough() -> bool:
                return len(at) >= 6

            await until(enough)
            assert min(then - now for now, then in itertools.pairwise(at[2:])) < limits.PRESENCE_MS / 3000  # looks are 0.75 s apart

    go(work)


def test_an_event_that_cannot_be_dealt_with_ends_the_session(tmp_path: Path) -> None:
    """Also where the loop's timer brought it: an error there would only be logged, with half of the effects done."""

    async def work() -> None:
        line = Line.begin()
        store = begin(line, tmp_path / "here")
        async with session(PEOPLE[0], tmp_path, store, ends=f"[Errno 21] Is a directory: '{store.path / 'rounds.jsonl'}'") as here:
            await begun(here)
            assert here.member
            here.member.state, here.member.round = State.STOPPING, 0
            (store.path / "rounds.jsonl").mkdir()
            asyncio.get_running_loop().call_soon(here.feed, Failed(0, "withheld"))

            async def over() -> bool:
                return here.member is not None and here.member.state is State.JOINING

            await until(over)

    go(work)


def test_a_dht_that_takes_no_last_word_keeps_no_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off from the others, whoever leaves a run and stays a daemon has the trainer's memory back all the same."""

    async def work() -> None:
        line = Line.begin()
        async with session(PEOPLE[0], tmp_path, begin(line, tmp_path / "here")) as here:
            await begun(here)
            trainer = Work(line.rules.layout(), line.rules.canonical(), b"")
            here.supervisor = Supervisor(
                trainer, tmp_path / "nobody", tmp_path / "witness.json", lambda _: None, lambda: None, lambda _: None, lambda: None,
                pytest.fail,
            )  # fmt: skip
            here.supervisor.start()
            keeping = here.supervisor._loop_task
            monkeypatch.setattr(here.node, "publish", lambda _: asyncio.sleep(30))
        assert keeping
        await asyncio.wait([keeping], timeout=10)
        assert keeping.cancelled()

    go(work)


def test_who_has_had_no_delta_in_time_says_that_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with session(PEOPLE[0], tmp_path, begin(Line.begin(), tmp_path / "here")) as here:
            await begun(here)
            assert here.member
            told: list[str] = []

            async def published(record: bytes) -> None:
                told.append(loads(record, limits.RECORD_BYTES)["body"]["state"])

            monkeypatch.setattr(here.node, "publish", published)
            there = ((State.TRAINING, 1), (State.TRAINING, 2), (State.STOPPING, 2), (State.SYNCING, 2), (State.GATHERING, 0))
            for state, empty_handed in there:
                here.member.state, here.member.empty_handed = state, empty_handed
                await here._announce()
            here.member.state = State.JOINING
            assert told == ["training", "waiting", "waiting", "syncing", "averaging"]

    go(work)


def test_two_daemons_with_one_identity_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both notice; when one is gone, the other goes on. What one said itself, also before it was started anew, is no sign of it."""
    monkeypatch.setattr(limits, "PRESENCE_MS", 3000)

    async def work() -> None:
        line = Line.begin()

        def one(name: str, *there: Node) -> AbstractAsyncContextManager[Session]:
            return session(PEOPLE[0], tmp_path, RunStore(tmp_path / name, line.rules.run_id), *there)

        async with session(PEOPLE[1], tmp_path, begin(line, tmp_path / "there")) as there:
            async with one("before", there.node) as before:
                await until(lambda: hindered_alike([before], there))
            async with one("first", there.node) as first:
                fed: list[Event] = []
                feed = first.feed
                monkeypatch.setattr(first, "feed", lambda event: (fed.append(event), feed(event)))

                async def looked() -> bool:
                    return sum(isinstance(event, Hindered) for event in fed) >= 5  # and it published meanwhile

                await until(looked)
                assert Hindered(("twin",)) not in fed
                assert await hindered_alike([first], there)
                async with one("second", there.node) as second:
                    await until(lambda: hindered_alike([first, second], there, "twin"))
                await until(lambda: hindered_alike([first], there))

    go(work)


async def hindered_alike(some: Sequence[Session], there: Session, *why: str) -> bool:
    """Whether `there` has heard of them, and what hinders each is `why`."""
    return there.neighbours.count() == 1 and all(one.member is not None and one.member.hindrances == why for one in some)
