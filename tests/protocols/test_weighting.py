"""Weights, scales and ceilings: the vectors bit for bit, dumb oracles in fractions, and what a liar can and cannot move."""

import json
import struct
from collections.abc import Sequence
from fractions import Fraction
from math import hypot, inf, sqrt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols.weighting import ceilings, norm, scales, weights

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "weighting.json").read_text())
NORMS = st.floats(0, 2.0**127, width=32)
STEPS = st.integers(1, 1 << 53)
CLAIMS = st.lists(st.tuples(NORMS, STEPS), min_size=1, max_size=40)


def floats(data: str) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 16}d", bytes.fromhex(data)))


def test_gives_the_bits_of_the_vectors() -> None:
    for case in VECTORS["weights"]:
        assert weights(case["owners"]) == floats(case["weights"])
    for case in VECTORS["scales"]:
        found = scales(case["aggregation"], case["weighting"], floats(case["norms"]), case["steps"], floats(case["weights"]))
        assert found == floats(case["scales"]), case["name"]
    for case in VECTORS["ceilings"]:
        norms = [floats(cells) for cells in case["norms"]]
        found = ceilings(case["aggregation"], floats(case["scales"]), norms, bits=case["bits"], block=case["block"])
        assert found == floats(case["ceilings"])


def shares(owners: Sequence[str]) -> list[Fraction]:
    return [Fraction(1, list(owners).count(owner)) for owner in owners]


def lower_median(values: Sequence[float], of: Sequence[Fraction]) -> Fraction:
    """By its definition: the least value that, with all not above it, weighs half."""
    return min(Fraction(v) for v in values if 2 * sum(w for u, w in zip(values, of, strict=True) if u <= v) >= sum(of))


def near(found: float, expected: Fraction) -> bool:
    return abs(Fraction(found) - expected) <= abs(expected) / 10**14


# Weights.


def test_in_open_mode_every_node_weighs_the_same() -> None:
    assert weights(["a", "b", "c"]) == [1.0, 1.0, 1.0]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=256))
def test_every_owner_weighs_one(owners: list[str]) -> None:
    found = weights(owners)
    assert all(near(weight, share) for weight, share in zip(found, shares(owners), strict=True))
    for owner in set(owners):
        assert sum(w for w, of in zip(found, owners, strict=True) if of == owner) == pytest.approx(1.0)


# Scales.


@given(st.lists(NORMS, min_size=1, max_size=64))
def test_the_norm_of_the_whole_is_that_of_the_norms(cells: list[float]) -> None:
    assert norm(cells) == pytest.approx(hypot(*cells), rel=1e-14)


@given(CLAIMS)
def test_a_plain_mean_scales_nothing(claims: list[tuple[float, int]]) -> None:
    norms, steps = zip(*claims, strict=True)
    for kind in ("mean", "trimmed", "median"):
        assert scales(kind, "uniform", norms, steps, [1.0] * len(claims)) == [1.0] * len(claims)


@given(CLAIMS, st.data(), st.sampled_from(["clipped", "mean", "trimmed", "median"]), st.sampled_from(["uniform", "steps"]))
def test_scales_are_the_oracle_s(claims: list[tuple[float, int]], data: st.DataObject, kind: str, weighting: str) -> None:
    norms, steps = zip(*claims, strict=True)
    owners = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(claims), max_size=len(claims)))
    found = scales(kind, weighting, norms, steps, weights(owners))
    pace = lower_median(steps, shares(owners))
    expected = [pace / taken if weighting == "steps" else Fraction(1) for taken in steps]
    if kind == "clipped":
        lengths = [scale * Fraction(norm) for scale, norm in zip(expected, norms, strict=True)]
        bound = lower_median([float(length) for length in lengths], shares(owners))
        expected = [scale * min(Fraction(1), bound / length) if length else scale for scale, length in zip(expected, lengths, strict=True)]
    assert all(near(scale, other) for scale, other in zip(found, expected, strict=True))
    assert all(0 <= scale < inf for scale in found)


