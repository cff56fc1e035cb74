"""One round's numbers on this node: what we offer, what we reduce, what came out, what we still owe.

All of it is arithmetic on one fragment, called off the event loop; the streams are in swarm/reduce.py.
"""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protocols import limits
from protocols.grouping import BITMAP_BYTES, Roster, bitmap, in_bitmap, parts
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from protocols.settling import coverage_ppm
from protocols.weighting import weights
from tapestryd.training import aggregate, codec

log = logging.getLogger(__name__)


class Exchange:
    """`owed`: (n_f,) float32, our delta of this fragment and what earlier rounds left unsent of it."""

    def __init__(self, rules: RunRules, roster: Roster, me: str, owed: Tensor) -> None:
        self.rules = rules
        self.roster = roster
        self.owed = owed
        self.slices = parts(owed.numel(), len(roster.reducers), rules.codec.block)
        self._place = roster.members.index(me)
        self._weights = weights(roster.members)

    def offers(self) -> list[bytes]:
        """Our encoded delta, a part a reducer."""
        return [codec.encode(self.owed[start:stop], self.rules.codec.up, self.rules.codec.block) for start, stop in self.slices]

    def reduce(self, elements: int, offers: Mapping[int, bytes | bytearray]) -> tuple[bytes, list[tuple[int, Refused]]]:
        """We are a reducer: (place → offer) → (the part as all will hold it, whom we refused and why)."""
        taken: dict[int, Tensor] = {}
        refused = []
        for place in sorted(offers):
            try:
                taken[place] = codec.decode(bytes(offers[place]), elements, self.rules.codec.up, self.rules.codec.block)
            except Refused as fault:
                refused.append((place, fault))
        rows = torch.stack(list(taken.values()))
        counted = torch.tensor([self._weights[place] for place in taken], dtype=torch.float64)
        mean = aggregate.aggregate(self.rules.averaging.aggregation, rows, counted, torch.ones_like(counted))
        return bitmap(taken) + codec.encode(mean, self.rules.codec.down, self.rules.codec.block), refused

    def mean(self, blobs: Sequence[bytes]) -> tuple[Tensor, int]:
        """All parts → (mean (n_f,) float32, coverage in parts per million). Refused(OUT_OF_RANGE) below the rule's coverage."""
        mean, found = assemble(self.rules, self.roster, blobs)
        if found < float(self.rules.averaging.coverage) * 1_000_000:
            raise Refused(Reason.OUT_OF_RANGE, f"coverage {found / 1e6:.2f} where the rules ask for {self.rules.averaging.coverage}")
        return mean, found

    def residual(self, blobs: Sequence[bytes], offers: Sequence[bytes]) -> Tensor:
        """What we still owe after a commit: the codec's error where we are in the mean, the whole delta where we are not."""
        left = self.owed.clone()
        for (start, stop), blob, offer in zip(self.slices, blobs, offers, strict=True):
            if self._place in in_bitmap(blob[:BITMAP_BYTES], len(self.roster.members)):
                left[start:stop] -= codec.decode(offer, stop - start, self.rules.codec.up, self.rules.codec.block)
        return left


def assemble(rules: RunRules, roster: Roster, blobs: Sequence[bytes]) -> tuple[Tensor, int]:
    """All parts of a fragment → (mean (n_f,) float32, coverage in parts per million). Used for a live round and for replay."""
    elements = rules.layout().size(roster.fragment)
    slices = parts(elements, len(roster.reducers), rules.codec.block)
    mean = torch.empty(elements, dtype=torch.float32)
    counts = []
    for (start, stop), blob in zip(slices, blobs, strict=True):
        counts.append(len(in_bitmap(blob[:BITMAP_BYTES], len(roster.members))))
        mean[start:stop] = codec.decode(blob[BITMAP_BYTES:], stop - start, rules.codec.down, rules.codec.block)
    return mean, coverage_ppm([stop - start for start, stop in slices], counts, len(roster.members))


def offer_bytes(rules: RunRules, elements: int) -> int:
    return codec.encoded_bytes(elements, rules.codec.up, rules.codec.block)


def part_bytes(rules: RunRules, elements: int) -> int:
    return BITMAP_BYTES + codec.encoded_bytes(elements, rules.codec.down, rules.codec.block)


def entry_bytes(rules: RunRules) -> int:
    """The largest log entry that these rules allow: head, encoded parts of the whole vector, and what cutting it adds."""
    return limits.FRAME_BYTES + part_bytes(rules, rules.layout().elements) * 2 + limits.ROSTER_MEMBERS * 64
