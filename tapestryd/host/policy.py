"""When to train: every reason not to, from what the sensors read and what this machine's owner allows.

Pure: time, readings and what was decided before are parameters; nothing is asked of the machine here. A reading that is not
known is None, and holds nothing up. A reason that comes and goes (a battery, another program, heat) stays for `resume_delay_s`
after it was last there, so that training is not begun and ended faster than that, however a sensor flutters.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import StrEnum

from tapestryd.host.hours import Window, changes_at, inside


class Reason(StrEnum):
    """Why not to train, as the words of status, log and metrics; in the order in which they are shown."""

    USER = "user"
    SCHEDULE = "schedule"
    USER_ACTIVE = "user_active"
    EXCLUSIVE_APP = "exclusive_app"
    OTHER_GPU_PROCESS = "other_gpu_process"
    CPU_LOAD = "cpu_load"
    BATTERY = "battery"
    METERED = "metered"
    GPU_TEMPERATURE = "gpu_temperature"
    DISK_LOW = "disk_low"
    TRANSFER_CAP = "transfer_cap"


LASTING = (Reason.USER, Reason.SCHEDULE, Reason.TRANSFER_CAP)
"""They end when they say; all others come and go, and are waited out."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """`others`: programs of others that compute on it; `util`, `others_util`: share of the time that it works, for all and for
    them, 0 to 1. `id`: "GPU-" and a UUID, or "pci:" and an address. Only heat and others matter here; the rest is for people."""

    temperature_c: float | None = None
    others: int | None = None
    others_util: float | None = None
    util: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    power_w: float | None = None
    id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes in both directions in a calendar month ("2026-11") of the zone that is decided by."""

    month: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Readings:
    """What the sensors say; None: not known. `zone`: what the clocks on the wall here go by. `input_s`: Unix time of the latest
    key, click or touch. `battery`, `load` (the CPUs' use by others): 0 to 1. `gpus`: those that we train on.
    `running`: names of programs that run. `free_bytes`: of the disk that we write to."""

    zone: tzinfo = UTC
    input_s: float | None = None
    on_battery: bool | None = None
    battery: float | None = None
    metered: bool | None = None
    gpus: tuple[Gpu, ...] = ()
    load: float | None = None
    running: frozenset[str] | None = None
    free_bytes: int | None = None
    moved: Moved | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason not to train now. `until_s`: Unix time at which it ends, as things stand; None: nobody knows. `measured`,
    `limit`: the numbers behind it, where there are any. `over`: the cause is gone, and has to stay away until then."""

    reason: Reason
    until_s: float | None = None
    measured: float | None = None
    limit: float | None = None
    over: bool = False

    @property
    def sentence(self) -> str:
        """For people; without `until_s`, which depends on the reader's clock."""
        return _cause(self) + (", until a moment ago: it has to stay away for a while" if self.over else "")


