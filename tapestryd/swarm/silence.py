"""Reducers that failed us: whom we lead may send and receive, but reduces nothing for some rounds. Pure.

Nobody can prove that a part did not come, so nobody is charged with it: it costs standing nothing, and an honest
peer whose line failed loses nothing either, for others reduce its part. What is saved is the rounds of everybody else.
"""

from collections.abc import Collection

from protocols.grouping import Claim, Roster
from protocols.refusal import Reason, Refused
from tapestryd.swarm.doubts import Doubts

FIRST_ROUNDS = 8
LONGEST_ROUNDS = 512


class Silence:
    """`now`: the round in which we begin to look."""

    def __init__(self, now: int) -> None:
        self._doubts = Doubts(FIRST_ROUNDS, LONGEST_ROUNDS)
        self._ours = now

    def lost(self, roster: Roster, failed: Collection[str], me: str) -> None:
        """That round is lost; the parts of `failed` never came, or were lies. If those are more than half of its reducers, it
        is our own line, or a partition."""
        if me in roster.reducers:
            self._ours = roster.round
        if 2 * len(failed) <= len(roster.reducers):
            for peer in failed:
                self._doubts.add(peer, roster.round + 1)

    def check(self, peer: str, claim: Claim, round: int) -> None:
        """Refused if `peer` would reduce in a round for which it is not trusted to; with a rate of 0 it may call again."""
        if claim.rate and self._doubts.holds(peer, round):
            raise Refused(Reason.SILENT, f"your parts failed, {self._doubts.times(peer)} times; send, but reduce nothing")

    def ours(self, round: int) -> bool:
        """Whether a leader may say that of us: we did lose a round that we reduced in, or may have before we began to look. One
        that says it to all others would reduce the whole fragment."""
        return round <= self._ours + LONGEST_ROUNDS
