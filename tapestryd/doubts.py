"""Whose announcements are passed over, and until when. Pure: `now` is any clock in seconds that only goes on.

One peer, whatever it announces: 10 s, 20 s, 40 s … 10 min; forgotten when as long as the longest has passed without another.
"""

from dataclasses import dataclass

from protocols import limits

FIRST_S = 10.0
LONGEST_S = 600.0


@dataclass(slots=True)
class _Doubt:
    times: int = 0
    until: float = 0.0


class Doubts:
    def __init__(self) -> None:
        self._of: dict[str, _Doubt] = {}

    def add(self, peer: str, now: float) -> int:
        """It could not show what it announced, or not bring us there; how often that makes."""
        doubt = self._of.setdefault(peer, _Doubt())
        doubt.times += 1
        doubt.until = now + min(FIRST_S * 2.0 ** (doubt.times - 1), LONGEST_S)
        self._sweep(now)
        return doubt.times

    def wait(self, peer: str, until: float) -> None:
        """It is not to be asked before then, which is nobody's fault."""
        self._of.setdefault(peer, _Doubt()).until = until

    def clear(self, peer: str) -> None:
        self._of.pop(peer, None)

    def holds(self, peer: str, now: float) -> bool:
        return peer in self._of and now < self._of[peer].until

    def times(self, peer: str) -> int:
        return self._of[peer].times if peer in self._of else 0

    def _sweep(self, now: float) -> None:
        self._of = {peer: doubt for peer, doubt in self._of.items() if now < doubt.until + LONGEST_S}
        while len(self._of) > limits.RECORDS:
            del self._of[next(iter(self._of))]
