"""Means against protocols/vectors/outer.json bit for bit, dumb oracles, the ceilings of weighting.py, and liars."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

import protocols
from protocols.weighting import ROOM, ceilings, norm, scales
from tapestryd.training.aggregate import aggregate, cell_norms
from tapestryd.training.codec import LARGEST, decode, encode

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "outer.json").read_text())
KINDS = st.sampled_from(["clipped", "mean", "trimmed", "median"])
FLOAT32 = st.floats(allow_nan=False, allow_infinity=False, width=32)


def rows(parts: list[str]) -> Tensor:
    return torch.from_numpy(np.stack([np.frombuffer(bytes.fromhex(part), "<f4") for part in parts]))


def ones(members: int) -> Tensor:
    return torch.ones(members, dtype=torch.float64)


def random(members: int, elements: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """parts, weights, scales"""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(members, elements, generator=generator)
    weights, scale = torch.rand(2, members, generator=generator, dtype=torch.float64) + 1e-3
    return parts, weights, scale


@pytest.mark.parametrize("case", VECTORS["mean"], ids=lambda case: case["name"])
def test_gives_the_bits_of_the_vectors(case: dict[str, list[str]]) -> None:
    weights = torch.tensor([float(weight) for weight in case["weights"]], dtype=torch.float64)
    assert aggregate("mean", rows(case["parts"]), weights, ones(len(weights))).numpy().tobytes().hex() == case["mean"]


@pytest.mark.parametrize("case", VECTORS["aggregate"], ids=lambda case: case["name"])
def test_gives_the_bits_of_every_kind(case: dict[str, list[str]]) -> None:
    weights, scale = (torch.tensor([float(value) for value in case[name]], dtype=torch.float64) for name in ("weights", "scales"))
    assert aggregate(str(case["kind"]), rows(case["parts"]), weights, scale).numpy().tobytes().hex() == case["mean"]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1 << 30), st.sampled_from(["clipped", "mean"]))
def test_a_mean_is_the_sum_in_roster_order(members: int, elements: int, seed: int, kind: str) -> None:
    parts, weights, scale = random(members, elements, seed)
    factors = (weights * scale).tolist()
    expected = []
    for column in parts.T.tolist():
        total = column[0] * factors[0]
        for value, factor in zip(column[1:], factors[1:], strict=True):
            total += value * factor
        expected.append(total / _sum(weights.tolist()))
    assert aggregate(kind, parts, weights, scale).tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 1 << 30), st.sampled_from(["trimmed", "median"]))
def test_trimmed_mean_and_median_are_the_oracle_s(members: int, elements: int, seed: int, kind: str) -> None:
    parts, weights, scale = random(members, elements, seed)
    expected = []
    for column in parts.T.tolist():
        ranked = sorted(Fraction(value * factor) for value, factor in zip(column, scale.tolist(), strict=True))
        middle = [ranked[(members - 1) // 2], ranked[members // 2]]
        kept = middle if kind == "median" else ranked[members // 4 : members - members // 4]
        expected.append(float(sum(kept) / len(kept)))
    np.testing.assert_allclose(aggregate(kind, parts, weights, scale).numpy(), np.array(expected, dtype=np.float32), rtol=2e-7, atol=1e-12)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=FLOAT32), KINDS, st.floats(0, 1e18))
def test_what_is_finite_stays_so_and_can_be_sent(parts: np.ndarray, kind: str, factor: float) -> None:
    out = aggregate(kind, torch.from_numpy(parts), ones(len(parts)), ones(len(parts)) * factor)
    assert float(out.abs().max()) <= LARGEST
    for bits in (4, 8, 32):
        encode(out, bits, 64)


@given(st.integers(1, 9), KINDS, st.randoms(use_true_random=False))
def test_the_sign_of_zero_is_one(members: int, kind: str, rng: object) -> None:
    parts = torch.tensor([[rng.choice([0.0, -0.0])] for _ in range(members)])  # type: ignore[attr-defined]
    if kind in ("trimmed", "median"):
        assert not torch.signbit(aggregate(kind, parts, ones(members), ones(members))).any()


@pytest.mark.parametrize("kind", ["clipped", "trimmed", "median"])
def test_chunks_and_threads_do_not_matter(kind: str) -> None:
    parts, weights, scale = random(5, 200_001, 0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            whole = aggregate(kind, parts, weights, scale)
            for piece in (slice(0, 100), slice(65_530, 65_550), slice(-7, None)):
                assert torch.equal(whole[piece], aggregate(kind, parts[:, piece].contiguous(), weights, scale))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, -0.5], [1.0, float("nan")], [1.0, float("inf")], [1.0, 1e40]])
def test_what_is_no_weight_or_scale_is_a_bug(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        aggregate("mean", torch.ones(2, 3), torch.tensor(bad), ones(2))
    if any(bad):
        with pytest.raises(ValueError, match="scales"):
            aggregate("mean", torch.ones(2, 3), ones(2), torch.tensor(bad))


# Norms of cells.


@given(arrays.arrays(np.float32, st.integers(0, 300), elements=FLOAT32), st.lists(st.integers(0, 300), max_size=8))
def test_norms_are_the_oracle_s(x: np.ndarray, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, x.size) for cut in cuts), x.size]
    found = cell_norms(torch.from_numpy(x), edges)
    for here, first, last in zip(found, edges[:-1], edges[1:], strict=True):
        assert here == pytest.approx(math.sqrt(sum(float(value) ** 2 for value in x[first:last])), rel=1e-12)
        assert here > 0 or not x[first:last].any()


def test_norms_of_long_cells() -> None:
    x = torch.full((300_000,), 3e38)
    assert cell_norms(x, [0, 100_000, 100_000, 300_000]) == pytest.approx([3e38 * math.sqrt(1e5), 0.0, 3e38 * math.sqrt(2e5)], rel=1e-6)


# What the treaty counts on.


@given(
    st.integers(1, 7), st.integers(1, 400), st.integers(0, 1 << 30), KINDS, st.sampled_from(["uniform", "steps"]),
    st.sampled_from([4, 8, 32]), st.sampled_from([64, 256]), st.sampled_from([1e-42, 1e-30, 1.0, 1e30]), st.booleans(), st.data(),
)  # fmt: skip
def test_no_honest_part_is_above_its_ceiling(
    members: int, elements: int, seed: int, kind: str, weighting: str, bits: int, block: int, size: float, spiky: bool, data: st.DataObject
) -> None:
    """Offers through the codec, claims of what they decode to in float32, any of them missing, the mean through the codec again."""
    parts, weights, _ = random(members, elements, seed)
    if spiky:  # one large element a block, and the others just where rounding doubles them
        parts = torch.sign(parts) * 0.5001 / (2 ** (bits - 1) - 1)
        parts[:, ::block] = 1.0
    parts *= torch.logspace(-2, 2, members).unsqueeze(1) * size
    offers = torch.stack([decode(encode(row, bits, block), elements, bits, block) for row in parts])
    edges = [min(elements, block * i) for i in (0, 1, 1, 3)] + [elements]
    claims = np.array([cell_norms(row, edges) for row in offers]).astype(np.float32).astype(float).tolist()
    steps = data.draw(st.lists(st.integers(1, 1000), min_size=members, max_size=members))
    scale = scales(kind, weighting, list(map(norm, claims)), steps, weights.tolist())
    counted = sorted(data.draw(st.sets(st.integers(0, members - 1), min_size=1)))
    mean = aggregate(kind, offers[counted], weights[counted], torch.tensor(scale, dtype=torch.float64)[counted])
    part = decode(encode(mean, bits, block), elements, bits, block)
    for found, ceiling in zip(cell_norms(part, edges), ceilings(kind, scale, claims, bits=bits, block=block), strict=True):
        assert found <= ceiling


@pytest.mark.parametrize(("kind", "members"), [("median", 3), ("trimmed", 4)])
def test_a_median_can_be_longer_than_each_of_its_rows(kind: str, members: int) -> None:
    """Ones with a zero in another place each: the median is ones. Hence the sqrt(2) of its ceiling."""
    parts = 1 - torch.eye(members)
    (norm_of_median,) = cell_norms(aggregate(kind, parts, ones(members), ones(members)), [0, members])
    longest = max(cell_norms(row, [0, members])[0] for row in parts)
    assert longest * 1.1 < norm_of_median
    assert norm_of_median <= ceilings(kind, [1.0] * members, [[longest]] * members, bits=32, block=64)[0]


def test_the_ceiling_is_near() -> None:
    """Not only an upper bound: one member alone comes within the codec's share of it."""
    x = torch.full((1, 64), 0.5001 / 7)
    x[0, 0] = 1.0
    claim = cell_norms(x[0], [0, 64])
    part = decode(encode(x[0], 4, 64), 64, 4, 64)
    (ceiling,) = ceilings("mean", [1.0], [claim], bits=4, block=64)
    assert ceiling / 1.2 <= cell_norms(part, [0, 64])[0] <= ceiling


