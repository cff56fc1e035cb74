"""Donors and fetchers on real nodes: rules, snapshots from several donors, entries; dying, lying and slow donors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols import limits
from protocols.canonical import digest
from protocols.lineage import Snapshot, Tip, base_digest
from protocols.refusal import Reason, Refused
from tapestryd.host.store import RunStore
from tapestryd.keeper import Keeper
from tapestryd.swarm.lineage import Donor, Fetcher
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream
from tests.lineages import Line
from tests.people import RULES, RUN, verify
from tests.swarm.rooms import go, nodes
from tests.test_keeper import begin


class Shelf:
    """What a donor serves: by default nothing."""

    def __init__(self) -> None:
        self.kept: list[Snapshot] = []
        self.data: dict[str, bytes] = {}
        self.entries: dict[int, bytes] = {}
        self.told = RULES.canonical()
        self.tokens = b"tokenizer"

    def rules(self) -> bytes:
        return self.told

    def tokenizer(self) -> bytes:
        return self.tokens

    def snapshots(self) -> list[Snapshot]:
        return self.kept

    def read_snapshot(self, base: str, piece: int) -> bytes | None:
        data = self.data.get(base)
        return None if data is None else data[piece * limits.PIECE_BYTES : (piece + 1) * limits.PIECE_BYTES]

    def entry_size(self, height: int) -> int | None:
        return len(self.entries[height]) if height in self.entries else None

    def read_entry(self, height: int, offset: int, size: int) -> bytes:
        return self.entries[height][offset : offset + size]

    def put(self, line: Line) -> "Shelf":
        """All entries of a lineage, and a snapshot of where it is."""
        for entry, parts in line.entries:
            self.entries[entry.vote.height] = entry.head() + b"".join(parts)
        made, data = line.snapshot()
        self.kept.append(made)
        self.data[made.tip.base] = data
        return self


@asynccontextmanager
async def donors(folder: Path, *shelves: Shelf) -> AsyncIterator[tuple[Node, list[Node]]]:
    """(the fetching node, one node a shelf)"""
    async with nodes(folder, len(shelves) + 1) as (here, *others):
        for node, shelf in zip(others, shelves, strict=True):
            await Donor(node, shelf).serve()
        yield here, others


def fetcher(node: Node, run: str = RUN) -> Fetcher:
    made = Fetcher(node, run, verify)
    made.entry_bytes = 1 << 20
    return made


def grown(rounds: int) -> Line:
    line = Line.begin()
    for _ in range(rounds):
        line.grow()
    return line


# Rules and tokenizer.


def test_rules_come_from_whoever_has_them_and_hash_to_the_run(tmp_path: Path) -> None:
    async def work() -> None:
        liar, honest = Shelf(), Shelf()
        liar.told = replace(RULES, name="another").canonical()
        liar.tokens = b"another"
        async with donors(tmp_path, liar, honest) as (here, (bad, good)):
            fetch = fetcher(here)
            assert await fetch.rules([bad.peer_id, good.peer_id]) == RULES
            assert here.refusals == {"other_run": 1}
            assert await fetch.tokenizer([bad.peer_id, good.peer_id], digest(b"tokenizer")) == b"tokenizer"
            assert here.refusals == {"other_run": 1, "bad_digest": 1}
            for nobody in ([], [bad.peer_id]):
                with pytest.raises(Gone):
                    await fetch.rules(nobody)

    go(work)


# Snapshots.

_PIECES = 5
_ELEMENTS = limits.PIECE_BYTES * (_PIECES - 1) // 8 + 3


def big() -> tuple[Snapshot, bytes]:
    """A manifest of several pieces; what is in them does not matter here."""
    data = b"".join(bytes([piece]) * limits.PIECE_BYTES for piece in range(_PIECES))[: 8 * _ELEMENTS]
    pairs = (("11" * 32, "22" * 32),)
    pieces = tuple(digest(data[at : at + limits.PIECE_BYTES]) for at in range(0, len(data), limits.PIECE_BYTES))
    return Snapshot(RUN, Tip(0, 0, base_digest(pairs)), pairs, _ELEMENTS, pieces), data


def holding(made: Snapshot, data: bytes) -> Shelf:
    shelf = Shelf()
    shelf.kept.append(made)
    shelf.data[made.tip.base] = data
    return shelf


class Taken:
    """Where pieces go: what has come, and who waits to hear of it."""

    def __init__(self, *already: int) -> None:
        self.pieces: dict[int, bytes] = dict.fromkeys(already, b"")
        self.loop = asyncio.get_running_loop()
        self.first = asyncio.Event()

    def have(self, piece: int) -> bool:
        return piece in self.pieces

    def keep(self, piece: int, data: bytes) -> None:
        assert piece not in self.pieces
        self.pieces[piece] = data
        self.loop.call_soon_threadsafe(self.first.set)

    def whole(self) -> bytes:
        return b"".join(self.pieces[piece] for piece in sorted(self.pieces))


def test_pieces_come_from_two_donors_side_by_side(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data), holding(made, data)) as (here, there):
            taken = Taken()
            fetch = fetcher(here)
            assert await fetch.snapshot([there[0].peer_id], _ELEMENTS, 1, made.tip.base) == (made, None)
            await fetch.pieces([node.peer_id for node in there], made, taken.have, taken.keep)
            assert taken.whole() == data
            assert all(node.meter.sent["piece"] for node in there)

    go(work)


def test_a_download_resumes(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data)) as (here, (there,)):
            taken = Taken(0, 1, 3)
            await fetcher(here).pieces([there.peer_id], made, taken.have, taken.keep)
            assert sorted(taken.pieces) == list(range(_PIECES))
            assert there.meter.sent["piece"] < 2 * limits.PIECE_BYTES

    go(work)


def test_a_donor_that_dies_midway_is_made_up_for(tmp_path: Path) -> None:
    """The other one has nothing left to draw when the piece comes back: it is asked again all the same."""

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 3) as (here, good, bad):
            await Donor(good, holding(made, data)).serve()
            taken = Taken()
            asked = asyncio.Event()

            async def dies(stream: Stream) -> None:
                await stream.receive(0)
                asked.set()
                while len(taken.pieces) < _PIECES - 1:  # all but the one that we hold up
                    taken.first.clear()
                    await taken.first.wait()
                stream._writer.transport.abort()

            await bad.serve("piece", dies)
            await fetcher(here).pieces([bad.peer_id, good.peer_id], made, taken.have, taken.keep)
            assert asked.is_set()
            assert taken.whole() == data

    go(work)


def test_a_donor_whose_process_is_killed_midway(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data), holding(made, data)) as (here, (one, two)):
            taken = Taken()
            job = asyncio.create_task(fetcher(here).pieces([one.peer_id, two.peer_id], made, taken.have, taken.keep))
            await asyncio.wait_for(taken.first.wait(), 10)
            two._libp2p.process.kill()
            await job
            assert taken.whole() == data

    go(work)


@pytest.mark.parametrize("lie", ["wrong", "short", "long", "refused"])
def test_a_wrong_piece_is_refused_and_the_other_donor_used(tmp_path: Path, lie: str) -> None:
    async def work() -> None:
        made, data = big()
        false = {"wrong": b"\xff" * len(data), "short": data[:10], "long": data, "refused": data}[lie]
        liar = holding(made, false)
        read = liar.read_snapshot
        if lie == "long":
            liar.read_snapshot = lambda base, piece: (read(base, piece) or b"") + b"x" * limits.PIECE_BYTES  # type: ignore[method-assign]
        if lie == "refused":
            liar.read_snapshot = lambda base, piece: None  # type: ignore[method-assign]
        async with donors(tmp_path, liar, holding(made, data)) as (here, (bad, good)):
            taken = Taken()
            await fetcher(here).pieces([bad.peer_id, good.peer_id], made, taken.have, taken.keep)
            assert taken.whole() == data
            assert sum((here.refusals + here.declined).values()) == 1  # it was asked once, and no more
            with pytest.raises(Gone):
                await fetcher(here).pieces([bad.peer_id], made, Taken().have, Taken().keep)

    go(work)


def test_a_single_piece_whose_first_donor_lies(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(1)
        good = Shelf().put(line)
        made, data = line.snapshot()
        async with donors(tmp_path, holding(made, b"x" * len(data)), good) as (here, there):
            taken = Taken()
            await fetcher(here, line.rules.run_id).pieces([node.peer_id for node in there], made, taken.have, taken.keep)
            assert taken.whole() == data

    go(work)


def test_a_manifest_needs_a_certificate_or_to_be_genesis(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(2)
        good = Shelf().put(line)
        made, data = line.snapshot()
        uncertified, forged, other = holding(made, data), Shelf().put(line), Shelf()
        forged.kept = [replace(made, tip=replace(made.tip, weight=10**9))]
        async with donors(tmp_path, uncertified, forged, other, good) as (here, there):
            fetch = fetcher(here, line.rules.run_id)
            ids = [node.peer_id for node in there]
            found, proof = await fetch.snapshot(ids, made.elements, 2, line.rules.model.genesis)
            assert found == made
            assert proof == line.entries[1]
            assert (dict(here.refusals), dict(here.declined)) == ({"no_quorum": 1}, {"stale": 2})
            young = Line.begin()
            good.kept = [young.snapshot()[0]]
            with pytest.raises(Gone, match="not the genesis"):
                await fetch.snapshot(ids[-1:], made.elements, 2, "00" * 32)

    go(work)


# Entries.


def test_entries_come_whole_and_verified_or_from_another(tmp_path: Path) -> None:
    """Longer than one message, too: they come in pieces of PIECE_BYTES."""

    async def work() -> None:
        line = grown(2)
        entry, parts = line.entries[0]
        whole = entry.head() + b"".join(parts)
        run = line.rules.run_id
        cases: list[tuple[Any, Reason | None]] = [
            (whole[:-1] + bytes([whole[-1] ^ 1]), Reason.BAD_DIGEST),
            (whole[:-5], Reason.MALFORMED),
            (whole + b"more", Reason.MALFORMED),
            (whole[:50], Reason.MALFORMED),
            (b"", Reason.STALE),
            (b"garbage" * 10, Reason.MALFORMED),
            (line.entries[1][0].head() + b"".join(line.entries[1][1]), Reason.OTHER_ROUND),
        ]
        shelves = [Shelf() for _ in cases]
        for shelf, (data, _) in zip(shelves, cases, strict=True):
            shelf.entries[1] = data
        good = Shelf().put(line)
        step = len(entry.head()) + 100
        good.read_entry = lambda height, offset, size: good.entries[height][offset : offset + step]  # type: ignore[method-assign]
        async with nodes(tmp_path, 3) as (here, bad, best):
            await Donor(best, good).serve()
            for shelf, (_, reason) in zip(shelves, cases, strict=True):
                here.refusals.clear()
                here.declined.clear()
                if not hasattr(bad, "shelf"):
                    bad.shelf = shelf  # type: ignore[attr-defined]
                    await Donor(bad, _Through(bad)).serve()
                bad.shelf = shelf  # type: ignore[attr-defined]
                assert await fetcher(here, run).entry([bad.peer_id, best.peer_id], 1) == (entry, parts)
                assert dict(here.refusals + here.declined) == {reason.value: 1}, reason  # type: ignore[union-attr]
            fetch = fetcher(here, run)
            fetch.entry_bytes = len(whole) - 1
            with pytest.raises(Gone, match="too_large"):
                await fetch.entry([best.peer_id], 1)

    go(work)


class _Through(Shelf):
    """The shelf that a node has at the moment."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node

    def entry_size(self, height: int) -> int | None:
        return self.node.shelf.entry_size(height)  # type: ignore[attr-defined,no-any-return]

    def read_entry(self, height: int, offset: int, size: int) -> bytes:
        return self.node.shelf.read_entry(height, offset, size)  # type: ignore[attr-defined,no-any-return]


