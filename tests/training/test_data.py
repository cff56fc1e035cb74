"""The corpus: what is held out, which windows are drawn, and the token cache."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.trainer import Code
from tapestryd.training import data
from tapestryd.training.data import Corpus, Stream, held_blocks
from tapestryd.training.sources import DataEmpty, DataMissing, DataUnreadable
from tapestryd.training.text import DataTooSmall
from tests.training.tiny import opened


def counting(*sizes: int) -> Stream:
    """Ids 0, 1, 2, … in parts of these sizes, so that an id is its own place."""
    edges = np.cumsum([0, *sizes])
    return Stream([np.arange(a, b, dtype=np.uint32) for a, b in pairwise(edges)])


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_a_stream_reads_across_its_parts(sizes: list[int], draw: st.DataObject) -> None:
    stream = counting(*sizes)
    assert len(stream) == sum(sizes)
    if sum(sizes):
        start = draw.draw(st.integers(0, sum(sizes) - 1))
        count = draw.draw(st.integers(1, sum(sizes) - start))
        assert stream.read(start, count).tolist() == list(range(start, start + count))


@given(st.integers(2, 400), st.integers(33, 50_000), st.integers(0, 99))
def test_no_training_window_touches_what_is_held_out(tokens: int, total: int, k: int) -> None:
    if total < tokens + 1:
        with pytest.raises(DataTooSmall):
            Corpus(counting(total), None, tokens=tokens, seed=1)
        return
    corpus = Corpus(counting(total // 3, total - total // 3), None, tokens=tokens, seed=1)
    held = held_blocks(total, tokens + 1)
    assert all(0 <= a < b <= total for a, b in held)
    assert sum(b - a for a, b in held) + corpus.train_tokens <= total
    for row in corpus.batch(k, 5).tolist():
        assert row == list(range(row[0], row[0] + tokens + 1))
        assert not any(a <= row[-1] and row[0] < b for a, b in held)
    if held:
        rows = corpus.heldout(10_000)
        assert rows.shape[1] == tokens + 1
        assert all(any(a <= row[0] and row[-1] < b for a, b in held) for row in rows.tolist())
    else:
        assert corpus.heldout_tokens == 0


@pytest.mark.parametrize(
    ("total", "window", "spans"),
    [
        (100, 101, []),
        (100, 51, []),
        (102, 51, [(51, 102)]),
        (20 * 51, 51, [(19 * 51, 20 * 51)]),
        (100_000, 51, [(47_500, 50_000), (97_500, 100_000)]),
        (1_000_000, 51, [(311_296, 327_680), (638_976, 655_360), (966_656, 983_040)]),
    ],
)
def test_every_twentieth_block_is_held_out(total: int, window: int, spans: list[tuple[int, int]]) -> None:
    assert held_blocks(total, window) == spans


def test_windows_are_drawn_from_everywhere_and_all_ends() -> None:
    corpus = Corpus(counting(100), counting(40), tokens=9, seed=3)
    starts = [int(row[0]) for k in range(400) for row in corpus.batch(k, 4)]
    assert set(starts) == set(range(91))
    spread = np.bincount(starts)
    assert 4 < spread.min() <= spread.max() < 45


def test_batch_k_depends_on_seed_and_k_alone() -> None:
    """The numbers are pinned: a resumed run must draw the same windows after an upgrade too."""
    corpus = Corpus(counting(100_000), None, tokens=9, seed=7)
    forward = [corpus.batch(k, 3) for k in range(5)]
    other = Corpus(counting(100_000), None, tokens=9, seed=7)
    assert all(torch.equal(other.batch(k, 3), forward[k]) for k in (4, 0, 3, 2, 1))
    assert [row[0] for row in forward[0].tolist()] == [85340, 28054, 39901]
    assert not torch.equal(Corpus(counting(100_000), None, tokens=9, seed=8).batch(0, 3), forward[0])
    assert corpus.batch(1 << 62, 3).shape == (3, 10)


@given(st.integers(2, 60), st.integers(100, 3000), st.integers(0, 50), st.integers(0, 40), st.integers(1, 6))
def test_distinct_text_is_counted_once(tokens: int, total: int, first: int, count: int, sequences: int) -> None:
    """Against the set of all places that a window's targets were predicted from."""
    corpus = Corpus(counting(total // 2, total - total // 2), None, tokens=tokens, seed=7)
    covered = {place for k in range(first, first + count) for row in corpus.batch(k, sequences).tolist() for place in row[:-1]}
    assert corpus.distinct(first, first + count, sequences) == len(covered) // tokens


def test_of_many_windows_the_latest_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(counting(1 << 20), None, tokens=8, seed=7)
    assert corpus.distinct(0, 100, 4) > corpus.distinct(90, 100, 4)
    monkeypatch.setattr(data, "DISTINCT_WINDOWS", 40)
    assert corpus.distinct(0, 100, 4) == corpus.distinct(90, 100, 4)


def test_heldout_is_spread_and_bounded() -> None:
    corpus = Corpus(counting(1000), counting(1001), tokens=10, seed=0)
    assert corpus.heldout_tokens == 1000
    assert corpus.heldout(35)[:, 0].tolist() == [0, 330, 660]
    assert corpus.heldout(0).shape == (1, 11)
    assert corpus.heldout(1 << 30).shape == (100, 11)
    assert corpus.train_tokens == 1000


def test_files_named_heldout_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a" * 5000)
    (tmp_path / "d" / "heldout.md").write_text("h" * 500)
    corpus = opened([tmp_path / "d"], tmp_path / "cache")
    seen = {item for k in range(50) for item in corpus.batch(k, 8).flatten().tolist()}
    assert ord("a") in seen <= {ord("a"), 256}
    assert set(corpus.heldout(400).flatten().tolist()) <= {ord("h"), 256}
    (tmp_path / "d" / "heldout.md").write_text("h")
    small = opened([tmp_path / "d"], tmp_path / "cache")
    assert set(small.heldout(400).flatten().tolist()) <= {ord("a"), 256}


def test_every_kind_of_trouble_has_its_code_and_sentence(tmp_path: Path) -> None:
    for name in ("empty", "blank", "small", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "blank" / "a.txt").write_text("")
    (tmp_path / "small" / "a.txt").write_text("few")
    (tmp_path / "other" / "a.py").write_text("print()")
    cases = [
        (tmp_path / "nowhere", DataMissing, Code.DATA_MISSING, "no such file"),
        (tmp_path / "empty", DataEmpty, Code.DATA_EMPTY, "no .txt"),
        (tmp_path / "blank", DataEmpty, Code.DATA_EMPTY, "no text in the 1 files"),
        (tmp_path / "small", DataTooSmall, Code.DATA_TOO_SMALL, "has 4 tokens, one window takes 33"),
        (tmp_path / "other" / "a.py", DataUnreadable, Code.DATA_UNREADABLE, "not one of"),
    ]
    for path, kind, code, says in cases:
        with pytest.raises(kind, match=says) as fault:
            opened([path], tmp_path / "cache")
        assert fault.value.code == code
    with pytest.raises(DataEmpty, match=r"empty data\.paths"):
        opened([], tmp_path / "cache")
