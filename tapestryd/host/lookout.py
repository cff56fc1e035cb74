"""The data side's policy at work: looks at this machine every few seconds, and says what holds training, in packets of trainer.md.

Owned by the steward, and by nobody who computes: it stays while trainers come and go. Decides nothing itself (host/policy.py does).
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from protocols.trainer import GPUS, UNKNOWN, Around, Gpu, Hold, Holding, Holds, Sight
from tapestryd.config import TrainerConfig
from tapestryd.host import policy
from tapestryd.host.hours import Window
from tapestryd.host.policy import Policy
from tapestryd.host.sensors.machine import Machine, Ours
from tapestryd.host.sensors.programs import known_as


def policy_of(config: TrainerConfig) -> Policy:
    """What the owner allows; `config` is checked already."""
    schedule, gpu, cpu = config.schedule, config.gpu, config.cpu
    return Policy(
        hours=tuple(map(Window.parse, schedule.hours)),
        when_user_active=schedule.when_user_active,
        idle_after_s=schedule.idle_after_s,
        on_battery=schedule.on_battery,
        battery_min=schedule.battery_min_share,
        other_gpu_process=schedule.other_gpu_process,
        other_gpu_util=schedule.other_gpu_util_share,
        max_temperature_c=gpu.max_temperature,
        resume_temperature_c=gpu.resume_temperature,
        max_load=cpu.max_load_share,
        yield_to=frozenset(map(known_as, schedule.yield_to)),
        resume_delay_s=schedule.resume_delay_s,
    )


class Lookout:
    """`environ`: of the trainers, which says which GPUs they see. `root`: of the file system that is looked at."""

    def __init__(self, config: TrainerConfig, environ: Mapping[str, str], root: Path = Path("/")) -> None:
        self._policy = policy_of(config)
        self._machine = Machine(root, self._policy, config.compute.device, environ)
        self._memory: policy.Memory = {}
        self._around = Around(0, 0)
        self._said: set[Sight] = set()

    def heard(self, around: Around) -> None:
        self._around = around

    def forget(self) -> None:
        """Whoever watches now has heard nothing yet."""
        self._said = set()

    def look(self, now_s: float, clock_s: float, pids: Collection[int], *, training: bool) -> list[Sight]:
        """What is new, in the order in which it is to be said. `now_s`: Unix time; `clock_s`: of a clock that is never set; `pids`: our
        processes here."""
        ours = Ours(pids, self._around.cpu_ms / 1000, training)
        readings = self._machine.read(now_s, clock_s, ours, self._around.input_ms / 1000 or None)
        verdict = self._policy.decide(now_s, readings, self._memory)
        self._memory = verdict.memory
        holds = [_packed(hold) for hold in verdict.holds]
        held: list[Sight] = [*holds, Holds(sum(1 << hold.holding for hold in holds), _ms(verdict.changes_s))]
        gpus = [_seen(index, gpu, readings.gpus) for index, gpu in enumerate(readings.gpus[:GPUS])]
        said, self._said = self._said, {*held, *gpus}
        return [*(held if not said.issuperset(held) else ()), *(gpu for gpu in gpus if gpu not in said)]


def _packed(hold: policy.Hold) -> Hold:
    measured, limit = (UNKNOWN if number is None else float(number) for number in (hold.measured, hold.limit))
    return Hold(Holding[hold.reason.name], hold.over, _ms(hold.until_s), measured, limit)


def opened(hold: Hold) -> policy.Hold:
    """What `_packed` packed."""
    measured, limit = (None if number == UNKNOWN else number for number in (hold.measured, hold.limit))
    return policy.Hold(policy.Reason[Holding(hold.holding).name], hold.until_ms / 1000 or None, measured, limit, hold.over)


def _ms(moment_s: float | None) -> int:
    return 0 if moment_s is None else round(moment_s * 1000)


def _seen(index: int, gpu: policy.Gpu, gpus: Collection[policy.Gpu]) -> Gpu:
    def known(number: float | None) -> float:
        return UNKNOWN if number is None else float(number)

    return Gpu(
        index, min(len(gpus), GPUS), known(gpu.temperature_c), known(gpu.util), known(gpu.power_w),
        gpu.memory_used_bytes or 0, gpu.memory_bytes or 0, -1 if gpu.others is None else gpu.others, known(gpu.others_util),
    )  # fmt: skip
