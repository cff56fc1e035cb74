"""Local files → ids: tokenised once, then read or memory-mapped from a cache.

Knows nothing of windows, models or rounds. Logs and faults name files and counts, never text.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tapestryd.errors import DiskFull, StateFault
from tapestryd.training.exclusion import Exclusion
from tapestryd.training.sources import DataForbidden, DataUnreadable
from tapestryd.training.text import Tokenizer, tokens_of

log = logging.getLogger(__name__)

StoredIds = NDArray[np.unsignedinteger]

_MAPPED = 1 << 20
"""Cache files from this size on are memory-mapped, smaller ones read: a corpus of many files needs no mapping for each."""

_PROGRESS = 1 << 26
"""Tokens between two lines of progress in the log."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How files become ids. `cache`: the folder where these are kept. `alive` is called now and then during long work and may raise."""

    tokenizer: Tokenizer
    text_field: str
    exclusion: Exclusion
    cache: Path
    alive: Callable[[], None]

    def ids(self, file: Path, digest: str) -> StoredIds:
        """The file's ids, tokenised now when they are not in the cache or the file has changed since. `digest`: the SHA-256 that it
        must have then, "" for any. Raises DataUnreadable, DataForbidden (another digest), DiskFull, StateFault."""
        try:
            stat = file.stat()
        except OSError as error:
            raise DataUnreadable(f"{file}: {error.strerror}") from None
        source = {
            "tokenizer": self.tokenizer.digest, "end": self.tokenizer.end, "path": str(file), "text_field": self.text_field,
            "digest": digest, "exclude": self.exclusion.digest,
        }  # fmt: skip
        version = {"format": 1, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        stem = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]
        ids_file, index_file = self.cache / f"{stem}.bin", self.cache / f"{stem}.json"
        dtype = np.dtype("<u2" if self.tokenizer.size <= 1 << 16 else "<u4")
        count = _indexed(index_file, source | version)
        if count is None or not ids_file.is_file() or ids_file.stat().st_size != count * dtype.itemsize:
            _check(file, digest)
            try:
                self.cache.mkdir(parents=True, exist_ok=True)
                index_file.unlink(missing_ok=True)  # so that an index never describes other ids
                count = self._tokenise(file, ids_file, dtype)
                _replace(index_file, json.dumps(source | version | {"tokens": count}).encode())
            except OSError as error:
                kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StateFault
                raise kind(f"{self.cache}: cannot keep the tokens of {file}: {error.strerror}; set checkpoint.dir") from None
        if count * dtype.itemsize < _MAPPED:
            return np.fromfile(ids_file, dtype=dtype)
        return np.memmap(ids_file, dtype=dtype, mode="r")

    def _tokenise(self, file: Path, target: Path, dtype: np.dtype[np.unsignedinteger]) -> int:
        """Write the ids of `file` to `target`, whole or not at all → how many."""
        partial = target.with_suffix(".partial")
        count, announced = 0, _PROGRESS
        try:
            with partial.open("wb") as out:
                for ids in tokens_of(file, self.text_field, self.tokenizer, self.exclusion):
                    out.write(ids.astype(dtype).tobytes())
                    count += ids.size
                    self.alive()
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


def _check(file: Path, digest: str) -> None:
    try:
        with file.open("rb") as content:
            if digest and hashlib.file_digest(content, "sha256").hexdigest() != digest:
                raise DataForbidden(f"{file}: changed since its manifest was made; if that is meant, record it: tapestry data add")
    except OSError as error:
        raise DataUnreadable(f"{file}: {error.strerror}") from None


def _indexed(index_file: Path, expected: dict[str, object]) -> int | None:
    """Token count of a cache entry for exactly this source, else None."""
    try:
        index = json.loads(index_file.read_bytes())
        count = index.pop("tokens")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return count if index == expected and isinstance(count, int) else None


def _replace(target: Path, content: bytes) -> None:
    partial = target.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(target)
