"""Files of every kind → tokens; hostile and broken files → sentences."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import zstandard

from protocols.trainer import Code
from tapestryd.training.exclusion import Exclusion
from tapestryd.training.sources import DataUnreadable
from tapestryd.training.text import END, Bytes, FromJson, TokenizerFault, tokens_of

NOTHING = Exclusion(())
ROWS = ["one", "", "zwei ü", "三"]


def ids_of(path: Path, field: str = "text") -> list[int]:
    pieces = list(tokens_of(path, field, Bytes(), NOTHING))
    return np.concatenate(pieces).tolist() if pieces else []


def joined(*documents: str) -> list[int]:
    return [item for text in documents for item in (*text.encode(), END)]


def pack(path: Path, data: bytes) -> Path:
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)(data))
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.TXT", "a.txt.gz", "a.md.zst"])
def test_a_text_file_is_one_document(name: str, tmp_path: Path) -> None:
    assert ids_of(pack(tmp_path / name, "Zeile 1\nZeile ü\n".encode())) == joined("Zeile 1\nZeile ü\n")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_every_json_row_is_a_document(name: str, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": row, "n": 1}) + "\n" for row in ROWS) + "\n"
    assert ids_of(pack(tmp_path / name, lines.encode())) == joined("one", "zwei ü", "三")


def test_every_parquet_row_is_a_document(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": [*ROWS, None], "n": [1] * 5}), tmp_path / "a.parquet")
    assert ids_of(tmp_path / "a.parquet", "body") == joined("one", "zwei ü", "三")
    with pytest.raises(DataUnreadable, match=r"no column 'text' among \['body', 'n'\]"):
        ids_of(tmp_path / "a.parquet")


def test_rows_without_text_are_counted_and_never_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": 3}',
        b"secret garbage",
        b'["x"]',
        b'{"other": "secret"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
    ]
    with caplog.at_level(logging.WARNING):
        assert ids_of(pack(tmp_path / "a.jsonl", b"\n".join(lines))) == joined("good", "?", "\ufffd")
    assert "4 of 7 lines are no JSON object with text in 'text', the first is line 2" in caplog.text
    assert "secret" not in caplog.text


def test_invalid_utf8_is_replaced_and_a_mark_dropped(tmp_path: Path) -> None:
    assert ids_of(pack(tmp_path / "a.txt", b"\xef\xbb\xbfab\xff\xc3")) == joined("ab\ufffd\ufffd")
    assert ids_of(pack(tmp_path / "b.txt", b"")) == []


def test_large_files_stream_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"line {number} äöü\n" for number in range(200_000))
    pieces = list(tokens_of(pack(tmp_path / "a.txt", text.encode()), "text", Bytes(), NOTHING))
    assert len(pieces) > 3
    assert max(piece.size for piece in pieces) < 2 << 20
    assert np.concatenate(pieces).astype(np.uint8)[:-1].tobytes() == text.encode()
    assert ids_of(pack(tmp_path / "b.txt", b"x" * (3 << 20))) == joined("x" * (3 << 20))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_a_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is nothing of the kind")
    with pytest.raises(DataUnreadable, match="cannot be read") as fault:
        ids_of(tmp_path / name)
    assert fault.value.code == Code.DATA_UNREADABLE


def test_a_truncated_archive_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(50_000))[:20_000])
    with pytest.raises(DataUnreadable, match="cannot be read"):
        ids_of(tmp_path / "a.txt.gz")


@pytest.fixture
def words() -> bytes:
    """A word-level tokenizer.json with an end token, 7."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "a", "b", "c", "d", "e", "f", "</s>"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    return made.to_str().encode()


def test_a_tokenizer_file_is_used(words: bytes, tmp_path: Path) -> None:
    tokenizer = FromJson(words, None)
    assert (tokenizer.size, tokenizer.end, len(tokenizer.digest)) == (8, 7, 64)
    (tmp_path / "a.txt").write_text("a b c d zzz")
    assert np.concatenate(list(tokens_of(tmp_path / "a.txt", "text", tokenizer, NOTHING))).tolist() == [1, 2, 3, 4, 0, 7]
    assert FromJson(words, 3).end == 3
    assert tokenizer.encode("a \ud800").tolist() == [1, 0]


def test_a_tokenizer_that_cannot_encode_all_text_is_a_sentence() -> None:
    """Found by fuzzing: it names a token for unknown words that it has not got, and nothing says so before it meets one."""
    few = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="[UNK]"))
    words = FromJson(few.to_str().encode(), None)
    assert words.encode("a").tolist() == [0]
    with pytest.raises(TokenizerFault, match="unknown words") as fault:
        words.encode("b")
    assert fault.value.code == Code.TOKENIZER


def test_a_tokenizer_that_is_none_is_a_sentence(words: bytes) -> None:
    for content, end, says in ((b"{}", None, "no tokenizer"), (b"", None, "no tokenizer"), (words, 8, "end-of-doc")):
        with pytest.raises(TokenizerFault, match=says) as fault:
            FromJson(content, end)
        assert fault.value.code == Code.TOKENIZER
