"""The weighted mean against protocols/vectors/outer.json bit for bit, and a dumb oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import protocols
from tapestryd.training.aggregate import mean

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "outer.json").read_text())


def rows(parts: list[str]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.frombuffer(bytes.fromhex(part), "<f4") for part in parts]))


@pytest.mark.parametrize("case", VECTORS["mean"], ids=lambda case: case["name"])
def test_gives_the_bits_of_the_vectors(case: dict[str, list[str]]) -> None:
    weights = torch.tensor([float(weight) for weight in case["weights"]], dtype=torch.float64)
    assert mean(rows(case["parts"]), weights).numpy().tobytes().hex() == case["mean"]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1 << 30))
def test_is_the_sum_in_roster_order(members: int, elements: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(members, elements, generator=generator)
    weights = torch.rand(members, generator=generator, dtype=torch.float64) + 1e-3
    expected = []
    for column in parts.T.tolist():
        total = column[0] * weights[0].item()
        for value, weight in zip(column[1:], weights[1:].tolist(), strict=True):
            total += value * weight
        expected.append(total / _sum(weights.tolist()))
    assert mean(parts, weights).tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()


def test_chunks_and_threads_do_not_matter() -> None:
    parts = torch.randn(3, 200_001, generator=torch.Generator().manual_seed(0))
    whole = mean(parts, torch.ones(3))
    assert torch.equal(whole[-7:], mean(parts[:, -7:].contiguous(), torch.ones(3)))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_no_weight_is_a_bug(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        mean(torch.ones(2, 3), torch.tensor(weights))


def _sum(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
