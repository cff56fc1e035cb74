"""Epsilon against formulas that are exact where there is one, against what was published, and against another library."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestryd.host.accountant import Steps, epsilon

DELTA = 1e-5


def phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def smallest(delta_at: Callable[[float], float], delta: float) -> float:
    """The least epsilon at which what is lost beyond it is no more than `delta`."""
    low, high = 0.0, 700.0  # exp() of more is no float
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def gaussian(steps: int, multiplier: float, delta: float) -> float:
    """Exact for steps over all records: Balle and Wang, arXiv 1805.06530, theorem 8."""
    mu = math.sqrt(steps) / multiplier
    return smallest(lambda e: phi(mu / 2 - e / mu) - math.exp(e) * phi(-mu / 2 - e / mu), delta)


def sampled(rate: float, multiplier: float, delta: float) -> float:
    """Exact for one step: how far the mixture with the record lies beyond e^epsilon times the other, and the other way round."""

    def removed(e: float) -> float:
        x = multiplier**2 * math.log((math.exp(e) - 1 + rate) / rate) + 0.5
        return (1 - rate) * phi(-x / multiplier) + rate * phi((1 - x) / multiplier) - math.exp(e) * phi(-x / multiplier)

    def added(e: float) -> float:
        if math.exp(-e) <= 1 - rate:
            return 0.0
        x = multiplier**2 * math.log((math.exp(-e) - 1 + rate) / rate) + 0.5
        return phi(x / multiplier) - math.exp(e) * ((1 - rate) * phi(x / multiplier) + rate * phi((x - 1) / multiplier))

    return smallest(lambda e: max(removed(e), added(e)), delta)


def test_the_documents_table_is_what_it_says() -> None:
    text = (Path(__file__).parents[2] / "tapestryd" / "DATA.md").read_text()
    table = text[text.index("| records | batch | noise |") :].split("\n\n")[0]
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d.]+) \|$", table, re.M)
    assert len(rows) == 4
    for row in rows:
        records, batch, noise, steps, told = (float(cell.replace(",", "")) for cell in row)
        assert epsilon([Steps(batch / records, noise, int(steps))], 1e-6) == pytest.approx(told, abs=0.005)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 200), st.floats(0.7, 10), st.sampled_from([1e-3, 1e-5, 1e-7]))
def test_without_sampling_it_is_the_exact_one(steps: int, multiplier: float, delta: float) -> None:
    exact = gaussian(steps, multiplier, delta)
    assert exact - 1e-6 <= epsilon([Steps(1.0, multiplier, steps)], delta) <= exact * 1.002 + 2e-3


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-4, 0.9), st.floats(0.5, 5), st.sampled_from([1e-4, 1e-6]))
def test_one_step_is_the_exact_one(rate: float, multiplier: float, delta: float) -> None:
    exact = sampled(rate, multiplier, delta)
    assert exact - 1e-6 <= epsilon([Steps(rate, multiplier, 1)], delta) <= exact + 3e-3


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps", "delta", "published", "tight"),
    [
        (0.01, 4.0, 10_000, 1e-5, 1.26, 0.9),  # Abadi et al., arXiv 1607.00133, section 3.2: the moments accountant
        (256 / 60_000, 1.1, 14_063, 1e-5, 2.60, 2.37),  # TensorFlow Privacy's MNIST tutorial, 60 epochs: Rényi
        (0.01, 1.0, 1_000, 1e-5, 2.11, 1.82),  # Opacus 1.6: Rényi 2.1014; its PRV accountant 1.8384
        (0.001, 0.7, 10_000, 1e-5, 2.03, 1.24),  # Opacus 1.6: 2.0247; 1.2551
        (0.01, 1.1, 10_000, 1e-5, 5.64, 5.19),  # Opacus 1.6: 5.6320; 5.2029
    ],
)
def test_published_bounds_are_kept_and_not_far_undercut(
    rate: float, multiplier: float, steps: int, delta: float, published: float, tight: float
) -> None:
    assert tight <= epsilon([Steps(rate, multiplier, steps)], delta) <= published


def test_it_adds_up() -> None:
    one, other = Steps(0.01, 1.0, 300), Steps(0.02, 1.5, 200)
    both = epsilon([one, other], DELTA)
    assert max(epsilon([one], DELTA), epsilon([other], DELTA)) < both < epsilon([one], DELTA) + epsilon([other], DELTA)
    assert epsilon([other, one], DELTA) == both
    split = epsilon([Steps(0.01, 1.0, 100), Steps(0.01, 1.0, 200)], DELTA)
    assert split == pytest.approx(epsilon([one], DELTA), abs=2e-3)
    assert epsilon([one], 1e-8) > epsilon([one], DELTA) > epsilon([one], 1e-3)
    assert epsilon([], DELTA) == epsilon([Steps(0.5, 1.0, 0)], DELTA) == 0
