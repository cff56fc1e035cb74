"""Many short histories of a swarm, each from one seed: whatever fails and whoever lies, the invariants of ledger.py hold.

`pytest tests/simulation --histories 10000` for more of them; `pytest tests/simulation --seed N` prints one again.
"""

from collections import Counter
from itertools import chain

import pytest

from tests.simulation.crowd import many
from tests.simulation.histories import live

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


def test_processes_change_nothing() -> None:
    told = {outcome.seed: outcome.counts for outcome in many(range(6))}
    assert told == {seed: live(seed).counts for seed in range(6)}
    assert list(chain(told)) == list(range(6))
