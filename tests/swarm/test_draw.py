"""Who is asked for what, with donors that are nothing but a way to answer."""

import asyncio
import math
import time
from collections.abc import Callable

import pytest

from tapestryd.swarm import draw
from tapestryd.swarm.draw import Draw, Flight
from tapestryd.swarm.streams import Gone


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "SLOW_S", 0.1)
    monkeypatch.setattr(draw, "_LOOK_S", 0.02)


class Donors:
    """Those named in `moved` bring so many bytes and no more; all others answer at once. `now`: who is asked at the moment."""

    def __init__(self, **moved: int) -> None:
        self.moved = moved
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.now: list[str] = []
        self.most = 0

    async def __call__(self, flight: Flight[str]) -> str:
        self.asked.append(flight.donor)
        self.now.append(flight.donor)
        await asyncio.sleep(0)
        self.most = max(self.most, len(self.now))
        try:
            if flight.donor in self.moved:
                flight.has(self.moved[flight.donor])
                await asyncio.Event().wait()
            return flight.donor
        except asyncio.CancelledError:
            self.cancelled.append(flight.donor)
            raise
        finally:
            self.now.remove(flight.donor)


async def drawn(donors: Donors, *names: str, patience_s: Callable[[], float] = lambda: math.inf) -> str:
    async with asyncio.timeout(5), Draw([0], names, donors, ahead=1, in_order=True, patience_s=patience_s) as coming:
        async for _, donor, value in coming:
            assert donor == value
            return value
    raise AssertionError("nothing came")


def test_slow_donors_hold_up_nothing_however_many_they_are() -> None:
    """Each is given its chance; whoever has brought the most stays until another has brought all."""

    async def work() -> None:
        donors = Donors(first=10, second=20, third=5, fourth=1)
        assert await drawn(donors, "first", "second", "third", "fourth", "fast") == "fast"
        assert donors.asked == ["first", "second", "third", "fourth", "fast"]
        assert donors.cancelled[:3] == ["first", "third", "fourth"]
        assert donors.most == 2

    asyncio.run(work())


def test_without_patience_slow_donors_are_left_and_others_are_not() -> None:
    async def work() -> None:
        asked: list[float] = []

        def patience_s() -> float:
            """There is nothing better to do at first."""
            asked.append(time.monotonic())
            return 0.3 if asked[-1] - asked[0] > 0.6 else math.inf

        with pytest.raises(Gone, match="10 bytes"):
            await drawn(Donors(slow=10), "slow", patience_s=patience_s)
        assert 0.6 < asked[-1] - asked[0] < 4

        async def steady(flight: Flight[str]) -> str:
            """Just above the rate below which a donor is slow."""
            for part in range(1, 31):
                await asyncio.sleep(0.05)
                flight.has(part * 5000)
            return flight.donor

        async with asyncio.timeout(20), Draw([0, 1], ["steady"], steady, ahead=1, in_order=True, patience_s=lambda: 0.3) as coming:
            assert [item async for item, _, _ in coming] == [0, 1]

    asyncio.run(work())


def test_what_we_take_over_an_item_is_not_the_donors_time() -> None:
    async def work() -> None:
        async with asyncio.timeout(20), Draw(range(4), ["fast"], Donors(), ahead=1, in_order=True, patience_s=lambda: 0.3) as coming:
            async for _ in coming:
                await asyncio.sleep(0.4)

    asyncio.run(work())
