"""Who is passed over, and until when. Pure: `now` is any clock that only goes on, in seconds or in rounds."""

from dataclasses import dataclass

from protocols import limits


@dataclass(slots=True)
class _Doubt:
    times: int = 0
    until: float = 0.0


class Doubts:
    """One peer, each time: for `first`, twice that, four times … `longest`; forgotten when as long as the longest has passed
    without another."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._of: dict[str, _Doubt] = {}

    def add(self, peer: str, now: float) -> int:
        """It failed us; how often that makes."""
        self._of = {one: doubt for one, doubt in self._of.items() if now < doubt.until + self._longest}
        doubt = self._of.pop(peer, _Doubt())
        while len(self._of) >= limits.RECORDS:
            del self._of[next(iter(self._of))]
        doubt.times += 1
        doubt.until = now + min(self._first * 2.0 ** (doubt.times - 1), self._longest)
        self._of[peer] = doubt
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
