"""Bytes over time: shared, small ones first, near ones spared; and two nodes of which one keeps its line."""

import asyncio
from pathlib import Path

import pytest

from protocols import limits
from tapestryd.swarm.line import WIRE, Line, Pace
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Stream
from tests.lineages import PEOPLE
from tests.people import verify
from tests.swarm.rooms import LISTEN, go, identity, start

BODY = bytes(512 * limits.KIB)
RATE = 256 * limits.KIB
LEAST_S = WIRE * len(BODY) / RATE - 0.1


def test_a_pace_is_shared_by_all_and_can_change() -> None:
    async def work() -> None:
        now, rate = asyncio.get_running_loop().time, [1000]
        pace = Pace(lambda: rate[0])
        began = now()
        await asyncio.gather(*(pace(100) for _ in range(5)))
        assert now() - began >= 0.49
        rate[0] = 0
        began = now()
        for _ in range(1000):
            await pace(1 << 20)
        assert now() - began < 30  # at the rate before it would be ages

    go(work)


def test_what_is_small_does_not_wait_and_is_waited_for() -> None:
    async def work() -> None:
        now = asyncio.get_running_loop().time
        line = Line(lambda: 10_000, lambda: 0)
        began = now()
        assert [await line.up(1000, "ann") for _ in range(5)] == [0.0] * 5
        assert await line.down(1 << 30, "ann") == 0.0
        passed_s = now() - began
        assert 7000 * WIRE / 10_000 - passed_s - 0.1 <= await line.up(2000, "bo") <= 7000 * WIRE / 10_000 + 0.1

    go(work)


def test_who_is_near_is_spared_if_asked() -> None:
    connections = {
        ("192.168.1.4", 31700): "ann",
        ("fe80::1%eth0", 31700): "bo",
        ("10.0.0.2", 1): "cyd",
        ("193.0.6.139", 31700): "cyd",
        ("100.64.0.9", 31700): "dee",  # a provider's own network, or a VPN over the line
    }

    async def work() -> None:
        for spare, spared in ((True, {"ann", "bo"}), (False, set())):
            line = Line(lambda: 100_000, spare_near=spare)
            line.meet(connections)
            assert {peer for peer in ("ann", "bo", "cyd", "dee", "eve") if await line.up(2000, peer) == 0.0} == spared

    go(work)


async def take(stream: Stream) -> None:
    await stream.receive(len(BODY))
    await stream.send({})


async def give(stream: Stream) -> None:
    await stream.receive(0)
    await stream.send({}, BODY)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_node_keeps_its_line(tmp_path: Path, way: str) -> None:
    """Each way by itself, two streams at once; near or not, the other side notices nothing but that it takes time."""

    async def work() -> None:
        now = asyncio.get_running_loop().time
        line = Line(lambda: RATE if way == "up" else 0, lambda: RATE if way == "down" else 0, spare_near=True)
        here = await Node.start("tapestry/1/test", identity(PEOPLE[0], tmp_path), LISTEN, (), (), verify, line=line)
        there = await start(PEOPLE[1], tmp_path)
        try:
            await there.serve("take", take)
            await there.serve("give", give)
            here.hint({there.peer_id: await there.addresses()})

            async def moved(way: str) -> float:
                began = now()
                if way == "up":
                    await here.ask(there.peer_id, "take", {}, BODY)
                else:
                    await here.ask(there.peer_id, "give", {}, body_bytes=len(BODY))
                return now() - began

            other = "down" if way == "up" else "up"
            assert await moved(other) < LEAST_S
            assert max(await asyncio.gather(moved(way), moved(way))) > 2 * LEAST_S
            assert here.meter.rate() <= 2 * RATE
            await here.look()  # and finds out that they are near: loopback is
            assert await moved(way) < LEAST_S
            assert not here.refusals
            assert not there.refusals
        finally:
            await here.stop()
            await there.stop()

    go(work)
