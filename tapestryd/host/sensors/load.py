"""How much of the processors others use, from /proc/stat (proc(5)): all that is busy, less what is ours.

What is ours is not guessed from names or control groups: it is what the caller's processes say of themselves. A look is compared
with one WINDOW_S before it, so that a moment's work is not taken for somebody at work.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

from tapestryd.host.sensors.reading import text

WINDOW_S = 30.0
TICKS = 100
"""A second, of /proc's times: USER_HZ, the same on every architecture that Linux runs us on."""

_LEAST_S = 2.0
_BUSY = (0, 1, 2, 5, 6)
"""user (with guests), nice, system, irq, softirq; not idle (3), waiting for a disk (4), nor stolen by a hypervisor (7)."""


class Load:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._looks: deque[tuple[float, int, int, float]] = deque()

    def read(self, now_s: float, ours_s: float) -> float | None:
        """0 to 1 of all processors. `now_s`: of a clock that is never set; `ours_s`: CPU seconds that we used in all so far.
        None until there is a look to compare with."""
        words = (text(self._root / "proc/stat") or "").split("\n", 1)[0].split()
        if len(words) < 9 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:9]):
            return None
        ticks = [int(word) for word in words[1:9]]
        look = (now_s, sum(ticks), sum(ticks[at] for at in _BUSY), ours_s)
        while len(self._looks) > 1 and now_s - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()
        self._looks.append(look)
        before = self._looks[0]
        spent = look[1] - before[1]
        if look[0] - before[0] < _LEAST_S or spent <= 0:
            return None
        ours = max(0.0, look[3] - before[3]) * TICKS
        return min(1.0, max(0.0, (look[2] - before[2] - ours) / spent))


def cpu_s(root: Path, pids: Iterable[int]) -> float:
    """CPU seconds that these processes, with those of their children that ended, have used; of one that is gone, none."""
    total = 0
    for pid in pids:
        words = (text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()  # a name may hold blanks and brackets
        if len(words) > 14:
            total += sum(int(word) for word in words[11:15])
    return total / TICKS
