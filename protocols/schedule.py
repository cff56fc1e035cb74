"""Swarm time → round. Rounds follow the clock, so nobody waits for anybody.

    r = (now - origin) // (train + average)
    |<------- train ------->|<-- average -->|
    start(r)            boundary(r)      start(r + 1) = deadline(r)

All times are integer milliseconds of swarm time (Unix time as the swarm's median clock shows it).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """`train_ms`: local steps until the boundary. `average_ms`: gather, reduce, settle and commit must fit in it.

    Longer training means fewer bytes per token and more drift between peers; a shorter average window
    discards rounds of slow links. Both are run rules: every peer must agree on where a round begins.
    """

    origin_ms: int
    train_ms: int
    average_ms: int

    @property
    def period_ms(self) -> int:
        return self.train_ms + self.average_ms

    def round_at(self, now_ms: int) -> int:
        """The round that `now_ms` lies in; negative before the origin."""
        return (now_ms - self.origin_ms) // self.period_ms

    def start(self, round: int) -> int:
        return self.origin_ms + round * self.period_ms

    def boundary(self, round: int) -> int:
        """When local steps end and gathering begins."""
        return self.start(round) + self.train_ms

    def deadline(self, round: int) -> int:
        """When the round must be committed or discarded."""
        return self.start(round + 1)

    def gather_by(self, round: int) -> int:
        """When a leader closes its roster with whoever has called: a third of the average window."""
        return self.boundary(round) + self.average_ms // 3

    def reduce_by(self, round: int) -> int:
        """When reducers close their parts with whatever has arrived: two thirds of the average window."""
        return self.boundary(round) + 2 * self.average_ms // 3