def test_questions_that_make_no_sense_are_refused_by_a_real_store(tmp_path: Path) -> None:
    questions: list[tuple[str, dict[str, Any]]] = [
        ("piece", {"base": "x", "piece": 1 << 50}), ("piece", {"base": "../../etc/passwd", "piece": 0}), ("piece", {"base": 1, "piece": 0}),
        ("piece", {"base": "", "piece": -1}), ("entry", {"height": -1, "offset": 0}), ("entry", {"height": 1, "offset": -1}),
        ("entry", {"height": 1, "offset": 1 << 50}), ("entry", {"height": True, "offset": 0}), ("entry", {}), ("entry", {"x": []}),
        ("snapshots", {"base": "00"}), ("snapshots", {}),
    ]  # fmt: skip

    async def work() -> None:
        line = grown(1)
        store = begin(line, tmp_path / "store")
        store.write_entry(line.entries[0][0], *line.entries[0][1])
        async with nodes(tmp_path, 2) as (here, there):
            await Donor(there, store).serve()
            for verb, head in questions:
                with pytest.raises(Refused):
                    await here.ask(there.peer_id, verb, head, body_bytes=1000)
            assert sum(there.refusals.values()) == len(questions)
            assert (await here.ask(there.peer_id, "rules", {}, body_bytes=1 << 20))[1] == line.rules.canonical()

    go(work)


def test_a_joiner_catches_up_from_real_donors(tmp_path: Path) -> None:
    """All together: rules, snapshot, entries, on real stores; then the joiner is a donor itself."""

    async def work() -> None:
        line = grown(4)
        store = begin(line, tmp_path / "donor")
        for entry, parts in line.entries:
            store.write_entry(entry, *parts)
        async with nodes(tmp_path, 3) as (donor, second, third):
            await Donor(donor, store).serve()
            shown = donor
            for number, node in enumerate((second, third)):
                fetch = fetcher(node, line.rules.run_id)
                made = await fetch.rules([shown.peer_id])
                own = RunStore(tmp_path / f"joiner{number}", made.run_id)
                own.keep_rules(made, b"")
                kept = Keeper(made, made.layout(), own, fetch, verify, 100, 3, lambda *_: None, lambda: None)
                assert await kept.open() is None
                assert await kept.catch_up(line.base.tip, [shown.peer_id]) == line.base.tip  # type: ignore[arg-type]
                await Donor(node, own).serve()
                shown = node

    go(work)
