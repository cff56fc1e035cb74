"""How far each peer is trusted: a score that its own faults lower and time mends, and bans that end. Pure.

Knows nothing of streams, files and clocks. The caller's duty: a fault is told of a peer only if that peer's authenticated
stream, or its signature, carried it. Nothing raises a score above 0, because good behaviour is free, and must not pay
for a fault.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from protocols.control import Ban
from protocols.refusal import Reason
from tapestryd.config import Trust

PEERS = 1024
"""Peers remembered by their faults, and bans for faults; more than one DHT key may name (limits.RECORDS). Keys are free,
so without a bound whoever makes them would fill our memory."""

SCORE_MIN = -100.0

_MENDED = -0.5
"""A score that has come back to this has no history: half of the least fault."""


class Tolerance(Enum):
    """What one fault costs. With the usual score_ban = -50: banned at once, about the fifth, the tenth, the fiftieth time."""

    NONE = -100.0
    LOW = -10.0
    MID = -5.0
    HIGH = -1.0


FAULTS: Mapping[Reason, Tolerance | None] = {
    # Can an honest peer of this version do it? No, and the proof is in our hands: only its key makes two signatures.
    Reason.EQUIVOCATION: Tolerance.NONE,
    # No: our own writer cannot make it, and checks of our own come before the sending.
    Reason.MALFORMED: Tolerance.LOW,
    Reason.UNKNOWN_FIELD: Tolerance.LOW,
    Reason.WRONG_TYPE: Tolerance.LOW,
    Reason.BAD_SIGNATURE: Tolerance.LOW,
    Reason.NOT_FINITE: Tolerance.LOW,
    # Hardly: some bounds are no treaty and may differ between versions; a disk may rot under what is served unread; a
    # donor may go over to another branch between two answers; norms are sums, and machines sum in another order.
    Reason.TOO_LARGE: Tolerance.MID,
    Reason.OUT_OF_RANGE: Tolerance.MID,
    Reason.BAD_DIGEST: Tolerance.MID,
    Reason.NO_QUORUM: Tolerance.MID,
    Reason.NORM: Tolerance.MID,
    # Yes, on a bad link or just back from sleep or a restart. Yet each time it costs us a stream, or one for IO_S.
    Reason.STALLED: Tolerance.HIGH,
    Reason.TOO_MANY_STREAMS: Tolerance.HIGH,
    Reason.TOO_SOON: Tolerance.HIGH,
    # Yes, always: it was early or late, was cut off, sees others than we do, or has thrown away what we still ask for.
    Reason.STALE: None,
    Reason.OTHER_ROUND: None,
    Reason.OTHER_BASE: None,
    Reason.OTHER_ROSTER: None,
    Reason.NOT_A_MEMBER: None,
    # Yes: its Member has let its delegation run out, has given it another, or has yet to give it one.
    Reason.NOT_DELEGATED: None,
    Reason.EXPIRED: None,
    Reason.REVOKED: None,
    # Yes: it is at home elsewhere.
    Reason.OTHER_RUN: None,
    # Yes: it does not know yet. A ban ends by time, not by silence.
    Reason.BANNED: None,
    # Yes: its line failed. Nobody can prove that something did not come.
    Reason.SILENT: None,
}
"""Every reason decided: its cost, or None if it is no fault."""


class Trusted(Enum):
    YES = "yes"
    WARILY = "warily"
    NO = "no"


@dataclass(slots=True)
class _Record:
    """`score` as it was at `at_s`; `faults` since it was last mended."""

    score: float
    at_s: float
    faults: Counter[Reason]


class Standing:
    """`bans`: those remembered from earlier. `now_s`: seconds of one clock throughout, also across restarts; it may jump."""

    def __init__(self, terms: Trust, bans: Iterable[Ban] = ()) -> None:
        self._records: dict[str, _Record] = {}
        self._bans = {ban.peer_id: ban for ban in bans}
        self.amend(terms)

    def amend(self, terms: Trust) -> None:
        """Other terms from now on. What was held against somebody stays; bans for faults end when they were to end."""
        self._terms = terms
        self._denied = {peer: Ban(peer, "configuration", "trust.deny", None) for peer in terms.deny}

    def score(self, peer: str, now_s: float) -> float:
        record = self._records.get(peer)
        if record is None:
            return 0.0
        return record.score * math.exp2(-max(0.0, now_s - record.at_s) / self._terms.score_halflife_s)

    def trusted(self, peer: str, now_s: float) -> Trusted:
        ban = self._denied.get(peer) or self._bans.get(peer)
        if ban is not None and not _is_over(ban, now_s):
            return Trusted.NO
        return Trusted.WARILY if self.score(peer, now_s) <= self._terms.score_disconnect else Trusted.YES

    def fault(self, peer: str, reason: Reason, now_s: float) -> Trusted | None:
        """How far it is trusted after this, if that is less than before."""
        tolerance, before = FAULTS[reason], self.trusted(peer, now_s)
        if tolerance is None or before is Trusted.NO:
            return None
        score, record = self.score(peer, now_s), self._records.get(peer)
        faults = record.faults if record and score < _MENDED else Counter[Reason]()
        faults[reason] += 1
        self._records[peer] = _Record(max(SCORE_MIN, score + tolerance.value), now_s, faults)
        self._forget_beside(peer, now_s)
        if self._records[peer].score <= self._terms.score_ban:
            self._keep(Ban(peer, "faults", self.why(peer), round((now_s + self._terms.ban_time_s) * 1000)))
        after = self.trusted(peer, now_s)
        return after if after is not before else None

    def why(self, peer: str) -> str:
        """Its faults, most of them first: "bad_digest ×5, stalled ×1"."""
        record = self._records.get(peer)
        return ", ".join(f"{reason.value} ×{count}" for reason, count in record.faults.most_common()) if record else ""

    def ban(self, peer: str, for_s: float | None, reason: str, now_s: float) -> Ban:
        """The operator's word: for `for_s`, or as long as for faults; in place of any other."""
        ban = Ban(peer, "operator", reason, round((now_s + (for_s or self._terms.ban_time_s)) * 1000))
        self._keep(ban)
        return ban

    def unban(self, peer: str) -> bool:
        """Whether there was a ban. Its faults are forgotten with it; or the next one would bring it back."""
        self._records.pop(peer, None)
        return self._bans.pop(peer, None) is not None

    def denied(self, peer: str) -> bool:
        return peer in self._denied

    def bans(self, now_s: float) -> tuple[Ban, ...]:
        """In force: the configuration's, then those that end, the last first."""
        held = [ban for ban in self._bans.values() if ban.peer_id not in self._denied and not _is_over(ban, now_s)]
        return (*self._denied.values(), *sorted(held, key=lambda ban: (-(ban.until_ms or 0), ban.peer_id)))

    def ended(self, now_s: float) -> tuple[Ban, ...]:
        """Forget the bans that are over; those."""
        over = tuple(ban for ban in self._bans.values() if _is_over(ban, now_s))
        for ban in over:
            del self._bans[ban.peer_id]
        return over

    def _keep(self, ban: Ban) -> None:
        """A ban for faults may cost another one its place, the one that ends first; the operator's stay."""
        self._bans[ban.peer_id] = ban
        for_faults = [other for other in self._bans.values() if other.by == "faults"]
        if len(for_faults) > PEERS:
            first = min((other for other in for_faults if other is not ban), key=lambda other: other.until_ms or 0)
            del self._bans[first.peer_id]

    def _forget_beside(self, peer: str, now_s: float) -> None:
        """The least bad of the others, if there are too many."""
        if len(self._records) > PEERS:
            del self._records[max((other for other in self._records if other != peer), key=lambda other: self.score(other, now_s))]


def _is_over(ban: Ban, now_s: float) -> bool:
    return ban.until_ms is not None and ban.until_ms <= now_s * 1000
