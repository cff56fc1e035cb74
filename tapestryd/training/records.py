"""Documents cut into records: what differential privacy hides one of.

A record is at most `tokens` + 1 ids in a row of one document, beginning with its first; no two share an id. So one document more or
less is so many records more or less, and changes no other: a row that is shorter than a window is one record, a longer document
several. Knows nothing of gradients or noise.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tapestryd.training.data import Stream, read
from tapestryd.training.text import DataTooSmall
from tapestryd.training.tokens import Reader, StoredIds

log = logging.getLogger(__name__)


class Records:
    """The records of files of ids, in the files' order. Costs 12 bytes of memory a record."""

    def __init__(self, parts: Sequence[StoredIds], *, end: int, tokens: int) -> None:
        """`end`: the id that closes a document; one more in the middle of a text cuts it there. Raises DataTooSmall for no record."""
        self._ids = Stream(parts)
        cuts, offset = [np.zeros(1, dtype=np.int64)], 0
        for part in parts:
            cuts += [np.flatnonzero(part == end) + (offset + 1), np.array([offset + part.size])]
            offset += part.size
        edges = np.unique(np.concatenate(cuts))
        starts, lengths = edges[:-1], np.diff(edges)
        window = tokens + 1
        counts = (lengths + window - 2) // window  # one id alone has no target
        first = np.repeat(np.cumsum(counts) - counts, counts)
        within = (np.arange(first.size) - first) * window
        self._starts = np.repeat(starts, counts) + within
        self._lengths = np.minimum(np.repeat(lengths, counts) - within, window).astype(np.int32)
        self.documents = int(np.count_nonzero(counts))
        if not len(self):
            raise DataTooSmall("there is no document of at least one token; add text")

    def __len__(self) -> int:
        return int(self._starts.size)

    def read(self, number: int) -> Tensor:
        """→ (length,) int64, 2 to tokens + 1 of them; targets are all but the first."""
        return torch.from_numpy(self._ids.read(int(self._starts[number]), int(self._lengths[number])))


def open_records(files: Mapping[Path, str], reader: Reader, *, tokens: int) -> Records:
    """The text of `files`, as data.read, but for what is held out. Raises DataTooSmall, and as data.read."""
    train, heldout = read(files, reader)
    records = Records(train, end=reader.tokenizer.end, tokens=tokens)
    log.info("data: files=%d documents=%d records=%d held_out_files=%d", len(files), records.documents, len(records), len(heldout))
    return records
