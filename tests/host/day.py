"""A day of one machine: what its sensors said and its operator asked, and when it trained. tests/host/days/*.txt.

    # whose day it is, and whether it was recorded or written
    from 2026-11-27 00:00 zone=Europe/Berlin
    policy hours="mon-fri 18:00-08:00; sat,sun 00:00-24:00" when_user_active=pause max_temperature_c=83 resume_temperature_c=75
    06:30:00               on_battery=no battery=0.97
    09:00:00..12:30:00/60  idle=0
    12:00:00               ! pause 2h
    timeline
    00:00:00  train
    08:00:00  schedule until 18:00:00

The policy's fields are those of `Policy`; texts with spaces are in quotes, several values are separated by ";". Readings, until
the next one: on_battery, metered (yes, no), battery, load (0 to 1), idle (seconds since the latest input; one moment's), gpu
(°C), others (programs on the GPU), used (their share), running (names, separated by ","), free, moved (GiB); "?" is: not
known. A line with a range is read again every so many seconds. "!" is what the operator asks: pause [for], finish, resume,
mode NAME [for]; "! round" is the end of a round. A time that is not later than the one above it is on the next day.

The clock is virtual: it goes to the next line, or to when the policy says that things change; nothing is polled. 24 hours.
`python -m tests.host.day FILE…` writes the timelines anew: read the difference.
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from tapestryd.host.hours import Window
from tapestryd.host.policy import Gpu, Hold, Moved, Policy, Readings, month_of
from tapestryd.host.will import Mode, Will
from tapestryd.settings import parse_duration

DAYS = Path(__file__).parent / "days"
_DAY_S = 86_400
_HEAD = re.compile(r"from (\S+ \d\d:\d\d) zone=(\S+)")
_LINE = re.compile(r"(\d\d:\d\d:\d\d)(?:\.\.(\d\d:\d\d:\d\d)/(\d+))? +(.+)")
_YES = {"yes": True, "no": False}

_FIELDS: dict[str, Callable[[str], Any]] = {
    "hours": lambda text: tuple(Window.parse(part) for part in text.split(";")),
    "yield_to": lambda text: frozenset(text.split(";")),
    "min_free_bytes": int,
    "transfer_cap_bytes": int,
    "when_user_active": str,
    "on_battery": str,
    "metered": str,
    "other_gpu_process": str,
}


@dataclass(frozen=True, slots=True)
class Day:
    begin_s: float
    zone: ZoneInfo
    policy: Policy
    said: tuple[tuple[float, str], ...]
    timeline: tuple[str, ...]


def read(path: Path) -> Day:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    head, policy = _HEAD.fullmatch(lines[0]), lines[1].split(" ", 1)
    assert head, lines[0]
    assert policy[0] == "policy"
    zone, begin = ZoneInfo(head[2]), datetime.fromisoformat(head[1])
    at = lines.index("timeline")
    said = sorted(_said(begin, zone, lines[2:at]), key=lambda one: one[0])
    return Day(begin.replace(tzinfo=zone).timestamp(), zone, _policy(policy[1]), tuple(said), tuple(lines[at + 1 :]))


def _policy(text: str) -> Policy:
    values = dict(word.split("=", 1) for word in shlex.split(text))
    assert values.keys() <= {field.name for field in fields(Policy)}, values
    return Policy(**{name: _FIELDS.get(name, float)(value) for name, value in values.items()})


def _said(begin: datetime, zone: ZoneInfo, lines: list[str]) -> Iterator[tuple[float, str]]:
    day, last = begin.date(), begin.time()
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match, line
        moments = [datetime.combine(day, datetime.strptime(text, "%H:%M:%S").time()) for text in match.group(1, 2) if text]
        if moments[0].time() < last:
            day += timedelta(days=1)
            moments = [moment + timedelta(days=1) for moment in moments]
        last = moments[0].time()
        at_s = moments[0].replace(tzinfo=zone).timestamp()
        for step in range(int((moments[-1] - moments[0]).total_seconds()) // int(match[3] or 1) + 1):
            yield at_s + step * int(match[3] or 0), match[4]


def live(day: Day, every_s: float | None = None) -> list[tuple[float, tuple[Hold, ...], float | None]]:
    """When what holds changed, what, and until when that is, as far as was known then. `every_s`: look every so many seconds
    instead of exactly when something changes."""
    end_s = day.begin_s + _DAY_S
    now_s, at, will = day.begin_s, 0, Will()
    readings, verdict = Readings(zone=day.zone), Policy().decide(now_s, Readings(), {})
    lived: list[tuple[float, tuple[Hold, ...], float | None]] = []
    while now_s < end_s:
        while at < len(day.said) and day.said[at][0] <= now_s:
            moment_s, words = day.said[at]
            if words.startswith("!"):
                will = _asked(will, words.split()[1:], moment_s)
            else:
                readings = _read(readings, words, moment_s)
            at += 1
        will = will.at(now_s)
        verdict = day.policy.decide(now_s, readings, verdict.memory)
        holds = will.judge(verdict.holds)
        known = [until_s for until_s in (verdict.changes_s, will.mode_until_s, will.pause_until_s) if until_s is not None]
        if not lived or [hold.reason for hold in holds] != [hold.reason for hold in lived[-1][1]]:
            lived.append((now_s, holds, min(known, default=None)))
        coming = [day.said[at][0]] if at < len(day.said) else []
        now_s = now_s + every_s if every_s else min([*known, *coming], default=end_s)
    return lived


def _asked(will: Will, words: list[str], now_s: float) -> Will:
    match words:
        case ["pause", *rest]:
            return will.pause(now_s + parse_duration(rest[0]) if rest else None)
        case ["mode", name, *rest]:
            return will.choose(Mode(name), now_s + parse_duration(rest[0]) if rest else None)
        case ["finish"]:
            return will.finish()
        case ["round"]:
            return will.round_over()
        case ["resume"]:
            return will.resume()
    raise AssertionError(words)


def _read(readings: Readings, words: str, now_s: float) -> Readings:
    for word in words.split():
        key, value = word.split("=")
        known = value != "?"
        gpu = readings.gpus[0] if readings.gpus else Gpu()
        match key:
            case "on_battery":
                readings = replace(readings, on_battery=_YES.get(value))
            case "metered":
                readings = replace(readings, metered=_YES.get(value))
            case "battery":
                readings = replace(readings, battery=float(value) if known else None)
            case "load":
                readings = replace(readings, load=float(value) if known else None)
            case "idle":
                readings = replace(readings, input_s=now_s - float(value) if known else None)
            case "gpu":
                readings = replace(readings, gpus=(replace(gpu, temperature_c=float(value) if known else None),))
            case "others":
                readings = replace(readings, gpus=(replace(gpu, others=int(value) if known else None),))
            case "used":
                readings = replace(readings, gpus=(replace(gpu, others_util=float(value) if known else None),))
            case "running":
                readings = replace(readings, running=frozenset(value.split(",")) if known else None)
            case "free":
                readings = replace(readings, free_bytes=int(float(value) * 2**30) if known else None)
            case "moved":
                moved = Moved(month_of(now_s, readings.zone), int(float(value) * 2**30))
                readings = replace(readings, moved=moved if known else None)
            case _:
                raise AssertionError(word)
    return readings


def timeline(day: Day) -> list[str]:
    """One line a change: since when, the reasons, and until when where that was known."""
    moving = len({datetime.fromtimestamp(day.begin_s + hour * 3600, day.zone).utcoffset() for hour in range(25)}) > 1

    def clock(moment_s: float) -> str:
        return f"{datetime.fromtimestamp(moment_s, day.zone):%H:%M:%S{' %Z' if moving else ''}}"

    lines = []
    for at_s, holds, _ in live(day):
        parts = [hold.reason + (f" until {clock(hold.until_s)}" if hold.until_s is not None else "") for hold in holds]
        lines.append(f"{clock(at_s)}  {', '.join(parts) or 'train'}")
    return lines


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        text = path.read_text()
        head = text[: text.index("timeline\n")] if "timeline\n" in text else text.rstrip("\n") + "\n"
        path.write_text(head + "timeline\n")
        path.write_text(head + "timeline\n" + "\n".join(timeline(read(path))) + "\n")
