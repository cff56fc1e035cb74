"""How a vector travels: raw float32 (32 bits) or block-wise absmax integers (8 bits). Specified in protocols/codec.md.

8 bits: per block of `block` elements one float32 scale = absmax / 127, then int8 values; all scales first, then
all integers; a last block may be short. A scale below the least normal float32 is written as 0, and its block
with it: the values it drops are under 2e-36, and no decoded value is ever subnormal.
Knows nothing of fragments, parts or peers. Error feedback is the caller's: residual = x - decode(encode(x)).
"""

import numpy as np
import torch
from torch import Tensor

from protocols.refusal import Reason, Refused

_CHUNK = 1 << 16
"""About so many elements at a time, so that intermediate results stay in the cache. Does not alter any result."""

_TINY = torch.finfo(torch.float32).tiny
_LARGEST_SCALE = 2.0**121
"""127 * 2^121 is exact in float32; little beyond it decoding would overflow."""


def encoded_bytes(elements: int, bits: int, block: int) -> int:
    """Exact size of `elements` encoded. Raises ValueError for a negative count or a codec that is not ours."""
    if bits not in (8, 32) or block < 1 or elements < 0:
        raise ValueError(f"{elements} elements at {bits} bits in blocks of {block}")
    return 4 * elements if bits == 32 else 4 * _blocks(elements, block) + elements


def encode(x: Tensor, bits: int, block: int) -> bytes:
    """x (n,) float32 on the CPU → `encoded_bytes(n, bits, block)` bytes. Raises Refused(NOT_FINITE); at 8 bits
    also for values beyond 127 * 2^121 (3.37e38), which could overflow when decoded."""
    assert (x.dim(), x.dtype, x.device.type) == (1, torch.float32, "cpu")
    elements = x.numel()
    out = np.empty(encoded_bytes(elements, bits, block), dtype=np.uint8)
    x = x.detach()
    if bits == 32:
        _require(_extremes(x), "a value to encode")
        out.view("<f4")[:] = x.numpy()
        return out.tobytes()
    blocks = _blocks(elements, block)
    scales = torch.from_numpy(out[: 4 * blocks].view(np.float32))
    codes = torch.from_numpy(out[4 * blocks :].view(np.int8))
    for first, last, shape in _tiles(elements, block):
        tile = x[first:last].view(shape)
        scale = tile.abs().amax(dim=1) / 127.0
        _require(scale <= _LARGEST_SCALE, "a value to encode")  # amax hands NaN on, and NaN <= anything is false
        scale[scale < _TINY] = 0.0
        row = first // block
        scales[row : row + shape[0]] = scale
        divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        codes[first:last].view(shape).copy_((tile / divisor).round_().clamp_(-127, 127))
    if not _LITTLE:
        out[: 4 * blocks].view(np.float32).byteswap(inplace=True)
    return out.tobytes()


def decode(data: bytes | memoryview, elements: int, bits: int, block: int) -> Tensor:
    """`encode`'s inverse → (elements,) float32, finite. Allocates nothing before the size is right.

    Raises Refused: TOO_LARGE or MALFORMED for another size, NOT_FINITE for a value or scale that is not finite or
    would decode to one that is not, MALFORMED for a negative or subnormal scale and for the integer -128.
    """
    want = encoded_bytes(elements, bits, block)
    size = memoryview(data).nbytes
    if size != want:
        reason = Reason.TOO_LARGE if size > want else Reason.MALFORMED
        raise Refused(reason, f"{size} bytes where {elements} elements at {bits} bits take {want}")
    out = torch.empty(elements, dtype=torch.float32)
    if bits == 32:
        out.numpy()[:] = np.frombuffer(data, "<f4")
        _require(_extremes(out), "a value")
        return out
    blocks = _blocks(elements, block)
    scales = torch.from_numpy(np.frombuffer(data, "<f4", blocks).astype(np.float32))
    _require(scales <= _LARGEST_SCALE, "a scale")
    if bool((torch.signbit(scales) | ((scales > 0) & (scales < _TINY))).any()):
        raise Refused(Reason.MALFORMED, "a scale is negative or subnormal")
    codes = np.frombuffer(data, np.int8, elements, 4 * blocks)
    for first, last, shape in _tiles(elements, block):
        tile = torch.from_numpy(codes[first:last].astype(np.float32))
        if tile.numel() and tile.min() < -127:
            raise Refused(Reason.MALFORMED, "the integer -128")
        row = first // block
        torch.mul(tile.view(shape), scales[row : row + shape[0]].unsqueeze(1), out=out[first:last].view(shape))
    return out


_LITTLE = bool(np.dtype("=f4") == np.dtype("<f4"))


def _blocks(elements: int, block: int) -> int:
    return -(-elements // block)


def _tiles(elements: int, block: int) -> list[tuple[int, int, tuple[int, int]]]:
    """(first, last, (blocks, block)) of rectangles that cover the vector; a short last block is one of its own."""
    whole = elements // block * block
    step = max(1, _CHUNK // block) * block
    tiles = [(a, min(a + step, whole), ((min(a + step, whole) - a) // block, block)) for a in range(0, whole, step)]
    return tiles + ([(whole, elements, (1, elements - whole))] if whole < elements else [])


def _extremes(x: Tensor) -> Tensor:
    """Whether least and greatest are finite, in one pass; NaN is handed on to both."""
    return torch.isfinite(torch.stack(torch.aminmax(x))) if x.numel() else torch.ones(1)


def _require(good: Tensor, what: str) -> None:
    if not bool(good.all()):
        raise Refused(Reason.NOT_FINITE, f"{what} is not finite, or too large")
