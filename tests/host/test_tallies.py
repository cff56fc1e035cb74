"""What is kept of what moved: by the hour, by the day, over restarts and kills."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.egress import Gap, Moved
from tapestryd.host import tallies
from tapestryd.host.tallies import GAPS, OTHERS, PEERS, Page, Tallies, Tally

HOUR = 3_600_000
DAY = 24 * HOUR
NOON = 1_782_907_200_000
"""2026-07-01T12:00:00Z"""


def keep(kept: Tallies, now_ms: int, *, closing: bool = False) -> None:
    """As the bookkeeper does."""
    pages = kept.pages(now_ms, closing=closing)
    for path, page in pages.items():
        path.write_bytes(page.to_bytes())
    kept.written(pages)
    kept.fold(now_ms)


def since(kept: Tallies, since_ms: int, now_ms: int) -> Page:
    return kept.since(since_ms, now_ms, kept.pages(now_ms))


def total(page: Page) -> Moved:
    return sum((moved for peers in page.moved.values() for moved in peers.values()), Moved())


def test_counts_go_on_after_a_restart_and_a_kill_leaves_a_gap(tmp_path: Path) -> None:
    kept = Tallies(tmp_path, NOON)
    kept.add("delta", "ada", 100, 0)
    keep(kept, NOON + 60_000, closing=True)
    kept = Tallies(tmp_path, NOON + 120_000)
    kept.add("delta", "ada", 10, 1)
    keep(kept, NOON + 180_000)
    kept.add("delta", "ada", 1000, 1000)  # and then it is killed
    kept = Tallies(tmp_path, NOON + 240_000)
    kept.add("mean", "ben", 0, 5)
    page = since(kept, 0, NOON + 300_000)
    assert page.moved == {"delta": {"ada": Moved(110, 1)}, "mean": {"ben": Moved(0, 5)}}
    assert page.gaps == (Gap(NOON + 180_000, NOON + 240_000),)
    assert (page.from_ms, page.until_ms) == (NOON, NOON + 300_000)
    assert [path.name for path in tmp_path.iterdir()] == ["2026-07-01T12.json"]


def test_hours_become_days_and_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    now, moved = NOON, 0
    kept = Tallies(tmp_path, now)
    for hour in range(6 * 24):
        now = NOON + hour * HOUR + 30_000
        kept.add("log", f"peer {hour % 3}", hour + 1, 0)
        moved += hour + 1
        keep(kept, now)
        if hour % 40 == 39:
            keep(kept, now, closing=True)
            kept = Tallies(tmp_path, now + 1)
        assert total(since(kept, 0, now)) == Moved(moved, 0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if "T" not in name] == ["2026-07-01.json", "2026-07-02.json", "2026-07-03.json", "2026-07-04.json"]
    assert 48 <= sum("T" in name for name in names) <= 72
    assert total(since(kept, now - 2 * HOUR, now)) == Moved(6 * 24 + 6 * 24 - 1 + 6 * 24 - 2, 0)
    first = since(kept, NOON + 13 * HOUR, now)  # one o'clock: of that day only the whole is known
    assert first.from_ms == NOON + 12 * HOUR + 30_000
    assert total(first) == Moved(moved - sum(range(1, 14)), 0)


def test_a_day_that_is_there_holds_its_hours(tmp_path: Path) -> None:
    """We ended between the day's writing and the removal of its hours."""
    kept = Tallies(tmp_path, NOON)
    kept.add("log", "ada", 7, 0)
    keep(kept, NOON)
    hour = (tmp_path / "2026-07-01T12.json").read_bytes()
    later = NOON + 4 * DAY
    keep(kept, later)
    assert (tmp_path / "2026-07-01.json").exists()
    (tmp_path / "2026-07-01T12.json").write_bytes(hour)
    assert total(since(kept, 0, later)) == Moved(7, 0)
    keep(kept, later)
    assert total(since(kept, 0, later)) == Moved(7, 0)
    assert not (tmp_path / "2026-07-01T12.json").exists()


