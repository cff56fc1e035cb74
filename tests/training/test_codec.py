"""The codec against protocols/vectors/codec.json in both directions, its error bound, and hostile bytes."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import protocols
from protocols.refusal import Reason, Refused
from tapestryd.training.codec import LARGEST, cut, decode, encode, encoded_bytes

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "codec.json").read_text())
NORMAL = 2.0**-126
BLOCKS = st.sampled_from([2, 6, 64, 256])
TOP = {8: 127, 4: 7}


def floats(data: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(data), "<f4").copy())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that -0.0 is not 0.0."""
    return a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("case", VECTORS["encoded"], ids=lambda case: case["name"])
def test_reads_and_writes_the_vectors(case: dict[str, str]) -> None:
    values, bits, block = floats(case["values"]), int(case["bits"]), int(case["block"])
    assert encode(values, bits, block).hex() == case["encoded"]
    assert len(case["encoded"]) // 2 == encoded_bytes(values.numel(), bits, block)
    assert same(decode(bytes.fromhex(case["encoded"]), values.numel(), bits, block), floats(case["decoded"]))


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_refuses_the_vectors(case: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        decode(bytes.fromhex(case["data"]), int(case["elements"]), int(case["bits"]), int(case["block"]))
    assert refused.value.reason.value == case["reason"]


def dumb(x: list[float], bits: int, block: int) -> bytes:
    """The document, one element at a time: struct rounds to float32, Python's round to the even integer."""

    def float32(value: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])

    scales, codes = [], []
    for first in range(0, len(x), block):
        tile = x[first : first + block]
        scale = float32(max(map(abs, tile)) / TOP[bits])
        scales.append(scale if scale >= NORMAL else 0.0)
        codes += [max(-TOP[bits], min(TOP[bits], round(float32(value / scale)))) if scale >= NORMAL else 0 for value in tile]
    head = struct.pack(f"<{len(scales)}f", *scales)
    if bits == 8:
        return head + struct.pack(f"{len(codes)}b", *codes)
    halves = "".join(f"{code & 15:x}" for code in codes + [0] * (len(codes) % 2))
    return head + bytes(int(halves[i + 1] + halves[i], 16) for i in range(0, len(halves), 2))


VALUES = arrays.arrays(np.float32, st.integers(0, 700), elements=st.floats(-LARGEST, LARGEST, width=32))


@given(VALUES, st.sampled_from([4, 8]), BLOCKS)
def test_writes_what_the_dumb_oracle_writes(x: np.ndarray, bits: int, block: int) -> None:
    assert encode(torch.from_numpy(x), bits, block) == dumb(x.tolist(), bits, block)


@given(VALUES, st.sampled_from([4, 8]), BLOCKS)
def test_decoded_values_are_within_half_a_scale(x: np.ndarray, bits: int, block: int) -> None:
    data = encode(torch.from_numpy(x), bits, block)
    assert len(data) == encoded_bytes(x.size, bits, block)
    back = decode(memoryview(data), x.size, bits, block).numpy()
    for first in range(0, x.size, block):
        tile, got = x[first : first + block].astype(np.float64), back[first : first + block].astype(np.float64)
        scale = np.abs(tile).max() / TOP[bits]
        bound = np.abs(tile).max() if scale < NORMAL * 1.0001 else scale / 2 * (1 + 2.0**-15)
        assert np.abs(tile - got).max() <= max(bound, 0)
        assert (np.abs(got) <= 2 * np.abs(tile) * (1 + 2.0**-20)).all()  # what the ceilings of weighting.py count on
    assert encode(torch.from_numpy(back), bits, block) is not None  # what was decoded can be sent on


@given(st.integers(0, 1 << 30), st.integers(0, 700), st.sampled_from([4, 8, 32]), st.sampled_from([64, 256]), st.data())
def test_a_cut_at_a_block_alters_no_byte(seed: int, elements: int, bits: int, block: int, data: st.DataObject) -> None:
    """A part is encoded as the whole would be: its scales and its codes are runs of the whole's."""
    x = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    blocks = -(-elements // block)
    a, b = sorted(data.draw(st.tuples(st.integers(0, blocks), st.integers(0, blocks))))
    first, last = min(elements, a * block), min(elements, b * block)
    whole, part = encode(x, bits, block), encode(x[first:last], bits, block)
    if bits == 32:
        assert part == whole[4 * first : 4 * last]
    else:
        codes = whole[4 * blocks :]
        assert part == whole[4 * a : 4 * b] + codes[(first * bits + 7) // 8 : (last * bits + 7) // 8]
    assert part == cut(whole, elements, first, last, bits, block)
    assert same(decode(part, last - first, bits, block), decode(whole, elements, bits, block)[first:last])


@given(arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)), BLOCKS)
def test_32_bits_are_exact(x: np.ndarray, block: int) -> None:
    assert same(decode(encode(torch.from_numpy(x), 32, block), x.size, 32, block), torch.from_numpy(x))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 60), st.sampled_from([4, 8, 32]), BLOCKS, st.booleans())
def test_any_bytes_decode_to_finite_values_or_are_refused(data: bytes, elements: int, bits: int, block: int, fit: bool) -> None:
    if fit:
        data = data.ljust(encoded_bytes(elements, bits, block), b"\x01")[: encoded_bytes(elements, bits, block)]
    try:
        got = decode(data, elements, bits, block)
    except Refused:
        return
    assert got.shape == (elements,)
    assert bool(torch.isfinite(got).all())


@given(st.binary(max_size=40), st.integers(0, 1 << 50), st.sampled_from([4, 8, 32]))
def test_bytes_of_a_wrong_size_cost_no_memory(data: bytes, elements: int, bits: int) -> None:
    if len(data) == encoded_bytes(elements, bits, 256):
        return
    with pytest.raises(Refused):
        decode(data, elements, bits, 256)


def test_a_wrong_size_costs_no_memory() -> None:
    """A terabyte that is claimed is never allocated."""
    for bits in (4, 8, 32):
        with pytest.raises(Refused) as refused:
            decode(b"short", 1 << 40, bits, 256)
        assert refused.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("place", [0, 70, 99])
def test_what_is_not_finite_is_not_encoded(bad: float, bits: int, place: int) -> None:
    x = torch.ones(100)
    x[place] = bad
    with pytest.raises(Refused) as refused:
        encode(x, bits, 64)
    assert refused.value.reason is Reason.NOT_FINITE


@pytest.mark.parametrize("bits", [4, 8])
def test_the_thread_count_and_the_tiling_do_not_matter(bits: int) -> None:
    """200,001 elements: more than one tile, and a tail."""
    x = torch.randn(200_001, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 4):
            torch.set_num_threads(count)
            data = encode(x, bits, 256)
            found.append((data, decode(data, x.numel(), bits, 256).numpy().tobytes()))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    first, last = encode(x[:256], bits, 256), encode(x[-65:], bits, 256)
    assert (found[0][0][:4], found[0][0][-(65 * bits // 8) :]) == (first[:4], last[-(65 * bits // 8) :])


@pytest.mark.parametrize(("elements", "bits", "block"), [(1, 2, 64), (1, 4, 63), (-1, 8, 64), (1, 8, 0)])
def test_a_codec_that_is_not_ours_is_a_bug(elements: int, bits: int, block: int) -> None:
    with pytest.raises(ValueError, match="bits in blocks"):
        encoded_bytes(elements, bits, block)
