"""Peers to begin with, on disk and in the node; dialling, measuring and being dialled, between real nodes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocols import limits
from protocols.rules import Invite
from tapestryd.config import Network
from tapestryd.contacts import Contacts
from tapestryd.errors import LocalFault
from tapestryd.host.state import StateDir
from tapestryd.neighbours import Neighbours
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.reach import Reach
from tests.people import CAST, RUN, verify
from tests.swarm.rooms import address, go, start, until

ADA, BO, CY = list(CAST)[:3]


def at(peer: str, host: int) -> str:
    return f"/ip4/10.0.0.{host}/tcp/1/p2p/{peer}"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path / "state")
    yield state
    state.close()


def contacts(state: StateDir, *configured: str, session: object = None) -> Contacts:
    network = Network(bootstrap=configured)
    return Contacts(state, lambda: network, lambda: session)  # type: ignore[arg-type, return-value]


def test_those_of_the_configuration_the_operator_and_the_invite(state: StateDir) -> None:
    state.current = str(Invite(RUN, (at(CY, 3),)))
    held = contacts(state, at(ADA, 1))
    asyncio.run(held.add(at(BO, 2)))
    asyncio.run(held.add(at(BO, 2)))
    assert [(one.by, one.address) for one in held.bootstrap()] == [
        ("configuration", at(ADA, 1)), ("invite", at(CY, 3)), ("operator", at(BO, 2)),
    ]  # fmt: skip
    assert held.of(Invite.parse(state.current), ADA) == [at(CY, 3), at(BO, 2)]
    with pytest.raises(LocalFault, match=r"network\.bootstrap of the configuration"):
        asyncio.run(held.remove(ADA))
    asyncio.run(held.remove(CY))
    assert Invite.parse(state.current) == Invite(RUN, ())
    asyncio.run(held.remove(BO))
    assert not (state.path / "bootstrap").exists()
    with pytest.raises(LocalFault, match="is no peer to begin with"):
        asyncio.run(held.remove(BO))
    asyncio.run(held.add(at(BO, 2)))
    asyncio.run(held.reset())
    assert [one.by for one in held.bootstrap()] == ["configuration"]


def test_no_more_than_an_invite_holds_and_what_is_damaged_is_passed_over(state: StateDir) -> None:
    held = contacts(state)
    for number in range(limits.ADDRESSES):
        asyncio.run(held.add(at(ADA, number)))
    with pytest.raises(LocalFault, match="peers are named already"):
        asyncio.run(held.add(at(BO, 1)))
    (state.path / "bootstrap").write_bytes(b"\xff\n" + at(ADA, 1).encode() + b"\nnonsense\n")
    assert [one.address for one in held.bootstrap()] == [at(ADA, 1)]


def test_without_a_run_there_is_nobody(state: StateDir) -> None:
    held = contacts(state)
    assert asyncio.run(held.netcheck()).verdict == "unknown"
    for asked in (held.ping(ADA), held.connect(at(ADA, 1))):
        with pytest.raises(LocalFault, match="No run is joined"):
            asyncio.run(asked)


def test_dialling_measuring_and_being_dialled(state: StateDir, tmp_path: Path) -> None:
    async def work() -> None:
        one, two = [await start(person, tmp_path) for person in list(CAST.values())[:2]]
        try:
            await Reach(two).serve()
            await Neighbours(two, RUN, verify, Fetcher(two, RUN, verify), lambda: None).serve()
            neighbours = Neighbours(one, RUN, verify, Fetcher(one, RUN, verify), lambda: None)
            session = SimpleNamespace(node=one, neighbours=neighbours, reach=Reach(one), addresses=[])
            held = contacts(state, session=session)
            with pytest.raises(LocalFault, match="does not answer"):
                await held.ping(two.peer_id)
            assert (await held.netcheck()).says == "No other peer is here to try."

            assert two.peer_id in await held.connect(await address(two))

            async def met() -> bool:
                return two.peer_id in one.acquainted()

            await until(met)
            rtt_ms, skew_ms = await held.ping(two.peer_id)
            assert 0 < rtt_ms < 10_000
            assert abs(skew_ms) < 10_000
            await held.add(await address(two))
            assert [known.known for known in held.bootstrap()] == [True]
            assert one.bootstrap == [two.peer_id]

            neighbours.some = lambda: [two.peer_id]  # type: ignore[method-assign]
            found = await held.netcheck()
            assert (found.verdict, found.reached) == ("yes", dict.fromkeys(await one.addresses(), True))
            assert found.seen[0].startswith("/ip4/127.0.0.1/")
            assert found.asked_s is not None
            with pytest.raises(LocalFault, match=r"does not answer: [^\n]+ connection refused\Z"):
                await held.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{CY}")
        finally:
            await one.stop()
            await two.stop()

    go(work)
