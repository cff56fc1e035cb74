"""The other peers of the run as we know them: their presence records, how far away they are, how their clocks go."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from protocols import limits
from protocols.canonical import Verify, take
from protocols.control import Peer
from protocols.grouping import Candidate
from protocols.lineage import Tip
from protocols.membership import Delegation
from protocols.records import Presence
from protocols.refusal import Reason, Refused
from protocols.rounds import Member, Seen, State
from protocols.rules import RunRules
from protocols.schedule import Schedule
from tapestryd.host.clock import now_ms, verdict
from tapestryd.swarm.doubts import Doubts
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Busy, Gone, Stream

log = logging.getLogger(__name__)

Admit = Callable[[str, Delegation | None, int], str]
"""(node, its delegation, at_ms) → whose voice it has. Raises Refused if it has none."""

_PING_S = 15.0
_DOUBTED_S = 10.0, 600.0
"""First, and at most: how long announcements are passed over of a peer that could not show one, or not bring us there."""
_PROOFS = 8
"""Certificates asked for at once, and of one tip: two, so that whoever answers slowly does not hide who would answer at once."""
_PROOFS_A_TIP = 2
_PROOF_S = 30.0
"""Who has taken this long over one gives way to others that are to be asked. A head of 1 MiB, which is the longest, takes 16 s at
the rate below which a donor is slow (swarm/draw)."""
_PATIENCE_S = 60.0
"""The least that slow donors are waited for, however short rounds are."""


@dataclass(frozen=True, slots=True)
class _Asked:
    peer: str
    tip: Tip
    since: float
    task: "asyncio.Task[None]"


@dataclass(slots=True)
class _Known:
    presence: Presence
    seen: float
    rtt_ms: float | None = None
    skew_ms: int | None = None
    pinged: float = -_PING_S


def look_s(schedule: Schedule, now_ms: int, member: Member | None) -> float:
    """How long it is to the next look. At each of them all that hold records send all of them; so, where nothing depends on who comes
    and goes before the boundary, and that is far, it is half as often. A presence lives long enough for two."""
    near = schedule.boundary(schedule.round_at(now_ms)) - now_ms < limits.PRESENCE_MS
    rests = member is not None and (
        member.state in (State.TRAINING, State.PAUSED) or (member.state is State.JOINING and "trainer" in member.reasons)
    )
    return min(limits.PRESENCE_MS / 2000 if rests and not near else 5.0, max(0.5, schedule.period_ms / 8000))


class Neighbours:
    """`on_proof()` is called when a certificate has come of a tip that was only announced before.
    `admit` is set once the rules are known; until then everybody counts, as somebody to ask for them."""

    def __init__(self, node: Node, run: str, verify: Verify, fetcher: Fetcher, on_proof: Callable[[], None]) -> None:
        self._node = node
        self._run = run
        self._verify = verify
        self.admit: Admit | None = None
        self._fetcher = fetcher
        self._on_proof = on_proof
        self._known: dict[str, _Known] = {}
        self.own_ms = now_ms()
        """When our newest record was made; those from before we began are of an earlier life."""
        self._twin_ms, self._twin = 0, -math.inf
        """Of the newest record by our key that we did not make; when there was one newer than that."""
        self._shunned: dict[str, float] = {}
        """Banned peers that had a record at the last look, and when that was."""
        self._doubts = Doubts(*_DOUBTED_S)
        self._proving: dict[str, _Asked] = {}
        """By peer; who was asked the longest ago comes first."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        await self._node.serve("hello", self._hello)
        self._node.keep(self._storable)

    async def _hello(self, stream: Stream) -> None:
        await stream.question({})
        await stream.send({"now_ms": now_ms()})

    def _storable(self, peer: object, record: object) -> bool:
        """Whether our DHT node keeps that: not what we would refuse ourselves, so strangers do not crowd out a run's Members."""
        try:
            presence = Presence.parse(record, run=self._run, peer=str(peer), now_ms=now_ms(), verify=self._verify)
            if self.admit and presence.state != "left":
                self.admit(presence.peer, presence.delegation, presence.made_ms)
        except Refused:
            return False
        return True

    async def refresh(self) -> None:
        """Read all presence records, but those of banned peers; what is not a valid one of this run is counted and dropped.
        Pings who is due."""
        now = time.monotonic()
        for peer in [peer for peer, known in self._known.items() if now - known.seen > limits.PRESENCE_MS / 1000]:
            del self._known[peer]  # also when the DHT does not answer
        found = await self._node.look()
        made_ms = self._made_ms(self._node.own)
        if made_ms > max(self.own_ms, self._twin_ms):
            if self._twin_ms:  # the first may be of an earlier life, with a clock that was ahead
                self._twin = now
            self._twin_ms = made_ms
        self._shunned = {peer: now for peer in found if self._node.door.shut(peer)}
        for peer in [peer for peer in self._known if self._node.door.shut(peer)]:
            del self._known[peer]
        for peer, record in found.items():
            if peer in self._shunned:
                continue
            try:
                presence = Presence.parse(record, run=self._run, peer=peer, now_ms=now_ms(), verify=self._verify)
            except Refused as refused:
                # Not proven: a record that somebody else made up or moved here is refused, too. Nor need it be: nothing is
                # asked of a peer whose record is refused, and the same record is read at each look until it expires.
                self._node.refused(refused, "presence", peer, proven=False)
                continue
            try:
                if self.admit and presence.state != "left":
                    self.admit(peer, presence.delegation, presence.made_ms)
            except Refused as refused:
                self._node.refused(refused, "presence", peer)
                self._known.pop(peer, None)
                continue
            known = self._known.get(peer)
            if presence.state == "left":
                self._known.pop(peer, None)
            elif known is None:
                # One that has nothing newer to say is stored for longer than it is there.
                if len(self._known) < limits.RECORDS and now_ms() - presence.made_ms <= limits.PRESENCE_MS:
                    self._known[peer] = _Known(presence, now)
            elif presence.made_ms > known.presence.made_ms:
                known.presence, known.seen = presence, now
        for peer, known in self._known.items():
            if now - known.pinged > _PING_S:
                known.pinged = now
                self._spawn(self._ping(peer, known))
        self._node.hint({peer: known.presence.addrs for peer, known in self._known.items()})

    def _made_ms(self, own: bytes | None) -> int:
        try:
            return Presence.parse(own, run=self._run, peer=self._node.peer_id, now_ms=now_ms(), verify=self._verify).made_ms
        except Refused:
            return 0  # there is none, or anybody's

    def twin(self) -> bool:
        """Whether another daemon has our identity, or had it until a moment ago: of its records and ours one hides the other."""
        return time.monotonic() - self._twin < limits.PRESENCE_MS / 1000

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ping(self, peer: str, known: _Known) -> None:
        """Round trip and clock difference, as NTP has it (RFC 5905 §8), the best of three: the first may have to dial."""
        best: tuple[float, int] | None = None
        try:
            for _ in range(3):
                found = await self.ping(peer)
                best = min(best or found, found)
        except Gone as gone:
            log.debug("ping: %s", gone)
        except Refused as refused:
            self._node.refused(refused, "hello", peer)
        if best:
            known.rtt_ms, known.skew_ms = best

    async def ping(self, peer: str) -> tuple[float, int]:
        """Round trip and clock difference, in ms. Raises Gone, Busy, Refused."""
        start, before = time.perf_counter(), now_ms()
        head, _ = await self._node.ask(peer, "hello", {})
        rtt = (time.perf_counter() - start) * 1000
        take(head, {"now_ms": int})
        return rtt, head["now_ms"] - round(before + rtt / 2)

    def scout(self, ours: Tip | None) -> None:
        """Ask those who announce a better lineage than `ours` for its certificate: nothing is given up for a mere announcement.
        Of tips that are shown already only better ones are asked for; near peers that never failed us come first."""
        best = ours
        for seen in self.seen():
            if seen.tip and (best is None or seen.tip.better_than(best)):
                best = seen.tip
        for peer, known in sorted(self._known.items(), key=self._trust):
            tip = known.presence.tip
            if tip is None or peer in self._proving or self._fetcher.proven(tip) or self._doubted(peer):
                continue
            if (best is None or tip.better_than(best)) and self._room(tip):
                self._proving[peer] = _Asked(peer, tip, time.monotonic(), self._spawn(self._prove(peer, tip, ours)))

    def _room(self, tip: Tip) -> bool:
        """Whether one more may be asked to prove `tip`; who has taken too long is not waited for any more."""
        of_all = list(self._proving.values())
        of_tip = [asked for asked in of_all if asked.tip == tip]
        crowd = of_tip if len(of_tip) >= _PROOFS_A_TIP else of_all if len(of_all) >= _PROOFS else []
        if not crowd:
            return True
        now, slowest = time.monotonic(), crowd[0]
        if now - slowest.since < _PROOF_S:
            return False
        log.info("tip of height %d: nothing from %s in time", slowest.tip.height, slowest.peer[-6:])
        slowest.task.cancel()
        del self._proving[slowest.peer]
        self._doubts.add(slowest.peer, now)
        return True

    def _trust(self, item: tuple[str, _Known]) -> tuple[int, float]:
        peer, known = item
        rtt_ms = known.rtt_ms if known.rtt_ms is not None else math.inf
        return self._doubts.times(peer), rtt_ms

    async def _prove(self, peer: str, tip: Tip, ours: Tip | None) -> None:
        try:
            await self._fetcher.prove(peer, tip)
        except Busy as busy:
            self._doubts.wait(peer, time.monotonic() + max(1.0, busy.retry_s))
        except Gone as gone:
            log.info("tip of height %d: %s", tip.height, gone)
            self._doubts.add(peer, time.monotonic())
        except Refused as refused:
            again = self._doubts.add(peer, time.monotonic()) > 1
            # Once is forgiven: it may have gone over to another branch since it said so.
            if again or refused.reason is not Reason.NO_QUORUM:
                self._node.refused(refused, "tip", peer)
            else:
                log.info("tip of height %d by %s: %s", tip.height, peer[-6:], refused)
        else:
            self._on_proof()
        finally:
            self._proving.pop(peer, None)
        self.scout(ours)

    def _doubted(self, peer: str) -> bool:
        return self._node.door.wary(peer) or self._doubts.holds(peer, time.monotonic())

    def doubt(self, donors: Sequence[str]) -> None:
        """The tip that they announced was committed, but they could not bring us there; whatever they announce by now."""
        for peer in donors:
            self._doubts.add(peer, time.monotonic())

    def trust(self, donors: Sequence[str]) -> None:
        """They did."""
        for peer in donors:
            self._doubts.clear(peer)

    def seen(self) -> tuple[Seen, ...]:
        """All who are there, whom to ask first first. Only a tip whose certificate has been seen is passed on."""
        found = []
        for peer, known in sorted(self._known.items(), key=self._trust):
            tip = known.presence.tip
            shown = tip is not None and self._fetcher.proven(tip) and not self._doubted(peer)
            found.append(Seen(peer, tip if shown else None, known.presence.active))
        return tuple(found)

    def on_base(self, tip: Tip) -> dict[str, Candidate]:
        """Peers that will take part in a round on this base."""
        there = {peer: known.presence for peer, known in self._known.items()}
        return {
            peer: Candidate(shown.member or peer, dialled=bool(shown.addrs))
            for peer, shown in there.items()
            if shown.active and shown.tip == tip
        }

    def patience_s(self, ours: Tip | None, rules: RunRules) -> float:
        """For how long slow donors are waited for. There is an end to it only where rounds could be had meanwhile, with peers that are
        on our base and train, or would if they did not try to catch up, perhaps in vain and as we do; and not before a whole
        round of the donors', in which pieces give way."""
        there = [known.presence for known in self._known.values() if known.presence.tip == ours]
        able = 1 + sum(shown.active or shown.state == "syncing" for shown in there)
        if ours is None or able < rules.averaging.min_peers:
            return math.inf
        return max(_PATIENCE_S, 2 * rules.schedule.period_ms / 1000)

    def clock(self) -> tuple[bool, int | None]:
        return verdict(known.skew_ms for known in self._known.values() if known.skew_ms is not None)

    def addresses(self) -> list[str]:
        """One address each, with peer id: for invites, and for coming back."""
        return [f"{known.presence.addrs[0]}/p2p/{peer}" for peer, known in self._known.items() if known.presence.addrs]

    def some(self) -> list[str]:
        """All of them, in an order that is another one each time."""
        return random.sample(sorted(self._known), len(self._known))

    def count(self) -> int:
        return len(self._known)

    def status(self, base: str, score: Callable[[str], float]) -> tuple[Peer, ...]:
        now = time.monotonic()
        found = [
            Peer(
                peer, known.presence.name, known.presence.member, known.presence.state, known.presence.height, known.presence.base,
                known.presence.base == base and base != "", known.presence.addrs, known.rtt_ms, known.skew_ms,
                round(now - known.seen, 1), known.presence.version, score(peer),
            )
            for peer, known in sorted(self._known.items())
        ]  # fmt: skip
        banned = [
            Peer(peer, "", "", "banned", 0, "", False, (), None, None, round(now - seen, 1), "", score(peer))
            for peer, seen in sorted(self._shunned.items())
        ]
        return (*found, *banned)
