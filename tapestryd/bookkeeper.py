"""What left this machine by our doing, and what came: counted, kept over restarts, and held against what the kernel counted.

One for the daemon's life. The node and the API tell it of every byte that they hand over; while a node is up, it looks at the
connections of its p2pd every second. What p2pd and TCP add only the kernel can say.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Protocol

from protocols.egress import Egress, Moved, Reconciliation
from tapestryd.errors import DiskFull
from tapestryd.host import policy
from tapestryd.host.balance import balance
from tapestryd.host.connections import Connections, Interfaces, Traffic
from tapestryd.host.files import write
from tapestryd.host.kernel import Endpoint, Kernel, inodes
from tapestryd.host.tallies import Page, Tallies, Tally

log = logging.getLogger(__name__)

_KEEP_S = 60.0
"""Between two writes: what a daemon that is killed has counted since then is lost."""

_LOOK_S = 1.0
_COST = 100
"""Between two looks at least so many times what one takes: where there are very many connections, a second is too short."""

_API = "api"
_NO_RUN = "no run is joined"

Names = Callable[[], Awaitable[Mapping[Endpoint, str]]]
"""The other ends of the connections that are open → whose they are."""


class Counts(Protocol):
    count: Callable[[int, int], None]


class Bookkeeper:
    """`count` is swarm.meter.Tell. `run` beside everything else, `close` at the end."""

    def __init__(self, folder: Path, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._tallies = Tallies(folder, now_ms())
        self._writing = asyncio.Lock()
        self._closing = asyncio.Event()
        self._watch: _Watch | None = None
        self._unwatched = _NO_RUN
        self._month: policy.Moved | None = None
        self._since_then = 0

    def count(self, kind: str, peer: str, sent: int, received: int) -> None:
        self._tallies.add(kind, peer, sent, received)
        self._since_then += sent + received
        if self._watch:
            self._watch.payload.add(kind, peer, Moved(sent, received))

    def serves(self, listeners: Mapping[str, Counts]) -> None:
        """They are about to: what the control API answers on each is counted under its name."""
        for name, listener in listeners.items():
            listener.count = partial(self._tallies.add, _API, name)

    @property
    def month(self) -> policy.Moved | None:
        """Both ways, with peers, in this month (UTC); None: nobody has added it up yet."""
        return self._month and replace(self._month, bytes=self._month.bytes + self._since_then)

    async def run(self) -> None:
        """Look and write, until closed. The first page says that a daemon began."""
        kept = -math.inf
        while not self._closing.is_set():
            if time.monotonic() - kept >= _KEEP_S:
                kept = time.monotonic()
                await self._keep()
            began = time.monotonic()
            await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(_LOOK_S, _COST * (time.monotonic() - began))):
                    await self._closing.wait()

    async def close(self) -> None:
        """The last page, closed: the next daemon knows that nothing is missing."""
        self._closing.set()
        await self.left()
        await self._keep(closing=True)

    # The kernel.

    async def joining(self) -> None:
        """A node is about to start: from now on the kernel's counts are ours to explain."""
        await self.left()
        try:
            self._watch = _Watch(self._now_ms())
        except OSError as error:
            self._give_up(error)

    def joined(self, p2pd: int, names: Names) -> None:
        """It is there: its libp2p is process `p2pd`."""
        if self._watch:
            self._watch.p2pd, self._watch.names = p2pd, names

    async def left(self) -> None:
        watch, self._watch = self._watch, None
        self._unwatched = _NO_RUN
        if watch:
            await watch.close()

    async def _look(self) -> None:
        watch = self._watch
        if watch is None:
            return
        try:
            await watch.look()
        except OSError as error:
            if watch is self._watch:
                await self.left()
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._unwatched = f"the kernel's counts cannot be read: {error.strerror}"
        log.warning("what is sent and received is counted, but not reconciled: %s", self._unwatched)

    # The pages.

    async def _keep(self, *, closing: bool = False) -> None:
        async with self._writing:
            now_ms = self._now_ms()
            pages = self._tallies.pages(now_ms, closing=closing)
            try:
                await self._turn_to(policy.month_of(now_ms / 1000, UTC), now_ms, pages)
                await asyncio.to_thread(_write, pages)
                self._tallies.written(pages)
                await asyncio.to_thread(self._tallies.fold, now_ms)
            except (DiskFull, OSError) as error:
                log.error("what was sent and received is counted, but would not survive a restart: %s", error)

    async def _turn_to(self, month: str, now_ms: int, pages: dict[Path, Page]) -> None:
        """What the files hold of it, and `pages`, made just now; the rest is counted on from here."""
        if self._month is None or self._month.month != month:
            self._since_then = 0
            moved = sum(_with_peers(await asyncio.to_thread(self._tallies.month, month, now_ms, pages)).by_kind().values(), Moved())
            self._month = policy.Moved(month, moved.sent + moved.received)

    async def show(self, since_ms: int) -> Egress:
        """What moved since then, or a little longer: since the hour or the day that it lies in began."""
        await self._look()
        async with self._writing:
            now_ms = self._now_ms()
            page = await asyncio.to_thread(self._tallies.since, since_ms, now_ms, self._tallies.pages(now_ms))
        watch = self._watch if self._watch and self._watch.p2pd else None
        tally = _with_peers(page)
        by_kind = tally.by_kind()
        return Egress(
            since_ms=page.from_ms,
            until_ms=page.until_ms,
            sum=sum(by_kind.values(), Moved()),
            by_kind=by_kind,
            by_peer=tally.by_peer(),
            api=page.moved.get(_API, {}),
            gaps=page.gaps,
            reconciliation=watch.reconciliation() if watch else None,
            unreconciled="" if watch else self._unwatched,
        )


