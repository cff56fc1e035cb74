"""How a vector travels: raw float32 (32 bits) or block-wise absmax integers (8 or 4 bits). Specified in protocols/codec.md.

8 and 4 bits: per block of `block` elements one float32 scale = absmax / 127 or 7, then integers, at 4 bits two in a
byte, low half first; all scales first, then all integers; a last block may be short. A scale below the least normal
float32 is written as 0, and its block with it: the values it drops are under 2e-36, and no decoded value is ever
subnormal.
Knows nothing of fragments, parts or peers. Error feedback is the caller's: residual = x - decode(encode(x)).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols.refusal import Reason, Refused

_CHUNK = 1 << 16
"""About so many elements at a time, so that intermediate results stay in the cache. Does not alter any result."""

_TINY = torch.finfo(torch.float32).tiny
LARGEST = 7 * 2.0**125
"""2.98e38, exact in float32: the greatest magnitude that can be sent at any bits."""

_LARGEST_SCALE = {8: 2.0**121, 4: 2.0**125}
"""127 * 2^121 and 7 * 2^125 are exact in float32; little beyond them decoding would overflow."""


def encoded_bytes(elements: int, bits: int, block: int) -> int:
    """Exact size of `elements` encoded. Raises ValueError for a negative count or a codec that is not ours."""
    if bits not in (4, 8, 32) or block < 1 or elements < 0 or (bits == 4 and block % 2):
        raise ValueError(f"{elements} elements at {bits} bits in blocks of {block}")
    return 4 * elements if bits == 32 else 4 * _blocks(elements, block) + _code_bytes(elements, bits)


def encode(x: Tensor, bits: int, block: int) -> bytes:
    """x (n,) float32 on the CPU → `encoded_bytes(n, bits, block)` bytes. Raises Refused(NOT_FINITE); at 8 and 4 bits
    also for values beyond 127 * 2^121 (3.37e38) and 7 * 2^125 (2.98e38), which could overflow when decoded."""
    assert (x.dim(), x.dtype, x.device.type) == (1, torch.float32, "cpu")
    elements = x.numel()
    out = np.empty(encoded_bytes(elements, bits, block), dtype=np.uint8)
    x = x.detach()
    if bits == 32:
        _require(_extremes(x), "a value to encode")
        out.view("<f4")[:] = x.numpy()
        return out.tobytes()
    blocks, top = _blocks(elements, block), _TOP[bits]
    scales = torch.from_numpy(out[: 4 * blocks].view(np.float32))
    codes = out[4 * blocks :]
    for first, last, shape in _tiles(elements, block):
        tile = x[first:last].view(shape)
        scale = tile.abs().amax(dim=1) / top
        _require(scale <= _LARGEST_SCALE[bits], "a value to encode")  # amax hands NaN on, and NaN <= anything is false
        scale[scale < _TINY] = 0.0
        row = first // block
        scales[row : row + shape[0]] = scale
        divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        whole = (tile / divisor).round_().clamp_(-top, top).to(torch.int8).view(-1).numpy()
        codes[_code_bytes(first, bits) : _code_bytes(last, bits)] = _paired(whole) if bits == 4 else whole.view(np.uint8)
    if not _LITTLE:
        out[: 4 * blocks].view(np.float32).byteswap(inplace=True)
    return out.tobytes()


def decode(data: bytes | memoryview, elements: int, bits: int, block: int) -> Tensor:
    """`encode`'s inverse → (elements,) float32, finite. Allocates nothing before the size is right.

    Raises Refused: TOO_LARGE or MALFORMED for another size, NOT_FINITE for a value or scale that is not finite or
    would decode to one that is not, MALFORMED for a negative or subnormal scale, for the integer -128 (at 4 bits -8),
    and for an odd vector's last half byte that is not 0.
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
    blocks, top = _blocks(elements, block), _TOP[bits]
    scales = torch.from_numpy(np.frombuffer(data, "<f4", blocks).astype(np.float32))
    _require(scales <= _LARGEST_SCALE[bits], "a scale")
    if bool((torch.signbit(scales) | ((scales > 0) & (scales < _TINY))).any()):
        raise Refused(Reason.MALFORMED, "a scale is negative or subnormal")
    codes = np.frombuffer(data, np.uint8, offset=4 * blocks)
    if bits == 4 and elements % 2 and codes[-1] >> 4:
        raise Refused(Reason.MALFORMED, "the last half byte is not 0")
    for first, last, shape in _tiles(elements, block):
        piece = codes[_code_bytes(first, bits) : _code_bytes(last, bits)]
        tile = torch.from_numpy(_parted(piece)[: last - first] if bits == 4 else piece.view(np.int8).astype(np.float32))
        if tile.min() < -top:
            raise Refused(Reason.MALFORMED, f"the integer {-top - 1}")
        row = first // block
        torch.mul(tile.view(shape), scales[row : row + shape[0]].unsqueeze(1), out=out[first:last].view(shape))
    return out


_TOP = {8: 127, 4: 7}
"""The greatest integer; the least is its negative."""


def cut(data: bytes, elements: int, start: int, stop: int, bits: int, block: int) -> bytes:
    """`encode(x)` → `encode(x[start:stop])`, without encoding again. `start` and `stop` are multiples of `block`, or `elements`."""
    assert all(edge % block == 0 or edge == elements for edge in (start, stop))
    if bits == 32:
        return data[4 * start : 4 * stop]
    codes = 4 * _blocks(elements, block)
    scales = data[4 * _blocks(start, block) : 4 * _blocks(stop, block)]
    return scales + data[codes + _code_bytes(start, bits) : codes + _code_bytes(stop, bits)]


_LITTLE = bool(np.dtype("=f4") == np.dtype("<f4"))


def _blocks(elements: int, block: int) -> int:
    return -(-elements // block)


def _code_bytes(elements: int, bits: int) -> int:
    """Of the integers of so many elements from the first on. Blocks are even at 4 bits, so none begins within a byte."""
    return (elements * bits + 7) // 8


def _paired(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(n,) from -7 to 7 → (ceil(n / 2),): two in a byte, the first in the low half; after an odd last one, 0."""
    pairs = np.append(codes, np.int8(0)).view("<u2") if codes.size % 2 else codes.view("<u2")
    return ((pairs & 0x0F) | (pairs >> 4 & 0xF0)).astype(np.uint8)


def _parted(pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`_paired`'s inverse → (2 * bytes,), -8 included."""
    return _PARTED.take(pairs).view(np.float32)


_PARTED = np.array([[(byte % 16 ^ 8) - 8, (byte // 16 ^ 8) - 8] for byte in range(256)], dtype=np.float32).view(np.complex64).ravel()
"""Both values of every byte; as one number of two floats, because numpy looks these up fastest."""


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
