"""What just happened, for whoever listens: a bounded memory of events, told as server-sent events.

All listeners read from one ring; each keeps only its place in it. One that falls out of the ring, or takes nothing for
WRITE_S, is dropped. It may come back with the id of the last event that it saw, and is told if it missed some meanwhile.
"""

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from itertools import islice
from typing import Any

from aiohttp import web

from protocols.control import SCHEMA, Status
from tapestryd.host.route import Refusal, finite

KEPT = 1_000
"""Events in memory. A story takes about 2 KiB; a round has one, and half a dozen changes of state."""
LISTENERS = 32
"""At each door: whoever may only look at the page takes no room from who may open the socket."""
WRITE_S = 10.0
IDLE_S = 15.0
"""After so long without an event a comment is sent, so that both sides notice who went away."""
_RETRY = b"retry: 2000\n\n"


class Events:
    """Ids are `boot.number`: when this daemon began, in ms, and the events counted from 1."""

    def __init__(self, boot_ms: int) -> None:
        self._boot = boot_ms
        self._last = 0
        self._kept: deque[bytes] = deque(maxlen=KEPT)
        self._listeners: dict[asyncio.Event, web.Application] = {}
        self._status: Status | None = None
        self._closed = False

    def publish(self, kind: str, at_ms: int, members: Mapping[str, object]) -> None:
        self._last += 1
        self._kept.append(_event(kind, {"at_ms": at_ms, **members}, f"{self._boot}.{self._last}"))
        self._wake()

    def show(self, status: Status) -> None:
        """For those who asked for it; only the latest is kept."""
        self._status = status
        self._wake()

    def close(self) -> None:
        """Every listener's answer ends."""
        self._closed = True
        self._wake()

    async def listen(self, request: web.Request, since: str, status: bool) -> web.StreamResponse:
        """Everything after the event `since` ("": from now on), until the listener goes or is dropped. `status`: each Status, too."""
        if list(self._listeners.values()).count(request.app) >= LISTENERS:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{LISTENERS} others listen already; close one of them")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        wake = asyncio.Event()
        self._listeners[wake] = request.app
        try:
            await response.prepare(request)
            await self._tell(response, wake, since, status)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            del self._listeners[wake]
        return response

    async def _tell(self, response: web.StreamResponse, wake: asyncio.Event, since: str, status: bool) -> None:
        place = self._place(since)
        pieces = [_RETRY] if place is not None else [_RETRY, _event("lost", {})]
        place, shown = self._last if place is None else place, None
        while not self._closed and self._last - place <= len(self._kept):
            pieces += islice(self._kept, len(self._kept) - (self._last - place), None)
            place = self._last
            if status and self._status is not None and self._status is not shown:
                shown = self._status
                pieces.append(_event("status", _without_peers(shown)))
            wake.clear()
            if pieces:
                async with asyncio.timeout(WRITE_S):
                    await response.write(b"".join(pieces))
                pieces = []
                continue
            try:
                async with asyncio.timeout(IDLE_S):
                    await wake.wait()
            except TimeoutError:
                pieces = [b":\n\n"]
        if not self._closed:
            raise TimeoutError("fell out of the ring")

    def _place(self, since: str) -> int | None:
        """The number of the last event that was seen; None if some since then are not here."""
        if not since:
            return self._last
        boot, _, number = since.partition(".")
        if boot != str(self._boot) or not (number.isascii() and number.isdigit() and len(number) <= 16):
            return None
        return int(number) if self._last - len(self._kept) <= int(number) <= self._last else None

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.set()


def _without_peers(status: Status) -> dict[str, Any]:
    document = replace(status, peers=()).to_json()  # a thousand of them would take 40 ms
    del document["peers"]
    return document


def _event(kind: str, members: Mapping[str, object], id: str = "") -> bytes:
    data = json.dumps(finite({"schema": SCHEMA} | dict(members)), ensure_ascii=False)
    return ((f"id: {id}\n" if id else "") + f"event: {kind}\ndata: {data}\n\n").encode()
