"""One round's numbers on this node: what we offer, what we reduce, what came out, what we still owe.

All of it is arithmetic on one fragment, called off the event loop; the streams are in swarm/reduce.py.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protocols import limits
from protocols.grouping import BITMAP_BYTES, Claim, Roster, bitmap, cells, in_bitmap
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from protocols.settling import coverage_ppm
from protocols.weighting import NOTHING, ROOM, ceilings, scales, weights
from tapestryd.training import aggregate, codec


class Offer:
    """Our encoded delta of one fragment. `owed`: (n_f,) float32, the delta and what earlier rounds left unsent of it;
    `sent`: (n_f,) float32, what others decode; `norms`: of its cells."""

    def __init__(self, rules: RunRules, owed: Tensor) -> None:
        self.owed = owed
        self._codec = rules.codec
        self._data = codec.encode(owed, rules.codec.up, rules.codec.block)
        self.sent = codec.decode(self._data, owed.numel(), rules.codec.up, rules.codec.block)
        self.norms = aggregate.cell_norms(self.sent, cells(owed.numel(), rules.codec.block))

    def part(self, start: int, stop: int) -> bytes:
        return codec.cut(self._data, self.owed.numel(), start, stop, self._codec.up, self._codec.block)

    def claim(self, steps: int, rate: int, delegation: Delegation | None = None) -> Claim:
        return Claim.of(max(1, steps), rate, self.norms, delegation)


class Exchange:
    """The numbers of one roster, with `me` in it."""

    def __init__(self, rules: RunRules, roster: Roster, me: str, offer: Offer) -> None:
        self.rules = rules
        self.roster = roster
        self.offer = offer
        self.slices = roster.slices(offer.owed.numel(), rules.codec.block)
        self._cells = cells(offer.owed.numel(), rules.codec.block)
        self._place = roster.members.index(me)
        self._weights = weights(roster.owners)
        self._scales = scales(
            rules.averaging.aggregation, rules.averaging.weighting,
            [claim.norm for claim in roster.claims], [claim.steps for claim in roster.claims], self._weights,
        )  # fmt: skip

    def offers(self) -> list[bytes]:
        """Our encoded delta, a part a reducer."""
        return [self.offer.part(start, stop) for start, stop in self.slices]

    def reduce(self, part: int, offers: Mapping[int, bytes | bytearray]) -> tuple[bytes, list[tuple[int, Refused]]]:
        """We are reducer `part`: (place → offer) → (the part as all will hold it, whom we refused and why)."""
        taken: dict[int, Tensor] = {}
        refused = []
        for place in sorted(offers):
            try:
                taken[place] = self._checked(part, place, bytes(offers[place]))
            except Refused as fault:
                refused.append((place, fault))
        if not taken:
            raise Refused(Reason.NORM, "no offer is what its member claimed, not even our own")
        counted, scaled = (
            torch.tensor([numbers[place] for place in taken], dtype=torch.float64) for numbers in (self._weights, self._scales)
        )
        made = aggregate.aggregate(self.rules.averaging.aggregation, torch.stack(list(taken.values())), counted, scaled)
        return bitmap(taken) + codec.encode(made, self.rules.codec.down, self.rules.codec.block), refused

    def _checked(self, part: int, place: int, data: bytes) -> Tensor:
        """An offer, decoded, that is what its member claimed: cell by cell, so that nobody's parts are larger than its whole."""
        start, stop = self.slices[part]
        offer = codec.decode(data, stop - start, self.rules.codec.up, self.rules.codec.block)
        first, last = self.roster.parts[part]
        claimed = self.roster.claims[place].norms[first:last]
        for found, said in zip(self._norms(offer, first, last), claimed, strict=True):
            if max(found, said) > min(found, said) * ROOM + NOTHING:
                raise Refused(Reason.NORM, f"a cell of norm {found:.3g} where {said:.3g} was claimed")
        return offer

    def _norms(self, values: Tensor, first: int, last: int) -> list[float]:
        """Norms of the cells [first, last), whose elements `values` are."""
        return aggregate.cell_norms(values, [edge - self._cells[first] for edge in self._cells[first : last + 1]])

    def mean(self, blobs: Sequence[bytes]) -> tuple[Tensor, int]:
        """All parts → (mean (n_f,) float32, coverage in parts per million). Refused(OUT_OF_RANGE) below the rule's coverage,
        BadPart if one does not decode or is larger than any honest reducer could have made it of what was claimed."""
        mean, found = assemble(self.rules, self.roster, blobs)
        if found < float(self.rules.averaging.coverage) * 1_000_000:
            raise Refused(Reason.OUT_OF_RANGE, f"coverage {found / 1e6:.2f} where the rules ask for {self.rules.averaging.coverage}")
        for part, (blob, (first, last)) in enumerate(zip(blobs, self.roster.parts, strict=True)):
            start, stop = self.slices[part]
            places = in_bitmap(blob[:BITMAP_BYTES], len(self.roster.members))
            most = ceilings(
                self.rules.averaging.aggregation, [self._scales[place] for place in places],
                [self.roster.claims[place].norms[first:last] for place in places],
                bits=self.rules.codec.down, block=self.rules.codec.block,
            )  # fmt: skip
            for norm, bound in zip(self._norms(mean[start:stop], first, last), most, strict=True):
                if norm > bound:
                    raise BadPart(part, Reason.NORM, f"a cell of part {part} has norm {norm:.3g}, of such offers at most {bound:.3g}")
        return mean, found

    def thin(self, blobs: Sequence[bytes]) -> list[int]:
        """The parts that by themselves have less than the rule's coverage, and are not empty."""
        members, least = len(self.roster.members), float(self.rules.averaging.coverage) * 1_000_000
        contributors = [in_bitmap(blob[:BITMAP_BYTES], members) for blob in blobs]
        return [
            part
            for part, (places, (start, stop)) in enumerate(zip(contributors, self.slices, strict=True))
            if start < stop and coverage_ppm([1], [places], self.roster.owners) < least
        ]

    def residual(self, blobs: Sequence[bytes]) -> Tensor:
        """What we still owe after a commit: the codec's error where we are in the mean, the whole delta where we are not."""
        left = self.offer.owed.clone()
        for (start, stop), blob in zip(self.slices, blobs, strict=True):
            if self._place in in_bitmap(blob[:BITMAP_BYTES], len(self.roster.members)):
                left[start:stop] -= self.offer.sent[start:stop]
        return left


