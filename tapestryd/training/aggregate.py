"""Many deltas → one mean. In roster order, in float64. Specified in protocols/aggregation.md.

Knows nothing of who the members are or what they claimed: weights and scales arrive as numbers (protocols/weighting.py),
the order is the roster's. Whatever finite vectors come in, what goes out is finite and can be encoded at any bits.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tapestryd.training.codec import LARGEST

_CHUNK = 1 << 16
"""Elements at a time: the float64 accumulator stays in the cache. Does not alter any result."""

_SORTED = 1 << 16
"""Values sorted at a time, of all members together. Does not alter any result."""

_FACTOR_MAX = 2.0**100
"""Of a weight, and of a scale; far beyond any of ours. 256 float32 multiplied by two of them cannot overflow float64."""


def aggregate(kind: str, parts: Tensor, weights: Tensor, scales: Tensor) -> Tensor:
    """parts (m, d) float32 finite, row i from the i-th member counted; weights, scales (m,) → (d,) float32 finite.

    "clipped", "mean": the mean of the scaled rows by weight (clipping is in the scales). "trimmed": in each place,
    without the floor(m / 4) least and greatest, so that half or more stay. "median": in each place, the middle one,
    or halfway between the two. These two count members, not weights (Yin et al., arXiv 1803.01498).

    Values beyond LARGEST are cut to it. Raises ValueError for weights or scales that are none.
    """
    assert (parts.dim(), parts.dtype) == (2, torch.float32)
    assert parts.shape[:1] == weights.shape == scales.shape
    share = [float(weight) for weight in weights.tolist()]
    scale = [float(value) for value in scales.tolist()]
    total = 0.0
    for weight in share:
        total += weight
    if not total > 0 or not all(0 <= value <= _FACTOR_MAX for value in share + scale):
        raise ValueError(f"weights {share[:8]}, scales {scale[:8]}: from 0 to {_FACTOR_MAX:g}, and a weight that is not 0, is needed")
    members = len(scale)
    match kind:
        case "clipped" | "mean":
            return _mean(parts, [weight * value for weight, value in zip(share, scale, strict=True)], total)
        case "trimmed":
            return _middle(parts, scale, members // 4)
        case "median":
            return _middle(parts, scale, (members - 1) // 2)
        case _:
            raise AssertionError(kind)


def cell_norms(x: Tensor, edges: Sequence[int]) -> list[float]:
    """x (d,) float32 finite → the L2 norm of each x[edges[c]:edges[c + 1]], 0.0 of an empty one; summed in float64.

    The order of summation, so the last bits, are this machine's own: compare norms with room (protocols/weighting.py).
    """
    assert (x.dim(), x.dtype) == (1, torch.float32)
    norms = []
    for first, last in pairwise(edges):
        square = 0.0
        for start in range(first, last, _CHUNK):
            piece = x[start : min(start + _CHUNK, last)].double()
            square += float(torch.dot(piece, piece))
        norms.append(square**0.5)
    return norms


def _mean(parts: Tensor, factors: Sequence[float], total: float) -> Tensor:
    """(((f0*x0) + f1*x1) + …) / total: every operation one rounding in float64, the quotient rounded once to float32."""
    out = torch.empty(parts.shape[1], dtype=torch.float32)
    for start in range(0, parts.shape[1], _CHUNK):
        piece = parts[:, start : start + _CHUNK]
        sums = piece[0].double().mul_(factors[0])
        for row, factor in zip(piece[1:], factors[1:], strict=True):
            sums.add_(row.double().mul_(factor))
        out[start : start + _CHUNK] = sums.div_(total).clamp_(-LARGEST, LARGEST)
    return out


def _middle(parts: Tensor, scales: Sequence[float], cut: int) -> Tensor:
    """In each place the mean of what is left without the `cut` least and greatest, added up from the least."""
    members, elements = parts.shape
    out = torch.empty(elements, dtype=torch.float32)
    factors = torch.tensor(scales, dtype=torch.float64).unsqueeze(1)
    step = max(1, _SORTED // members)
    for start in range(0, elements, step):
        scaled = parts[:, start : start + step].double().mul_(factors).add_(0.0)  # -0.0 becomes 0.0, so that the order is one
        ranked = torch.from_numpy(np.sort(scaled.T.contiguous().numpy(), axis=1)).T  # ten times as fast as torch.sort down columns
        sums = ranked[cut].clone()
        for row in ranked[cut + 1 : members - cut]:
            sums.add_(row)
        out[start : start + step] = sums.div_(members - 2 * cut).clamp_(-LARGEST, LARGEST)
    return out
