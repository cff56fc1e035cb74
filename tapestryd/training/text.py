"""Local files → documents → tokens. Streams: a file larger than memory is fine.

A .txt or .md file is one document; every row of a .jsonl or .parquet file is one. .txt, .md and .jsonl may be
compressed (.gz, .zst). Invalid UTF-8 is replaced. Logs name files and counts, never text.
Knows nothing of caches, windows or training.
"""

import codecs
import gzip
import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol, cast

import numpy as np
import pyarrow
import pyarrow.parquet
import tokenizers
import zstandard
from numpy.typing import NDArray

from protocols.trainer import Code
from tapestryd.errors import DataFault, in_a_line, out_of_memory
from tapestryd.training.exclusion import Exclusion
from tapestryd.training.sources import DataUnreadable, kind_of

log = logging.getLogger(__name__)

END = 256
"""End of a document for the bytes tokenizer; ids below it are UTF-8 bytes."""

Ids = NDArray[np.uint32]

_CHUNK = 1 << 20
"""Bytes read, and about characters tokenised, at a time."""


class DataTooSmall(DataFault):
    code: ClassVar[Code] = Code.DATA_TOO_SMALL


class TokenizerFault(DataFault):
    code: ClassVar[Code] = Code.TOKENIZER


class Tokenizer(Protocol):
    """`end` closes a document; ids are below `size`; `digest` names the vocabulary (cache key)."""

    end: int
    size: int
    digest: str

    def encode(self, text: str) -> Ids: ...


class Bytes:
    """Ids are UTF-8 bytes, 256 ends a document."""

    end = END
    size = END + 1
    digest = "bytes"

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint32)


class FromJson:
    """What a tokenizer.json holds. `end`: the configuration's eos_token_id, or the first well-known end token of the vocabulary."""

    def __init__(self, content: bytes, end: int | None) -> None:
        """Raises TokenizerFault."""
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerFault(f"no tokenizer.json: {in_a_line(error)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        known = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
        found = (self._tokenizer.token_to_id(token) for token in known)
        chosen = end if end is not None else next((token for token in found if token is not None), None)
        if chosen is None or not 0 <= chosen < self.size:
            raise TokenizerFault(f"the tokenizer has no end-of-document token; the model's config needs an eos_token_id below {self.size}")
        self.end = chosen

    def encode(self, text: str) -> Ids:
        """Raises TokenizerFault; not with what tokenizers says, which may quote the text."""
        text = text.encode("utf-8", "replace").decode()  # lone surrogates, which JSON can spell, have no UTF-8
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise TokenizerFault("this tokenizer.json cannot encode all text; has it the token for unknown words that it names?") from None


def tokens_of(path: Path, text_field: str, tokenizer: Tokenizer, exclusion: Exclusion) -> Iterator[Ids]:
    """The file's ids in pieces; every document with text in it is followed by `end`. Those that quote what is excluded are left
    out and counted. Raises DataUnreadable."""
    end = np.array([tokenizer.end], dtype=np.uint32)
    excluded = 0
    try:
        for document in _documents(path, text_field):
            if exclusion.covers(document):
                excluded += 1
                continue
            some = False
            for text in document:
                if text:
                    some = True
                    yield tokenizer.encode(text)
            if some:
                yield end
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise DataUnreadable(f"{path}: cannot be read ({reason}); mend it or take it out of data.paths") from None
    if excluded:
        log.info("%s: %d documents quote protected text (data.exclude) and are left out", path, excluded)


def _documents(path: Path, text_field: str) -> Iterator[Iterable[str]]:
    """Each in pieces, which may be gone through more than once."""
    match kind_of(path):
        case ".jsonl":
            yield from ([row] for row in _json_rows(path, text_field))
        case ".parquet":
            yield from ([row] for row in _parquet_rows(path, text_field))
        case _:
            yield Pieces(path)


def _open(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            return cast(
                BinaryIO,
                io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)),
            )
    return path.open("rb")


class Pieces:
    """A text file in pieces of about _CHUNK, cut behind a line where there is one: tokens seldom span lines. Read anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        rest = ""
        with _open(self._path) as file:
            while data := file.read(_CHUNK):
                rest += decoder.decode(data)
                cut = rest.rfind("\n") + 1 or len(rest)
                yield rest[:cut]
                rest = rest[cut:]
        yield rest + decoder.decode(b"", final=True)


def _json_rows(path: Path, field: str) -> Iterator[str]:
    bad = first = number = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8", "replace"))
                text = row.get(field) if isinstance(row, dict) else None
            except (ValueError, RecursionError):
                text = None
            if isinstance(text, str):
                yield text
            else:
                bad, first = bad + 1, first or number
    if bad:
        log.warning("%s: %d of %d lines are no JSON object with text in %r, the first is line %d", path, bad, number, field, first)


def _parquet_rows(path: Path, field: str) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise DataUnreadable(f"{path}: no column {field!r} among {names[:12]}; set data.text_field")
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
