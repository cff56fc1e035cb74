"""The table of tapestryd/ISOLATION.md: every attack, in every mode, and what it got. As root: python -m tests.isolation.table"""

import shutil
import tempfile
from pathlib import Path

from tests.isolation.attacks import DATA, NETWORK
from tests.isolation.machine import Machine
from tests.isolation.test_boxes import GUARDS, NOBODY, ROOT_ONLY, Arena, Report
from tests.isolation.test_units import attacked


def boxed(uid: int) -> Report:
    folder = Path(f"/tmp/tapestry-table-{uid}")
    folder.mkdir(mode=0o755)
    try:
        return Arena(folder, uid).report()
    finally:
        shutil.rmtree(folder)


def units() -> Report:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        machine.start()
        try:
            return attacked(machine)
        finally:
            machine.stop()


def main() -> None:
    modes = {"boxes, root": boxed(0), "boxes, user": boxed(NOBODY), "units": units()}
    for place, (side, attacks) in enumerate((("data", DATA), ("network", NETWORK))):
        print(f"\n| {side} side | {' | '.join(modes)} | guards of the box |\n|{'---|' * (2 + len(modes))}")
        for name in attacks:
            outcomes = [report[side][name] for report in modes.values()]
            cells = [f"**{how}**" if through else how for through, how in outcomes]
            guards = GUARDS[name][place] if name in GUARDS else ROOT_ONLY.get(name, ("the kernel",))
            print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {', '.join(sorted(guards))} |")


if __name__ == "__main__":
    main()
