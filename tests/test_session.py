"""Sessions on real nodes, without a trainer: what they do when the DHT is slow and the disk full."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tapestryd.config import DaemonConfig, TrainerChoice
from tapestryd.host.keys import Identity
from tapestryd.host.store import RunStore
from tapestryd.session import Session
from tapestryd.swarm import node as node_module
from tapestryd.swarm.node import Node
from tests.lineages import PEOPLE, Line
from tests.people import Person
from tests.swarm.rooms import address, go, start, until
from tests.test_keeper import begin


@asynccontextmanager
async def session(person: Person, folder: Path, store: RunStore, *there: Node, ends: str = "") -> AsyncIterator[Session]:
    """One that knows `there`. `ends`: what it must have said when it ended before its time; empty: it must not have."""
    failures: list[BaseException] = []
    node = await start(person, folder, f"tapestry/1/{store.run_id}", [await address(other) for other in there])
    identity = Identity.load_or_make(folder / f"{person.name}.key")
    config = replace(DaemonConfig(), trainer=TrainerChoice(enabled=False))
    made = Session(config, identity, store, node, lambda _: None, failures.append)
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
                return not here._tasks

            await until(over)

    go(work)
