"""What a round takes, stage by stage, and what agreeing costs beside the vectors: real nodes, a process each, on one machine.

`python -m tests.benchmarks.rounds [--peers 8] [--elements 10000000] [--bits 8] [--rounds 12]` prints tables, asserts nothing.
Everything from a delta to a committed base is production code and the wire is libp2p; there is no trainer and no DHT traffic.
All processes share the machine's cores: with fewer cores than peers, what is arithmetic takes so much longer.
"""

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import uvloop

from protocols.lineage import Tip
from protocols.rounds import Committed, Reduced, Rostered, Settled
from protocols.rules import Codec, RunRules
from protocols.schedule import Schedule
from tapestryd.exchange import offer_bytes, part_bytes
from tapestryd.host.store import RunStore
from tests.lineages import fresh, noise
from tests.people import Person
from tests.people import rules as plain_rules
from tests.swarm.rooms import Peer, now_ms, start

FRAGMENTS, BLOCK = 4, 256
TENSORS = 40
STAGES = ("gather", "reduce", "settle", "commit")
TRAIN_MS = 2000
"""Between two rounds: for the next delta to be made up."""


@dataclass(frozen=True)
class Told:
    """Of one peer: ms of each stage of each committed round; bytes it sent, by verb, and of them vectors."""

    times: list[dict[str, float]]
    sent: dict[str, int]
    vectors: int


def rules_of(options: argparse.Namespace, origin_ms: int) -> RunRules:
    made = plain_rules(FRAGMENTS, aggregation="clipped")
    side = round((options.elements / TENSORS) ** 0.5)
    tensors = tuple(f"layer{i}.weight {side}x{side}" for i in range(TENSORS))
    return replace(
        made, model=replace(made.model, tensors=tensors), codec=Codec(options.bits, options.bits, BLOCK),
        schedule=Schedule(origin_ms, TRAIN_MS, options.average_ms),
    )  # fmt: skip


async def live(number: int, folder: Path, options: argparse.Namespace, parent: Connection) -> None:
    person = Person(f"peer{number}")
    torch.set_num_threads(1)
    node = await start(person, folder, "tapestry/1/benchmark")
    try:
        made, base = fresh(rules_of(options, 0))
        parent.send((node.peer_id, await node.addresses()))
        homes, origin_ms = await asyncio.to_thread(parent.recv)
        made = replace(made, schedule=Schedule(origin_ms, TRAIN_MS, options.average_ms))
        others = [peer for peer in homes if peer != node.peer_id]
        node.hint({peer: homes[peer] for peer in others})
        store = RunStore(folder / person.name, made.run_id)
        store.keep_rules(made, b"")
        peer = Peer(node, person, made, store)
        peer.keeper.base.theta.copy_(base.theta)
        peer.keeper.base.pairs, peer.keeper.base.tip = list(base.pairs), Tip(0, 0, made.model.genesis)
        await peer.serve()
        times, vectors = [], 0
        for round in range(options.rounds):
            delta = noise(made.layout().size(round % FRAGMENTS), 1000 * number + round)
            await asyncio.sleep((made.schedule.boundary(round) - now_ms()) / 1000)
            found, moved = await one_round(peer, round, delta, others)
            vectors += moved
            times += [found] if len(found) == len(STAGES) else []
        parent.send(Told(times, dict(node.meter.sent), vectors))
        await asyncio.to_thread(parent.recv)  # until nobody needs us any more
    finally:
        await node.stop()


async def one_round(peer: Peer, number: int, delta: torch.Tensor, others: list[str]) -> tuple[dict[str, float], int]:
    """(ms by stage, as far as it came; bytes of vectors that we sent)."""
    averaging, times, vectors = peer.averaging, {}, 0
    averaging.begin(number, delta, peer.candidates(others), 10)
    begun = time.perf_counter()

    def over(stage: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        times[stage], begun = (now - begun) * 1000, now

    event = await averaging.run(averaging.gather(peer.rate, None), number)
    if isinstance(event, Rostered):
        over("gather")
        roster = event.roster
        event = await averaging.run(averaging.reduce(roster), number)
        slices = roster.slices(delta.numel(), BLOCK)
        for reducer, (first, last) in zip(roster.reducers, slices, strict=True):
            mine = reducer == peer.node.peer_id
            vectors += part_bytes(peer.rules, last - first) * len(others) if mine else offer_bytes(peer.rules, last - first)
    if isinstance(event, Reduced):
        over("reduce")
        event = await averaging.run(averaging.settle(), number)
    if isinstance(event, Settled):
        over("settle")
        event = await averaging.run(averaging.commit(), number)
    if isinstance(event, Committed):
        over("commit")
    averaging.drop()
    return times, vectors


def child(number: int, folder: Path, options: argparse.Namespace, parent: Connection) -> None:
    uvloop.run(live(number, folder, options, parent))


def table(told: list[Told], options: argparse.Namespace) -> str:
    lines = [
        f"{options.peers} peers, {options.elements:,} parameters in {FRAGMENTS} fragments, {options.bits} bits both ways, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {sum(len(one.times) for one in told)} of "
        f"{options.peers * options.rounds} rounds of a peer committed",
        f"{'ms':8}{'median':>8}{'quartiles':>15}{'most':>8}",
    ]
    for stage in STAGES:
        ms = sorted(times[stage] for one in told for times in one.times)
        low, middle, high = statistics.quantiles(ms, n=4)
        lines.append(f"{stage:8}{middle:8.0f}{f'{low:.0f} to {high:.0f}':>15}{ms[-1]:8.0f}")
    share = statistics.median(times["settle"] / times["reduce"] for one in told for times in one.times)
    lines.append(f"settle is {100 * share:.1f} % of reduce (median)")
    sent, vectors = Counter[str](), sum(one.vectors for one in told)
    for one in told:
        sent.update(one.sent)
    control, turns = sum(sent.values()) - vectors, options.peers * options.rounds
    lines.append(
        f"a peer sends {vectors / turns:,.0f} bytes of vectors a round and {control / turns:,.0f} of control: "
        f"{100 * control / vectors:.2f} % (reduce heads {(sent['reduce'] - vectors) / turns:,.0f}; "
        + ", ".join(f"{verb} {size / turns:,.0f}" for verb, size in sorted(sent.items()) if verb != "reduce")
        + ")"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rounds", description="What a round takes, and what agreeing costs.")
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=8, choices=(4, 8, 32))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--average-ms", type=int, default=15_000)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, children = [], []
        for number in range(options.peers):
            here, there = spawn.Pipe()
            pipes.append(here)
            children.append(spawn.Process(target=child, args=(number, Path(folder), options, there), daemon=True))
            children[-1].start()
        homes = dict(pipe.recv() for pipe in pipes)
        for pipe in pipes:
            pipe.send((homes, now_ms() + 3000))
        told = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send(None)
        for one in children:
            one.join()
    print(table(told, options))


if __name__ == "__main__":
    main()
