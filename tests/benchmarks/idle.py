"""What a daemon costs that has nothing to train: memory, processor, wake-ups and bytes, process by process, among eight peers.

`python -m tests.benchmarks.idle [--peers 8] [--windows 5] [--seconds 60]` as root; prints a table, asserts nothing. Each node is a real
daemon in a network namespace of its own. The one that is measured has both sides and is in the mode never; the others are bootstrap
nodes. Memory is PSS: what several processes share is shared out. A wake-up is a thread that is put on a processor after it had waited.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tapestryd.errors import LocalFault
from tests.chaos.namespaces import Lan
from tests.living import Peer, found

LAN = 78
SETTLED_S = 90.0
MIB = 1 << 20
HOUR_S = 3600


@dataclass(frozen=True)
class Look:
    """Of one process so far; `pss`: bytes now."""

    name: str
    pss: int
    ticks: int
    wakes: int


def tree(pid: int) -> list[int]:
    parents = dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below = [pid]
    for one in below:
        below += [child for child, parent in parents.items() if parent == one]
    return below


def look(pid: int) -> Look:
    folder = Path(f"/proc/{pid}")
    words = (folder / "stat").read_text().rpartition(")")[2].split()
    memory = re.search(r"^Pss: +(\d+)", (folder / "smaps_rollup").read_text(), re.M)
    status = "".join((task / "status").read_text() for task in (folder / "task").iterdir())
    wakes = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)
    assert memory
    return Look(name(pid), int(memory[1]) << 10, int(words[11]) + int(words[12]), sum(map(int, wakes)))


def name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    module = words[words.index(b"-m") + 1] if b"-m" in words else os.path.basename(words[0])
    return module.decode()


def looks(peer: Peer) -> dict[int, Look]:
    assert peer.process is not None
    return {pid: look(pid) for pid in tree(peer.process.pid)}


def plug(lan: Lan, machine: int) -> tuple[int, int]:
    """Bytes that a machine has sent and received, Ethernet frames and all."""
    folder = Path(f"/sys/class/net/{lan.plug(machine)}/statistics")
    return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())


def kinds(peer: Peer) -> dict[str, tuple[int, int]]:
    moved = peer.client.ask("GET", "/v1/egress?since=0")["by_kind"]
    return {kind: (one["sent"], one["received"]) for kind, one in moved.items()}


def spread(numbers: Sequence[float], form: str) -> str:
    return f"{statistics.median(numbers):{form}} ({min(numbers):{form}}..{max(numbers):{form}})"


def measure(lan: Lan, peer: Peer, windows: int, seconds: float) -> None:
    costs: dict[int, list[tuple[float, float, float]]] = {}
    names: dict[int, str] = {}
    moved: list[tuple[float, float]] = []
    first = kinds(peer)
    for _ in range(windows):
        began, before, wire = time.monotonic(), looks(peer), plug(lan, 1)
        time.sleep(seconds)
        took, after, wired = time.monotonic() - began, looks(peer), plug(lan, 1)
        moved.append(((wired[0] - wire[0]) * HOUR_S / took / MIB, (wired[1] - wire[1]) * HOUR_S / took / MIB))
        for pid in before.keys() & after.keys():
            one, other = before[pid], after[pid]
            names[pid] = other.name
            costs.setdefault(pid, []).append(
                (other.pss / MIB, (other.ticks - one.ticks) / os.sysconf("SC_CLK_TCK") / took * 100, (other.wakes - one.wakes) / took)
            )
    print(f"{'process':28}{'PSS, MiB':>26}{'CPU, % of one':>26}{'wake-ups a second':>26}")
    rows = [(names[pid], cost) for pid, cost in costs.items() if len(cost) == windows]
    total = [tuple(sum(cost[window][at] for _, cost in rows) for at in range(3)) for window in range(windows)]
    for title, cost in [*rows, ("all", total)]:
        memory, cpu, wakes = zip(*cost, strict=True)
        print(f"{title:28}{spread(memory, '.1f'):>26}{spread(cpu, '.2f'):>26}{spread(wakes, '.1f'):>26}")
    sent, received = zip(*moved, strict=True)
    print(f"\non the wire, MiB an hour: sent {spread(sent, '.2f')}, received {spread(received, '.2f')}; of it, as it is handed over:")
    hours = windows * seconds / HOUR_S
    for kind, (sent_now, received_now) in kinds(peer).items():
        sent_then, received_then = first.get(kind, (0, 0))
        print(f"    {kind:12}{(sent_now - sent_then) / MIB / hours:10.2f}{(received_now - received_then) / MIB / hours:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=8, help="beside the one that is measured")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a window")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    with tempfile.TemporaryDirectory() as name, Lan(options.peers + 1, LAN) as lan, ExitStack() as ending:
        folder = Path(name)
        (folder / "data").mkdir()
        toml, invite = str(found(folder / "founder")), ""
        peers = []
        for machine in range(1, options.peers + 2):
            listen = f"/ip4/{lan.address(machine)}/tcp/31700"
            peer = Peer(folder / f"{machine}", [folder / "data"], listen=listen, namespace=lan.namespace(machine))
            ending.callback(peer.end)
            peers.append(peer)
        measured, *others = peers
        for peer in others:
            peer.start(invite or toml, "node.profile=bootstrap")
            peer.wait("serving", lambda s: s["state"] == "serving", 120)
            invite = invite or peer.invite()
        measured.start()
        measured.wait("idle", lambda s: s["state"] == "idle", 120)
        try:
            measured.client.ask("POST", "/v1/mode", {"mode": "never", "for_s": None})
            measured.client.ask("PUT", "/v1/run", {"target": invite})
        except LocalFault as fault:
            raise SystemExit(str(fault)) from None
        measured.wait("all peers", lambda s: s["state"] == "paused" and s["network"]["present"] == options.peers, 180)
        time.sleep(SETTLED_S)
        print(f"{options.peers} peers, nothing to train; {options.windows} windows of {options.seconds:g} s: median (least..most)\n")
        measure(lan, measured, options.windows, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
