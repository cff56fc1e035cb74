"""May this vector leave, and what of it: the rules of [release] (protocols/ledger.md), decided from counts and numbers alone.

Knows nothing of models, files or channels. The vector is changed in its own memory, before it is anywhere else.
"""

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.trainer import Withhold
from tapestryd.config import Release

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Behind:
    """What a vector is made of: local steps, target tokens, and distinct windows' worth of text."""

    steps: int
    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class Veil:
    """What was done to a vector. `norm`: its L2 norm now; `clip`: what it was multiplied by; `noise_std`: of the noise in each element."""

    norm: float
    clip: float
    noise_std: float


def verdict(rules: Release, behind: Behind, last_hour: int) -> tuple[Withhold, str] | None:
    """Why a vector stays here, and that in words; None: it may leave. `last_hour`: vectors released in the last hour."""
    if behind.steps < rules.min_steps:
        return Withhold.FEW_STEPS, f"{max(0, behind.steps)} local steps behind it, release.min_steps = {rules.min_steps}"
    if behind.examples < rules.min_examples:
        return Withhold.FEW_EXAMPLES, f"{behind.examples} distinct examples behind it, release.min_examples = {rules.min_examples}"
    if last_hour >= rules.max_per_hour:
        return Withhold.RATE, f"{last_hour} released in the last hour, release.max_per_hour = {rules.max_per_hour}"
    return None


def veil(vector: NDArray[np.float32], rules: Release, noise: np.random.Generator) -> Veil:
    """Shorten `vector`, (n,) float32, to the clip norm and add the noise, in place. One that is not finite is left alone, and its
    norm says it."""
    length = norm(vector)
    if not math.isfinite(length):
        return Veil(length, 1.0, 0.0)
    clip = min(1.0, rules.delta_clip_norm / length) if rules.delta_clip_norm and length else 1.0
    if clip != 1.0:
        vector *= np.float32(clip)
    std = rules.delta_noise_std * rules.delta_clip_norm
    if std:
        for chunk in _chunks(vector):
            chunk += np.float32(std) * noise.standard_normal(chunk.size, np.float32)
    return Veil(norm(vector) if std or clip != 1.0 else length, clip, std)


def fresh_noise() -> np.random.Generator:
    """A generator that nobody can know anything of: keyed with 256 bits of the operating system's. Take one for each vector."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def norm(vector: NDArray[np.float32]) -> float:
    """L2, added up in float64."""
    return math.sqrt(sum(float(np.square(chunk, dtype=np.float64).sum()) for chunk in _chunks(vector)))


def _chunks(vector: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Views, so that nothing large is made beside the vector."""
    return (vector[start : start + _CHUNK] for start in range(0, vector.size, _CHUNK))
