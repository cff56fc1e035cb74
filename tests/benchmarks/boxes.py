"""What a box costs: local steps of real trainers, one in a box and one without, in turn; and its start. Prints, asserts nothing.

    python -m tests.benchmarks.boxes [pairs]

The machine may be busy: so many short pairs in changing order, and per step the processor's time as well as the clock's.
"""

import asyncio
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from protocols.trainer import ALL_FRAGMENTS, Base, Beat, Ready, Report, Rest, Train
from tapestryd.config import DaemonConfig, TrainerChoice
from tapestryd.config import Node as NodeConfig
from tapestryd.host.box import Box
from tapestryd.host.output import Output
from tapestryd.host.trainer import Trainer, Work
from tapestryd.layers import files_at, load_trainer
from tapestryd.warden import data_box, start
from tests.host.home import Home, stewarded
from tests.training.tiny import genesis

_WINDOW_S = 3.0
_STARTS = 40


def box_of(home: Home, folder: Path) -> Box:
    config = DaemonConfig(node=NodeConfig(state_dir=folder / "state"), trainer=TrainerChoice(config=home.config))
    home.checkpoints.mkdir(exist_ok=True)
    return data_box(config, load_trainer(files_at(home.config), {}, {}).config)


class Side:
    """A trainer at work in windows of time."""

    def __init__(self, home: Home, steward: int) -> None:
        self._steward = steward
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        work = Work(home.layout, home.rules.canonical(), home.tokenizer)
        self._trainer = Trainer.start(work, home.socket, on_report=self._reports.put_nowait, on_exit=lambda status: None)

    async def ready(self) -> "Side":
        while not isinstance(await self._reports.get(), Ready):
            pass
        self._trainer.params[:] = genesis().numpy()
        self._trainer.send(Base(0, ALL_FRAGMENTS, True))
        return self

    async def window(self) -> tuple[float, float]:
        """Seconds a step: by the clock, and of the processor's."""
        self._trainer.send(Train(0, 0))
        first = await self._beat()
        began, used = time.perf_counter(), self._used_s()
        while time.perf_counter() - began < _WINDOW_S:
            last = await self._beat()
        steps, took, cpu = last.steps - first.steps, time.perf_counter() - began, self._used_s() - used
        self._trainer.send(Rest())
        await asyncio.sleep(0.2)  # what it is in the middle of
        while not self._reports.empty():
            self._reports.get_nowait()
        return took / steps, cpu / steps

    async def stop(self) -> None:
        await self._trainer.stop(20)

    async def _beat(self) -> Beat:
        while not isinstance(report := await self._reports.get(), Beat):
            pass
        return report

    def _used_s(self) -> float:
        trainer = Path(f"/proc/{self._steward}/task/{self._steward}/children").read_text().strip()
        tasks = Path(f"/proc/{trainer}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def speed(pairs: int, folder: Path) -> None:
    homes = {name: Home(folder / name) for name in ("free", "boxed")}
    with ExitStack() as held:
        sides = {}
        for name, home in homes.items():
            steward = held.enter_context(stewarded(home, box_of(home, folder) if name == "boxed" else None))
            sides[name] = await Side(home, steward).ready()
        found: list[dict[str, tuple[float, float]]] = []
        for _ in range(pairs):
            order = random.sample(list(sides), 2)
            found.append({name: await sides[name].window() for name in order})
        for side in sides.values():
            await side.stop()
    for place, what in enumerate(("clock", "processor")):
        ratios = sorted(pair["boxed"][place] / pair["free"][place] - 1 for pair in found)
        free = statistics.median(pair["free"][place] for pair in found)
        quarters = statistics.quantiles(ratios, n=4)
        print(
            f"{what:9} {1e3 * free:.2f} ms a step without; in the box {statistics.median(ratios):+.2%} "
            f"(quartiles {quarters[0]:+.2%} … {quarters[2]:+.2%}, {pairs} pairs of {_WINDOW_S:g} s)"
        )


def starting(box: Box | None) -> float:
    """Seconds until a program that does nothing has been executed in there."""
    with socket.socket() as unused:
        output = Output()
        began = time.perf_counter()
        child = start("nobody", box, ["/bin/true"], dict(os.environ), {"x": unused}, output=output, death=signal.SIGKILL)
        took = time.perf_counter() - began
        os.waitpid(child, 0)
        os.close(output.fileno())
        os.close(output.theirs)
    return took


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = box_of(Home(folder / "start"), folder)
        times = [(starting(box), starting(None)) for _ in range(_STARTS)]
        more = sorted(1e3 * (boxed - free) for boxed, free in times)
        print(f"start     {statistics.median(more):.1f} ms more than without (fastest {more[0]:.1f} ms, {_STARTS} pairs)")
        asyncio.run(speed(pairs, folder))


if __name__ == "__main__":
    main()
