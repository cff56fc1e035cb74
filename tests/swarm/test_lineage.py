"""Donors and fetchers on real nodes: rules, snapshots from several donors, entries; dying, lying and slow donors."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols import limits
from protocols.canonical import digest, dumps
from protocols.lineage import Entry, Snapshot, Tip, base_digest
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from tapestryd.host.store import RunStore
from tapestryd.keeper import Keeper
from tapestryd.swarm import draw, lineage
from tapestryd.swarm.donor import Donor
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import _LENGTHS, Busy, Gone, Stream
from tests.lineages import Line
from tests.people import RULES, RUN, verify
from tests.swarm.rooms import go, nodes, until
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

    def lend(self, snapshot: Snapshot) -> None:
        pass

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


def fetcher(node: Node, of: RunRules = RULES) -> Fetcher:
    made = Fetcher(node, of.run_id, verify)
    made.agreed = of
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


@pytest.mark.parametrize("what", ["rules", "tokenizer"])
def test_who_drips_rules_or_tokenizer_holds_up_no_joiner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(draw, "SLOW_S", 0.5)

    async def work() -> None:
        async with nodes(tmp_path, 3) as (here, bad, good):
            await bad.serve(what, lambda stream: drip(stream, bytes(limits.RULES_BYTES), every_s=0.5, size=2000))
            await Donor(good, Shelf()).serve()
            fetch, there = fetcher(here), [bad.peer_id, good.peer_id]
            if what == "rules":
                assert await fetch.rules(there) == RULES
            else:
                assert await fetch.tokenizer(there, digest(b"tokenizer")) == b"tokenizer"
            assert not here.refusals

    go(work, timeout_s=60)  # the drip would take longer


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


async def taken(fetch: Fetcher, donors: Sequence[Node], made: Snapshot, wanted: Sequence[int] = range(_PIECES)) -> dict[int, bytes]:
    """All pieces that are wanted, each once."""
    found: dict[int, bytes] = {}
    async with fetch.pieces([donor.peer_id for donor in donors], made, wanted) as coming:
        async for piece, _, data in coming:
            assert piece not in found
            found[piece] = data
    return found


def whole(found: dict[int, bytes]) -> bytes:
    return b"".join(found[piece] for piece in sorted(found))


async def drip(stream: Stream, data: bytes, *, head: dict[str, Any] | None = None, every_s: float = 0.05, size: int = 1) -> None:
    """Promise all of `data`, and send it `size` bytes at a time."""
    await stream.receive(0)
    raw = dumps(head or {})
    stream._writer.write(_LENGTHS.pack(len(raw), len(data)) + raw)
    for start in range(0, len(data), size):
        stream._writer.write(data[start : start + size])
        await stream._writer.drain()
        await asyncio.sleep(every_s)


def test_a_manifest_that_drips_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "_MANIFEST_S", 0.5)
    monkeypatch.setattr(limits, "IO_BYTES", 1)

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 3) as (here, good, bad):
            await Donor(good, holding(made, data)).serve()
            await bad.serve("snapshots", lambda stream: drip(stream, bytes(500)))
            there = [bad.peer_id, good.peer_id]
            async with asyncio.timeout(10):
                assert await fetcher(here).manifests(there, "", _ELEMENTS, 1) == {good.peer_id: made}

    go(work)


def test_pieces_come_from_two_donors_side_by_side(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data), holding(made, data)) as (here, there):
            fetch = fetcher(here)
            assert await fetch.manifests([there[0].peer_id], "", _ELEMENTS, 1) == {there[0].peer_id: made}
            assert whole(await taken(fetch, there, made)) == data
            assert all(node.meter.sent["piece"] for node in there)

    go(work)


def test_only_what_is_wanted_is_fetched(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data)) as (here, there):
            assert sorted(await taken(fetcher(here), there, made, [2, 4])) == [2, 4]
            assert there[0].meter.sent["piece"] < 2 * limits.PIECE_BYTES
            assert await taken(fetcher(here), there, made, []) == {}

    go(work)


def test_a_donor_that_dies_in_the_middle_of_a_piece_is_made_up_for(tmp_path: Path) -> None:
    """The other one has nothing left to draw when the piece comes back: it is asked again all the same."""

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 3) as (here, good, bad):
            await Donor(good, holding(made, data)).serve()
            finish = asyncio.Event()

            async def dies(stream: Stream) -> None:
                await stream.receive(0)
                stream._writer.write(_LENGTHS.pack(2, limits.PIECE_BYTES) + b"{}" + data[: limits.PIECE_BYTES // 2])
                await finish.wait()
                stream._writer.transport.abort()

            await bad.serve("piece", dies)
            found = {}
            async with fetcher(here).pieces([bad.peer_id, good.peer_id], made, range(_PIECES)) as coming:
                async for piece, donor, got in coming:
                    assert donor == good.peer_id
                    found[piece] = got
                    if len(found) == _PIECES - 1:
                        finish.set()
            assert whole(found) == data

    go(work)


def test_a_donor_whose_process_is_killed_midway(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with donors(tmp_path, holding(made, data), holding(made, data)) as (here, (one, two)):
            found = {}
            async with fetcher(here).pieces([one.peer_id, two.peer_id], made, range(_PIECES)) as coming:
                async for piece, _, got in coming:
                    if not found:
                        two._libp2p.process.kill()
                    found[piece] = got
            assert whole(found) == data

    go(work)


@pytest.mark.parametrize("lie", ["wrong", "short", "long", "refused"])
def test_a_wrong_piece_is_refused_and_the_other_donor_used(tmp_path: Path, lie: str) -> None:
    """The liar is asked once, and no more. Not to keep a piece (any more) is no fault."""

    async def work() -> None:
        made, data = big()
        false = {"wrong": b"\xff" * len(data), "short": data[:10], "long": data, "refused": data}[lie]
        liar = holding(made, false)
        read = liar.read_snapshot
        if lie == "long":
            liar.read_snapshot = lambda base, piece: (read(base, piece) or b"") + b"x" * limits.PIECE_BYTES  # type: ignore[method-assign]
        if lie == "refused":
            liar.read_snapshot = lambda base, piece: None  # type: ignore[method-assign]
        async with donors(tmp_path, liar, holding(made, data)) as (here, there):
            assert whole(await taken(fetcher(here), there, made)) == data
            assert sum((here.declined if lie == "refused" else here.refusals).values()) == 1
            with pytest.raises(Gone):
                await taken(fetcher(here), there[:1], made)

    go(work)


# Slow donors.


def test_who_drips_is_given_up_however_alone_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no progress: 10 s of it, here 0.5 s, and whoever fetches does something else."""
    monkeypatch.setattr(limits, "IO_S", 0.5)

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 2) as (here, bad):
            await bad.serve("piece", lambda stream: drip(stream, data[: limits.PIECE_BYTES]))
            with pytest.raises(Gone):
                await taken(fetcher(here), [bad], made)
            assert not here.refusals  # slowness is nobody's fault

    go(work)


