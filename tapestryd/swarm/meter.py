"""What we hand to libp2p and what it hands to us, byte by byte: by verb, by kind and peer, and how fast large bodies move.

Counted as it is handed over: what breaks off is counted as far as it got, so rather too much than too little. What p2pd adds
or says of its own accord never comes by here; the kernel knows of it (host/kernel.py).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protocols import limits

KINDS = {
    "hello": ("contact", "contact"),
    "dialback": ("contact", "contact"),
    "rules": ("rules", "rules"),
    "tokenizer": ("rules", "rules"),
    "snapshots": ("snapshot", "snapshot"),
    "piece": ("snapshot", "snapshot"),
    "entry": ("log", "log"),
    "call": ("roster", "roster"),
    "reduce": ("delta", "mean"),
    "vote": ("vote", "vote"),
    "votes": ("vote", "vote"),
    "part": ("mean", "mean"),
    "rpc_ping": ("record", "record"),
    "rpc_store": ("record", "record"),
    "rpc_find": ("record", "record"),
}
"""Verb → what it is that leaves us with a question of ours, and with an answer; heads, lengths and refusals go with it. The
verbs of protocols/streams.md, and hivemind's DHT calls. Any other verb would be its own kind."""

Tell = Callable[[str, str, int, int], None]
"""(kind, peer, sent, received): so many bytes more."""

_LARGE_BYTES = 1 << 16
_RATE = 1 << 20
"""Bytes per second that we say of ourselves before anything large has moved."""


class Meter:
    """`sent` and `received`: bytes by verb. `tell` is told of each, by kind and peer; nothing of peers is kept here."""

    def __init__(self, tell: Tell = lambda *_: None) -> None:
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self._tell = tell
        self._moving = 0
        self._since = 0.0
        self._bytes = 0
        self._periods: deque[tuple[int, float]] = deque(maxlen=16)

    def sends(self, size: int, verb: str, peer: str, *, asks: bool) -> None:
        """`size` bytes go to `peer`. `asks`: of our question; else of our answer."""
        self.sent[verb] = self.sent.get(verb, 0) + size
        self._tell(KINDS.get(verb, (verb, verb))[0 if asks else 1], peer, size, 0)

    def receives(self, size: int, verb: str, peer: str, *, asks: bool) -> None:
        """`size` bytes came from `peer`. `asks`: of the answer to our question; else of its question."""
        self.received[verb] = self.received.get(verb, 0) + size
        self._tell(KINDS.get(verb, (verb, verb))[1 if asks else 0], peer, 0, size)

    @contextmanager
    def moving(self, size: int) -> Iterator[None]:
        """While a body of `size` bytes moves, either way. Side by side they make one period: the link is what they share."""
        if size < _LARGE_BYTES:
            yield
            return
        now = asyncio.get_running_loop().time
        if self._moving == 0:
            self._since, self._bytes = now(), 0
        self._moving += 1
        try:
            yield
            self._bytes += size
        finally:
            self._moving -= 1
            if self._moving == 0 and self._bytes:
                self._periods.append((self._bytes, now() - self._since))

    def rate(self) -> int:
        """Bytes per second, both ways together, of the latest periods; rounded down to a power of two, so that small
        differences between machines make no odd shares."""
        moved, took_s = (sum(column) for column in zip(*self._periods, strict=True)) if self._periods else (_RATE, 1.0)
        return min(limits.RATE, 1 << max(0, int(moved / max(took_s, 1e-3)).bit_length() - 1))

    def totals(self) -> tuple[int, int]:
        return sum(self.sent.values()), sum(self.received.values())
