"""Reducers whose parts never came: whom we lead may send and receive, but reduces nothing for some rounds. Pure.

Nobody can prove that something did not come, so nobody is charged with it: it costs standing nothing, and an honest
peer whose line failed loses nothing either, for others reduce its part. What is saved is the rounds of everybody else.
"""

from collections.abc import Collection

from protocols.grouping import Claim
from protocols.refusal import Reason, Refused
from tapestryd.swarm.doubts import Doubts

FIRST_ROUNDS = 8
LONGEST_ROUNDS = 512


class Silence:
    def __init__(self) -> None:
        self._doubts = Doubts(FIRST_ROUNDS, LONGEST_ROUNDS)

    def note(self, round: int, reducers: Collection[str], silent: Collection[str]) -> None:
        """Round `round` was lost, and the parts of `silent` never came. If those are more than half of the `reducers`, it is
        our own line, or a partition."""
        if 2 * len(silent) <= len(reducers):
            for peer in silent:
                self._doubts.add(peer, round + 1)

    def check(self, peer: str, claim: Claim, round: int) -> None:
        """Refused if `peer` would reduce in a round for which it is not trusted to; with a rate of 0 it may call again."""
        if claim.rate and self._doubts.holds(peer, round):
            raise Refused(Reason.SILENT, f"your parts never came, {self._doubts.times(peer)} times; send, but reduce nothing")
