"""Whether network.max_upload and max_download are kept, on the wire: two nodes in network namespaces, counted by the kernel.

`python -m tests.benchmarks.caps [--seconds 30]` as root; prints a table, asserts nothing. One node is the machine with the
limits, the other has none. Bodies of 1 MiB move on several streams at once; the bytes are those of the machine's plug on the
bridge, Ethernet frames and all. The first seconds, in which buffers and windows fill, are told apart: downwards each stream runs
ahead by what they hold.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tapestryd.swarm.line import Line
from tapestryd.swarm.meter import Meter
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Stream
from tests.chaos.namespaces import Lan
from tests.lineages import PEOPLE
from tests.people import verify
from tests.swarm.rooms import identity

LAN = 77
BODY = bytes(1 << 20)
FILL_S = 4.0
MIB = 1 << 20
CASES = [
    ("up", 0, 0, 4),
    ("down", 0, 0, 4),
    ("up", 256 << 10, 0, 4),
    ("up", MIB, 0, 1),
    ("up", MIB, 0, 8),
    ("up", 4 * MIB, 0, 8),
    ("down", 0, 256 << 10, 4),
    ("down", 0, MIB, 1),
    ("down", 0, MIB, 8),
    ("down", 0, 4 * MIB, 8),
    ("both", MIB, 2 * MIB, 4),
]


async def node(number: int, folder: Path, up: int, down: int) -> Node:
    address = f"/ip4/10.83.{LAN}.{number}/tcp/31700"
    line = Line(lambda: up, lambda: down)
    return await Node.start("tapestry/1/caps", identity(PEOPLE[number - 1], folder), [address], (), (), verify, meter=Meter(), line=line)


async def other(folder: Path) -> None:
    """Takes what it is given and gives what it is asked for, until it is ended."""
    here = await node(2, folder, 0, 0)

    async def take(stream: Stream) -> None:
        await stream.receive(len(BODY))
        await stream.send({})

    async def give(stream: Stream) -> None:
        await stream.receive(0)
        await stream.send({}, BODY)

    await here.serve("take", take)
    await here.serve("give", give)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def machine(folder: Path, way: str, up: int, down: int, streams: int, seconds: float) -> None:
    here = await node(1, folder, up, down)
    peer = PEOPLE[1].peer
    here.hint({peer: [f"/ip4/10.83.{LAN}.2/tcp/31700"]})
    end = time.monotonic() + seconds

    async def move(way: str) -> None:
        while time.monotonic() < end:
            if way == "up":
                await here.ask(peer, "take", {}, BODY)
            else:
                await here.ask(peer, "give", {}, body_bytes=len(BODY))

    print("ready", flush=True)
    ways = ["up", "down"] if way == "both" else [way]
    jobs = [asyncio.create_task(move(way)) for way in ways for _ in range(streams)]
    done, _ = await asyncio.wait(jobs, timeout=seconds)
    for job in done:
        job.result()  # raises what went wrong
    sent, received = here.meter.totals()
    print(f"{sent} {received}", flush=True)
    await asyncio.sleep(60)  # p2pd still sends what it has; whoever measures ends us


def spawn(lan: Lan, number: int, *words: object) -> "subprocess.Popen[str]":
    command = ["ip", "netns", "exec", lan.namespace(number), sys.executable, "-m", "tests.benchmarks.caps", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def plug() -> tuple[int, int]:
    """Bytes that machine 1 has sent and received."""
    folder = Path(f"/sys/class/net/tv{LAN}-1/statistics")
    return int((folder / "rx_bytes").read_text()), int((folder / "tx_bytes").read_text())


def measure(lan: Lan, folder: Path, way: str, up: int, down: int, streams: int, seconds: float) -> str:
    process = spawn(lan, 1, "machine", folder, way, up, down, streams, seconds)
    assert process.stdout is not None
    try:
        began, looks = time.monotonic(), [(0.0, *plug())]
        while (at := time.monotonic() - began) < seconds:
            time.sleep(0.25)
            looks.append((at, *plug()))
        sent, received = map(int, process.stdout.readline().split())
    finally:
        process.kill()
        process.wait()
    cells = []
    for column, cap, handed in ((1, up, sent), (2, down, received)):
        wire = looks[-1][column] - looks[0][column]
        settled = [look for look in looks if look[0] >= FILL_S]
        steady = (settled[-1][column] - settled[0][column]) / (settled[-1][0] - settled[0][0])
        seconds_of = [
            (later[column] - look[column]) / (later[0] - look[0])
            for look, later in zip(settled, settled[4:], strict=False)
        ]  # fmt: skip
        spread = f"{min(seconds_of) / MIB:.2f}..{max(seconds_of) / MIB:.2f}"
        first = settled[0][column] - looks[0][column]
        cells.append(f"{cap / MIB:7.2f} {steady / MIB:9.3f} {spread:>13} {first / MIB:8.2f} {wire / max(handed, 1):8.4f}")
    return f"{way:5}{streams:8}   " + "   ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    head = f"{'cap':>7} {'MiB/s':>9} {'in any second':>13} {'at first':>8} {'per byte':>8}"
    with tempfile.TemporaryDirectory() as name, Lan(2, LAN) as lan:
        for number in (1, 2):  # frames as on a real line, not the kernel's large ones
            subprocess.run(["ip", "-n", lan.namespace(number), "link", "set", "eth0", "gso_max_segs", "1"], check=True)
        there = spawn(lan, 2, "other", name)
        try:
            print(f"each row {options.seconds:g} s; MiB/s behind the first {FILL_S:g} s; at first: MiB in those; per byte: on the wire")
            print(f"{'':16}{'up':^48}   {'down':^48}\n{'way':5}{'streams':>8}   {head}   {head}")
            for case in CASES:
                print(measure(lan, Path(name), *case, options.seconds), flush=True)
        finally:
            there.kill()
            there.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["other", folder]:
            uvloop.run(other(Path(folder)))
        case ["machine", folder, way, *numbers]:
            up, down, streams = map(int, numbers[:3])
            uvloop.run(machine(Path(folder), way, up, down, streams, float(numbers[3])))
        case _:
            os.nice(5)
            main()
