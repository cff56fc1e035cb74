"""Local files → token windows: tokenised once, memory-mapped, and batch k is a function of (seed, k) alone.

The training text and the held-out text are two streams of documents, each closed by the end-of-document id.
Files named heldout.* are held out; where there are none, every 20th block of 16,384 tokens is (smaller blocks for
a small corpus), and no training window reaches into one. A restart at counter k goes on exactly where it was.
Knows nothing of models, rounds or devices. Logs and faults name files and counts, never text.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapestryd.errors import DiskFull, StateFault
from tapestryd.training.text import KINDS, DataEmpty, DataMissing, DataTooSmall, DataUnreadable, Tokenizer, kind_of, tokens_of

log = logging.getLogger(__name__)

BLOCK = 16_384
DISTINCT_WINDOWS = 1 << 16
"""Windows that are looked at to count distinct text: half a second's work, and more than release.min_examples can ask for."""

EVERY = 20
"""One block in EVERY is held out where no file is named heldout.*"""

_MAPPED = 1 << 20
"""Cache files from this size on are memory-mapped, smaller ones read: a corpus of many files needs no mapping for each."""

_PROGRESS = 1 << 26
"""Tokens between two lines of progress in the log."""


class Stream:
    """Arrays of ids read as one long line."""

    def __init__(self, parts: Sequence[NDArray[np.unsignedinteger]]) -> None:
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


def open_corpus(
    paths: Iterable[Path], tokenizer: Tokenizer, *, text_field: str, tokens: int, seed: int, cache: Path, alive: Callable[[], None]
) -> Corpus:
    """Find, tokenise (once: ids are kept in `cache`) and open the text under `paths`. `alive` is called now and then
    during long work and may raise. Raises DataMissing, DataUnreadable, DataEmpty, DataTooSmall, DiskFull, StateFault."""
    files = find(paths)
    train: list[NDArray[np.unsignedinteger]] = []
    heldout: list[NDArray[np.unsignedinteger]] = []
    for file in files:
        ids = _cached(file, tokenizer, text_field, cache, alive)
        (heldout if file.name.lower().startswith("heldout.") else train).append(ids)
    held = Stream(heldout) if sum(ids.size for ids in heldout) > tokens else None
    if heldout and held is None:
        log.warning("the files named heldout.* have fewer tokens than one window (%d): blocks of the other text are held out", tokens + 1)
    if not any(ids.size for ids in train):
        raise DataEmpty(
            f"no text in {len(files)} files under {', '.join(map(str, paths))}; rows keep theirs in data.text_field = {text_field!r}"
        )
    corpus = Corpus(Stream(train), held, tokens=tokens, seed=seed)
    log.info("data: files=%d train_tokens=%d heldout_tokens=%d", len(files), corpus.train_tokens, corpus.heldout_tokens)
    return corpus


def find(paths: Iterable[Path]) -> list[Path]:
    """Every file we can read under `paths`, sorted, hidden ones left out. Raises DataMissing, DataUnreadable, DataEmpty."""
    found: set[Path] = set()
    for path in paths:
        try:
            if path.is_dir():
                inside = (file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts))
                os.listdir(path)  # rglob is silent about a folder it may not read
                found.update(file.resolve() for file in inside if kind_of(file) and file.is_file())
            elif not path.exists():
                raise DataMissing(f"{path}: no such file or folder; set data.paths in trainer.toml")
            elif not kind_of(path):
                raise DataUnreadable(f"{path}: not one of {', '.join(KINDS)} (text kinds also .gz or .zst)")
            else:
                found.add(path.resolve())
        except OSError as error:
            raise DataUnreadable(f"{path}: {error.strerror}") from None
    if not found:
        raise DataEmpty(f"no {', '.join(KINDS)} file under {', '.join(map(str, paths)) or 'an empty data.paths'}")
    return sorted(found)


def _cached(file: Path, tokenizer: Tokenizer, text_field: str, cache: Path, alive: Callable[[], None]) -> NDArray[np.unsignedinteger]:
    """The file's ids from `cache`, tokenised now when they are not there or the file has changed since."""
    try:
        stat = file.stat()
    except OSError as error:
        raise DataUnreadable(f"{file}: {error.strerror}") from None
    source = {"tokenizer": tokenizer.digest, "end": tokenizer.end, "path": str(file), "text_field": text_field}
    version = {"format": 1, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    stem = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]
    ids_file, index_file = cache / f"{stem}.bin", cache / f"{stem}.json"
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    count = _indexed(index_file, source | version)
    if count is None or not ids_file.is_file() or ids_file.stat().st_size != count * dtype.itemsize:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            index_file.unlink(missing_ok=True)  # so that an index never describes other ids
            count = _tokenise(file, tokenizer, text_field, ids_file, dtype, alive)
            _replace(index_file, json.dumps(source | version | {"tokens": count}).encode())
        except OSError as error:
            kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StateFault
            raise kind(f"{cache}: cannot keep the tokens of {file}: {error.strerror}; set checkpoint.dir") from None
    if count * dtype.itemsize < _MAPPED:
        return np.fromfile(ids_file, dtype=dtype)
    return np.memmap(ids_file, dtype=dtype, mode="r")


def _indexed(index_file: Path, expected: dict[str, object]) -> int | None:
    """Token count of a cache entry for exactly this source, else None."""
    try:
        index = json.loads(index_file.read_bytes())
        count = index.pop("tokens")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return count if index == expected and isinstance(count, int) else None


def _tokenise(
    file: Path, tokenizer: Tokenizer, field: str, target: Path, dtype: np.dtype[np.unsignedinteger], alive: Callable[[], None]
) -> int:
    """Write the ids of `file` to `target`, whole or not at all → how many."""
    partial = target.with_suffix(".partial")
    count, announced = 0, _PROGRESS
    try:
        with partial.open("wb") as out:
            for ids in tokens_of(file, field, tokenizer):
                out.write(ids.astype(dtype).tobytes())
                count += ids.size
                alive()
                if count >= announced:
                    log.info("tokenising %s: %d tokens so far", file, count)
                    announced = count + _PROGRESS
            out.flush()
            os.fsync(out.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    log.info("tokenised %s: %d tokens", file, count)
    return count


def _replace(target: Path, content: bytes) -> None:
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(target)
