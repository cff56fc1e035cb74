"""Forks, counted from what the machines say they lived through."""

from tests.chaos.told import forks, stage_times, strands


def lived(*steps: tuple[int, str], result: str = "committed") -> list[dict[str, object]]:
    return [{"height": height, "base_digest": base, "result": result} for height, base in steps]


def test_one_lineage_has_no_fork() -> None:
    assert forks([lived((1, "a"), (2, "b")), lived((2, "b"), (3, "c"), result="replayed")]) == []


def test_two_bases_of_one_height_are_a_fork() -> None:
    ours, theirs = lived((1, "a"), (2, "b"), (3, "c"), (7, "g")), lived((1, "a"), (2, "x"), (3, "y"), (4, "d"), (7, "z"))
    assert forks([ours, theirs]) == [2, 3, 7]
    assert strands([2, 3, 7]) == 2


def test_what_was_discarded_is_no_fork() -> None:
    assert forks([lived((1, "a")), lived((1, "b"), result="discarded")]) == []


def test_times_are_those_of_committed_rounds() -> None:
    lives = [
        {"result": result, "times_ms": {"reducing": ms, "settling": 1}}
        for result, ms in (("committed", 10), ("committed", 20), ("discarded", 99))
    ]
    assert stage_times(lives) == "reducing 15 (max 20), settling 1 (max 1)"
