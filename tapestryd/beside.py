"""Work beside the rest of the daemon. What it cannot handle is told to whoever can end the daemon, and is not lost with its task."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Beside:
    """Tasks of one owner. `failed(error)` is called with what one of them does not handle."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                self._failed(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)  # the loop itself would let it be collected
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began, it would be complained of
        return task

    def cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()