class _Watch:
    """What one node handed over, and what the kernel counted, since before it began. Raises OSError where it cannot look."""

    def __init__(self, now_ms: int) -> None:
        self.payload = Tally()
        self.p2pd = 0
        self.names: Names | None = None
        self._since_ms = now_ms
        self._kernel = Kernel()
        self._connections = Connections(lambda: inodes(self.p2pd))
        self._interfaces = Interfaces()
        self._interfaces.look(self._kernel.interfaces(), ())
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        async with self._looking:
            await asyncio.to_thread(self._read)
            if self.names and self._connections.nameless:
                self._connections.name(await self.names())

    async def close(self) -> None:
        async with self._looking:
            self._kernel.close()

    def _read(self) -> None:
        if self.p2pd:
            self._connections.look(self._kernel.sockets(), self._kernel.destroyed())
        self._interfaces.look(self._kernel.interfaces(), self._connections.ends())

    def reconciliation(self) -> Reconciliation:
        carried = self._connections.by_peer()
        tcp, wire = sum(carried.values(), Traffic()), self._interfaces.moved()
        payload = {peer: sum(kinds.values(), Moved()) for peer, kinds in self.payload.by_peer().items()}
        total = sum(payload.values(), Moved())
        return Reconciliation(
            since_ms=self._since_ms,
            sent=balance(total.sent, tcp.sent, wire.sent),
            received=balance(total.received, tcp.received, wire.received),
            by_peer={
                peer: {
                    "payload": payload.get(peer, Moved()),
                    "tcp": Moved(carried[peer].sent.size, carried[peer].received.size) if peer in carried else Moved(),
                }
                for peer in sorted(payload.keys() | carried.keys())
            },
            interfaces=tuple(sorted(self._interfaces.used)),
            connections=self._connections.count,
            cut=self._connections.cut + self._kernel.missed,
        )


def _with_peers(page: Page) -> Tally:
    tally = Tally()
    tally.merge({kind: peers for kind, peers in page.moved.items() if kind != _API})
    return tally


def _write(pages: Mapping[Path, Page]) -> None:
    for path, page in pages.items():
        write(path, page.to_bytes())
