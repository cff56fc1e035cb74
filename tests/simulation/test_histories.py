"""Many short histories of a swarm, each from one seed: whatever fails, these hold.

A failure prints the seed and the last lines of what happened; `SEED=… pytest tests/simulation` lives through that one again.
"""

import os
from collections import Counter, defaultdict

from protocols.rounds import State
from tests.simulation.world import GENESIS, World

HISTORIES = 300
FAULTS_MS = 72_000
"""Twelve rounds with faults, then as many without: after those, everybody is together again."""


def judge(world: World) -> Counter[str]:
    faulty_until = FAULTS_MS
    world.run(faulty_until)
    world.faults = False
    before = max(node.log[-1].weight for node in world.nodes.values())
    world.run(2 * faulty_until)
    for node in world.nodes.values():  # an operator's pause without an end is no fault of the swarm's
        assert node.up
        assert node.member.state not in (State.LEFT, State.PAUSED), node.member.state

    # Progress after faults stop, and one lineage: those in the middle of a commit are at most one entry apart.
    tips = [node.log for node in world.nodes.values()]
    longest = max(tips, key=len)
    assert all(longest[: len(log)] == log and len(longest) - len(log) <= 1 for log in tips), [log[-1].height for log in tips]
    assert longest[-1].weight > before, "nothing was committed after the faults"

    # Heights follow one another, and one base is at one height with one weight.
    height_of: dict[str, tuple[int, int]] = {GENESIS.base: (0, 0)}
    for log in tips:
        for place, tip in enumerate(log):
            assert tip.height == place
            assert height_of.setdefault(tip.base, (tip.height, tip.weight)) == (tip.height, tip.weight)

    # One result a round and base, unless some who committed had not seen all who were there.
    results: dict[tuple[int, str], set[str]] = defaultdict(set)
    partial: set[tuple[int, str]] = set()
    for result in world.results:
        results[result.round, result.before].add(result.after)
        if not result.complete:
            partial.add((result.round, result.before))
    forks = {key for key, after in results.items() if len(after) > 1}
    assert forks <= partial, forks - partial
    return Counter(commits=len(world.results), forks=len(forks), crashes=sum("crashes" in line for line in world.told))


def test_histories() -> None:
    seeds = [int(os.environ["SEED"])] if "SEED" in os.environ else range(HISTORIES)
    total: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed)
        try:
            total += judge(world)
        except AssertionError as error:
            raise AssertionError(f"SEED={seed}: {error}\n" + "\n".join(world.told[-60:])) from error
    if len(seeds) > 1:  # the faults did happen, and did not keep everybody from everything
        assert total["crashes"] > HISTORIES / 2
        assert total["commits"] > 20 * HISTORIES


def test_a_seed_is_a_history() -> None:
    one, two = World(7), World(7)
    for world in (one, two):
        world.run(FAULTS_MS)
    assert one.told == two.told
    assert one.results == two.results
    assert one.told != World(8).told
