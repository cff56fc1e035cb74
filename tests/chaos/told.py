"""What a run of chaos came to, from what the daemons left behind: round histories, logs of entries, log lines.

A committed story's time is its round's boundary and what the round took from there; so nobody had to watch.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from protocols.lineage import Entry
from protocols.schedule import Schedule
from tapestryd.host.keys import verify
from tapestryd.host.store import RunStore
from tests.chaos.machine import Machine
from tests.chaos.plan import DEATHS, Fault, Kind

Stories = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Done:
    """A fault as it was done, in swarm time. `over_ms`: the machine was started again, the cut mended."""

    fault: Fault
    begun_ms: int
    over_ms: int


def stories(machine: Machine) -> Stories:
    """All that the machine lived through, also what it forgot when an old state was put back; in order of rounds."""
    histories = [run / "rounds.jsonl" for run in machine.runs()]
    lines = dict.fromkeys(line for history in histories if history.exists() for line in history.read_text().splitlines())
    found = []
    for line in lines:
        with suppress(ValueError):  # a full disk cut it short
            found.append(json.loads(line))
    return sorted(found, key=lambda story: int(story["round"]))


def entries(machine: Machine) -> list[Entry]:
    """The log that the machine ended with, verified, from its newest entry back to where it begins."""
    store = RunStore(machine.run, machine.run.name)
    newest = max((int(path.stem) for path in (machine.run / "log").glob("*.entry")), default=0)
    found = []
    for height in range(newest, 0, -1):
        loaded = store.load_entry(height, verify)
        if loaded is None:
            break
        found.append(loaded[0])
    return found


def rollbacks(machine: Machine) -> int:
    """How often the machine gave up a branch for a better one."""
    return len({path.name for run in machine.runs() for path in run.glob("superseded-*")})


def forks(lives: Iterable[Stories]) -> list[int]:
    """Heights at which two bases were committed."""
    bases: dict[int, set[str]] = {}
    for story in (story for life in lives for story in life if story["result"] in ("committed", "replayed")):
        bases.setdefault(story["height"], set()).add(story["base_digest"])
    return sorted(height for height, found in bases.items() if len(found) > 1)


def strands(heights: Sequence[int]) -> int:
    """Forks, of their heights: those that follow one another are one."""
    return len({height - place for height, place in zip(sorted(heights), count())})


def stage_times(stories: Iterable[dict[str, Any]]) -> str:
    """Median and greatest of each stage, over the committed rounds of all machines."""
    times: dict[str, list[int]] = {}
    for story in stories:
        for stage, ms in story["times_ms"].items() if story["result"] == "committed" else ():
            times.setdefault(stage, []).append(ms)
    return ", ".join(f"{stage} {statistics.median(found):.0f} (max {max(found)})" for stage, found in times.items())


class Told:
    """`begun_ms`, `ended_ms`: of the chaos. `lives`: each machine's stories."""

    def __init__(self, schedule: Schedule, machines: Sequence[Machine], done: Sequence[Done], begun_ms: int, ended_ms: int) -> None:
        self.schedule = schedule
        self.done = done
        self.begun_ms = begun_ms
        self.ended_ms = ended_ms
        self.lives = {machine.number: stories(machine) for machine in machines}
        self.logs = {machine.number: entries(machine) for machine in machines}
        self.rollbacks = sum(map(rollbacks, machines))

    def by_height(self) -> dict[int, set[str]]:
        """height → the bases that the machines' logs lead to there."""
        found: dict[int, set[str]] = {}
        for entry in (entry for log in self.logs.values() for entry in log):
            found.setdefault(entry.vote.height, set()).add(entry.vote.after)
        return found

    def lines(self) -> list[str]:
        possible = [r for r in range(self._round(self.begun_ms), self._round(self.ended_ms) + 1) if self._within(self.schedule.boundary(r))]
        committed = {entry.vote.round for log in self.logs.values() for entry in log} & set(possible)
        kinds = Counter(done.fault.kind for done in self.done)
        during = [story for life in self.lives.values() for story in life if story["round"] in set(possible)]
        discarded = [story for story in during if story["result"] == "discarded"]
        taken, lost = (sum(story["steps"] for story in some) for some in (during, discarded))
        forked = forks(self.lives.values())
        reasons = Counter(story["reason"] for story in discarded)
        rows = [
            ("rounds committed", f"{len(committed)} of {len(possible)} possible ({_percent(len(committed), len(possible))})"),
            ("faults", f"{len(self.done)}: " + _listed({kind.value: kinds[kind] for kind in Kind})),
            ("kill -9 → next commit of the others", self._spread(self._recoveries())),
            ("the same, nothing else being wrong", self._spread(self._recoveries(alone=True))),
            ("restart → own next commit", self._spread(self._returns())),
            ("local steps in discarded rounds", f"{lost:,} of {taken:,} ({_percent(lost, taken)})"),
            ("forks", f"{strands(forked)}, of {len(forked)} heights; {self.rollbacks} rollbacks"),
            ("a committed round, ms by stage", stage_times(during)),
            ("discarded by reason", _listed(dict(reasons.most_common())) or "none"),
        ]
        return [f"{name:38}{value}" for name, value in rows]

    def _round(self, ms: int) -> int:
        return self.schedule.round_at(ms)

    def _within(self, ms: int) -> bool:
        return self.begun_ms <= ms < self.ended_ms

    def _commits_ms(self, machines: Iterable[int]) -> list[int]:
        lived = (story for number in machines for story in self.lives[number] if story["result"] == "committed")
        return sorted(self.schedule.boundary(story["round"]) + story["took_ms"] for story in lived)

    def _recoveries(self, *, alone: bool = False) -> list[float | None]:
        """Seconds from each kill -9 to the next commit of the others; None: never. `alone`: of kills with no other fault then."""
        found = []
        for done in self._of(Kind.KILL):
            others = [other for other in self.done if other is not done and other.begun_ms <= done.begun_ms + self.schedule.period_ms]
            if alone and any(other.over_ms + self.schedule.period_ms > done.begun_ms for other in others):
                continue
            found.append(_next(self._commits_ms(self.lives.keys() - set(done.fault.machines)), done.begun_ms))
        return found

    def _returns(self) -> list[float | None]:
        """Seconds from each restart to the restarted machine's next commit."""
        return [_next(self._commits_ms(done.fault.machines), done.over_ms) for done in self._of(*DEATHS)]

    def _of(self, *kinds: Kind) -> list[Done]:
        return [done for done in self.done if done.fault.kind in kinds]

    def _spread(self, found: Sequence[float | None]) -> str:
        known = [seconds for seconds in found if seconds is not None]
        if not known:
            return "none" if not found else f"never, of {len(found)}"
        period_s = self.schedule.period_ms / 1000
        middle, most = statistics.median(known), max(known)
        never = f"; {len(found) - len(known)} never" if len(known) < len(found) else ""
        return f"median {middle:.1f} s, max {most:.1f} s = {middle / period_s:.1f} and {most / period_s:.1f} rounds, of {len(found)}{never}"


def _next(times_ms: Sequence[int], after_ms: int) -> float | None:
    return next(((ms - after_ms) / 1000 for ms in times_ms if ms > after_ms), None)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items() if number)
