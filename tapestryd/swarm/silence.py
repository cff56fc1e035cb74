"""Reducers whose parts never came: whom we lead may send and receive, but reduces nothing for some rounds. Pure.

Nobody can prove that something did not come, so nobody is charged with it: it costs standing nothing, and an honest
peer whose line failed loses nothing either, for others reduce its part. What is saved is the rounds of everybody else.
"""

from collections.abc import Collection
from dataclasses import dataclass

from protocols.grouping import Claim
from protocols.refusal import Reason, Refused

FIRST_ROUNDS = 8
LONGEST_ROUNDS = 512


@dataclass(slots=True)
class _Silent:
    times: int = 0
    until: int = 0


class Silence:
    """One peer, each time: 8 rounds, 16, 32 … 512; forgotten when as many as the longest have passed without another."""

    def __init__(self) -> None:
        self._of: dict[str, _Silent] = {}

    def note(self, round: int, reducers: Collection[str], silent: Collection[str]) -> None:
        """Round `round` was lost, and the parts of `silent` never came. If those are more than half of the `reducers`, it is
        our own line, or a partition."""
        self._of = {peer: known for peer, known in self._of.items() if round < known.until + LONGEST_ROUNDS}
        if 2 * len(silent) > len(reducers):
            return
        for peer in silent:
            known = self._of.setdefault(peer, _Silent())
            known.times += 1
            known.until = round + min(FIRST_ROUNDS * 2 ** (known.times - 1), LONGEST_ROUNDS)

    def check(self, peer: str, claim: Claim, round: int) -> None:
        """Refused if `peer` would reduce in a round for which it is not trusted to; with a rate of 0 it may call again."""
        known = self._of.get(peer)
        if claim.rate and known and round <= known.until:
            raise Refused(Reason.SILENT, f"{known.times} parts of yours never came: until round {known.until} you reduce nothing here")
