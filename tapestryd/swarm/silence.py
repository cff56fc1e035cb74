"""Reducers that failed us: whom we lead may send and receive, but reduces nothing for some rounds. Pure. It is counted by owner:
a Member with many nodes fails once, and not once with each.

Nobody can prove that a part did not come, or when it came, so nobody is charged with it: it costs standing nothing, and an honest
peer whose line failed loses nothing either, for others reduce its part. What is saved is the rounds of everybody else.
"""

from collections.abc import Collection

from protocols.grouping import Claim, Roster, owner_of
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
        """That round is lost; the parts of `failed` did not come in time, or were lies, or left out so many that coverage was too
        low. If those are of more than half of the owners that reduce, it is our own line, or a partition."""
        owners = dict(zip(roster.members, roster.owners, strict=True))
        reducing = {owners[peer] for peer in roster.reducers}
        if owners[me] in reducing:
            self._ours = roster.round
        to_blame = {owners[peer] for peer in failed}
        if 2 * len(to_blame) <= len(reducing):
            for owner in to_blame:
                self._doubts.add(owner, roster.round + 1)

    def check(self, peer: str, claim: Claim, round: int) -> None:
        """Refused if `peer` would reduce in a round for which its owner is not trusted to; with a rate of 0 it may call again."""
        owner = owner_of(peer, claim)
        if claim.rate and self._doubts.holds(owner, round):
            raise Refused(Reason.SILENT, f"your parts failed, {self._doubts.times(owner)} times; send, but reduce nothing")

    def ours(self, round: int) -> bool:
        """Whether a leader may say that of us: we did lose a round that our owner reduced in, or may have before we began to look.
        One that says it to all others would reduce the whole fragment."""
        return round <= self._ours + LONGEST_ROUNDS
