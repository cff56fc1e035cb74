"""Canaries: made, planted, and how well they are known, against slow and plain reckoning."""

import math
from collections import Counter
from random import Random
from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.training.canaries import Canary, chance, exposure, exposures, make, planted, shows_from, surprise
from tapestryd.training.text import Bytes
from tests.training.tiny import CONFIGS, built

CPU = torch.device("cpu")


def test_all_secrets_differ_and_are_of_one_length() -> None:
    canaries, others = make((0, 2, 5), 3, 500, Random(0))
    assert Counter(canary.times for canary in canaries) == {0: 3, 2: 3, 5: 3}
    assert (len(others), {other.times for other in others}) == (500, {0})
    assert len({one.secret for one in (*canaries, *others)}) == 509
    assert len({len(one.text) for one in (*canaries, *others)}) == 1


def test_each_is_planted_so_often_as_a_document_of_its_own() -> None:
    text = [np.frombuffer(b"a document", np.uint8).astype(np.uint32)] * 4
    canaries, _ = make((0, 1, 3), 2, 1, Random(0))
    mixed = planted(text, canaries, Bytes(), Random(1))
    assert {int(document[-1]) for document in mixed} == {Bytes().end}
    found = Counter(bytes(document[:-1].astype(np.uint8)).decode() for document in mixed)
    assert found == {"a document": 4} | {canary.text: canary.times for canary in canaries if canary.times}
    places = [at for at, document in enumerate(mixed) if document[0] == ord("a")]
    assert places != [0, 1, 2, 3]  # not all together


@pytest.mark.parametrize(
    ("own", "others", "bits"),
    [(0.5, [1.0, 2.0, 3.0], 2.0), (1.5, [1.0, 2.0, 3.0], 1.0), (9.0, [1.0, 2.0, 3.0], 0.0), (1.0, [1.0, 1.0, 1.0], 2.0)],
)  # fmt: skip
def test_exposure(own: float, others: list[float], bits: float) -> None:
    assert exposure(own, others) == bits


@given(st.integers(1, 3000))
def test_chance_is_the_mean_over_all_ranks(candidates: int) -> None:
    ranks = range(1, candidates + 2)
    assert chance(candidates) == pytest.approx(mean(math.log2(candidates + 1) - math.log2(rank) for rank in ranks), abs=1e-6)


@pytest.mark.parametrize(
    ("found", "times"),
    [
        ({0: [9.0] * 8, 1: [1.4] * 8, 4: [2.0] * 8, 16: [3.0] * 8}, None),
        ({0: [1.0] * 8, 1: [1.4] * 8, 4: [4.0] * 8, 16: [11.0] * 8}, 4),
        ({0: [1.0] * 8, 1: [11.0] + [0.0] * 7, 4: [11.0] * 4 + [0.0] * 4}, 4),
    ],
)  # fmt: skip
def test_shows_from(found: dict[int, list[float]], times: int | None) -> None:
    assert shows_from(found) == times


def test_exposures_by_how_often() -> None:
    canaries = [Canary("1", 4), Canary("2", 0), Canary("3", 4)]
    assert exposures(canaries, [0.0, 9.0, 2.5], [1.0, 2.0, 3.0]) == {0: [0.0], 4: [2.0, pytest.approx(math.log2(4 / 3))]}


@pytest.mark.parametrize("name", CONFIGS)
def test_surprise_is_the_loss_of_each_by_itself(name: str) -> None:
    _, model, _ = built(name)
    canaries = [*make((1,), 70, 1, Random(0))[0], Canary("short", 1), Canary("of another length altogether", 1)]
    found = surprise(model, canaries, Bytes(), CPU)
    for canary, value in zip(canaries, found, strict=True):
        ids = torch.from_numpy(Bytes().encode(canary.text).astype(np.int64))[None]
        with torch.no_grad():
            told = model(input_ids=ids[:, :-1]).logits[0]
        assert value == pytest.approx(F.cross_entropy(told, ids[0, 1:], reduction="sum").item(), rel=1e-4)
