"""Time as this machine has it, and how far that is from what the others have. The one place that reads the clock."""

import time
from collections.abc import Iterable
from statistics import median_high, median_low

from protocols import limits


def now_ms() -> int:
    """Swarm time: Unix time in milliseconds. Rounds follow it, so a wrong clock averages with nobody (see `verdict`)."""
    return time.time_ns() // 1_000_000


def verdict(skews_ms: Iterable[int]) -> tuple[bool, int | None]:
    """(whether our clock will do, median of the others' clocks minus ours), from the skews measured to other peers. Of two
    middle ones the one nearer to ours: so with one other that agrees with us, a liar beside it moves nothing either."""
    known = list(skews_ms)
    if not known:
        return True, None
    offset = min(median_low(known), median_high(known), key=abs)
    return abs(offset) <= limits.CLOCK_SKEW_MS, offset
