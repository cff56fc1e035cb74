"""Histories side by side, a process a core: each is deterministic by itself, so the order does not matter."""

import os
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.simulation.histories import Outcome, live
from tests.simulation.run import frugal

CORES = min(8, os.cpu_count() or 1)


def many(seeds: Iterable[int]) -> Iterator[Outcome]:
    """In the order of `seeds`."""
    with get_context("spawn").Pool(CORES, initializer=frugal) as pool:
        yield from pool.imap(live, seeds, chunksize=4)