class BadPart(Refused):
    """The fault of the reducer of `part`, who signed for it."""

    def __init__(self, part: int, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.part = part


def assemble(rules: RunRules, roster: Roster, blobs: Sequence[bytes]) -> tuple[Tensor, int]:
    """All parts of a fragment → (mean (n_f,) float32, coverage in parts per million). Used for a live round and for replay.
    BadPart if one does not decode, or names nobody."""
    elements = rules.layout().size(roster.fragment)
    slices = roster.slices(elements, rules.codec.block)
    mean = torch.empty(elements, dtype=torch.float32)
    contributors = []
    for part, ((start, stop), blob) in enumerate(zip(slices, blobs, strict=True)):
        try:
            contributors.append(in_bitmap(blob[:BITMAP_BYTES], len(roster.members)))
            mean[start:stop] = codec.decode(blob[BITMAP_BYTES:], stop - start, rules.codec.down, rules.codec.block)
        except Refused as refused:
            raise BadPart(part, refused.reason, refused.detail) from None
    return mean, coverage_ppm([stop - start for start, stop in slices], contributors, roster.owners)


def offer_bytes(rules: RunRules, elements: int) -> int:
    return codec.encoded_bytes(elements, rules.codec.up, rules.codec.block)


def part_bytes(rules: RunRules, elements: int) -> int:
    return BITMAP_BYTES + codec.encoded_bytes(elements, rules.codec.down, rules.codec.block)


def entry_bytes(rules: RunRules) -> int:
    """The largest log entry that these rules allow: head, encoded parts of the whole vector, and what cutting it adds."""
    return limits.FRAME_BYTES + part_bytes(rules, rules.layout().elements) * 2 + limits.ROSTER_MEMBERS * 64
