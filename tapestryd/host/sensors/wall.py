"""What the clocks on the wall here go by: /etc/localtime (localtime(5)); without it UTC, as everywhere."""

from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo


def zone(root: Path) -> tzinfo:
    try:
        with (root / "etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC
