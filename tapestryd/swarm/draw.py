"""Items drawn from several donors side by side, so that no dead, slow, busy or lying donor holds them up.

Each donor has one item at a time. One that fails is out. One that has nothing left to draw is asked again for what comes
too slowly from others, one after the other until it comes; the first answer wins. A lone slow donor is used for as long
as it moves at all (streams.py sees to that), unless whoever draws has no patience. Knows nothing of streams, files or what an item is.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from protocols import limits
from tapestryd.swarm.streams import Busy, Gone

log = logging.getLogger(__name__)

T = TypeVar("T")

SLOW_BYTES_PER_S = 64 * limits.KIB
SLOW_S = 5.0
"""An item that has moved at less than this rate, after this long, is asked of an idle donor as well. Higher: more is fetched
twice when our own link is the slow one. Lower: a slow donor holds up the end for longer."""

_ASKERS = 2
"""Donors that are on one item at once. More would only share our own link, where that is the slow one."""

LOSER_S = 30.0
"""A donor that was overtaken or replaced draws nothing for this long."""

_BUSY_S = 120.0
"""A donor that has told us to wait for this long, and given nothing, is out: the next attempt asks it again."""

_LOOK_S = 0.5


@dataclass(eq=False)
class Flight(Generic[T]):
    """An item on its way from a donor. `moved`: bytes that have come, kept up to date by whoever asks."""

    donor: str
    item: int
    since: float
    moved: int = 0
    job: "asyncio.Future[T] | None" = None

    def has(self, size: int) -> None:
        self.moved = size

    def slow(self, now: float) -> bool:
        return now - self.since >= SLOW_S and self.moved < SLOW_BYTES_PER_S * (now - self.since)


class Draw(Generic[T]):
    """`async with draw: async for item, donor, value in draw`. `in_order`: items come in the order given, and only the next
    `ahead` of them are asked for; else as they arrive, with at most `ahead` waiting here to be taken.
    `ask(flight)` fetches one item and raises Gone if that donor cannot give it, Busy if not yet. `patience_s()`: all
    donors together are left when we have waited for them for so long, and had less than SLOW_BYTES_PER_S meanwhile; what we do
    with it ourselves is no waiting."""

    def __init__(
        self, items: Iterable[int], donors: Sequence[str], ask: Callable[["Flight[T]"], Awaitable[T]], *, ahead: int, in_order: bool,
        patience_s: Callable[[], float] = lambda: math.inf,
    ) -> None:  # fmt: skip
        self._left = list(items)
        self._ready: dict[int, tuple[str, T]] = {}
        self._flights: list[Flight[T]] = []
        self._donors = list(dict.fromkeys(donors))
        self._ask = ask
        self._ahead = ahead
        self._in_order = in_order
        self._patience_s = patience_s
        self._moved = 0
        """Bytes of the flights that are over."""
        self._why = "nobody to ask"
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Draw[T]":
        self._tasks = [asyncio.create_task(self._draw(donor)) for donor in self._donors]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._tell())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):  # a bug in there is a bug here
                raise ended

    async def __aiter__(self) -> AsyncIterator[tuple[int, str, T]]:
        """Raises Gone when no donor is left that could give what is missing, or soon enough."""
        waited_s, had = 0.0, 0
        while self._left:
            while (item := self._next()) is None:
                if all(task.done() for task in self._tasks):
                    raise Gone(self._why)
                if waited_s >= self._patience_s():
                    has = self._moved + sum(flight.moved for flight in self._flights)
                    if has - had < SLOW_BYTES_PER_S * waited_s:
                        raise Gone(f"{has - had} bytes in {waited_s:.0f} s, and there is better to do than to wait")
                    waited_s, had = 0.0, has
                began = time.monotonic()
                await self._hear()
                waited_s += time.monotonic() - began
            donor, value = self._ready.pop(item)
            self._left.remove(item)
            self._tell()
            yield item, donor, value

    def _tell(self) -> None:
        """Wake all who wait for news."""
        self._news.set()
        self._news.clear()

    async def _hear(self) -> None:
        """Wait for news; not for long: nobody tells that something has become slow."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):  # wait_for of Python 3.11 can swallow a cancellation
                await self._news.wait()

    def _next(self) -> int | None:
        """An item that can be handed out."""
        if self._in_order:
            return self._left[0] if self._left[0] in self._ready else None
        return next(iter(self._ready), None)

    def _choose(self, donor: str) -> int | None:
        """What `donor`, which is idle, is to fetch: what nobody has begun, else what is slowest."""
        if not self._in_order and len(self._ready) >= self._ahead:
            return None
        under_way = {flight.item for flight in self._flights}
        for item in self._left[: self._ahead] if self._in_order else self._left:
            if item not in under_way and item not in self._ready:
                return item
        now = time.monotonic()
        late = [self._askers(item)[0] for item in under_way if all(flight.slow(now) for flight in self._askers(item))]
        return min(late, key=lambda flight: flight.moved).item if late else None

    def _askers(self, item: int) -> list[Flight[T]]:
        """Who is on it, the furthest first."""
        return sorted((flight for flight in self._flights if flight.item == item), key=lambda flight: -flight.moved)

    async def _draw(self, donor: str) -> None:
        """All that one donor gives."""
        patience_s = _BUSY_S
        while True:
            item = await self._chosen(donor)
            for behind in self._askers(item)[_ASKERS - 1 :]:
                if behind.job:
                    behind.job.cancel()
            flight: Flight[T] = Flight(donor, item, time.monotonic())
            flight.job = asyncio.ensure_future(self._ask(flight))
            self._flights.append(flight)
            pause_s = 0.0
            try:
                await asyncio.wait([flight.job])
                if flight.job.cancelled():
                    pause_s = LOSER_S
                else:
                    self._arrived(flight, flight.job.result())
                    patience_s = _BUSY_S
            except Busy as busy:
                pause_s = busy.retry_s
                patience_s -= pause_s
                if patience_s <= 0:
                    self._why = str(busy)
                    return
            except Gone as gone:
                self._why = str(gone)
                log.info("%s", gone)
                return
            finally:
                flight.job.cancel()
                self._flights.remove(flight)
                self._moved += flight.moved
                self._tell()
            await asyncio.sleep(pause_s)

    def _arrived(self, flight: Flight[T], value: T) -> None:
        if flight.item in self._left and flight.item not in self._ready:
            self._ready[flight.item] = (flight.donor, value)
        for other in self._flights:
            if other is not flight and other.item == flight.item and other.job:
                other.job.cancel()

    async def _chosen(self, donor: str) -> int:
        """Waits for something to fetch."""
        while (item := self._choose(donor)) is None:
            await self._hear()
        return item
