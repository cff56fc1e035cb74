"""The trainer's checkpoint: whole or not at all, set aside when damaged, one trainer at a time."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tapestryd.errors import StateFault
from tapestryd.host.checkpoint import Checkpoint

RUN = "ab" * 32


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, RUN, waiting=lambda: None)


def read(checkpoint: Checkpoint) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = []
    return found[0] if checkpoint.load(found.append) else None


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    assert read(checkpoint) is None
    for number in (1, 2):
        checkpoint.save({"tensor": torch.full((1000,), number), "nested": {"a": [1.5, "b"]}})
    state = read(checkpoint)
    assert state is not None
    assert state["nested"] == {"a": [1.5, "b"]}
    assert state["tensor"].unique().tolist() == [2]
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == ["local.pt", "lock"]


@pytest.mark.parametrize("where", [0, 100, 0.3, 0.9, -40, -1])
def test_a_flipped_bit_is_set_aside(where: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"tensor": torch.randn(1000)})
    file = checkpoint.folder / "local.pt"
    data = bytearray(file.read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 4
    file.write_bytes(data)
    assert read(checkpoint) is None
    assert "set aside, training starts from the Shared Base" in caplog.text
    assert (checkpoint.folder / "local.damaged").exists()
    assert not file.exists()
    checkpoint.save({"n": 1})
    assert read(checkpoint) is not None


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_no_room_for_it_now_is_no_damage(error: type[Exception], tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"n": 1})

    def restore(state: dict[str, Any]) -> None:
        raise error

    with pytest.raises(error):
        checkpoint.load(restore)
    found = read(checkpoint)
    assert found is not None
    assert found["n"] == 1


@pytest.mark.parametrize("size", [0, 10, 32, 500])
def test_a_short_file_is_set_aside(size: int, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"tensor": torch.randn(1000)})
    os.truncate(checkpoint.folder / "local.pt", size)
    assert read(checkpoint) is None


def test_what_cannot_be_restored_is_set_aside(tmp_path: Path) -> None:
    def refuse(state: dict[str, Any]) -> None:
        raise ValueError("of another model")

    checkpoint = opened(tmp_path)
    checkpoint.save({"n": 1})
    assert not checkpoint.load(refuse)
    assert not checkpoint.load(refuse)


def test_what_was_replaced_since_is_known_until_the_next_save(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.replaced(3)
    assert not (checkpoint.folder / "replaced").exists()
    checkpoint.save({"n": 1})
    for fragment in (2, 0, 2):
        checkpoint.replaced(fragment)
    checkpoint.close()
    again = opened(tmp_path)
    state = read(again)
    assert state is not None
    assert state["replaced"] == [0, 2]
    again.replaced(1)
    state = read(again)
    assert state is not None
    assert state["replaced"] == [0, 1, 2]
    again.save({"n": 2})
    state = read(again)
    assert state is not None
    assert (state["n"], state["replaced"]) == (2, [])


def test_what_was_replaced_and_cannot_be_told_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"n": 1})
    checkpoint.replaced(2)
    (checkpoint.folder / "replaced").write_text("[2")
    assert read(checkpoint) is None
    checkpoint.save({"n": 2})
    (checkpoint.folder / "replaced.new").mkdir()
    checkpoint.replaced(2)
    assert "the checkpoint is set aside" in caplog.text
    assert read(checkpoint) is None


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"n": 1})
    other = Checkpoint(tmp_path, "cd" * 32, waiting=lambda: None)
    assert read(other) is None
    (checkpoint.folder / "local.pt").rename(other.folder / "local.pt")
    assert read(other) is None


def test_a_second_trainer_waits_and_its_caller_may_give_up(tmp_path: Path) -> None:
    class GaveUp(Exception):
        pass

    def give_up() -> None:
        raise GaveUp

    first = opened(tmp_path)
    with pytest.raises(GaveUp):
        Checkpoint(tmp_path, RUN, waiting=give_up)
    second = Checkpoint(tmp_path, RUN, waiting=first.close)
    second.close()


def test_a_full_disk_is_a_warning_and_the_old_file_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = opened(tmp_path)
    checkpoint.save({"n": 1})
    (checkpoint.folder / "local.partial").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        checkpoint.save({"n": 2})
    assert "checkpoint not written" in caplog.text
    state = read(checkpoint)
    assert state is not None
    assert state["n"] == 1


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFault, match=r"set checkpoint\.dir"):
        opened(tmp_path / "file")
