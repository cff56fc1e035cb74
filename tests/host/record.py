"""Record this machine's own day for tests/host/days: `python -m tests.host.record FILE [--for 24h] [--every 15s]`.

Everything that runs counts as others': record while tapestry does not train. What this machine has no sensor for is left out. A line is
written as it is read, so a recording that is interrupted is good up to there. Then `python -m tests.host.day FILE`: what the policy makes
of it.
"""

import argparse
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from tapestryd.host.policy import Policy, Readings
from tapestryd.host.sensors.machine import Machine, Ours
from tapestryd.settings import parse_duration

POLICY = Policy(max_load=0.4, on_battery="pause", max_temperature_c=83, resume_temperature_c=75, min_free_bytes=5 << 30)
HEAD = """\
# {who}: its sensors, every {every:g} s. Recorded.
from {date:%Y-%m-%d %H:%M} zone=UTC
policy max_load=0.4 on_battery=pause max_temperature_c=83 resume_temperature_c=75 min_free_bytes=5368709120
"""


def words(readings: Readings, free_bytes: int) -> dict[str, str]:
    """What is known, as day.py reads it."""
    gpu = readings.gpus[0] if readings.gpus else None
    known = {
        "on_battery": None if readings.on_battery is None else ("no", "yes")[readings.on_battery],
        "battery": None if readings.battery is None else f"{readings.battery:.2f}",
        "load": None if readings.load is None else f"{readings.load:.2f}",
        "gpu": None if gpu is None or gpu.temperature_c is None else f"{gpu.temperature_c:.0f}",
        "free": f"{free_bytes / 2**30:.0f}",
    }
    return {key: text for key, text in known.items() if text is not None}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.host.record", description="Record this machine's day.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--who", default="A machine", help="whose day it is, in a few words")
    parser.add_argument("--for", dest="for_s", type=parse_duration, default=86_400.0)
    parser.add_argument("--every", dest="every_s", type=parse_duration, default=15.0)
    options = parser.parse_args()
    machine, ended_s, told = Machine(Path("/"), POLICY), time.monotonic() + options.for_s, dict[str, str]()
    with options.file.open("x", buffering=1) as out:
        while time.monotonic() < ended_s:
            readings = machine.read(time.time(), time.monotonic(), Ours(()), None)
            now = datetime.now(UTC)
            if not told:
                out.write(HEAD.format(who=options.who, every=options.every_s, date=now))
            found = words(readings, shutil.disk_usage("/").free)
            new = {key: text for key, text in found.items() if told.get(key) != text}
            if new:
                out.write(f"{now:%H:%M:%S}               {' '.join(f'{key}={text}' for key, text in new.items())}\n")
            told |= found
            time.sleep(options.every_s)


if __name__ == "__main__":
    main()
