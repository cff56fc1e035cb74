"""How much of our line we use: bytes spread over time, each way, those of all streams and calls together.

What is handed to p2pd is counted, and made larger by what p2pd and TCP put around it. Upwards the line is kept by not handing over
more; downwards by not reading more, so that p2pd's windows fill and the other side waits.
"""

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_address

WIRE = 1.06
"""Bytes on the wire for each that we hand over: multiplexing, encryption, TCP and IP (tests/benchmarks/caps.py)."""

CHUNK = 1 << 14
"""What goes at once where the line is kept: so small that a transfer which shares a low limit with many others still moves
limits.IO_BYTES in IO_S."""

_SMALL = 1 << 10
"""A message of at most so many bytes does not wait, but whoever comes behind it waits for it: round trips are measured with such."""


class Pace:
    """Spreads bytes over time, those of all streams together. `bytes_per_s()`: the rate at the moment; 0: as fast as they go."""

    def __init__(self, bytes_per_s: Callable[[], float]) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    async def __call__(self, size: int) -> float:
        """The seconds that it made us wait."""
        wait_s = self.charge(size)
        if wait_s:
            await asyncio.sleep(wait_s)
        return wait_s

    def charge(self, size: int) -> float:
        """The seconds until these bytes are through."""
        rate = self._bytes_per_s()
        now = asyncio.get_running_loop().time()
        self._free_s = max(now, self._free_s) + size / rate if rate else now
        return self._free_s - now


class Line:
    """`up()`, `down()`: bytes a second on the wire at the moment; 0: no limit. `spare_near`: peers on networks of our own do not
    count. Upwards the limit holds in any second; downwards over tens of them, since each stream may run ahead by what buffers
    hold, about 1 MiB."""

    def __init__(self, up: Callable[[], int] = lambda: 0, down: Callable[[], int] = lambda: 0, *, spare_near: bool = False) -> None:
        self.spare_near = spare_near
        self._up, self._down = Pace(lambda: up() / WIRE), Pace(lambda: down() / WIRE)
        self._kept = up
        self._near = frozenset[str]()

    def meet(self, connections: Mapping[tuple[str, int], str]) -> None:
        """IP address and port of the other end → peer, of all that are open. A peer that is connected from elsewhere, too, counts."""
        far = {peer for (host, _), peer in connections.items() if not ip_address(host.partition("%")[0]).is_private}
        self._near = frozenset(connections.values()) - far

    def chunk(self, largest: int) -> int:
        """How much to hand over at once."""
        return CHUNK if self._kept() else largest

    async def up(self, size: int, peer: str) -> float:
        """Before handing over `size` bytes for `peer`; the seconds that it made us wait."""
        return await self._move(self._up, size, peer)

    async def down(self, size: int, peer: str) -> float:
        """Behind `size` bytes that came from `peer`, before any more are read; the seconds that it made us wait."""
        return await self._move(self._down, size, peer)

    async def _move(self, pace: Pace, size: int, peer: str) -> float:
        if self.spare_near and peer in self._near:
            return 0.0
        if size <= _SMALL:
            pace.charge(size)
            return 0.0
        return await pace(size)


OPEN_LINE = Line()
"""As fast as it goes."""
