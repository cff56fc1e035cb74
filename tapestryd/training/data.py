"""Ids of local files → token windows: batch k is a function of (seed, k) alone.

The training text and the held-out text are two streams of documents, each closed by the end-of-document id.
Files named heldout.* are held out; where there are none, every 20th block of 16,384 tokens is (smaller blocks for
a small corpus), and no training window reaches into one. A restart at counter k goes on exactly where it was.
Knows nothing of models, rounds or devices. Logs and faults name files and counts, never text.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapestryd.training.sources import DataEmpty
from tapestryd.training.text import DataTooSmall
from tapestryd.training.tokens import Reader, StoredIds

log = logging.getLogger(__name__)

BLOCK = 16_384
DISTINCT_WINDOWS = 1 << 16
"""Windows that are looked at to count distinct text: half a second's work, and more than release.min_examples can ask for."""

EVERY = 20
"""One block in EVERY is held out where no file is named heldout.*"""


class Stream:
    """Arrays of ids read as one long line."""

    def __init__(self, parts: Sequence[StoredIds]) -> None:
        self._parts = parts
        self._starts = np.concatenate([[0], np.cumsum([part.size for part in parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        out = np.empty(count, dtype=np.int64)
        done, index = 0, int(np.searchsorted(self._starts, start, "right")) - 1
        while done < count:
            piece = self._parts[index][start + done - int(self._starts[index]) :][: count - done]
            out[done : done + piece.size] = piece
            done, index = done + piece.size, index + 1
        return out


class Corpus:
    """Windows of `tokens` + 1 ids (input and target overlap in all but one) from training and held-out text."""

    def __init__(self, train: Stream, heldout: Stream | None, *, tokens: int, seed: int) -> None:
        """`heldout` None: hold blocks of `train` out. Raises DataTooSmall for fewer ids than one window."""
        self._window, self._seed = tokens + 1, seed % (1 << 64)
        if len(train) < self._window:
            raise DataTooSmall(f"the training text has {len(train)} tokens, one window takes {self._window}; add text")
        held: list[tuple[int, int]] = [(0, len(heldout))] if heldout is not None else held_blocks(len(train), self._window)
        self._train, self._heldout = train, train if heldout is None else heldout
        edges = [0, *(edge for span in (held if heldout is None else []) for edge in span), len(train)]
        self._spans = [(a, b) for a, b in list(pairwise(edges))[::2] if b - a >= self._window]
        self._held = [start for a, b in held for start in range(a, b - tokens, tokens)]
        self._first = np.cumsum([0] + [b - a - tokens for a, b in self._spans], dtype=np.int64)

    @property
    def examples(self) -> int:
        """Windows' worth of training text that there is."""
        return self.train_tokens // (self._window - 1)

    @property
    def train_tokens(self) -> int:
        """Ids that training windows are drawn from."""
        return sum(b - a for a, b in self._spans)

    @property
    def heldout_tokens(self) -> int:
        """Targets that `heldout` can return at most; 0: the text is too small to hold any out."""
        return len(self._held) * (self._window - 1)

    def batch(self, k: int, sequences: int) -> Tensor:
        """Training batch `k` → (sequences, tokens + 1) int64: windows drawn uniformly from all there are."""
        return torch.from_numpy(np.stack([self._train.read(start, self._window) for start in self._starts(k, sequences)]))

    def distinct(self, first: int, last: int, sequences: int) -> int:
        """How many windows' worth of training text the batches from `first` up to, not including, `last` hold: what several
        windows cover counts once. Nothing is kept for it: the batches are drawn again, the latest DISTINCT_WINDOWS at most."""
        tokens = self._window - 1
        first = max(first, last - DISTINCT_WINDOWS // sequences)
        starts = [start for k in range(first, last) for start in self._starts(k, sequences)]
        if not starts:
            return 0
        gaps = np.diff(np.sort(np.array(starts, dtype=np.int64)))
        return (int(np.minimum(gaps, tokens).sum()) + tokens) // tokens

    def _starts(self, k: int, sequences: int) -> Iterator[int]:
        """Where in the training text the windows of batch `k` begin."""
        draws = np.random.Philox(key=self._seed, counter=k << 64).random_raw(sequences)
        for draw in draws.tolist():
            place = (draw * int(self._first[-1])) >> 64
            span = int(np.searchsorted(self._first, place, "right")) - 1
            yield self._spans[span][0] + place - int(self._first[span])

    def heldout(self, tokens: int) -> Tensor:
        """At most `tokens` targets (but one window at least), spread over the held-out text, always the same ones
        → (windows, window's tokens + 1) int64."""
        count = min(len(self._held), max(1, tokens // (self._window - 1)))
        chosen = [self._held[i * len(self._held) // count] for i in range(count)]
        return torch.from_numpy(np.stack([self._heldout.read(start, self._window) for start in chosen]))


def held_blocks(total: int, window: int) -> list[tuple[int, int]]:
    """Which [start, stop) of `total` ids to hold out: the last of every EVERY blocks, and of a small corpus the last block.

    A block is BLOCK ids, or less so that there are at least 2 * EVERY, but never less than one window. None where
    training would be left without a window.
    """
    block = max(window, min(BLOCK, total // (2 * EVERY)))
    spans = [(i * block, (i + 1) * block) for i in range(EVERY - 1, total // block, EVERY)]
    if not spans and total >= 2 * block:
        spans = [(total - block, total)]
    return spans


def open_corpus(files: Mapping[Path, str], reader: Reader, *, tokens: int, seed: int) -> Corpus:
    """The text of `files`, as `read`. Raises DataTooSmall, and as `read`."""
    train, heldout = read(files, reader)
    held = Stream(heldout) if sum(ids.size for ids in heldout) > tokens else None
    if heldout and held is None:
        log.warning("the files named heldout.* have fewer tokens than one window (%d): blocks of the other text are held out", tokens + 1)
    corpus = Corpus(Stream(train), held, tokens=tokens, seed=seed)
    log.info("data: files=%d train_tokens=%d heldout_tokens=%d", len(files), corpus.train_tokens, corpus.heldout_tokens)
    return corpus


def read(files: Mapping[Path, str], reader: Reader) -> tuple[list[StoredIds], list[StoredIds]]:
    """`files`: absolute → the SHA-256 that it must have, "" for any → ids of each to train on, and of each held out. Raises DataEmpty,
    and as Reader.ids."""
    train: list[StoredIds] = []
    heldout: list[StoredIds] = []
    for file, digest in files.items():
        (heldout if file.name.lower().startswith("heldout.") else train).append(reader.ids(file, digest))
    if not any(ids.size for ids in train):
        raise DataEmpty(f"no text in the {len(files)} files of data.paths; rows keep theirs in data.text_field = {reader.text_field!r}")
    return train, heldout
