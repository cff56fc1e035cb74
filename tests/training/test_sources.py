"""Which files are text that we read."""

import os
from pathlib import Path

import pytest

from tapestryd.training.sources import DataUnreadable, find, kind_of


def test_a_folder_is_searched_below_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    for name in ("d/x/b.jsonl", "d/a.txt", "d/.git/c.txt", "d/.d.txt", "d/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "d" / "f.txt").symlink_to(tmp_path / "d" / "a.txt")
    (tmp_path / "d" / "g.txt").symlink_to(tmp_path / "nowhere")
    there = {tmp_path / "d" / "a.txt": tmp_path / "d", tmp_path / "d" / "x" / "b.jsonl": tmp_path / "d"}
    assert list(find([tmp_path / "d" / "a.txt", tmp_path / "d"]).items()) == list(there.items())
    assert find([tmp_path / "d" / "a.txt"]) == {tmp_path / "d" / "a.txt": tmp_path / "d" / "a.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o000)
    with pytest.raises(DataUnreadable, match="Permission denied"):
        find([tmp_path / "d"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", ".txt"), ("a.b.jsonl.GZ", ".jsonl"), ("a.parquet.gz", ""), ("a.py", ""), ("txt", ""), ("a.gz", ""), ("heldout.md", ".md")],
)
def test_kinds_are_told_by_name(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind
