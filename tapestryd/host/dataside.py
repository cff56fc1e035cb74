"""The daemon's end of the watch channel: what holds training on the data side, and how its GPUs are, as its steward says.

Connecting starts the data side where nobody is there yet. Asks again, at growing intervals, when the channel is lost; what was last said
counts until something else is. What arrives is checked as if it were hostile. What it means is the caller's.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from protocols.control import Gpu
from protocols.refusal import Reason, Refused
from protocols.trainer import ABI, SIZE, UNKNOWN, Around, Hold, Holding, Holds, Watch, pack, unpack
from protocols.trainer import Gpu as Seen
from tapestryd.host import policy
from tapestryd.host.lookout import opened

log = logging.getLogger(__name__)

AROUND_S = 5.0
_AGAIN_MAX_S = 60.0
_BURST = 64


class DataSide:
    """`around()`: what the data side cannot see. `changed()` is called whenever something is said. `run` until cancelled."""

    def __init__(self, where: Path, around: Callable[[], Around], changed: Callable[[], None]) -> None:
        self._where, self._around, self._changed = where, around, changed
        self._said: dict[Holding, Hold] = {}
        self.holds: tuple[policy.Hold, ...] = ()
        self.changes_s: float | None = None
        self._gpus: dict[int, Gpu] = {}

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self._gpus[index] for index in sorted(self._gpus))

    async def run(self) -> None:
        again_s = 1.0
        while True:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as channel:
                    channel.connect(str(self._where))
                    channel.send(pack(Watch(ABI)))
                    if await self._watch(channel):
                        again_s = 1.0
            except (OSError, Refused) as error:
                log.debug("nothing to be seen of the data side: %s", error)
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, _AGAIN_MAX_S)

    async def _watch(self, channel: socket.socket) -> bool:
        """Until it is lost → whether anything was said. Raises OSError, and Refused for what is nothing of the channel."""
        loop, news, heard = asyncio.get_running_loop(), asyncio.Event(), False
        self._said.clear()
        loop.add_reader(channel.fileno(), news.set)
        try:
            while True:
                channel.send(pack(self._around()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(AROUND_S):
                        await news.wait()
                news.clear()
                with suppress(BlockingIOError):
                    for _ in range(_BURST):
                        packet = channel.recv(SIZE + 1)
                        if not packet:
                            return heard
                        self._hear(packet)
                        heard = True
        finally:
            loop.remove_reader(channel.fileno())

    def _hear(self, packet: bytes) -> None:
        match unpack(packet):
            case Hold() as hold:
                self._said[Holding(hold.holding)] = hold
            case Holds() as holds:
                held = [holding for holding in Holding if holds.bits >> holding & 1]
                if not set(held) <= self._said.keys():
                    raise Refused(Reason.MALFORMED, "HOLDS of what no HOLD has told")
                self.holds = tuple(opened(self._said[holding]) for holding in held)
                self.changes_s = holds.changes_ms / 1000 or None
                self._changed()
            case Seen() as gpu:
                self._gpus = {index: known for index, known in self._gpus.items() if index < gpu.count} | {gpu.index: _gpu(gpu)}
            case other:
                raise Refused(Reason.MALFORMED, f"a {type(other).__name__} on the watch channel")


def _gpu(seen: Seen) -> Gpu:
    def known(number: float) -> float | None:
        return None if number == UNKNOWN else number

    return Gpu(
        known(seen.temperature_c), known(seen.util), known(seen.power_w), seen.memory_used_bytes or None, seen.memory_bytes or None,
        None if seen.others < 0 else seen.others, known(seen.others_util),
    )  # fmt: skip
