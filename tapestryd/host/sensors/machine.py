"""What the data side can see of this machine, for its policy: each sensor as often as it is worth, and none that no rule asks for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tapestryd.host.policy import Gpu, Policy, Readings
from tapestryd.host.sensors import amd, power, programs, wall
from tapestryd.host.sensors.load import Load, cpu_s
from tapestryd.host.sensors.nvidia import Nvidia

LOOK_S = 5.0
IDLE_LOOK_S = 60.0
"""Between two looks at the GPUs while we do not train: a laptop's GPU can be powered down in between."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What is not others': our processes, and the CPU seconds that those of ours elsewhere have used in all. `training`: whether
    we use the GPUs now."""

    pids: Collection[int]
    elsewhere_s: float = 0.0
    training: bool = False


class Machine:
    """`device`: compute.device of trainer.toml; `environ`: of the trainers."""

    def __init__(self, root: Path, policy: Policy, device: str = "auto", environ: Mapping[str, str] | None = None) -> None:
        self._root = root
        self._policy = policy
        self._device, self._environ = device, environ or {}
        self._load = Load(root)
        self._nvidia = Nvidia()
        self._gpus: tuple[Gpu, ...] = ()
        self._looked_s: float | None = None

    def read(self, now_s: float, clock_s: float, ours: Ours, input_s: float | None) -> Readings:
        """`now_s`: Unix time; `clock_s`: of a clock that is never set; `input_s`: as in Readings, which we cannot see ourselves."""
        policy, root = self._policy, self._root
        battery = power.read(root) if policy.on_battery == "pause" or policy.battery_min else power.Power(None, None)
        load = self._load.read(clock_s, cpu_s(root, ours.pids) + ours.elsewhere_s) if policy.max_load else None
        return Readings(
            zone=wall.zone(root),
            input_s=input_s,
            on_battery=battery.on_battery,
            battery=battery.battery,
            gpus=self._look(now_s, clock_s, ours),
            load=load,
            running=programs.running(root) if policy.yield_to else None,
        )

    def _look(self, now_s: float, clock_s: float, ours: Ours) -> tuple[Gpu, ...]:
        if self._device in ("cpu", "mps"):
            return ()
        if ours.training or self._looked_s is None or clock_s - self._looked_s >= IDLE_LOOK_S:
            nvidia = lent(self._nvidia.read(now_s, ours.pids), self._device, self._environ)
            self._gpus = nvidia or amd.read(self._root, ours.pids)
            self._looked_s = clock_s
            if not ours.training:
                self._nvidia.close()
        return self._gpus


def lent(gpus: Sequence[Gpu], device: str, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The one of NVIDIA's GPUs that `device` means, as the environment numbers them; all, where that cannot be known: CUDA numbers them by
    speed, NVML by place, and they agree only by CUDA_VISIBLE_DEVICES with UUIDs, or with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(len(gpus))] if visible is None else [name for name in visible.split(",") if name]
    by_uuid = all(name.startswith("GPU-") for name in names)
    if len(gpus) > 1 and not by_uuid and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return tuple(gpus)
    number = int(device.partition(":")[2] or 0)
    if number >= len(names):
        return ()
    name = names[number]
    return tuple(gpu for index, gpu in enumerate(gpus) if (gpu.id.startswith(name) if name.startswith("GPU-") else name == str(index)))
