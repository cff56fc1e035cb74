"""Weights: uniform, the same for everybody, and no policy but those of the treaty."""

import pytest

from protocols.weighting import weights


def test_uniform() -> None:
    assert weights("uniform", ["a", "b", "c"]) == [1.0, 1.0, 1.0]


def test_other_policies_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        weights("tokens", ["a"])
