"""Whole small lineages for tests, made by the production arithmetic: genesis, rounds of several members, certified entries."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from protocols.canonical import digest
from protocols.grouping import Roster
from protocols.lineage import Entry, Snapshot, Tip, base_digest
from protocols.rules import RunRules
from protocols.settling import Vote, merkle
from tapestryd.base import Next, SharedBase, describe
from tapestryd.exchange import Exchange, Offer
from tests.people import CAST, Person, certified, roster
from tests.people import rules as plain_rules

PEOPLE = list(CAST.values())


def noise(elements: int, seed: int, scale: float = 1e-2) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed)) * scale


def fresh(made: RunRules) -> tuple[RunRules, SharedBase]:
    """The rules with their true genesis in them, and the base at height 0."""
    layout = made.layout()
    base = SharedBase(made, layout)
    theta = noise(layout.elements, 1, 0.1)
    pairs = base.digests(theta, base.velocity)
    genesis = base_digest(pairs)
    made = replace(made, model=replace(made.model, genesis=genesis))
    base.rules = made
    base.theta.copy_(theta)
    base.pairs = pairs
    base.tip = Tip(0, 0, genesis)
    return made, base


@dataclass
class Line:
    """A lineage that grows: `entries[h - 1]` led to height h, with the parts' bytes; `bases[h]` is (theta, velocity) there."""

    rules: RunRules
    base: SharedBase
    entries: list[tuple[Entry, list[bytes]]] = field(default_factory=list)
    bases: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def begin(cls, fragments: int = 2, bits: int = 8, tensors: tuple[str, ...] = ()) -> "Line":
        """`tensors`: of another model than the usual small one."""
        made = plain_rules(fragments, bits)
        made, base = fresh(replace(made, model=replace(made.model, tensors=tensors)) if tensors else made)
        return cls(made, base, [], [(base.theta.clone(), base.velocity.clone())])

    def grow(self, people: Sequence[Person] = PEOPLE[:3], *, round: int | None = None, seed: int = 0) -> Entry:
        """One committed round of `people`."""
        assert self.base.tip is not None
        round = self.base.tip.height if round is None else round
        fragment = round % self.base.layout.fragments
        of = roster(people, round=round, fragment=fragment, before=self.base.tip.base, run=self.rules.run_id)
        deltas = [noise(self.base.layout.size(fragment), seed * 1000 + round * 10 + place) for place in range(len(of.members))]
        exchanges = exchanging(self.rules, of, deltas)
        of, blobs = exchanges[0].roster, reduced(exchanges)
        mean, coverage = exchanges[0].mean(blobs)
        step = self.base.next(fragment, mean)
        entry = certified(of, blobs, people, voted(self.rules, of, blobs, self.base.tip, step, coverage))
        self.base.put(step, entry.tip)
        self.entries.append((entry, blobs))
        self.bases.append((self.base.theta.clone(), self.base.velocity.clone()))
        return entry

    def fork(self) -> "Line":
        """The same lineage up to here, to go on elsewhere."""
        other = SharedBase(self.rules, self.base.layout)
        other.theta.copy_(self.base.theta)
        other.velocity.copy_(self.base.velocity)
        other.pairs, other.tip = list(self.base.pairs), self.base.tip
        return Line(self.rules, other, list(self.entries), list(self.bases))

    def snapshot(self) -> tuple[Snapshot, bytes]:
        """Of where it is now: the manifest, and the file's bytes."""
        assert self.base.tip is not None
        made, first, second = describe(self.rules.run_id, self.base.tip, self.base.pairs, self.base.theta, self.base.velocity)
        return made, bytes(first) + bytes(second)

    def write_snapshot(self, folder: Path) -> tuple[Snapshot, Path]:
        made, data = self.snapshot()
        path = folder / f"{made.tip.height}.base"
        path.write_bytes(data)
        return made, path


def exchanging(rules: RunRules, of: Roster, deltas: Sequence[Tensor]) -> list[Exchange]:
    """Every member's numbers, in a roster with true claims. `deltas[i]`: of the i-th member, (n_f,) float32."""
    offers = [Offer(rules, delta) for delta in deltas]
    claims = tuple(offer.claim(claim.steps, claim.rate) for offer, claim in zip(offers, of.claims, strict=True))
    of = replace(of, claims=claims)
    return [Exchange(rules, of, member, offer) for member, offer in zip(of.members, offers, strict=True)]


def reduced(exchanges: Sequence[Exchange], absent: dict[int, set[int]] | None = None) -> list[bytes]:
    """All parts, each by its own reducer. `absent[part]`: places whose offer does not come there."""
    of = exchanges[0].roster
    offers = [exchange.offers() for exchange in exchanges]
    blobs = []
    for part, reducer in enumerate(of.reducers):
        by = exchanges[of.members.index(reducer)]
        here = {place: offers[place][part] for place in range(len(exchanges)) if place not in (absent or {}).get(part, set())}
        blob, refused = by.reduce(part, here)
        assert not refused
        blobs.append(blob)
    return blobs


def voted(rules: RunRules, of: Roster, blobs: Sequence[bytes], before: Tip, step: Next, coverage: int) -> Vote:
    return Vote(
        run=rules.run_id, round=of.round, fragment=of.fragment, roster=of.digest, root=merkle([digest(blob) for blob in blobs]),
        coverage_ppm=coverage, before=before.base, after=step.base, height=before.height + 1, weight=before.weight + len(of.members),
    )  # fmt: skip
