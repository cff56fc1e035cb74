"""Windows of local time: as written, against an oracle that looks at every minute, and where the clocks are changed."""

from contextlib import suppress
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestryd.host.hours import Window, changes_at, inside, next_at

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Havana", "Africa/Casablanca"]
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "days", "begin", "end"),
    [
        ("mon-fri 18:00-08:00", {0, 1, 2, 3, 4}, 1080, 480),
        ("sat,sun 00:00-24:00", {5, 6}, 0, 1440),
        ("Fri-Mon 09:30-17:00", {4, 5, 6, 0}, 570, 1020),
        ("mon,wed-thu 22:00-00:00", {0, 2, 3}, 1320, 1440),
        ("wed-wed 01:00-02:00", {2}, 60, 120),
        ("22:00-06:00", set(range(7)), 1320, 360),
    ],
)
def test_as_written(text: str, days: set[int], begin: int, end: int) -> None:
    assert Window.parse(text) == Window(frozenset(days), begin, end)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must be hours of a day"),
        ("always", "must be hours of a day"),
        ("mon 8-9", "must be hours of a day"),
        ("mon 08:00", "must be hours of a day"),
        ("mon,, 08:00-09:00", "'' is no day; there are mon, tue"),
        ("mon-fry 08:00-09:00", "'fry' is no day"),
        ("monday 08:00-09:00", "'monday' is no day"),
        ("08:00-24:01", "a day has 24 hours"),
        ("24:00-08:00", "a day has 24 hours"),
        ("08:60-09:00", "a day has 24 hours"),
        ("08:00-08:00", "begins when it ends"),
        ("00:00-00:00", "begins when it ends"),
        ("٠٨:00-09:00", "must be hours of a day"),
    ],
)
def test_what_is_no_window_is_told(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"must be hours|write") as caught:
        Window.parse(text)
    assert sentence in str(caught.value)


@given(st.text(alphabet="montuewdhfrisa 0123456789:-,", max_size=24))
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(ValueError):
        window = Window.parse(text)
        assert window.days <= set(range(7))
        assert 0 <= window.begin < 1440
        assert 1 <= window.end <= 1440


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("hours", "now", "held", "change"),
    [
        ("mon-fri 18:00-08:00", "2026-11-27 17:59:59", False, "2026-11-27 18:00"),  # a Friday
        ("mon-fri 18:00-08:00", "2026-11-27 18:00", True, "2026-11-28 08:00"),
        ("mon-fri 18:00-08:00", "2026-11-28 08:00", False, "2026-11-30 18:00"),
        ("mon-fri 18:00-08:00", "2026-11-30 03:00", False, "2026-11-30 18:00"),  # Sunday evening is not one of the days
        ("sat,sun 00:00-24:00", "2026-11-28 12:00", True, "2026-11-30 00:00"),
        ("22:00-06:00", "2026-03-29 01:59", True, "2026-03-29 06:00"),  # 02:00 to 03:00 is skipped that night
        ("02:30-02:45", "2026-03-29 01:00", False, "2026-03-30 02:30"),
        ("01:00-02:30", "2026-03-29 01:00", True, "2026-03-29 03:00"),
    ],
)
def test_berlin(hours: str, now: str, held: bool, change: str) -> None:
    windows = [Window.parse(hours)]
    assert inside(windows, at(now), BERLIN) is held
    assert changes_at(windows, at(now), BERLIN) == at(change)


@pytest.mark.parametrize(
    ("text", "now", "found"),
    [
        ("18:00", "2026-11-27 17:59:59", "2026-11-27 18:00"),
        ("18:00", "2026-11-27 18:00:00", "2026-11-28 18:00"),
        ("00:00", "2026-11-30 12:00", "2026-12-01 00:00"),
        ("23:59", "2026-11-30 23:59:30", "2026-12-01 23:59"),
        ("02:30", "2026-03-28 12:00", "2026-03-30 02:30"),  # the night in which it is skipped
        ("02:30", "2026-10-24 12:00", "2026-10-25 02:30"),
    ],
)
def test_the_next_time_that_the_wall_shows_it(text: str, now: str, found: str) -> None:
    assert next_at(text, at(now), BERLIN) == at(found)


@pytest.mark.parametrize("text", ["", "6", "6pm", "24:00", "18:60", "1800", "18:00:00"])
def test_no_time_of_the_day(text: str) -> None:
    with pytest.raises(ValueError, match='written like "18:00"'):
        next_at(text, 0.0, BERLIN)


def test_an_hour_that_comes_twice_is_in_the_window_twice() -> None:
    windows = [Window.parse("01:30-02:30")]
    turns, now = [], at("2026-10-25 00:00")
    for _ in range(5):
        found = changes_at(windows, now, BERLIN)
        assert found is not None
        now = found
        turns.append(now)
    back = at("2026-10-25 02:00", fold=1)  # the instant at which 03:00 becomes 02:00
    late = at("2026-10-25 02:30", fold=1)
    assert turns == [at("2026-10-25 01:30"), at("2026-10-25 02:30"), back, late, at("2026-10-26 01:30")]


def test_what_never_changes() -> None:
    assert changes_at([], 0, BERLIN) is None
    assert changes_at([Window.parse("00:00-24:00")], 0, BERLIN) is None
    assert changes_at([Window.parse("mon-sun 12:00-24:00"), Window.parse("00:00-12:00")], 0, BERLIN) is None


WINDOWS = st.lists(
    st.builds(Window, st.frozensets(st.integers(0, 6), min_size=1), st.integers(0, 1439), st.integers(1, 1440)).filter(
        lambda window: window.begin != window.end
    ),
    min_size=1,
    max_size=3,
)
NIGHTS = st.sampled_from(["2026-03-08", "2026-03-29", "2026-04-05", "2026-10-25", "2026-11-01", "2026-02-15", "2026-03-22", "2026-07-01"])
"""Before and after most of which a clock of ZONES is changed."""


@settings(max_examples=60, deadline=None)
@given(WINDOWS, NIGHTS, st.integers(-1440, 1440), st.sampled_from(ZONES))
def test_the_next_change_is_the_first_one_that_looking_every_minute_finds(
    windows: list[Window], night: str, minutes: int, zone: str
) -> None:
    where = ZoneInfo(zone)
    now = (datetime.fromisoformat(night) + timedelta(minutes=minutes)).replace(tzinfo=where).timestamp()
    change = changes_at(windows, now, where)
    held = inside(windows, now, where)
    horizon = now + 8 * 86_400 if change is None else min(change, now + 8 * 86_400)
    instant = now + 60
    while instant < horizon:
        assert inside(windows, instant, where) is held, datetime.fromtimestamp(instant, where)
        instant += 60
    if change is not None:
        assert inside(windows, change, where) is not held
        assert inside(windows, change - 1, where) is held