@given(CLAIMS, st.randoms(use_true_random=False), st.sampled_from(["uniform", "steps"]))
def test_the_order_of_the_roster_does_not_matter(claims: list[tuple[float, int]], rng: object, weighting: str) -> None:
    order = list(range(len(claims)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    norms, steps = zip(*claims, strict=True)
    one = scales("clipped", weighting, norms, steps, [1.0] * len(claims))
    other = scales("clipped", weighting, [norms[i] for i in order], [steps[i] for i in order], [1.0] * len(claims))
    assert other == [one[i] for i in order]


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20), st.data(), st.sampled_from(["uniform", "steps"]))
def test_liars_under_half_leave_the_bound_among_honest_norms(honest: list[float], data: st.DataObject, weighting: str) -> None:
    """Whatever norms and steps they claim: no scaled delta is longer than the longest honest one, nor are all cut to nothing."""
    lies = data.draw(st.lists(st.tuples(NORMS, STEPS), max_size=len(honest) - 1))
    norms, steps = honest + [norm for norm, _ in lies], [100] * len(honest) + [taken for _, taken in lies]
    found = scales("clipped", weighting, norms, steps, [1.0] * len(norms))
    lengths = [scale * norm for scale, norm in zip(found, norms, strict=True)]
    pace = lower_median(steps, [Fraction(1)] * len(steps))
    assert weighting == "uniform" or pace == 100
    assert max(lengths) <= max(honest) * (1 + 1e-12)
    assert max(lengths) >= min(honest) * (1 - 1e-12)


def test_many_nodes_of_one_owner_do_not_make_the_median() -> None:
    """Ten nodes of one Member, huge, among three honest Members: by head they would be the median, by weight they are not."""
    owners = ["liar"] * 10 + ["a", "b", "c"]
    norms = [1e6] * 10 + [1.0, 2.0, 3.0]
    found = scales("clipped", "uniform", norms, [1] * 13, weights(owners))
    assert max(scale * norm for scale, norm in zip(found, norms, strict=True)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("norms", "found"),
    [([1.0, 1e9], [1.0, 1e-9]), ([1.0, 0.0], [0.0, 1.0]), ([0.0, 0.0], [1.0, 1.0]), ([5.0], [1.0]), ([1.0, 2.0, 3.0], [1.0, 1.0, 2 / 3])],
)
def test_at_two_members_the_lesser_norm_rules(norms: list[float], found: list[float]) -> None:
    assert scales("clipped", "uniform", norms, [1] * len(norms), [1.0] * len(norms)) == found


def test_thirds_and_sevenths_add_up() -> None:
    """Two Members, half the weight each, in seven and in three nodes: the lower median is the lesser's, in either order."""
    for low, high in ((7, 3), (3, 7), (49, 10)):
        owners = ["low"] * low + ["high"] * high
        found = scales("clipped", "uniform", [1.0] * low + [9.0] * high, [1] * (low + high), weights(owners))
        assert found == [1.0] * low + [1 / 9] * high


def test_other_policies_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        scales("krum", "uniform", [1.0], [1], [1.0])
    with pytest.raises(AssertionError):
        scales("mean", "tokens", [1.0], [1], [1.0])


# Ceilings (that honest means keep to them is shown through the real codec in tests/training/test_aggregate.py).


def test_a_ceiling_is_that_of_the_longest_scaled_cell() -> None:
    found = ceilings("clipped", [1.0, 0.5], [[3.0, 0.0, 1.0], [4.0, 0.0, 8.0]], bits=32, block=64)
    assert found == pytest.approx([3.0, 0.0, 4.0], rel=1e-4)
    assert ceilings("median", [1.0, 0.5], [[3.0], [4.0]], bits=32, block=64) == pytest.approx([3 * sqrt(2)], rel=1e-4)
    assert ceilings("mean", [1.0], [[3.0]], bits=8, block=256) == pytest.approx([3 * (1 + 16 / 254)], rel=1e-4)
    assert ceilings("mean", [1.0], [[3.0]], bits=4, block=256) == pytest.approx([6.0], rel=1e-4)
    assert ceilings("mean", [1.0], [[3.0]], bits=4, block=64) == pytest.approx([3 * (1 + 8 / 14)], rel=1e-4)


@given(st.integers(1, 8).flatmap(lambda cells: st.lists(st.lists(NORMS, min_size=cells, max_size=cells), min_size=1, max_size=9)))
def test_ceilings_are_finite_and_in_the_order_of_cells(norms: list[list[float]]) -> None:
    found = ceilings("trimmed", [2.0] * len(norms), norms, bits=4, block=1024)
    assert len(found) == len(norms[0])
    assert all(max(column) <= ceiling < inf for ceiling, column in zip(found, zip(*norms, strict=True), strict=True))
