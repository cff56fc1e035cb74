"""Perform a roster: call the round's leader, or be the leader for whoever calls.

The order of leaders and what makes a roster acceptable are in protocols/grouping.py. A call is answered twice:
"accepted" at once, so that a dead leader is noticed within a second, and the signed roster when it closes.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from protocols import limits
from protocols.canonical import Json, Sign, Signed, Verify, take
from protocols.grouping import Candidate, Claim, Roster, accept, leaders, order, owner_of
from protocols.refusal import Declined, Reason, Refused
from tapestryd.swarm.node import Node
from tapestryd.swarm.silence import Silence
from tapestryd.swarm.streams import Gone, Stream

log = logging.getLogger(__name__)

_ACK_S = 1.5
_PARKED_ROUNDS = 4
"""Rounds for which calls may wait here at once: this one, and what skewed clocks and stale peers make of it."""


@dataclass(slots=True)
class _Parked:
    """Calls of one (round, base), until our own gathering of it answers them."""

    callers: dict[str, Claim] = field(default_factory=dict)
    answer: "asyncio.Future[Json]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    led: bool = False
    """Our own roster is being made of it: never put out."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """A roster, and who was to lead before `leader` and did not, with the reason."""

    roster: Roster
    leader: str
    passed_over: tuple[tuple[str, str], ...]


class NoRoster(Gone):
    """No leader came to a roster that we are in. `passed_over`: all of them, with the reason."""

    def __init__(self, passed_over: Sequence[tuple[str, str]]) -> None:
        super().__init__(passed_over[-1][1])
        self.passed_over = tuple(passed_over)


class Roll(Protocol):
    """Who has a voice in the run. The first two raise Refused; `seated`: those whom a roster has places for."""

    def admit_caller(self, peer: str, claim: Claim, round: int) -> None: ...
    def admit_roster(self, roster: Roster) -> None: ...
    def seated(self, claims: Mapping[str, Claim]) -> list[str]: ...


class Gathering:
    """`base_now`: the digest of our base, or empty; `hold_s`: how long a call may wait here for its answer."""

    def __init__(
        self, node: Node, run: str, min_peers: int, sign: Sign, verify: Verify, round_now: Callable[[], int],
        base_now: Callable[[], str], hold_s: float, roll: Roll,
    ) -> None:  # fmt: skip
        self._node = node
        self._run = run
        self._min_peers = min_peers
        self._sign = sign
        self._verify = verify
        self._round_now = round_now
        self._base_now = base_now
        self._hold_s = hold_s
        self._roll = roll
        self._silence = Silence(round_now())
        self._parked: dict[tuple[int, str], _Parked] = {}

    def lost(self, roster: Roster, failed: Sequence[str]) -> None:
        """That round is lost. `failed`: reducers whose parts did not come in time, or cost us the round by what they were."""
        self._silence.lost(roster, failed, self._node.peer_id)

    async def serve(self) -> None:
        await self._node.serve("call", self._called)

    async def _called(self, stream: Stream) -> None:
        head = await stream.question({"round": int, "before": str, "claim": dict})
        claim = Claim.from_body(head["claim"], self._verify)
        if abs(head["round"] - self._round_now()) > 1:
            raise Refused(Reason.OTHER_ROUND, f"round {head['round']} is not now")
        self._roll.admit_caller(stream.peer, claim, head["round"])
        self._silence.check(stream.peer, claim, head["round"])
        for key, other in list(self._parked.items()):  # one call a peer: nobody crowds out the others
            if other.callers.pop(stream.peer, None) is not None and not other.callers and not other.led:
                self._close(key, {"refused": Reason.OTHER_ROUND.value, "detail": "called elsewhere since"})
        parked = self._park((head["round"], head["before"]))
        self._readmit(parked, head["round"])
        full = len(parked.callers) >= limits.ROSTER_MEMBERS - 1  # the leader is one too
        if full or stream.peer not in self._roll.seated({**parked.callers, stream.peer: claim}):
            raise Refused(Reason.OTHER_ROSTER, "the roster is full")
        parked.callers[stream.peer] = claim
        parked.changed.set()
        await stream.send({"accepted": True})
        try:
            async with asyncio.timeout(self._hold_s):
                answer = await asyncio.shield(parked.answer)
        except TimeoutError:
            if parked.callers.get(stream.peer) is claim:
                del parked.callers[stream.peer]
            raise Refused(Reason.OTHER_ROUND, f"nobody gathers round {head['round']} here") from None
        await stream.send(answer)

    def _park(self, key: tuple[int, str]) -> _Parked:
        if key not in self._parked:
            ours = (self._round_now(), self._base_now())  # what we are about to lead: nobody crowds it out
            idle = [k for k, parked in self._parked.items() if not parked.led and k != ours]
            if len(self._parked) >= _PARKED_ROUNDS:
                fewest = min(idle, key=lambda k: (len(self._parked[k].callers), -k[0]))
                self._close(fewest, {"refused": Reason.OTHER_ROUND.value, "detail": "the round is over"})
            self._parked[key] = _Parked()
        return self._parked[key]

    def _close(self, key: tuple[int, str], answer: Json) -> None:
        parked = self._parked.pop(key, None)
        if parked and not parked.answer.done():
            parked.answer.set_result(answer)

    async def perform(
        self, round: int, fragment: int, before: str, others: Mapping[str, Candidate], claim: Claim, windows_s: Sequence[float]
    ) -> Gathered:
        """The roster of this round. `others`: peers seen on this base; `windows_s[i]`: seconds from now in
        which leader i's roster closes. Raises NoRoster when no leader came to one that we are in."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        me = self._node.peer_id
        asked = leaders(self._run, round, {**others, me: Candidate(owner_of(me, claim), dialled=claim.rate > 0)})
        key = (round, before)
        passed_over: list[tuple[str, str]] = []
        margin = windows_s[0] / 2  # whoever is in a roster and gives it up costs everybody the round
        try:
            for leader, window in zip(asked, windows_s, strict=False):
                closes = start + window
                try:
                    if leader == me:
                        roster = await self._lead(key, fragment, others, claim, closes)
                    else:
                        roster = await self._ask(leader, key, fragment, claim, closes + margin)
                        self._close(key, {"refused": Reason.OTHER_ROSTER.value, "detail": f"{leader[-6:]} leads"})
                    return Gathered(roster, leader, tuple(passed_over))
                except (Gone, Refused) as error:
                    passed_over.append((leader, str(error)))
                    if isinstance(error, Refused):
                        self._node.refused(error, "roster", leader)
                    log.info("round=%d leader=%s gives no roster: %s", round, leader[-6:], error)
            raise NoRoster(passed_over)
        finally:  # also when the round is dropped under us: whoever called must not wait here, nor keep a place
            self._close(key, {"refused": Reason.OTHER_ROUND.value, "detail": "no roster here either"})

    async def _lead(self, key: tuple[int, str], fragment: int, others: Mapping[str, Candidate], claim: Claim, closes: float) -> Roster:
        """Wait until all `others` have called or the window is over."""
        loop = asyncio.get_running_loop()
        parked = self._park(key)
        parked.led = True
        while not set(others) <= set(parked.callers) and loop.time() < closes:
            parked.changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(closes):  # wait_for of Python 3.11 can swallow a cancellation
                    await parked.changed.wait()
        for peer in [peer for peer in parked.callers if self._node.door.shut(peer)]:  # banned since it called
            del parked.callers[peer]
        try:
            self._roll.admit_caller(self._node.peer_id, claim, key[0])
        except Refused as refused:  # a caller has shown that our own Member let us go
            self._close(key, {"refused": refused.reason.value, "detail": refused.detail})
            raise
        self._readmit(parked, key[0])
        claims = {self._node.peer_id: claim, **parked.callers}
        members = order(self._run, key[0], self._roll.seated(claims))
        if len(members) < self._min_peers or not any(claims[peer].rate for peer in members):
            self._close(key, {"refused": Reason.OUT_OF_RANGE.value, "detail": f"only {len(members)} came"})
            raise Gone(f"only {len(members)} of at least {self._min_peers} came to our own roster")
        roster = Roster(self._run, key[0], fragment, key[1], tuple(members), tuple(claims[peer] for peer in members))
        self._close(key, {"roster": Signed.make("roster", roster.to_body(), self._node.peer_id, self._sign).to_json()})
        return roster

    def _readmit(self, parked: _Parked, round: int) -> None:
        """Those who were admitted when they called, and still are: a later caller may have shown a greater epoch of their Member."""
        for peer, claim in list(parked.callers.items()):
            try:
                self._roll.admit_caller(peer, claim, round)
            except Refused as refused:
                self._node.refused(refused, "call", peer)
                del parked.callers[peer]

    async def _ask(self, leader: str, key: tuple[int, str], fragment: int, claim: Claim, closes: float) -> Roster:
        """The roster of `leader`, who may not want us to reduce."""
        try:
            return await self._call(leader, key, fragment, claim, closes)
        except Declined as declined:
            if declined.reason is not Reason.SILENT or not claim.rate or not self._silence.ours(key[0]):
                raise
            log.info("round=%d %s; we reduce nothing", key[0], declined.detail)
            return await self._call(leader, key, fragment, replace(claim, rate=0), closes)

    async def _call(self, leader: str, key: tuple[int, str], fragment: int, claim: Claim, closes: float) -> Roster:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(closes):
                head = {"round": key[0], "before": key[1], "claim": claim.to_body()}
                stream = await self._node.begin(leader, "call", head, _ACK_S)
                try:
                    head, _ = await stream.answer(timeout=max(0.0, closes - loop.time()), head_bytes=limits.FRAME_BYTES)
                finally:
                    stream.close()
        except TimeoutError:
            raise Gone("no roster in its window") from None
        take(head, {"roster": dict})
        roster = accept(
            head["roster"], run=self._run, round=key[0], fragment=fragment, before=key[1], me=self._node.peer_id,
            claim=claim, leader=leader, min_peers=self._min_peers, verify=self._verify,
        )  # fmt: skip
        self._roll.admit_roster(roster)
        return roster
