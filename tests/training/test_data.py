"""The corpus: what is held out, which windows are drawn, and the token cache."""

import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.trainer import Code
from tapestryd.errors import DiskFull, StateFault
from tapestryd.training import data
from tapestryd.training.data import Corpus, Stream, held_blocks, open_corpus
from tapestryd.training.text import Bytes, DataEmpty, DataMissing, DataTooSmall, DataUnreadable
from tests.training.tiny import write_text


def opened(paths: Iterable[Path], cache: Path, tokens: int = 32, alive: Callable[[], None] = lambda: None) -> Corpus:
    return open_corpus(paths, Bytes(), text_field="text", tokens=tokens, seed=0, cache=cache, alive=alive)


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


def test_text_is_tokenised_once(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "d")
    calls: list[int] = []

    def count() -> None:
        calls.append(1)

    first = opened([folder], tmp_path / "cache", alive=count)
    assert calls
    calls.clear()
    second = opened([folder], tmp_path / "cache", alive=count)
    assert not calls
    assert torch.equal(first.batch(0, 4), second.batch(0, 4))
    (folder / "topics.txt").write_text("quite another text " * 100)
    third = opened([folder], tmp_path / "cache", alive=count)
    assert calls
    assert not torch.equal(first.batch(0, 4), third.batch(0, 4))
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"tokens": 3}'])
def test_a_damaged_cache_is_made_again(damage: bytes, tmp_path: Path) -> None:
    folder = write_text(tmp_path / "d")
    first = opened([folder], tmp_path / "cache")
    next((tmp_path / "cache").glob("*.json")).write_bytes(damage)
    assert torch.equal(opened([folder], tmp_path / "cache").batch(0, 4), first.batch(0, 4))
    ids = next((tmp_path / "cache").glob("*.bin"))
    ids.write_bytes(ids.read_bytes()[:-2])
    assert torch.equal(opened([folder], tmp_path / "cache").batch(0, 4), first.batch(0, 4))


def test_a_large_cache_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 200_000)
    corpus = opened([tmp_path / "a.txt"], tmp_path / "cache")
    assert isinstance(corpus._train._parts[0], np.memmap)
    assert corpus.batch(0, 2).shape == (2, 33)


def test_an_interrupted_tokenisation_leaves_nothing(tmp_path: Path) -> None:
    def gone() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened([write_text(tmp_path / "d")], tmp_path / "cache", alive=gone)
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_is_searched_below_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    for name in ("d/x/b.jsonl", "d/a.txt", "d/.git/c.txt", "d/.d.txt", "d/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "d" / "f.txt").symlink_to(tmp_path / "d" / "a.txt")
    (tmp_path / "d" / "g.txt").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in data.find([tmp_path / "d", tmp_path / "d" / "a.txt"])] == ["a.txt", "b.jsonl"]


def test_every_kind_of_trouble_has_its_code_and_sentence(tmp_path: Path) -> None:
    for name in ("empty", "blank", "small", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "blank" / "a.txt").write_text("")
    (tmp_path / "small" / "a.txt").write_text("few")
    (tmp_path / "other" / "a.py").write_text("print()")
    cases = [
        (tmp_path / "nowhere", DataMissing, Code.DATA_MISSING, "no such file"),
        (tmp_path / "empty", DataEmpty, Code.DATA_EMPTY, "no .txt"),
        (tmp_path / "blank", DataEmpty, Code.DATA_EMPTY, "no text in 1 files"),
        (tmp_path / "small", DataTooSmall, Code.DATA_TOO_SMALL, "has 4 tokens, one window takes 33"),
        (tmp_path / "other" / "a.py", DataUnreadable, Code.DATA_UNREADABLE, "not one of"),
    ]
    for path, kind, code, says in cases:
        with pytest.raises(kind, match=says) as fault:
            opened([path], tmp_path / "cache")
        assert fault.value.code == code
    with pytest.raises(DataEmpty, match=r"empty data\.paths"):
        opened([], tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o000)
    with pytest.raises(DataUnreadable, match="Permission denied"):
        opened([tmp_path / "d"], tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder belongs")
    with pytest.raises(StateFault, match=r"set checkpoint\.dir"):
        opened([write_text(tmp_path / "d")], tmp_path / "cache")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_full_disk_is_told_from_other_trouble(tmp_path: Path) -> None:
    folder = write_text(tmp_path / "d")
    opened([folder], tmp_path / "cache")
    ids = next((tmp_path / "cache").glob("*.bin"))
    ids.unlink()
    ids.with_suffix(".partial").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="No space left"):
        opened([folder], tmp_path / "cache")
