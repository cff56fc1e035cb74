"""Joiners and returners with real stores, nodes and files: lying, pruning, dying donors, and a run that does not wait."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protocols import limits
from protocols.canonical import digest
from protocols.lineage import Tip
from tapestryd.host.store import RunStore
from tapestryd.keeper import Keeper
from tapestryd.swarm.donor import Donor
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone
from tests.lineages import Line
from tests.people import verify
from tests.swarm.rooms import go, nodes
from tests.swarm.test_lineage import Shelf, fetcher
from tests.test_keeper import same

PIECE = 64 * limits.KIB
TENSORS = ("first.weight 256x160", "second.weight 160x160")
"""9 pieces a snapshot; entries of some 33 KB."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PIECE_BYTES", PIECE)


def grown(rounds: int) -> Line:
    line = Line.begin(tensors=TENSORS)
    for _ in range(rounds):
        line.grow()
    return line


class Kept(RunStore):
    """A donor's files. `read`: how often each piece was asked for; `on_read` may do something about it."""

    def __init__(self, path: Path, line: Line) -> None:
        super().__init__(path, line.rules.run_id)
        self.keep_rules(line.rules, b"")
        self.line = line
        self.read: Counter[int] = Counter()
        self.on_read: Callable[[int], None] = lambda piece: None

    def read_snapshot(self, base: str, piece: int) -> bytes | None:
        self.read[piece] += 1
        self.on_read(piece)
        return super().read_snapshot(base, piece)

    def log(self, *, since: int = 0) -> "Kept":
        for entry, parts in self.line.entries[since:]:
            self.write_entry(entry, *parts)
        return self

    def snap(self) -> "Kept":
        made, data = self.line.snapshot()
        self.write_snapshot(made, memoryview(data)[: len(data) // 2], memoryview(data)[len(data) // 2 :])
        return self


def keeper(node: Node, line: Line, folder: Path) -> Keeper:
    store = RunStore(folder, line.rules.run_id)
    store.keep_rules(line.rules, b"")
    return Keeper(line.rules, line.base.layout, store, fetcher(node, line.rules), verify, 1000, 3, lambda *_: None, lambda _: None)


def tip(line: Line) -> Tip:
    assert line.base.tip is not None
    return line.base.tip


def ids(donors: Sequence[Node]) -> list[str]:
    return [donor.peer_id for donor in donors]


def test_false_manifests_make_nobody_else_look_guilty(tmp_path: Path) -> None:
    """Two agree on a lie, and are even believed first; whoever only has the truth is blamed for nothing."""

    async def work() -> None:
        line = grown(3)
        made, data = line.snapshot()
        false = bytearray(data)
        false[PIECE + 5] ^= 1
        pieces = tuple(digest(bytes(false[at : at + PIECE])) for at in range(0, len(false), PIECE))
        async with nodes(tmp_path, 4) as (here, honest, *liars):
            faults: Counter[str] = Counter()
            count = here.refused
            here.refused = lambda refused, what, peer: (faults.update([peer]), count(refused, what, peer))[1]  # type: ignore[assignment,misc]
            for liar in liars:
                shelf = Shelf().put(line)
                shelf.kept, shelf.data = [replace(made, pieces=pieces)], {made.tip.base: bytes(false)}
                await Donor(liar, shelf).serve()
            await Donor(honest, Kept(tmp_path / "donor", line).log().snap()).serve()
            joiner = keeper(here, line, tmp_path / "joiner")
            assert await joiner.catch_up(tip(line), ids([honest, *liars])) == tip(line)
            assert same(joiner, line)
            assert set(faults) == set(ids(liars))
            assert honest.meter.sent["piece"] < 2 * PIECE  # the one piece that was false

    go(work)


def test_a_joiner_slower_than_the_rounds_still_arrives(tmp_path: Path) -> None:
    """With each piece that it takes the log has grown by one; newer snapshots are written, and old ones pruned."""

    async def work() -> None:
        line = grown(2)
        began = tip(line)
        store = Kept(tmp_path / "donor", line).log().snap()

        def round(_: int) -> None:
            line.grow()
            store.log(since=len(line.entries) - 1)
            if tip(line).height % 2 == 0:
                store.snap()
                store.prune_snapshots(1)

        store.on_read = round
        async with nodes(tmp_path, 2) as (here, there):
            await Donor(there, store, lambda: 512 * limits.KIB).serve()
            joiner = keeper(here, line, tmp_path / "joiner")
            assert await joiner.catch_up(began, ids([there])) == began
            assert tip(line).height == began.height + 9
            assert sum(store.read.values()) == 9  # it was kept for as long as it was fetched
            assert await joiner.catch_up(tip(line), ids([there])) == tip(line)
            assert same(joiner, line)
            assert sum(store.read.values()) == 9

    go(work)


def drops(store: Kept, after: int) -> None:
    """The donor has no longer any snapshot once so many pieces were asked for: a disk was cleaned by hand, say."""

    def look(_: int) -> None:
        if sum(store.read.values()) == after:
            for snapshot in store.snapshots():
                store.set_snapshot_aside(snapshot, "gone")

    store.on_read = look


def test_a_snapshot_that_goes_is_fetched_from_who_keeps_it(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(2)
        stores = [Kept(tmp_path / name, line).log().snap() for name in ("one", "two")]
        drops(stores[0], 2)
        async with nodes(tmp_path, 3) as (here, *there):
            for node, store in zip(there, stores, strict=True):
                await Donor(node, store).serve()
            joiner = keeper(here, line, tmp_path / "joiner")
            assert await joiner.catch_up(tip(line), ids(there)) == tip(line)
            assert same(joiner, line)
            assert not here.refusals
            assert sum(stores[1].read.values()) >= 7

    go(work)


def test_a_snapshot_that_is_gone_everywhere_is_begun_anew_with_the_next(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(2)
        store = Kept(tmp_path / "donor", line).log().snap()
        drops(store, 3)
        async with nodes(tmp_path, 2) as (here, there):
            await Donor(there, store).serve()
            joiner = keeper(here, line, tmp_path / "joiner")
            with pytest.raises(Gone):
                await joiner.catch_up(tip(line), ids([there]))
            assert joiner.store.begun()
            line.grow()
            store.log(since=2).snap()
            store.on_read = lambda piece: None
            assert await joiner.catch_up(tip(line), ids([there])) == tip(line)
            assert same(joiner, line)
            assert not joiner.store.begun()

    go(work)


@pytest.mark.parametrize("after", [1, 4, 8])
def test_a_crash_costs_only_what_was_on_its_way(tmp_path: Path, after: int) -> None:
    """Nothing is remembered but the files."""

    async def work() -> None:
        line = grown(2)
        stores = [Kept(tmp_path / name, line).log().snap() for name in ("one", "two")]
        crash = asyncio.Event()
        loop = asyncio.get_running_loop()

        def look(_: int) -> None:
            if sum(sum(store.read.values()) for store in stores) > after:
                loop.call_soon_threadsafe(crash.set)

        async with nodes(tmp_path, 3) as (here, *there):
            for node, store in zip(there, stores, strict=True):
                store.on_read = look
                await Donor(node, store, lambda: 512 * limits.KIB).serve()
            job = asyncio.create_task(keeper(here, line, tmp_path / "joiner").catch_up(tip(line), ids(there)))
            await crash.wait()
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            again = keeper(here, line, tmp_path / "joiner")
            assert await again.open() is None
            line.grow()  # the next snapshot is there already, and what was begun is gone on with all the same
            for store in stores:
                store.log(since=2).snap()
            assert await again.catch_up(tip(line), ids(there)) == tip(line)
            assert same(again, line)
            read = stores[0].read + stores[1].read
            assert sorted(read) == list(range(9))
            assert sum(read.values()) - 9 <= 2 * len(stores)  # one on its way from each, and what seemed slow asked of the other, too

    go(work)


def test_a_replay_survives_the_death_of_a_donor(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(10)
        async with nodes(tmp_path, 3) as (here, *there):
            for number, node in enumerate(there):
                await Donor(node, Kept(tmp_path / str(number), line).log()).serve()
            joiner = keeper(here, line, tmp_path / "joiner")
            joiner.base.theta.copy_(line.bases[0][0])
            joiner.base.pairs = joiner.base.digests(joiner.base.theta, joiner.base.velocity)
            joiner.base.tip = Tip(0, 0, line.rules.model.genesis)
            joiner._on_replay = lambda entry, _: there[0]._libp2p.process.kill() if entry.vote.height == 3 else None
            assert await joiner.catch_up(tip(line), ids(there)) == tip(line)
            assert torch.equal(joiner.base.theta, line.base.theta)
            assert "piece" not in there[0].meter.sent
            assert "piece" not in there[1].meter.sent

    go(work)
