"""Many deltas → one mean. Weighted, in roster order, in float64. Specified in protocols/aggregation.md.

Knows nothing of who the members are: weights arrive as numbers, the order is the roster's.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 16
"""Elements at a time: the float64 accumulator stays in the cache. Does not alter any result."""


def mean(parts: Tensor, weights: Tensor) -> Tensor:
    """parts (m, d) float32 finite, row i from the roster's i-th member; weights (m,) finite, >= 0, not all 0 → (d,) float32.

    out = (((w0*x0) + w1*x1) + …) / ((w0 + w1) + …): every operation one rounding in float64, the quotient rounded
    once to float32. Raises ValueError for weights that are no weights.
    """
    assert (parts.dim(), parts.dtype, parts.shape[:1]) == (2, torch.float32, weights.shape)
    scale = [float(weight) for weight in weights.tolist()]
    total = 0.0
    for weight in scale:
        total += weight
    if not 0 < total < float("inf") or min(scale) < 0:
        raise ValueError(f"weights {scale[:8]}: finite, at least 0 and not all 0 is needed")
    out = torch.empty(parts.shape[1], dtype=torch.float32)
    for start in range(0, parts.shape[1], _CHUNK):
        piece = parts[:, start : start + _CHUNK]
        sums = piece[0].double().mul_(scale[0])
        for row, weight in zip(piece[1:], scale[1:], strict=True):
            sums.add_(row.double().mul_(weight))
        out[start : start + _CHUNK] = sums.div_(total)
    return out
