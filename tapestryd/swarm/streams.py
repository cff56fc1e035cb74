"""One message between two peers on a libp2p stream: a head (canonical JSON) and a body (raw bytes).

    u32 head length | u64 body length | head | body          (little-endian)

libp2p's handshake says who the other is. Lengths are bounded before anything is allocated; a transfer is given up
when less than IO_BYTES of it have moved in IO_S, however long it takes in all.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

from protocols import limits
from protocols.canonical import Json, dumps, loads, take
from protocols.refusal import Declined, Reason, Refused
from tapestryd.swarm.line import CHUNK, Line
from tapestryd.swarm.meter import Meter

_LENGTHS = struct.Struct("<IQ")
_CHUNK = 1 << 18
_SKIP_S = 1.0

Body = bytes | bytearray | memoryview


class Gone(Exception):
    """The other peer cannot be reached, or went away in the middle. Nobody's fault until shown otherwise."""


class Stalled(Gone):
    """The stream is there, and nothing moved on it for as long as we wait, or too little."""


class Busy(Gone):
    """The other peer serves others first; `retry_s`: ask again after that."""

    def __init__(self, peer: str, retry_s: float) -> None:
        super().__init__(f"{peer[-6:]} serves others first")
        self.retry_s = retry_s


class Stream:
    """A stream with `peer` (a peer id as text), for messages of `verb`; `asks`: we opened it. Close it when done."""

    def __init__(
        self, peer: str, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter, line: Line,
        *, asks: bool,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.verb = verb
        self._asks = asks
        self._reader = reader
        self._writer = writer
        self._meter = meter
        self._line = line

    async def send(self, head: Json, body: Body = b"", pace: Callable[[int], Awaitable[object]] | None = None) -> None:
        """`pace(size)` returns when so many more bytes of the body may go."""
        raw = dumps(head)
        view = memoryview(body)
        try:
            await self._write(_LENGTHS.pack(len(raw), len(view)) + raw)
            chunk = CHUNK if pace else self._line.chunk(_CHUNK)
            with nullcontext() if pace else self._meter.moving(len(view)):  # what is held back says nothing of our link
                for start in range(0, len(view), chunk):
                    if pace:
                        await pace(min(chunk, len(view) - start))
                    await self._write(view[start : start + chunk])
        except TimeoutError:
            raise Stalled(f"{self.verb} to {self.peer[-6:]}: no progress") from None
        except (OSError, RuntimeError) as error:
            raise Gone(f"{self.verb} to {self.peer[-6:]}: {error}") from None

    async def _write(self, data: bytes | memoryview) -> None:
        """Hand it over when the line has room for it, and wait until there is room for more. Raises TimeoutError when what waits
        to go moves too slowly."""
        await self._line.up(len(data), self.peer)
        self._writer.write(data)
        self._meter.sends(len(data), self.verb, self.peer, asks=self._asks)
        while True:
            waiting = self._writer.transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(limits.IO_S):
                    return await self._writer.drain()
            except TimeoutError:
                if self._writer.transport.get_write_buffer_size() > waiting - limits.IO_BYTES:
                    raise

    async def question(self, shape: Mapping[str, type], head_bytes: int = limits.HEAD_BYTES) -> Json:
        """The head of the next message, which has exactly these fields, and no body."""
        head, _ = await self.receive(0, head_bytes=head_bytes)
        take(head, shape)
        return head

    async def receive(
        self, body_bytes: int, timeout: float = limits.IO_S, moved: Callable[[int], None] | None = None,
        *, head_bytes: int = limits.HEAD_BYTES,
    ) -> tuple[Json, bytearray]:  # fmt: skip
        """The next message, its head at most `head_bytes`, its body at most `body_bytes`. `timeout`: until its first byte, in seconds.
        `moved(bytes)` is told how much of the body there is, as it comes."""
        try:
            async with asyncio.timeout(timeout):
                lengths = await self._reader.readexactly(_LENGTHS.size)
            self._came(len(lengths))
            head_size, size = _LENGTHS.unpack(lengths)
            if head_size > head_bytes or size > body_bytes:
                most = f"at most {head_bytes} and {body_bytes}"
                raise Refused(Reason.TOO_LARGE, f"{self.verb}: head of {head_size}, body of {size} bytes; {most}")
            async with asyncio.timeout(limits.IO_S):
                head = await self._reader.readexactly(head_size)
            self._came(len(head))
            body = bytearray(size)
            at = enough = 0
            with self._meter.moving(size):
                while at < size:
                    if at >= enough:
                        enough, by = min(size, at + limits.IO_BYTES), asyncio.get_running_loop().time() + limits.IO_S
                    async with asyncio.timeout_at(by):
                        chunk = await self._reader.read(min(_CHUNK, size - at))
                    if not chunk:
                        raise Gone(f"{self.verb}: {self.peer[-6:]} ended in the middle")
                    self._came(len(chunk))
                    by += await self._line.down(len(chunk), self.peer)
                    body[at : at + len(chunk)] = chunk
                    at += len(chunk)
                    if moved:
                        moved(at)
        except TimeoutError:
            raise Stalled(f"{self.verb}: nothing from {self.peer[-6:]} in time") from None
        except (OSError, EOFError) as error:
            raise Gone(f"{self.verb}: nothing from {self.peer[-6:]} ({type(error).__name__})") from None
        return loads(head, head_bytes), body

    def _came(self, size: int) -> None:
        self._meter.receives(size, self.verb, self.peer, asks=self._asks)

    async def answer(
        self, body_bytes: int = 0, timeout: float = limits.IO_S, moved: Callable[[int], None] | None = None,
        *, head_bytes: int = limits.HEAD_BYTES,
    ) -> tuple[Json, bytearray]:  # fmt: skip
        """As `receive`, of an answer: {"refused": reason, "detail": …} is raised as Declined, {"busy_ms": …} as Busy."""
        head, body = await self.receive(body_bytes, timeout, moved, head_bytes=head_bytes)
        if type(head.get("busy_ms")) is int:
            raise Busy(self.peer, min(max(head["busy_ms"] / 1000, 0.1), limits.IO_S))
        if "refused" in head:
            raise Declined(_reason(head["refused"]), f"{self.peer[-6:]} says: {str(head.get('detail', ''))[:200]}")
        return head, body

    async def skip(self) -> None:
        """Drop what is asked, for a second at most: to close on what is unread resets the stream, and our answer is lost."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_SKIP_S):
                self._came(len(await self._reader.read(_CHUNK)))

    async def was_read(self) -> None:
        """Until the other side, having read all that we said, closes; IO_S at most. To close before it now and then resets the stream
        (p2pd ends its two directions one after the other), and the end of a long answer is lost."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(limits.IO_S):
                self._came(len(await self._reader.read(1)))

    async def refuse(self, refused: Refused) -> None:
        await self.send({"refused": refused.reason.value, "detail": refused.detail[:200]})

    async def busy(self, retry_s: float) -> None:
        await self.send({"busy_ms": round(retry_s * 1000)})

    def close(self) -> None:
        """What waits to go still goes, for as long as the other side takes to read it."""
        self._writer.close()

    def abort(self) -> None:
        """What waits to go does not."""
        self._writer.transport.abort()


def _reason(value: Any) -> Reason:
    return Reason(value) if isinstance(value, str) and value in {reason.value for reason in Reason} else Reason.MALFORMED