def test_who_drips_beside_a_good_donor_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves enough not to be given up; what it holds is asked of the other as well, and the first answer wins."""
    monkeypatch.setattr(draw, "SLOW_S", 0.5)
    monkeypatch.setattr(draw, "_LOOK_S", 0.1)

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 3) as (here, bad, good):
            dripped = asyncio.Event()

            async def drips(stream: Stream) -> None:
                dripped.set()
                await drip(stream, data[: limits.PIECE_BYTES], every_s=0.1, size=2000)

            await bad.serve("piece", drips)
            await Donor(good, holding(made, data)).serve()
            assert whole(await taken(fetcher(here), [bad, good], made)) == data
            assert dripped.is_set()
            assert good.meter.sent["piece"] < len(data) + 1000  # each piece once

    go(work, timeout_s=30)  # the drip alone would take 200 s


def test_a_lone_slow_donor_is_used_for_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than IO_S, at less than what makes another donor be asked: there is no other."""
    monkeypatch.setattr(limits, "IO_S", 2.0)
    monkeypatch.setattr(draw, "SLOW_S", 0.2)
    monkeypatch.setattr(draw, "SLOW_BYTES_PER_S", limits.MIB)

    async def work() -> None:
        made, data = big()
        first = data[: limits.PIECE_BYTES]
        async with nodes(tmp_path, 2) as (here, slow):
            await slow.serve("piece", lambda stream: drip(stream, first, every_s=0.3, size=limits.PIECE_BYTES // 16))
            began = asyncio.get_running_loop().time()
            assert await taken(fetcher(here), [slow], made, [0]) == {0: first}
            assert asyncio.get_running_loop().time() - began > 1.5 * limits.IO_S

    go(work)


def test_busy_donors_are_asked_again(tmp_path: Path) -> None:
    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 2) as (here, there):
            donor = Donor(there, holding(made, data))
            told = [0]

            async def busy(stream: Stream) -> None:
                told[0] += 1
                if told[0] % 2:
                    await stream.receive(0)
                    raise Busy(stream.peer, 0.1)
                await donor._piece(stream)

            await there.serve("piece", busy)
            assert whole(await taken(fetcher(here), [there], made)) == data
            assert told[0] == 2 * _PIECES
            with pytest.raises(Gone):  # in another exchange it is as if nobody had answered
                await here.ask(there.peer_id, "piece", {})

    go(work)


def test_a_snapshot_needs_a_certificate_or_to_be_genesis(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(2)
        good, keeps_none = Shelf().put(line), holding(*line.snapshot())
        made, _ = line.snapshot()
        async with donors(tmp_path, keeps_none, good) as (here, there):
            fetch = fetcher(here, line.rules)
            ids = [node.peer_id for node in there]
            assert await fetch.certificate(ids, made.tip) == line.entries[1]
            for false in (replace(made.tip, weight=10**9), Tip(0, 0, "00" * 32)):
                with pytest.raises(Gone):
                    await fetch.certificate(ids, false)
            assert dict(here.refusals) == {"no_quorum": 1}
            assert await fetch.certificate(ids, Tip(0, 0, line.rules.model.genesis)) is None

    go(work)


# Entries.


def test_entries_come_whole_and_verified_or_from_another(tmp_path: Path) -> None:
    """Longer than one message, too: they come in pieces of PIECE_BYTES."""

    async def work() -> None:
        line = grown(2)
        entry, parts = line.entries[0]
        whole = entry.head() + b"".join(parts)
        cases: list[tuple[Any, Reason]] = [
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
                assert await entries(fetcher(here, line.rules), [bad, best], 1, line.entries[0][0].tip) == line.entries[:1]
                assert dict(here.refusals + here.declined) == {reason.value: 1}
            fetch = fetcher(here, line.rules)
            fetch.entry_bytes = len(whole) - 1
            with pytest.raises(Gone, match="too_large"):
                await entries(fetch, [best], 1, line.entries[0][0].tip)

    go(work)


async def entries(fetch: Fetcher, donors: Sequence[Node], first: int, target: Tip) -> list[tuple[Entry, list[bytes]]]:
    async with fetch.entries([donor.peer_id for donor in donors], first, target) as coming:
        return [found async for _, _, found in coming]


def test_entries_come_in_order_from_several_donors(tmp_path: Path) -> None:
    """One holds what the other lacks, one is dead, one lies; one has not all."""

    async def work() -> None:
        line = grown(12)
        good, short, liar = Shelf().put(line), Shelf().put(line), Shelf().put(line)
        del short.entries[5]
        liar.entries = dict.fromkeys(liar.entries, b"garbage" * 10)
        async with donors(tmp_path, good, short, liar, Shelf()) as (here, there):
            there[3]._libp2p.process.kill()
            assert line.base.tip is not None
            fetch = fetcher(here, line.rules)
            assert await entries(fetch, there[::-1], 1, line.base.tip) == line.entries
            assert dict(here.refusals) == {"malformed": 1}
            with pytest.raises(Gone):
                await entries(fetch, there[1:], 1, line.base.tip)

    go(work)


def test_entries_are_fetched_ahead_and_no_further(tmp_path: Path) -> None:
    async def work() -> None:
        line = grown(12)
        shelf = Shelf().put(line)
        read: list[int] = []
        whole = shelf.read_entry
        shelf.read_entry = lambda height, offset, size: (read.append(height), whole(height, offset, size))[1]  # type: ignore[method-assign]
        async with donors(tmp_path, shelf) as (here, (there,)):
            async with fetcher(here, line.rules).entries([there.peer_id], 1, line.entries[-1][0].tip) as coming:
                async for height, _, _ in coming:
                    if height == 3:

                        async def ahead() -> bool:
                            return max(read) == 7

                        await until(ahead)
                        await asyncio.sleep(0.2)
                        assert max(read) == 7  # 4 to 7 wait here
            assert read == list(range(1, 13))

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
        ("piece", {"base": "", "piece": -1}), ("entry", {}), ("entry", {"x": []}), ("snapshots", {"base": "00"}), ("snapshots", {}),
        *(
            ("entry", {"height": height, "offset": offset, "bytes": size})
            for height, offset, size in [(-1, 0, 9), (1, -1, 9), (1, 1 << 50, 9), (True, 0, 9), (1, 0, 0), (1, 0, 1 << 40)]
        ),
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
                fetch = fetcher(node, line.rules)
                made = await fetch.rules([shown.peer_id])
                own = RunStore(tmp_path / f"joiner{number}", made.run_id)
                own.keep_rules(made, b"")
                kept = Keeper(made, made.layout(), own, fetch, verify, 100, 3, lambda *_: None, lambda _: None)
                assert await kept.open() is None
                assert await kept.catch_up(line.base.tip, [shown.peer_id]) == line.base.tip  # type: ignore[arg-type]
                await Donor(node, own).serve()
                shown = node

    go(work)
