"""Whatever rule is dropped or weakened, some history shows it: the proof that the histories prove something.

`pytest tests/simulation -m slow -s` prints the whole table: mutation, histories until it is caught, by which invariant.
"""

from collections.abc import Callable, Sequence
from multiprocessing import get_context

import pytest

from tests.simulation import mutations
from tests.simulation.crowd import CORES
from tests.simulation.histories import live
from tests.simulation.run import frugal

Caught = tuple[str, int, str]


def hunt(what: tuple[str, int]) -> Caught:
    """(mutation, how many histories it took, which invariant broke); in a process of its own, which nobody uses again."""
    name, most = what
    getattr(mutations, name)()
    for seed in range(most):
        try:
            outcome = live(seed)
        except Exception as error:
            return name, seed + 1, f"raises {type(error).__name__}"
        if outcome.faults:
            return name, seed + 1, outcome.faults[0].invariant
    return name, most, ""


def table(which: Sequence[Callable[[], None]], most: int) -> list[Caught]:
    found = []
    with get_context("spawn").Pool(CORES, initializer=frugal, maxtasksperchild=1) as pool:
        for name, number, invariant in pool.imap_unordered(hunt, [(mutation.__name__, most) for mutation in which], chunksize=1):
            print(f"{name:28} {number:5}  {invariant or 'NOT CAUGHT'}")
            found.append((name, number, invariant))
    return found


def test_rules_that_everybody_would_miss() -> None:
    assert [name for name, _, invariant in table(mutations.QUICK, 200) if not invariant] == []


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_every_mutation_is_caught() -> None:
    assert [name for name, _, invariant in table(mutations.ALL, 2000) if not invariant] == []
