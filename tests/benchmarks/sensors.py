"""What the sensors cost: CPU time of a look, and of an hour of looks, on this machine. `python -m tests.benchmarks.sensors`"""

import os
import statistics
import time
from pathlib import Path

from tapestryd.host.hours import Window
from tapestryd.host.policy import Policy
from tapestryd.host.sensors.machine import LOOK_S, Machine, Ours

LOOKS = 100
POLICIES = {
    "nothing asked for": Policy(),
    "battery": Policy(on_battery="pause"),
    "load of others": Policy(max_load=0.5),
    "names of programs": Policy(yield_to=frozenset({"blender"})),
    "all, and hours": Policy(
        on_battery="pause", max_load=0.5, yield_to=frozenset({"blender"}), hours=(Window.parse("mon-fri 18:00-08:00"),)
    ),
}


def main() -> None:
    running = sum(name.isdigit() for name in os.listdir("/proc"))
    print(f"{running} processes; a look every {LOOK_S:g} s; no GPU asked\n")
    print(f"{'':20}{'sensors':>12}{'+ policy':>12}{'spread':>10}{'an hour':>12}{'of a CPU':>10}")
    for name, policy in POLICIES.items():
        machine = Machine(Path("/"), policy)
        sensed, decided = list[float](), list[float]()
        for _ in range(LOOKS):
            began = time.process_time()
            readings = machine.read(time.time(), time.monotonic(), Ours([os.getpid()]), None)
            sensed.append(time.process_time() - began)
            policy.decide(time.time(), readings, {})
            decided.append(time.process_time() - began)
        middle, quarters = statistics.median(decided), statistics.quantiles(decided)
        hour_s = middle * 3600 / LOOK_S
        print(
            f"{name:20}{statistics.median(sensed) * 1e3:9.3f} ms{middle * 1e3:9.3f} ms{(quarters[2] - quarters[0]) * 1e3:7.3f} ms"
            f"{hour_s:10.2f} s{hour_s / 3600:10.3%}"
        )


if __name__ == "__main__":
    main()
