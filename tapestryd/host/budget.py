"""The privacy budget: what of it is spent, on disk before it is, and whether a step more may be.

One file, privacy.json in the trainer's state directory, for all runs and for good: what was learned of data in one run is not forgotten
in the next. It holds steps, not epsilons: what they add up to is the accountant's to say, and may be asked at any delta. Steps are
paid for in advance, CHUNK at a time: a crash can lose some that were paid for, never take one that was not. There is no undoing;
who deletes the file says that nothing of this data was ever released. Knows nothing of gradients.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from protocols.trainer import Code
from tapestryd.errors import DataFault
from tapestryd.host.accountant import Steps, epsilon
from tapestryd.host.files import write

FILE = "privacy.json"
CHUNK = 8
"""Steps. More ask the accountant less often, and lose more in a crash."""

_SCHEMA = 1
_STEPS_MAX = 1 << 40


class BudgetFault(DataFault):
    code: ClassVar[Code] = Code.BUDGET


@dataclass(frozen=True, slots=True)
class Entry:
    """Steps over the records of these data sets (artifact_ids), sorted."""

    datasets: tuple[str, ...]
    steps: Steps


@dataclass(frozen=True, slots=True)
class Limits:
    """`total`: the most epsilon for everything together, at `delta`. `each`: for one data set; 0: no bound but that."""

    total: float
    delta: float
    each: Mapping[str, float]


class Budget:
    """Of the data sets `limits.each`, under steps like `mechanism` (whose own count is of no meaning). `spent`: epsilon of all that the
    file holds, steps that are paid for and not taken yet among them."""

    def __init__(self, path: Path, limits: Limits, mechanism: Steps) -> None:
        """Raises BudgetFault: the file is damaged."""
        self._path, self._limits, self._mechanism = path, limits, mechanism
        self._entries = read(path)
        self._paid = 0
        self.spent = spent(self._entries, limits.delta)

    def take(self) -> str:
        """One step. "": it may be taken; else why not, and it must not. Raises DiskFull, OSError: then it must not, either."""
        if not self._paid:
            if why := self.refusal():
                return why
            after = self._after()
            write(self._path, _written(after), mode=0o600)
            self._entries, self._paid = after, CHUNK
            self.spent = spent(after, self._limits.delta)
        self._paid -= 1
        return ""

    def refusal(self) -> str:
        """Why there can be no CHUNK of steps more; "": there can."""
        after, limits = self._after(), self._limits
        for dataset, most in limits.each.items():
            if most and (found := spent(after, limits.delta, dataset)) > most:
                return f"of the data set {dataset} epsilon {found:.3f} would be spent, and its manifest allows {most}"
        if (found := spent(after, limits.delta)) > limits.total:
            return f"epsilon {found:.3f} would be spent of all data, and privacy.epsilon = {limits.total}"
        return ""

    def _after(self) -> list[Entry]:
        return _added(self._entries, Entry(tuple(sorted(self._limits.each)), replace(self._mechanism, steps=CHUNK)))


def spent(entries: Iterable[Entry], delta: float, dataset: str | None = None) -> float:
    """Epsilon of everything, or of one data set."""
    return epsilon([entry.steps for entry in entries if dataset is None or dataset in entry.datasets], delta)


def read(path: Path) -> list[Entry]:
    """Raises BudgetFault."""
    try:
        body = json.loads(path.read_bytes())
        if body["schema"] != _SCHEMA:
            raise ValueError("of another version")
        return [_entry(**item) for item in body["spent"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
        raise BudgetFault(f"{path}: cannot be read ({why}), so what is spent is not known; put its backup there") from None


def _entry(datasets: list[str], rate: float, multiplier: float, steps: int) -> Entry:
    fine = isinstance(datasets, list) and all(isinstance(name, str) for name in datasets)
    if not (fine and type(rate) is float and 0 < rate <= 1 and type(multiplier) is float and 0 < multiplier < 1e9):
        raise ValueError("an entry is not as it is written")
    if not (type(steps) is int and 0 < steps <= _STEPS_MAX):
        raise ValueError("an entry is not as it is written")
    return Entry(tuple(datasets), Steps(rate, multiplier, steps))


def _written(entries: list[Entry]) -> bytes:
    items = [{"datasets": list(entry.datasets), **asdict(entry.steps)} for entry in entries]
    return (json.dumps({"schema": _SCHEMA, "spent": items}, indent=1, ensure_ascii=False) + "\n").encode()


def _added(entries: list[Entry], new: Entry) -> list[Entry]:
    """With the steps of `new`: one entry for all steps of a kind, so that there are as few as changes of settings or data."""
    kind = (new.datasets, new.steps.rate, new.steps.multiplier)
    same = [entry for entry in entries if (entry.datasets, entry.steps.rate, entry.steps.multiplier) == kind]
    count = new.steps.steps + sum(entry.steps.steps for entry in same)
    return [entry for entry in entries if entry not in same] + [Entry(new.datasets, replace(new.steps, steps=count))]
