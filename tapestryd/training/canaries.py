"""Canaries: made-up secrets that are planted in text, and how well a model that was trained on it knows them (arXiv 1802.08232).

A canary is a sentence with a number in it that nobody would guess. Its exposure is how much sooner than by chance it is guessed with the
model's help, in bits: log2 of how many candidates there are, less log2 of the rank that the model gives it among them. A model that never
saw it ranks it anywhere; one that knows it by heart ranks it first. Knows nothing of files, and nothing of how the model was trained.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tapestryd.training.text import Ids, Tokenizer

DIGITS = 9
_SENTENCE = "The access code of this record is {}."

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Canary:
    """`times`: in how many documents it is planted; 0: in none, for comparison."""

    secret: str
    times: int

    @property
    def text(self) -> str:
        return _SENTENCE.format(self.secret)


def make(times: Iterable[int], each: int, candidates: int, rng: Random) -> tuple[list[Canary], list[Canary]]:
    """`each` canaries for each of `times`, and as many candidates that are planted nowhere; all different."""
    times = list(times)
    secrets = [f"{number:0{DIGITS}}" for number in rng.sample(range(10**DIGITS), each * len(times) + candidates)]
    planted = [Canary(secrets.pop(), count) for count in times for _ in range(each)]
    return planted, [Canary(secret, 0) for secret in secrets]


def planted(documents: Sequence[Ids], canaries: Iterable[Canary], tokenizer: Tokenizer, rng: Random) -> list[Ids]:
    """The documents, each closed by its end, with a document for each time of each canary, in any order."""
    added = [_closed(tokenizer.encode(canary.text), tokenizer) for canary in canaries for _ in range(canary.times)]
    mixed = [_closed(document, tokenizer) for document in documents] + added
    rng.shuffle(mixed)
    return mixed


def surprise(model: Any, canaries: Sequence[Canary], tokenizer: Tokenizer, device: torch.device) -> list[float]:
    """How unlikely the model finds each sentence, in nats, all its tokens together. Leaves the model in eval mode."""
    model.eval()
    found: list[float] = []
    for start in range(0, len(canaries), _AT_ONCE):
        rows = [torch.from_numpy(tokenizer.encode(canary.text).astype(np.int64)) for canary in canaries[start : start + _AT_ONCE]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.end).to(device)
        with torch.no_grad():
            told = model(input_ids=ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
        each: Tensor = -told.gather(-1, ids[:, 1:, None])[..., 0]
        lengths = torch.tensor([len(row) - 1 for row in rows], device=device)
        counted = torch.arange(each.shape[1], device=device) < lengths[:, None]
        found += (each * counted).sum(1).tolist()
    return found


def exposure(own: float, others: Sequence[float]) -> float:
    """In bits, of a canary whose surprise is `own`, among candidates: 0 (the last) to log2(candidates + 1) (the first)."""
    rank = 1 + sum(other < own for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def chance(candidates: int) -> float:
    """The mean exposure where the model knows nothing, so that every rank is as likely: about 1.44 bits."""
    return math.log2(candidates + 1) - math.lgamma(candidates + 2) / math.log(2) / (candidates + 1)


def exposures(canaries: Sequence[Canary], own: Sequence[float], others: Sequence[float]) -> dict[int, list[float]]:
    """How often it was planted → the exposure of each such canary."""
    found: dict[int, list[float]] = {count: [] for count in sorted(Counter(canary.times for canary in canaries))}
    for canary, value in zip(canaries, own, strict=True):
        found[canary.times].append(exposure(value, others))
    return found


def shows_from(found: Mapping[int, Sequence[float]]) -> int | None:
    """The least number of times planted whose mean exposure is beyond chance, by four deviations of it; None: no one's is. By chance
    exposure is spread exponentially: mean and deviation of one are log2(e), so a mean of eight gets there once in 2,000."""
    return next(
        (times for times, values in sorted(found.items()) if times and mean(values) > math.log2(math.e) * (1 + 4 / math.sqrt(len(values)))),
        None,
    )


def _closed(ids: Ids, tokenizer: Tokenizer) -> Ids:
    return np.append(ids, np.uint32(tokenizer.end))
