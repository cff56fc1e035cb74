"""Hours of the week in local time, such as "mon-fri 18:00-08:00": whether it is one of them, and when that next changes.

Pure: instant and zone are parameters. What counts is what a clock on the wall shows: where summer time makes an hour come
twice, both times are in the window or neither is; an hour that is skipped does not come.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_DAY_S = 86_400
_AHEAD_DAYS = 15
"""A window of one day a week that a change of the clocks skips begins or ends again within so many."""
_MUST = 'must be hours of a day, written like "mon-fri 18:00-08:00", "sat,sun 00:00-24:00" or "22:00-06:00"'


@dataclass(frozen=True, slots=True)
class Window:
    """`days`: those on which it begins, 0 is Monday. `begin`, `end`: minutes since midnight, 0 to 1439 and 1 to 1440; an end
    that is not behind the beginning is on the next day."""

    days: frozenset[int]
    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Raises ValueError with a sentence."""
        match = re.fullmatch(r"(?:([a-z,-]+) )?(\d\d):(\d\d)-(\d\d):(\d\d)", text.strip().lower(), re.ASCII)
        if match is None:
            raise ValueError(_MUST)
        begin, end = 60 * int(match[2]) + int(match[3]), 60 * int(match[4]) + int(match[5])
        if max(int(match[3]), int(match[5])) > 59 or begin >= _DAY_MINUTES or end > _DAY_MINUTES:
            raise ValueError(f"{text!r}: a day has 24 hours of 60 minutes, and only an end may be 24:00; {_MUST}")
        if begin == end:
            raise ValueError(f'{text!r}: begins when it ends; write "00:00-24:00" for the whole day')
        return cls(_days(match[1]) if match[1] else frozenset(range(7)), begin, end or _DAY_MINUTES)

    def holds(self, wall: datetime) -> bool:
        minute, day = 60 * wall.hour + wall.minute, wall.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        return (day in self.days and minute >= self.begin) or ((day - 1) % 7 in self.days and minute < self.end)


def _days(text: str) -> frozenset[int]:
    """ "mon-fri", "sat,sun", "fri-mon" → days. Raises ValueError with a sentence."""
    found = set[int]()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in DAYS:
                raise ValueError(f"{name!r} is no day; there are {', '.join(DAYS)}; {_MUST}")
        begin = DAYS.index(first)
        found |= {(begin + step) % 7 for step in range((DAYS.index(last or first) - begin) % 7 + 1)}
    return frozenset(found)


def next_at(text: str, now_s: float, zone: tzinfo) -> float:
    """When a clock on the wall next shows "18:00", Unix time. Raises ValueError with a sentence."""
    match = re.fullmatch(r"(\d\d):(\d\d)", text, re.ASCII)
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise ValueError('must be a time of the day, written like "18:00"')
    begin = 60 * int(match[1]) + int(match[2])
    window = Window(frozenset(range(7)), begin, begin + 1)
    later = sorted(instant for instant in _edges([window], now_s, zone) if instant > now_s)
    return next(instant for instant in later if window.holds(datetime.fromtimestamp(instant, zone)))


def inside(windows: Sequence[Window], now_s: float, zone: tzinfo) -> bool:
    """`now_s`: Unix time."""
    wall = datetime.fromtimestamp(now_s, zone)
    return any(window.holds(wall) for window in windows)


def changes_at(windows: Sequence[Window], now_s: float, zone: tzinfo) -> float | None:
    """The first instant after `now_s` at which `inside` changes, Unix time; None: it never does."""
    now = inside(windows, now_s, zone)
    later = sorted(instant for instant in {*_edges(windows, now_s, zone), *_jumps(now_s, zone)} if instant > now_s)
    return next((instant for instant in later if inside(windows, instant, zone) != now), None)


def _edges(windows: Sequence[Window], now_s: float, zone: tzinfo) -> Iterator[float]:
    """When a clock on the wall shows the beginning or end of a window, both times where it does so twice."""
    midnight = datetime.fromtimestamp(now_s, zone).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
    minutes = {minute for window in windows for minute in (window.begin, window.end)}
    for day in range(-1, _AHEAD_DAYS):
        for minute in minutes:
            wall = midnight + timedelta(days=day, minutes=minute)
            yield from (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))


def _jumps(now_s: float, zone: tzinfo) -> Iterator[float]:
    """When the clock on the wall is put forward or back."""

    def offset(instant: float) -> timedelta | None:
        return datetime.fromtimestamp(instant, zone).utcoffset()

    for day in range(_AHEAD_DAYS):
        low = int(now_s) + day * _DAY_S
        high = low + _DAY_S
        if offset(low) == offset(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
        yield float(high)