def test_a_clock_that_is_set_back_days_adds_to_the_day(tmp_path: Path) -> None:
    kept = Tallies(tmp_path, NOON)
    kept.add("log", "ada", 7, 0)
    keep(kept, NOON)
    keep(kept, NOON + 4 * DAY)
    kept.add("log", "ada", 5, 0)
    keep(kept, NOON + HOUR)
    kept.add("log", "ada", 3, 0)
    keep(kept, NOON + 2 * HOUR)
    assert total(since(kept, 0, NOON + 2 * HOUR)) == Moved(15, 0)
    assert (tmp_path / "2026-07-01.json").exists()


def test_only_so_many_days_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "DAYS", 40)
    kept = Tallies(tmp_path, NOON)
    for day in range(49):
        kept.add("log", "ada", 1, 0)
        keep(kept, NOON + day * DAY)
    assert len(list(tmp_path.glob("????-??-??.json"))) == 40
    assert total(since(kept, 0, NOON + 49 * DAY)).sent in (42, 43)


def test_what_could_not_be_written_is_counted_and_written_later(tmp_path: Path) -> None:
    kept = Tallies(tmp_path, NOON)
    kept.add("log", "ada", 1, 0)
    kept.pages(NOON + HOUR)  # the disk is full
    kept.add("log", "ada", 2, 0)
    kept.pages(NOON + 2 * HOUR)
    kept.add("log", "ada", 4, 0)
    assert total(since(kept, 0, NOON + 2 * HOUR)) == Moved(7, 0)
    keep(kept, NOON + 2 * HOUR)
    assert len(list(tmp_path.iterdir())) == 3
    assert total(since(Tallies(tmp_path, NOON + 3 * HOUR), 0, NOON + 3 * HOUR)) == Moved(7, 0)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"from_ms": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    kept = Tallies(tmp_path, NOON)
    kept.add("log", "ada", 7, 0)
    keep(kept, NOON)
    (tmp_path / "2026-07-01T13.json").write_bytes(damage)
    kept = Tallies(tmp_path, NOON + 2 * HOUR)
    assert total(since(kept, 0, NOON + 2 * HOUR)) == Moved(7, 0)
    assert (tmp_path / "2026-07-01T13.json.damaged").read_bytes() == damage


def test_gaps_are_bounded_and_the_oldest_only_grow(tmp_path: Path) -> None:
    for start in range(GAPS + 30):
        keep(Tallies(tmp_path, NOON + start * 1000), NOON + start * 1000)
    page = json.loads((tmp_path / "2026-07-01T12.json").read_bytes())
    assert len(page["gaps"]) == GAPS
    assert page["gaps"][0] == {"from_ms": NOON, "until_ms": NOON + 30_000}
    assert page["gaps"][-1] == {"from_ms": NOON + (GAPS + 28) * 1000, "until_ms": NOON + (GAPS + 29) * 1000}


@given(st.lists(st.tuples(st.sampled_from(["delta", "mean"]), st.integers(0, 200), st.integers(0, 1 << 30), st.integers(0, 9))))
def test_no_byte_is_lost_however_many_peers_there_are(moves: list[tuple[str, int, int, int]]) -> None:
    tally = Tally()
    for kind, peer, sent, received in moves:
        tally.add(kind, str(peer), Moved(sent, received))
    for kind in ("delta", "mean"):
        of_kind = [move for move in moves if move[0] == kind]
        assert sum(tally.moved.get(kind, {}).values(), Moved()) == Moved(sum(move[2] for move in of_kind), sum(move[3] for move in of_kind))
        assert len(tally.moved.get(kind, {})) <= PEERS + 1
    assert sum((moved for kinds in tally.by_peer().values() for moved in kinds.values()), Moved()) == sum(tally.by_kind().values(), Moved())


def test_the_largest_stay_themselves() -> None:
    tally = Tally()
    tally.add("delta", "large", Moved(10_000, 0))
    for peer in range(3 * PEERS):
        tally.add("delta", f"dust {peer}", Moved(1, 0))
    assert tally.moved["delta"]["large"] == Moved(10_000, 0)
    assert tally.moved["delta"][OTHERS].sent == 2 * PEERS + 1
