"""What runs beside the daemon: its end, its death, and its never having begun."""

import asyncio
import gc

from tapestryd.beside import Beside
from tests.swarm.rooms import go


def test_what_is_not_handled_is_told_once() -> None:
    async def work() -> None:
        failures: list[BaseException] = []
        beside = Beside(failures.append)

        async def fails() -> None:
            raise ValueError("of its own")

        async def ends() -> None:
            pass

        await asyncio.gather(beside.run(fails()), beside.run(ends()))
        assert [str(failure) for failure in failures] == ["of its own"]

    go(work)


def test_cancelled_it_is_no_failure_nor_complained_of() -> None:
    """Neither in its middle nor before it began: pytest makes a failure of a coroutine that was never awaited."""

    async def work() -> None:
        failures: list[BaseException] = []
        beside = Beside(failures.append)
        began = asyncio.Event()

        async def waits() -> None:
            began.set()
            await asyncio.Event().wait()

        first = beside.run(waits())
        await began.wait()
        second = beside.run(waits())
        beside.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.cancelled()
        assert not failures

    go(work)
    gc.collect()
