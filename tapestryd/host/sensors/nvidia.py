"""NVIDIA's GPUs, by NVML: the driver's own library, and nvidia-ml-py, its binding, if it is installed.

Asked of a process that does not compute: a driver in trouble may take down whoever asks it. As long as NVML is open, a laptop's
GPU stays powered; `close` lets it go.
"""

from collections.abc import Callable, Collection
from typing import Any

from tapestryd.host.policy import Gpu

_SAMPLES_S = 10.0
"""NVML keeps some seconds of who used how much."""


class Nvidia:
    def __init__(self) -> None:
        self._nvml: Any = None

    def read(self, now_s: float, ours: Collection[int]) -> tuple[Gpu, ...]:
        """All GPUs that the driver knows, by UUID; empty without library, driver or GPU. `now_s`: Unix time; `ours`: our own
        processes, as this host numbers them."""
        if self._nvml is None and not self._open():
            return ()
        nvml = self._nvml
        count = self._ask(nvml.nvmlDeviceGetCount) or 0
        handles = [self._ask(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return tuple(self._gpu(handle, now_s, ours) for handle in handles if handle is not None)

    def close(self) -> None:
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)
            self._nvml = None

    def _open(self) -> bool:
        try:
            import pynvml
        except ImportError:
            return False
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return False
        self._nvml = pynvml
        return True

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """None where the driver or the card has no answer: too old, not for us, or lost."""
        try:
            return question(*about)
        except self._nvml.NVMLError:
            return None

    def _gpu(self, handle: Any, now_s: float, ours: Collection[int]) -> Gpu:
        nvml, ask = self._nvml, self._ask
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        processes = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        users = None if processes is None else {process.pid for process in processes}
        util = None if rates is None else rates.gpu / 100
        return Gpu(
            id=ask(nvml.nvmlDeviceGetUUID, handle) or "",
            name=ask(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
            temperature_c=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            util=util,
            memory_used_bytes=None if memory is None else memory.used,
            memory_bytes=None if memory is None else memory.total,
            power_w=None if power_mw is None else power_mw / 1000,
            others=None if users is None else len(users - set(ours)),
            others_util=self._used_by_others(handle, now_s, ours, users, util),
        )

    def _used_by_others(
        self, handle: Any, now_s: float, ours: Collection[int], users: set[int] | None, util: float | None
    ) -> float | None:  # fmt: skip
        """From the driver's samples of each process; where it has none to give, all of it, if we are not on it ourselves."""
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, int((now_s - _SAMPLES_S) * 1e6))
        except self._nvml.NVMLError_NotFound:  # nobody used it
            return 0.0
        except self._nvml.NVMLError:
            return None if users is None or users & set(ours) else util
        latest = {sample.pid: sample.smUtil for sample in sorted(samples, key=lambda sample: sample.timeStamp)}
        used: int = sum(percent for pid, percent in latest.items() if pid not in ours)
        return min(1.0, used / 100)
