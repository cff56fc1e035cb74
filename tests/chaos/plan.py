"""What will go wrong, when, and to whom: all of it from one seed. Pure; machine.py and test_chaos.py do it.

A fault lasts some seconds and takes part of the machines out. A machine has one fault at a time; mostly no more than a
minority is out at once, and now and then the swarm is cut in halves, so that nobody can commit.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random


class Kind(Enum):
    KILL = "kill -9"
    STOP_DAEMON = "daemon stopped"
    STOP_TRAINER = "trainer stopped"
    PARTITION = "partition"
    ONE_WAY = "one-way cut"
    SLOW_LINK = "1 Mbit/s"
    FULL_DISK = "disk full"
    OLD_STATE = "old state put back"
    WRONG_CLOCK = "wrong clock"


CUTS = (Kind.PARTITION, Kind.ONE_WAY)
DEATHS = (Kind.KILL, Kind.OLD_STATE)

COMES_BACK_S = 30.0
"""What a daemon takes from its start to its next committed round, on two cores with six of them."""

PAUSE_S = (3.0, 8.0)
"""Between one fault and the next."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`machines`: those that it befalls; of a cut, the smaller side. `age_s`: of OLD_STATE, how old. `shift_ms`: of WRONG_CLOCK."""

    at_s: float
    kind: Kind
    machines: tuple[int, ...]
    lasts_s: float
    age_s: float = 0.0
    shift_ms: int = 0

    @property
    def over_s(self) -> float:
        """When its machines should take part again."""
        return self.at_s + self.lasts_s + (COMES_BACK_S if self.kind in DEATHS else 0.0)

    def __str__(self) -> str:
        what = {Kind.OLD_STATE: f", {self.age_s:.0f} s old", Kind.WRONG_CLOCK: f", {self.shift_ms / 1000:+g} s"}.get(self.kind, "")
        return f"{self.kind.value}{what}: {', '.join(map(str, self.machines))} for {self.lasts_s:.0f} s"


def plan(seed: int, machines: int, seconds: float, period_s: float) -> list[Fault]:
    """Faults in order of time for machines 1 to `machines`; every kind comes once before any comes again."""
    rng = Random(seed)
    faults: list[Fault] = []
    bag: list[Kind] = []
    at = 0.0
    while True:
        at += rng.uniform(*PAUSE_S)
        bag = bag or rng.sample(list(Kind), len(Kind))
        while not (found := _with_room(rng, bag, faults, machines, at)):
            at = min(fault.over_s for fault in faults if fault.over_s > at)
        if at > seconds:
            return faults
        kind, chosen = found
        bag.remove(kind)
        age = min(at, rng.uniform(3 * period_s, 12 * period_s)) if kind is Kind.OLD_STATE else 0.0
        shift = rng.choice([-60_000, -4_000, 4_000, 60_000]) if kind is Kind.WRONG_CLOCK else 0
        faults.append(Fault(at, kind, chosen, _lasts(rng, kind, period_s), age, shift))


def _with_room(rng: Random, bag: list[Kind], faults: list[Fault], machines: int, at: float) -> tuple[Kind, tuple[int, ...]] | None:
    """The first kind of the bag for which enough machines are well at `at`, and whom it befalls."""
    for kind in bag:
        count, most = _how_many(rng, kind, machines)
        free = _free(faults, machines, at, kind)
        if len(free) >= machines - most + count:
            return kind, tuple(sorted(rng.sample(free, count)))
    return None


def _how_many(rng: Random, kind: Kind, machines: int) -> tuple[int, int]:
    """(machines that it befalls, machines that may be out with it). One cut in five makes halves, whoever else is out."""
    minority = (machines - 1) // 2
    if kind not in CUTS:
        return 1, minority
    if rng.random() < 0.2:
        return machines // 2, machines
    return rng.randint(1, minority), minority


def _free(faults: list[Fault], machines: int, at: float, kind: Kind) -> list[int]:
    """Machines that nothing ails at `at`; none for a cut while another cut lasts."""
    ailing = [fault for fault in faults if fault.over_s > at]
    if kind in CUTS and any(fault.kind in CUTS for fault in ailing):
        return []
    out = {machine for fault in ailing for machine in fault.machines}
    return [machine for machine in range(1, machines + 1) if machine not in out]


def _lasts(rng: Random, kind: Kind, period_s: float) -> float:
    if kind in DEATHS:
        return rng.uniform(1, 20)
    return rng.uniform(1.2, 5 if kind in CUTS else 3) * period_s
