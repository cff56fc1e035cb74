"""The other peers of the run as we know them: their presence records, how far away they are, how their clocks go."""

import asyncio
import logging
import time
from dataclasses import dataclass

from protocols import limits
from protocols.canonical import Verify, take
from protocols.control import Peer
from protocols.lineage import Tip
from protocols.records import Presence
from protocols.refusal import Refused
from protocols.rounds import Seen
from tapestryd.host.clock import now_ms, verdict
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream

log = logging.getLogger(__name__)

_PING_S = 15.0
_DOUBT_S = 10.0


@dataclass(slots=True)
class _Known:
    presence: Presence
    seen: float
    rtt_ms: float | None = None
    skew_ms: int | None = None
    pinged: float = -_PING_S


class Neighbours:
    def __init__(self, node: Node, run: str, verify: Verify) -> None:
        self._node = node
        self._run = run
        self._verify = verify
        self._known: dict[str, _Known] = {}
        self._doubted: dict[str, float] = {}
        self._pings: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        await self._node.serve("hello", self._hello)

    async def _hello(self, stream: Stream) -> None:
        await stream.receive(0)
        await stream.send({"now_ms": now_ms()})

    async def refresh(self) -> None:
        """Read all presence records; what is not a valid one of this run is counted and dropped. Pings who is due."""
        now = time.monotonic()
        for peer, record in (await self._node.look()).items():
            try:
                presence = Presence.parse(record, run=self._run, peer=peer, now_ms=now_ms(), verify=self._verify)
            except Refused as refused:
                self._node.refused(refused, "presence", peer)
                continue
            known = self._known.get(peer)
            if presence.state == "left":
                self._known.pop(peer, None)
            elif known is None:
                self._known[peer] = _Known(presence, now)
            elif presence.made_ms > known.presence.made_ms:
                known.presence, known.seen = presence, now
        for peer, known in list(self._known.items()):
            if now - known.seen > limits.PRESENCE_MS / 1000:
                del self._known[peer]
            elif now - known.pinged > _PING_S:
                known.pinged = now
                ping = asyncio.create_task(self._ping(peer, known))
                self._pings.add(ping)
                ping.add_done_callback(self._pings.discard)
        self._node.hint({peer: known.presence.addrs for peer, known in self._known.items()})

    async def _ping(self, peer: str, known: _Known) -> None:
        """Round trip and clock difference, as NTP has it (RFC 5905 §8), the best of three: the first may have to dial."""
        best: tuple[float, int] | None = None
        try:
            for _ in range(3):
                start, before = time.perf_counter(), now_ms()
                head, _ = await self._node.ask(peer, "hello", {})
                rtt = (time.perf_counter() - start) * 1000
                take(head, {"now_ms": int})
                skew = head["now_ms"] - round(before + rtt / 2)
                best = min(best or (rtt, skew), (rtt, skew))
        except Gone as gone:
            log.debug("ping: %s", gone)
        except Refused as refused:
            self._node.refused(refused, "hello", peer)
        if best:
            known.rtt_ms, known.skew_ms = best

    def doubt(self, tip: Tip) -> None:
        """Nobody could show us this lineage: pass it over for a while."""
        self._doubted[tip.base] = time.monotonic() + _DOUBT_S

    def seen(self) -> tuple[Seen, ...]:
        now = time.monotonic()
        self._doubted = {base: until for base, until in self._doubted.items() if until > now}
        found = []
        for peer, known in self._known.items():
            tip = known.presence.tip
            found.append(Seen(peer, None if tip and tip.base in self._doubted else tip, known.presence.active))
        return tuple(found)

    def on_base(self, tip: Tip) -> list[str]:
        """Peers that will take part in a round on this base."""
        return [peer for peer, known in self._known.items() if known.presence.active and known.presence.tip == tip]

    def clock(self) -> tuple[bool, int | None]:
        return verdict(known.skew_ms for known in self._known.values() if known.skew_ms is not None)

    def addresses(self) -> list[str]:
        """One address each, with peer id: for invites, and for coming back."""
        return [f"{known.presence.addrs[0]}/p2p/{peer}" for peer, known in self._known.items() if known.presence.addrs]

    def count(self) -> int:
        return len(self._known)

    def status(self, base: str) -> tuple[Peer, ...]:
        now = time.monotonic()
        return tuple(
            Peer(
                peer, known.presence.name, known.presence.state, known.presence.height, known.presence.base,
                known.presence.base == base and base != "", known.presence.addrs, known.rtt_ms, known.skew_ms,
                round(now - known.seen, 1), known.presence.version,
            )
            for peer, known in sorted(self._known.items())
        )  # fmt: skip
