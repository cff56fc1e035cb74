"""Records: one document more or less is so many records more or less, and changes no other."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.training.exclusion import Exclusion
from tapestryd.training.records import Records, open_records
from tapestryd.training.sources import DataEmpty
from tapestryd.training.text import Bytes, DataTooSmall
from tapestryd.training.tokens import Reader

END = 9
DOCUMENT = st.lists(st.integers(0, 8), max_size=12)


def oracle(documents: list[list[int]], window: int) -> list[list[int]]:
    found = []
    for document in documents:
        ids = [*document, END]
        found += [piece for at in range(0, len(ids), window) if len(piece := ids[at : at + window]) > 1]
    return found


def laid(files: list[list[list[int]]], tokens: int) -> Records:
    parts = [np.array([item for document in file for item in (*document, END)], dtype=np.uint16) for file in files]
    return Records(parts, end=END, tokens=tokens)


def read(records: Records) -> list[list[int]]:
    return [records.read(number).tolist() for number in range(len(records))]


@given(st.lists(st.lists(DOCUMENT, max_size=5), min_size=1, max_size=4), st.integers(1, 6))
def test_they_are_what_the_oracle_cuts(files: list[list[list[int]]], tokens: int) -> None:
    expected = oracle([document for file in files for document in file], tokens + 1)
    if not expected:
        with pytest.raises(DataTooSmall):
            laid(files, tokens)
        return
    records = laid(files, tokens)
    assert read(records) == expected
    assert records.documents == sum(bool(document) for file in files for document in file)


@given(st.lists(DOCUMENT.filter(bool), min_size=2, max_size=6), st.integers(1, 6), st.data())
def test_a_document_takes_its_own_records_along_and_no_other(documents: list[list[int]], tokens: int, data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(documents) - 1))
    rest = documents[:gone] + documents[gone + 1 :]
    whole, less = read(laid([documents], tokens)), read(laid([rest], tokens))
    own = oracle([documents[gone]], tokens + 1)
    assert len(whole) - len(less) == len(own) == -(-len(documents[gone]) // (tokens + 1))
    for record in own:
        whole.remove(record)
    assert sorted(whole) == sorted(less)


def test_files_become_records_but_for_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("ab", "", "abcdefg")))
    (tmp_path / "heldout.txt").write_text("held")
    files = {tmp_path / "a.jsonl": "", tmp_path / "heldout.txt": ""}
    records = open_records(files, Reader(Bytes(), "text", Exclusion(()), tmp_path / "c", lambda: None), tokens=3)
    assert [bytes(record[:2]) for record in read(records)] == [b"ab", b"ab", b"ef"]
    assert records.documents == 2
    with pytest.raises(DataEmpty):
        open_records({tmp_path / "heldout.txt": ""}, Reader(Bytes(), "text", Exclusion(()), tmp_path / "c", lambda: None), tokens=3)
