"""From claims to numbers: what each member's delta weighs, what it is multiplied by, and what no honest mean exceeds.

Every peer of a roster comes to the same numbers, bit for bit: each operation is one IEEE binary64 operation, in the
order written in aggregation.md (so no built-in sum, which may compensate). Knows nothing of vectors, and believes no
claim: that they are bounded, and that the vectors keep to them, is for the caller to check.
"""

from collections import Counter
from collections.abc import Sequence
from math import sqrt

AGGREGATIONS = ("clipped", "mean", "trimmed", "median")
WEIGHTINGS = ("uniform", "steps")

ROOM = 1 + 2.0**-16
"""What rounding may add to a norm: a vector keeps to a claimed norm if its own is at most ROOM times that."""

_HALF = 0.5 - 2.0**-40
"""Of a weight, less what adding up thirds and sevenths may lose."""

NOTHING = 2.0**-126
"""A norm below it is none: float32 rounds subnormal elements by more than ROOM."""


def weights(owners: Sequence[str]) -> list[float]:
    """One weight a place of the roster: `owners[i]` is the Member that the i-th node belongs to, in open mode the node itself.

    Each owner weighs 1 in all, so who runs many nodes has no more say than who runs one. Never by tokens or compute:
    measured, weights by tokens ruin the language of a slow region (loss 2.39 → 3.34).
    """
    nodes = Counter(owners)
    return [1.0 / nodes[owner] for owner in owners]


def norm(cells: Sequence[float]) -> float:
    """The L2 norm of a vector, from those of its cells."""
    square = 0.0
    for cell in cells:
        square += cell * cell
    return sqrt(square)


def scales(aggregation: str, weighting: str, norms: Sequence[float], steps: Sequence[int], weights: Sequence[float]) -> list[float]:
    """What each member's decoded offer is multiplied by before they are aggregated; at least 0, finite.

    `norms`: L2, of the whole offer, finite, >= 0. `steps`: local steps behind it, 1 to 2^53. `weights`: as above.
    Weighting "steps" makes every delta one of a median peer's number of steps (FedNova, arXiv 2007.07481, whose
    effective number of steps is free to choose; a mean would let one claim of 2^40 steps scale everybody up).
    Aggregation "clipped" then shortens what is longer than the median length to it: free while nobody attacks.

    Both medians are weighted and *lower*: while liars weigh less than half, they lie between honest peers' values; at
    just half, as one of two members, a liar can stall the mean with a delta of zero, but not blow it up.
    """
    assert aggregation in AGGREGATIONS, aggregation
    assert weighting in WEIGHTINGS, weighting
    assert len(norms) == len(steps) == len(weights) > 0
    found = [1.0] * len(norms)
    if weighting == "steps":
        pace = _lower_median(steps, weights)
        found = [pace / taken for taken in steps]
    if aggregation == "clipped":
        lengths = [scale * norm for scale, norm in zip(found, norms, strict=True)]
        bound = _lower_median(lengths, weights)
        found = [scale * (bound / length) if length > bound else scale for scale, length in zip(found, lengths, strict=True)]
    return found


def ceilings(aggregation: str, scales: Sequence[float], norms: Sequence[Sequence[float]], *, bits: int, block: int) -> list[float]:
    """The greatest L2 norm of each cell that an honest part can have once decoded, of the members whose offers are in it.

    `norms[i][c]`: of cell c of the i-th such member's decoded offer; a cell is whole blocks of the codec. A weighted mean is no
    longer than its longest row, a trimmed mean or a median than sqrt(2) times it; why is in aggregation.md.
    The codec (`bits`, `block`: of the mean's way down) moves an element by half a scale, and at most to its double.
    """
    assert aggregation in AGGREGATIONS, aggregation
    assert len(scales) == len(norms) > 0
    rounded = 0.0 if bits == 32 else min(1.0, sqrt(block) / (2**bits - 2))
    factor = (1.0 if aggregation in ("clipped", "mean") else sqrt(2.0)) * (1.0 + rounded) * (ROOM * ROOM)
    longest = (max(scale * (norm + NOTHING) for scale, norm in zip(scales, cell, strict=True)) for cell in zip(*norms, strict=True))
    return [factor * norm + NOTHING for norm in longest]


def _lower_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The least value that has, with all below it, half of the weight."""
    total = 0.0
    for weight in weights:
        total += weight
    below = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        below += weight
        if below >= total * _HALF:
            return value
    raise AssertionError("weights are positive and finite")
