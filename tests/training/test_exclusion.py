"""What a list of protected text catches, held against reading every quotation by eye; and what it costs nobody."""

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.errors import ConfigFault
from tapestryd.training.exclusion import SHINGLE, Exclusion, protected
from tapestryd.training.text import Bytes, tokens_of

WORDS = [f"w{number}" for number in range(200)]


def listed(*texts: str) -> Exclusion:
    return Exclusion(digest for text in texts for digest in protected([text]))


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.lists(st.sampled_from(WORDS[:3]), min_size=1, max_size=60), st.lists(st.sampled_from(WORDS[:3]), max_size=60),
    st.lists(st.integers(0, 1000), max_size=4),
)  # fmt: skip
def test_it_catches_what_the_oracle_catches(secret: list[str], document: list[str], places: list[int]) -> None:
    """Few words, so that shingles often meet; the document comes in pieces cut anywhere, also inside a word."""
    if len(secret) < SHINGLE:
        expected = document == secret
    else:
        shingles = {tuple(secret[at : at + SHINGLE]) for at in range(0, len(secret) - SHINGLE + 1, SHINGLE)}
        expected = any(tuple(document[at : at + SHINGLE]) in shingles for at in range(len(document) - SHINGLE + 1))
    assert listed(" ".join(secret)).covers(cut(" ".join(document), places)) is expected


@given(st.integers(SHINGLE * 2 - 1, 100), st.integers(0, 100), st.integers(0, 40))
def test_any_long_quotation_is_caught(length: int, start: int, before: int) -> None:
    quoted = WORDS[start : start + length]
    document = " ".join([*(["x"] * before), *quoted, "y"])
    assert listed(" ".join(WORDS)).covers([document])


def test_case_form_and_spacing_do_not_hide_a_quotation() -> None:
    text = "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller staatlichen Gewalt"
    other = text.upper().replace("Ü", "U\u0308").replace(" ", " \n\t")
    assert listed(text).covers([other])
    assert not listed(text).covers([text[:60]])


def test_scripts_without_spaces_are_read_character_by_character() -> None:
    text = "第一条日本国民は正当に選挙された国会における代表者を通じて行動し"
    assert listed(text).covers([f"引用「{text}」終わり"])
    assert not listed(text).covers([text[:12]])


def test_a_word_without_end_is_bounded() -> None:
    assert not listed("a b").covers(["x" * (1 << 20)] * 3)
    assert listed("a b").covers(["a", " ", "b"])


def test_a_list_is_read_and_named_by_what_it_holds(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"one two").hexdigest()
    (tmp_path / "list").write_text(f"# of whom\n\n{digest}   # title\n")
    loaded = Exclusion.load(tmp_path / "list")
    assert loaded.covers(["One", " two\n"])
    assert loaded.digest == listed("one two").digest != Exclusion(()).digest
    (tmp_path / "list").write_text(f"{digest}\n{digest[:-1]}\n")
    with pytest.raises(ConfigFault, match="line 2 is no SHA-256"):
        Exclusion.load(tmp_path / "list")
    with pytest.raises(ConfigFault, match="No such file"):
        Exclusion.load(tmp_path / "absent")


def test_documents_that_quote_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["one two", "  ONE\ttwo", "one two three", ""]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "a.txt").write_text("One\nTwo\n")
    with caplog.at_level(logging.INFO):
        kept = [b"".join(ids.astype(np.uint8).tobytes() for ids in tokens_of(path, "text", Bytes(), listed("one two"))) for path in (
            tmp_path / "a.jsonl", tmp_path / "a.txt"
        )]  # fmt: skip
    assert kept == [b"one two three\0", b""]
    assert "a.jsonl: 2 documents quote protected text (data.exclude) and are left out" in caplog.text
    assert "a.txt: 1 documents" in caplog.text
    assert "one two" not in caplog.text