Memory = Mapping[Reason, float]
"""For each reason that holds and comes and goes: since when its cause is gone, Unix time; infinity: it was there at the last look."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`holds`: all reasons not to train, none is in the way of another; empty: train. `changes_s`: when that will be others,
    should the readings stay as they are. `memory`: for the next decision."""

    holds: tuple[Hold, ...] = ()
    changes_s: float | None = None
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner allows. The defaults allow everything; shares are from 0 to 1, and 0 means no such limit.

    `when_user_active` (also pause-gpu: only where we train on one), `on_battery`, `metered`, `other_gpu_process`: run, or pause.
    `idle_after_s`: without input for so long, nobody is there. `other_gpu_util`: share of a GPU that others may use; 0: any
    program of theirs that computes on it counts. `max_temperature_c`: hold from there, until it is down to `resume_temperature_c`.
    `yield_to`: programs that we make way for. `resume_delay_s`: longer makes for fewer starts, each of which costs loading the
    model; shorter comes back sooner.
    """

    hours: tuple[Window, ...] = ()
    when_user_active: str = "run"
    idle_after_s: float = 180.0
    on_battery: str = "run"
    battery_min: float = 0.0
    metered: str = "run"
    other_gpu_process: str = "run"
    other_gpu_util: float = 0.0
    max_temperature_c: float = 0.0
    resume_temperature_c: float = 0.0
    max_load: float = 0.0
    yield_to: frozenset[str] = frozenset()
    min_free_bytes: int = 0
    transfer_cap_bytes: int = 0
    resume_delay_s: float = 120.0

    def decide(self, now_s: float, readings: Readings, memory: Memory) -> Verdict:
        """The same for the same parameters. `now_s`: Unix time; set back, it makes nothing wait longer than `resume_delay_s`."""
        found = {hold.reason: (hold, gone_s) for hold, gone_s in self._found(now_s, readings, memory)}
        holds: list[Hold] = []
        kept: dict[Reason, float] = {}
        for reason in Reason:
            hold, gone_s = found.get(reason, (None, min(memory.get(reason, -math.inf), now_s)))
            if hold is None and now_s < gone_s + self.resume_delay_s:
                hold = Hold(reason, gone_s + self.resume_delay_s, over=True)
            if hold is not None:
                holds.append(hold)
                kept |= {} if reason in LASTING else {reason: gone_s}
        changes = [hold.until_s for hold in holds] + [changes_at(self.hours, now_s, readings.zone)]
        return Verdict(tuple(holds), min((change for change in changes if change is not None), default=None), kept)

    def _found(self, now_s: float, readings: Readings, memory: Memory) -> Iterator[tuple[Hold, float]]:
        """What holds by the readings alone, and since when its cause is gone, as in Memory."""
        if self.hours and not inside(self.hours, now_s, readings.zone):
            yield Hold(Reason.SCHEDULE, changes_at(self.hours, now_s, readings.zone)), math.inf
        if (moved := readings.moved) and 0 < self.transfer_cap_bytes <= moved.bytes and moved.month == month_of(now_s, readings.zone):
            yield Hold(Reason.TRANSFER_CAP, _month_ends(now_s, readings.zone), moved.bytes, self.transfer_cap_bytes), math.inf
        here = self.when_user_active == "pause" or (self.when_user_active == "pause-gpu" and readings.gpus)
        if here and readings.input_s is not None and now_s < (at_s := min(readings.input_s, now_s)) + self.idle_after_s:
            yield Hold(Reason.USER_ACTIVE, at_s + max(self.idle_after_s, self.resume_delay_s)), at_s
        for hold in (*self._of_machine(readings), *self._of_gpus(readings.gpus, Reason.GPU_TEMPERATURE in memory)):
            yield hold, math.inf

    def _of_machine(self, readings: Readings) -> Iterator[Hold]:
        if readings.running and readings.running & self.yield_to:
            yield Hold(Reason.EXCLUSIVE_APP)
        if readings.load is not None and 0 < self.max_load < readings.load:
            yield Hold(Reason.CPU_LOAD, measured=readings.load, limit=self.max_load)
        if readings.on_battery and self.on_battery == "pause":
            yield Hold(Reason.BATTERY, measured=readings.battery)
        elif readings.on_battery and readings.battery is not None and readings.battery < self.battery_min:
            yield Hold(Reason.BATTERY, measured=readings.battery, limit=self.battery_min)
        if readings.metered and self.metered == "pause":
            yield Hold(Reason.METERED)
        if readings.free_bytes is not None and readings.free_bytes < self.min_free_bytes:
            yield Hold(Reason.DISK_LOW, measured=readings.free_bytes, limit=self.min_free_bytes)

    def _of_gpus(self, gpus: tuple[Gpu, ...], hot: bool) -> Iterator[Hold]:
        """`hot`: they were."""
        warmest = max((gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None), default=None)
        if warmest is not None and self.max_temperature_c and (
            warmest >= self.max_temperature_c or (hot and warmest > self.resume_temperature_c)
        ):  # fmt: skip
            yield Hold(Reason.GPU_TEMPERATURE, measured=warmest, limit=self.resume_temperature_c)
        if self.other_gpu_process == "run":
            return
        used = max((gpu.others_util for gpu in gpus if gpu.others_util is not None), default=None)
        if self.other_gpu_util and used is not None and used > self.other_gpu_util:
            yield Hold(Reason.OTHER_GPU_PROCESS, measured=used, limit=self.other_gpu_util)
        elif not self.other_gpu_util and any(gpu.others for gpu in gpus):
            yield Hold(Reason.OTHER_GPU_PROCESS, measured=used)


def month_of(now_s: float, zone: tzinfo) -> str:
    return f"{datetime.fromtimestamp(now_s, zone):%Y-%m}"


def _month_ends(now_s: float, zone: tzinfo) -> float:
    now = datetime.fromtimestamp(now_s, zone)
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=zone).timestamp()


def _cause(hold: Hold) -> str:
    measured, limit = hold.measured, hold.limit
    match hold.reason:
        case Reason.USER:
            return "the operator asked for it (`tapestry resume` ends that)"
        case Reason.SCHEDULE:
            return "schedule.hours says so"
        case Reason.USER_ACTIVE:
            return "somebody is at this machine"
        case Reason.EXCLUSIVE_APP:
            return "a program of schedule.yield_to runs"
        case Reason.OTHER_GPU_PROCESS:
            share = "" if measured is None else f" ({measured:.0%}" + (f", above schedule.other_gpu_util of {limit:.0%})" if limit else ")")
            return "another program computes on the GPU" + share
        case Reason.CPU_LOAD:
            return "other programs use the CPUs" + ("" if limit is None else f" ({measured:.0%}, above cpu.max_load of {limit:.0%})")
        case Reason.BATTERY:
            charge = "" if measured is None else f" at {measured:.0%}"
            return f"this machine is on battery{charge}" + (f", below schedule.battery_min of {limit:.0%}" if limit else "")
        case Reason.METERED:
            return "the network is metered (network.metered)"
        case Reason.GPU_TEMPERATURE:
            return "the GPU is hot" + ("" if limit is None else f": {measured:.0f} °C, and goes on at {limit:.0f} °C")
        case Reason.DISK_LOW:
            free = "" if measured is None or limit is None else f": {measured / 2**30:.1f} of {limit / 2**30:.1f} GiB free"
            return f"less free disk than storage.min_free{free}"
        case Reason.TRANSFER_CAP:
            moved = "" if measured is None or limit is None else f": {measured / 2**30:.1f} of {limit / 2**30:.1f} GiB this month"
            return f"network.transfer_cap is used up{moved}"
