"""The budget on disk: paid before it is taken, never given back, refused past its end, for good."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestryd.errors import DiskFull
from tapestryd.host import budget as rooms
from tapestryd.host.accountant import Steps, epsilon
from tapestryd.host.budget import CHUNK, Budget, BudgetFault, Entry, Limits, read, spent

DELTA = 1e-5
ONE = Steps(0.05, 1.0, 0)
AT_32 = epsilon([Steps(0.05, 1.0, 32)], DELTA)
"""What four chunks of ONE cost."""


def opened(path: Path, total: float = 100.0, each: Mapping[str, float] | None = None, steps: Steps = ONE) -> Budget:
    return Budget(path, Limits(total, DELTA, {"a": 0.0} if each is None else each), steps)


def steps_of(path: Path) -> int:
    return sum(entry.steps.steps for entry in read(path))


def test_steps_are_on_disk_before_they_are_taken(tmp_path: Path) -> None:
    budget = opened(path := tmp_path / "p.json")
    assert budget.spent == 0
    for taken in range(1, 3 * CHUNK):
        assert budget.take() == ""
        assert steps_of(path) >= taken
        assert budget.spent == spent(read(path), DELTA) == epsilon([Steps(0.05, 1.0, steps_of(path))], DELTA)
    assert steps_of(path) == 3 * CHUNK
    assert path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=4))
def test_no_crash_gives_back(tmp_path_factory: pytest.TempPathFactory, lives: list[int]) -> None:
    """Each life ends without a word after so many steps."""
    path, taken = tmp_path_factory.mktemp("budget") / "p.json", 0
    for life in lives:
        budget = opened(path)
        for _ in range(life):
            assert budget.take() == ""
        taken += life
        assert steps_of(path) >= taken
    assert steps_of(path) <= taken + CHUNK * len(lives)


def test_past_its_end_nothing_is_taken_ever_again(tmp_path: Path) -> None:
    budget = opened(path := tmp_path / "p.json", AT_32 + 1e-9)
    assert [budget.take() for _ in range(32)] == [""] * 32
    before = path.read_bytes()
    assert "of all data, and privacy.epsilon = " in budget.take()
    assert path.read_bytes() == before
    again = opened(path, AT_32 + 1e-9)
    assert "would be spent" in again.refusal() == again.take()
    assert opened(path, 2 * AT_32).take() == ""


def test_each_data_set_has_its_own_end(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    first = opened(path, each={"a": AT_32 + 1e-9, "b": 0.0})
    assert [first.take() for _ in range(33)][-1].startswith("of the data set a epsilon ")
    assert opened(path, each={"b": 0.0}).take() == ""
    assert opened(path, each={"c": AT_32}).take() == ""
    assert opened(path, each={"c": 0.0, "a": AT_32}).take() != ""
    entries = read(path)
    assert spent(entries, DELTA, "a") == AT_32
    assert spent(entries, DELTA, "b") == epsilon([Steps(0.05, 1.0, 40)], DELTA)
    assert spent(entries, DELTA, "x") == 0
    assert spent(entries, DELTA) == epsilon([Steps(0.05, 1.0, 48)], DELTA)


def test_steps_of_a_kind_are_one_entry(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for steps in (ONE, Steps(0.1, 1.0, 0), ONE):
        opened(path, steps=steps).take()
    assert read(path) == [Entry(("a",), Steps(0.1, 1.0, CHUNK)), Entry(("a",), Steps(0.05, 1.0, 2 * CHUNK))]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"schema": 2, "spent": []}', b'{"schema": 1, "spent": [{}]}', b"\xff", b"[" * 100_000,
        *(
            json.dumps({"schema": 1, "spent": [{"datasets": ["a"], "rate": 0.1, "multiplier": 1.0, "steps": 8} | change]}).encode()
            for change in ({"steps": -8}, {"steps": 8.0}, {"rate": 0.0}, {"rate": 2.0}, {"multiplier": 0.0}, {"datasets": "a"},
                           {"datasets": [1]}, {"more": 1}, {"steps": 1 << 50})
        ),
    ],
)  # fmt: skip
def test_what_is_damaged_fails_closed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(BudgetFault, match="what is spent is not known"):
        opened(tmp_path / "p.json")


def test_a_full_disk_pays_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = opened(path := tmp_path / "p.json")

    def full(*given: object, **named: object) -> None:
        raise DiskFull(os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(rooms, "write", full)
        for _ in range(2):
            with pytest.raises(DiskFull):
                budget.take()
    assert not path.exists()
    assert budget.spent == 0
    assert budget.take() == ""
