"""The daemon's end of the trainer channel, alone in a process, with whoever is at the other end: `python -m tests.fuzz.reader SOCKET S`.

Opens one channel after another and believes what comes, as the daemon does. Prints what it has seen of itself: how late the loop
was at worst, descriptors, memory.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import uvloop

from protocols.trainer import Delta, Report, Stop, Train
from tapestryd.host.trainer import Trainer, Work
from tests.training.tiny import rules


def resident_bytes(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def read(where: Path, seconds: float) -> dict[str, float]:
    made = rules()
    work = Work(made.layout(), made.canonical(), b"")
    seen = {"channels": 0, "reports": 0, "late_s": 0.0}
    over = asyncio.get_running_loop().time() + seconds
    descriptors = memory = 0

    async def punctual() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            seen["late_s"] = max(seen["late_s"], time.monotonic() - began - 0.02)

    watching = asyncio.create_task(punctual())
    trainer: Trainer
    ended = asyncio.Event()

    def heard(report: Report) -> None:
        seen["reports"] += 1
        if isinstance(report, Delta):
            trainer.delta.copy()

    while asyncio.get_running_loop().time() < over:
        ended.clear()
        trainer = Trainer.start(work, where, on_report=heard, on_exit=lambda status: ended.set())
        for order in (Train(1, 1), Stop(1, 0)):
            trainer.send(order)
        try:
            await asyncio.wait_for(ended.wait(), 30)
        finally:
            trainer.close()
        seen["channels"] += 1
        descriptors, memory = descriptors or len(os.listdir("/proc/self/fd")), memory or resident_bytes()
    watching.cancel()
    return seen | {"descriptors": len(os.listdir("/proc/self/fd")) - descriptors, "grown_bytes": resident_bytes() - memory}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(read(Path(sys.argv[1]), float(sys.argv[2])))))