@pytest.mark.parametrize("lie", ["flipped x10", "huge", "zero", "as long as the median"])
@pytest.mark.parametrize("liars", [1, 3])
def test_a_liar_moves_the_clipped_mean_by_its_share_of_the_median_norm(lie: str, liars: int) -> None:
    """Eight honest deltas of unlike sizes; the bound is that of aggregation.md, 2 w / sum(w) * median norm for each liar."""
    generator = torch.Generator().manual_seed(3)
    honest = torch.randn(8, 10_000, generator=generator) * torch.linspace(0.5, 2.0, 8).unsqueeze(1)
    lies = {
        "flipped x10": -10 * honest.mean(0), "huge": torch.full((10_000,), 1e30), "zero": torch.zeros(10_000),
        "as long as the median": -honest[3],
    }  # fmt: skip
    parts = torch.cat([honest, lies[lie].expand(liars, -1)])
    count = 8 + liars
    norms = [norm for row in parts for norm in cell_norms(row, [0, 10_000])]
    scale = scales("clipped", "uniform", norms, [1] * count, [1.0] * count)
    bound = max(factor * norm for factor, norm in zip(scale, norms, strict=True))
    assert min(norms[:8]) <= bound * ROOM
    assert bound <= max(norms[:8]) * ROOM
    poisoned = aggregate("clipped", parts, ones(count), torch.tensor(scale, dtype=torch.float64))
    without = torch.tensor(scale[:8], dtype=torch.float64)
    silent = aggregate("clipped", honest, ones(8), without) * (8 / count)  # the same places, the liars' holding nothing
    assert float((poisoned - silent).norm()) <= liars / count * bound * ROOM
    for other in honest[:liars]:  # had they been honest instead
        heard = torch.cat([honest, other.expand(liars, -1)])
        own = min(1.0, bound / float(other.norm()))
        fair = aggregate("clipped", heard, ones(count), torch.cat([without, ones(liars) * own]))
        assert float((poisoned - fair).norm()) <= 2 * liars / count * bound * ROOM
    plain = aggregate("mean", parts, ones(count), ones(count))
    if lie == "huge":
        assert float((plain - silent).norm()) > 1e25 * bound


def _sum(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
