"""Many short histories of a swarm, each from one seed: whatever fails and whoever lies, the invariants of ledger.py hold.

`pytest tests/simulation --histories 10000` for more of them; `pytest tests/simulation --seed N` prints one again.
"""

from collections import Counter
from itertools import chain

import pytest

from tests.simulation.crowd import many
from tests.simulation.histories import heal, live
from tests.simulation.peer import Disk, Peer, Work
from tests.simulation.run import GENESIS, SCHEDULE, delegation, name_of
from tests.simulation.world import World

HISTORIES = 2000


@pytest.mark.timeout(0)
def test_histories(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed", None)
    if seed is not None:
        outcome = live(seed, telling=True)
        print("\n".join(outcome.told))
        assert not outcome.faults
        return
    number = request.config.getoption("--histories", None) or HISTORIES
    total: Counter[str] = Counter()
    broken = []
    for outcome in many(range(number)):
        total += outcome.counts
        broken += [f"--seed {outcome.seed}: {fault.invariant}: {fault.what}" for fault in outcome.faults[:3]]
    print(f"{number} histories: {dict(total)}")
    assert not broken, "\n".join(broken[:20])
    assert total["crashes"] > number / 2  # the faults did happen, and did not keep everybody from everything
    assert total["commits"] > 10 * number
    assert total["liars"] > number / 3
    assert total["forks"] < number / 5


def test_a_seed_is_a_history() -> None:
    one, two = live(7, telling=True), live(7, telling=True)
    assert one.told == two.told
    assert one.told != live(8, telling=True).told


def test_a_commit_that_one_alone_has_seen_may_be_overtaken() -> None:
    """The bound that settling.md tells of, where nobody lies. Of five Members one is off; the votes of the four others, which are just
    enough, reach one of them only, who reaches nobody. The others, with the one that is back, commit the next round on the same base."""

    class Unheard(Peer):
        def vote(self, work: Work) -> None:
            if work.number == 2:
                self.cut = set(self.world.peers)
            super().vote(work)

    world = World(1)
    world.rules.members = tuple(map(name_of, range(200, 205)))
    for number, member in enumerate(world.rules.members):
        peer = (Peer if number else Unheard)(world, name_of(number), f"p{number}", Disk(GENESIS))
        peer.delegation = delegation(member, peer.name, 1)
        world.owners[peer.name] = member
        world.peers[peer.name] = peer
        world.at(0, peer.boot)
    one, *_, off = world.peers.values()
    healed_ms = SCHEDULE.deadline(3) + 1000
    world.at(SCHEDULE.start(1), off.crash)
    world.at(SCHEDULE.start(3) - 2000, off.boot)
    world.at(healed_ms, heal, world)
    world.run(SCHEDULE.deadline(3))
    two = [peer.disk.entries[-1].vote for peer in (one, off)]
    assert [vote.round for vote in two] == [2, 3]
    assert two[0].before == two[1].before
    world.run(healed_ms + 5 * SCHEDULE.period_ms)
    world.ledger.judge(world, healed_ms)
    assert not world.ledger.faults
    assert len({peer.tip for peer in world.peers.values()}) == 1


def test_processes_change_nothing() -> None:
    told = {outcome.seed: outcome.counts for outcome in many(range(6))}
    assert told == {seed: live(seed).counts for seed in range(6)}
    assert list(chain(told)) == list(range(6))
