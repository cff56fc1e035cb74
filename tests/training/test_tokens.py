"""The cache of ids: what is tokenised once, when anew, and what is left behind."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tapestryd.errors import DiskFull, StateFault
from tapestryd.training.exclusion import Exclusion, protected
from tapestryd.training.sources import DataForbidden
from tapestryd.training.text import Bytes
from tapestryd.training.tokens import Reader
from tests.training.tiny import opened, write_text


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


def test_what_was_recorded_of_a_file_is_what_is_tokenised(tmp_path: Path) -> None:
    file = write_text(tmp_path / "d") / "topics.txt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    reader = Reader(Bytes(), "text", Exclusion(()), tmp_path / "cache", lambda: None)
    assert reader.ids(file, digest).size == reader.ids(file, "").size
    file.write_text("changed")
    with pytest.raises(DataForbidden, match=r"topics\.txt: changed since its manifest was made"):
        reader.ids(file, digest)
    assert reader.ids(file, "").size == 8


def test_another_list_of_protected_text_is_another_cache(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n{"text": "three"}\n')
    sizes = [
        Reader(Bytes(), "text", Exclusion(protected([text])), tmp_path / "cache", lambda: None).ids(tmp_path / "a.jsonl", "").size
        for text in ("", "one two", "three")
    ]
    assert sizes == [14, 6, 8]
