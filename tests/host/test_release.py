"""The rules of release: a table of verdicts, and what clipping and noise make of a vector."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocols.trainer import Withhold
from tapestryd.config import Release
from tapestryd.host import release
from tapestryd.host.release import Behind, Veil, fresh_noise, norm, veil, verdict

RULES = Release(min_steps=32, min_examples=256, max_per_hour=60)
OFF = Release(min_steps=0, min_examples=0, max_per_hour=100_000)


def vector(size: int = 1000, seed: int = 0, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


@pytest.mark.parametrize(
    ("rules", "behind", "last_hour", "expected"),
    [
        (RULES, Behind(32, 32 * 1024, 256), 59, None),
        (RULES, Behind(31, 31 * 1024, 256), 0, (Withhold.FEW_STEPS, "31 local steps behind it, release.min_steps = 32")),
        (RULES, Behind(-7, 0, 0), 0, (Withhold.FEW_STEPS, "0 local steps behind it, release.min_steps = 32")),
        (RULES, Behind(32, 9, 255), 0, (Withhold.FEW_EXAMPLES, "255 distinct examples behind it, release.min_examples = 256")),
        (RULES, Behind(99, 9, 999), 60, (Withhold.RATE, "60 released in the last hour, release.max_per_hour = 60")),
        (RULES, Behind(0, 0, 0), 99, (Withhold.FEW_STEPS, "0 local steps behind it, release.min_steps = 32")),
        (OFF, Behind(0, 0, 0), 0, None),
    ],
)
def test_verdicts(rules: Release, behind: Behind, last_hour: int, expected: tuple[Withhold, str] | None) -> None:
    assert verdict(rules, behind, last_hour) == expected


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_nothing_leaves_that_breaks_a_rule(steps: int, examples: int, hour: int, min_steps: int, min_examples: int, most: int) -> None:
    rules = Release(min_steps=min_steps, min_examples=min_examples, max_per_hour=most)
    kept = steps < min_steps or examples < min_examples or hour >= most
    assert (verdict(rules, Behind(steps, 0, examples), hour) is not None) == kept


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(1, 500))
def test_clipping_shortens_and_keeps_the_direction(clip_norm: float, scale: float, size: int) -> None:
    before = vector(size, scale=scale)
    after = before.copy()
    done = veil(after, replace(OFF, delta_clip_norm=clip_norm), fresh_noise())
    length = float(np.linalg.norm(before.astype(np.float64)))
    assert done.norm == pytest.approx(min(length, clip_norm), rel=1e-6)
    assert done.norm == norm(after)
    if length <= clip_norm:
        assert (done.clip, after.tobytes()) == (1.0, before.tobytes())
    else:
        assert done.clip == pytest.approx(clip_norm / length)
        np.testing.assert_allclose(after, before * (clip_norm / length), rtol=1e-5)
    assert done.noise_std == 0


def test_without_settings_a_vector_leaves_as_it_is() -> None:
    after = vector(scale=100)
    assert veil(after, Release(), fresh_noise()) == Veil(norm(vector(scale=100)), 1.0, 0.0)
    assert after.tobytes() == vector(scale=100).tobytes()


def test_noise_is_normal_of_the_size_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a vector of zeros, which clipping leaves alone, in several chunks that differ."""
    monkeypatch.setattr(release, "_CHUNK", 1 << 14)
    after = np.zeros(1 << 17, np.float32)
    done = veil(after, replace(OFF, delta_clip_norm=2.0, delta_noise_std=0.25), fresh_noise())
    assert (done.clip, done.noise_std) == (1.0, 0.5)
    assert done.norm == pytest.approx(0.5 * math.sqrt(after.size), rel=0.02)
    assert abs(float(after.mean())) < 5 * 0.5 / math.sqrt(after.size)
    within = [float((np.abs(after) < 0.5 * times).mean()) for times in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.01)
    assert len({chunk.tobytes() for chunk in np.split(after, 8)}) == 8


def test_noise_comes_behind_clipping_and_is_never_the_same() -> None:
    rules = replace(OFF, delta_clip_norm=1.0, delta_noise_std=0.01)
    first, second = vector(10_000, scale=50), vector(10_000, scale=50)
    done = veil(first, rules, fresh_noise())
    veil(second, rules, fresh_noise())
    assert done.norm == pytest.approx(math.sqrt(1 + 0.01**2 * 10_000), rel=0.1)
    assert first.tobytes() != second.tobytes()
    assert veil(vector(64), rules, np.random.default_rng(1)).norm == veil(vector(64), rules, np.random.default_rng(1)).norm


@pytest.mark.parametrize("rules", [OFF, replace(OFF, delta_clip_norm=1.0), replace(OFF, delta_clip_norm=1.0, delta_noise_std=0.1)])
def test_what_is_not_finite_is_not_made_to_look_so(rules: Release) -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        after = vector()
        after[7] = wrong
        assert not math.isfinite(veil(after, rules, fresh_noise()).norm)
