"""Lineages on disk and in memory: commit, crash, replay bit for bit, catching up from good donors and bad ones."""

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols import limits
from protocols.canonical import digest
from protocols.control import Fetching
from protocols.lineage import Entry, Snapshot, Tip, base_digest
from protocols.refusal import Declined, Reason, Refused
from tapestryd import keeper as keeper_module
from tapestryd.base import describe
from tapestryd.errors import DiskFull, Unavailable
from tapestryd.exchange import assemble
from tapestryd.host import files as files_module
from tapestryd.host import store as store_module
from tapestryd.host.store import RunStore
from tapestryd.keeper import Keeper
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.streams import Gone
from tests.lineages import PEOPLE, Line, noise, voted
from tests.people import certified, roster, verify


class Donors:
    """A Node whose peers are Lines, by name, without a network. `snapshots[name]`: (manifest, file) it keeps; `entries[name]`:
    heights that it keeps, all if not named. `asked`: (donor, verb, height or piece); `faults`: what we held against whom."""

    def __init__(self, **lines: Line) -> None:
        self.lines = lines
        self.snapshots: dict[str, tuple[Snapshot, bytes]] = {}
        self.entries: dict[str, range] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.faults: list[tuple[str, str, Reason]] = []

    async def ask(self, peer: str, verb: str, head: dict[str, Any], *, body_bytes: int, moved: object = None) -> tuple[object, bytearray]:
        self.asked.append((peer, verb, head.get("height", head.get("piece", 0))))
        if peer not in self.lines:
            raise Gone(peer)
        if verb == "entry":
            line = self.lines[peer]
            if head["height"] not in self.entries.get(peer, range(1, len(line.entries) + 1)):
                raise Declined(Reason.STALE, "not kept")
            entry, parts = line.entries[head["height"] - 1]
            whole = entry.head() + b"".join(parts)
            return {"size": len(whole)}, bytearray(whole[head["offset"] :][: head["bytes"]])
        made, data = self.snapshots.get(peer, (None, b""))
        if made is None or head["base"] not in ("", made.tip.base):
            raise Declined(Reason.STALE, "not kept")
        at = head.get("piece", 0) * limits.PIECE_BYTES
        return {}, bytearray(made.to_bytes() if verb == "snapshots" else data[at : at + limits.PIECE_BYTES])

    def refused(self, refused: Refused, what: str, peer: str) -> None:
        if not isinstance(refused, Declined):
            self.faults.append((peer, what, refused.reason))


def begin(line: Line, path: Path, *, genesis: bool = True) -> RunStore:
    """A store as a founder has it: rules, and the snapshot of height 0."""
    store = RunStore(path, line.rules.run_id)
    store.keep_rules(line.rules, b"")
    if genesis:
        theta, velocity = line.bases[0]
        pairs = line.base.digests(theta, velocity)
        store.write_snapshot(*describe(line.rules.run_id, Tip(0, 0, base_digest(pairs)), pairs, theta, velocity))
    return store


def keeper(line: Line, store: RunStore, donors: Donors | None = None, *, every: int = 100, told: list[Entry] | None = None) -> Keeper:
    """`told`: what it told of entries that were not committed here."""
    heard = told if told is not None else []
    node: Any = donors or Donors()
    fetcher = Fetcher(node, line.rules.run_id, verify)
    fetcher.agreed, fetcher.entry_bytes = line.rules, 1 << 20
    return Keeper(line.rules, line.base.layout, store, fetcher, verify, every, 3, lambda entry, _: heard.append(entry), heard.extend)


def same(kept: Keeper, line: Line) -> bool:
    """Bit for bit, and of the digest."""
    base = kept.base
    assert base_digest(base.digests(base.theta, base.velocity)) == base_digest(base.pairs)
    return base.tip == line.base.tip and torch.equal(base.theta, line.base.theta) and torch.equal(base.velocity, line.base.velocity)


def grown(rounds: int, fragments: int = 2, bits: int = 8) -> Line:
    line = Line.begin(fragments, bits)
    for _ in range(rounds):
        line.grow()
    return line


def go(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(), 30)

    asyncio.run(main())


@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("bits", [8, 32])
def test_the_log_rebuilds_the_live_base_bit_for_bit(tmp_path: Path, fragments: int, bits: int) -> None:
    line = Line.begin(fragments, bits)

    async def work() -> None:
        live = keeper(line, begin(line, tmp_path))
        assert await live.open() == Tip(0, 0, line.rules.model.genesis)
        for round in (0, 1, 2, 5, 6, 7, 8):  # rounds 3 and 4 were discarded
            entry = line.grow(round=round)
            here = line.base.slice(round % fragments)
            step = live.base.next(round % fragments, live_mean(live, line))
            assert torch.equal(step.theta, line.base.theta[here])
            assert await live.commit(entry, line.entries[-1][1], step) == entry.tip
        assert same(live, line)
        again = keeper(line, RunStore(tmp_path, line.rules.run_id))
        assert await again.open() == line.base.tip
        assert same(again, line)

    go(work)


def live_mean(kept: Keeper, line: Line) -> torch.Tensor:
    entry, blobs = line.entries[-1]
    return assemble(kept.rules, entry.roster, blobs)[0]


def test_a_start_begins_at_the_newest_good_snapshot(tmp_path: Path) -> None:
    line = Line.begin()
    store = begin(line, tmp_path)

    async def work() -> None:
        live = keeper(line, store, every=2)
        await live.open()
        for _ in range(5):
            entry = line.grow()
            await live.commit(entry, line.entries[-1][1], live.base.next(entry.vote.fragment, live_mean(live, line)))
            await live.stop()
        assert [snapshot.tip.height for snapshot in store.snapshots()] == [0, 2, 4]
        for damaged, begins in ((None, 4), (4, 2), (2, 0)):
            if damaged is not None:
                path = tmp_path / "snapshots" / f"{damaged:010d}.base"
                data = bytearray(path.read_bytes())
                data[9] ^= 1
                path.write_bytes(data)
            other = keeper(line, RunStore(tmp_path, line.rules.run_id))
            seen: list[int] = []
            load = store_module.RunStore.load_entry
            other.store.load_entry = lambda height, check, seen=seen, load=load, store=other.store: (
                seen.append(height),
                load(store, height, check),
            )[1]  # type: ignore[method-assign]
            assert await other.open() == line.base.tip
            assert seen[:2] == [begins, begins + 1]  # the first for its round, and then the log behind it
            assert same(other, line)

    go(work)


_KILLED = """
import asyncio, os, pathlib, signal, sys
from tests.test_keeper import Line, RunStore, begin, keeper, live_mean
async def main():
    line = Line.begin()
    live = keeper(line, begin(line, pathlib.Path(sys.argv[1])))
    await live.open()
    line.grow()
    live.base.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    await live.commit(line.entries[0][0], line.entries[0][1], live.base.next(0, live_mean(live, line)))
asyncio.run(main())
"""


def test_killed_between_entry_and_base_the_start_replays_to_the_same_digest(tmp_path: Path) -> None:
    """The instruction at which it matters: the entry is on disk, the base has not moved."""
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, str(tmp_path)]
    assert subprocess.run(command, cwd=Path(__file__).parents[1], timeout=60).returncode == -signal.SIGKILL
    line = grown(1)

    async def work() -> None:
        again = keeper(line, RunStore(tmp_path, line.rules.run_id))
        assert await again.open() == line.base.tip
        assert same(again, line)

    go(work)


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line.begin()

    async def work() -> None:
        live = keeper(line, begin(line, tmp_path))
        before = await live.open()
        theta = live.base.theta.clone()
        entry = line.grow()
        step = live.base.next(0, live_mean(live, line))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(store_module.os, "fsync", full)
            with pytest.raises(DiskFull):
                await live.commit(entry, line.entries[-1][1], step)
        assert live.base.tip == before
        assert torch.equal(live.base.theta, theta)
        assert await keeper(line, RunStore(tmp_path, line.rules.run_id)).open() == before
        await live.commit(entry, line.entries[-1][1], step)
        assert same(live, line)

    go(work)


# What is on disk but must not be followed.


@pytest.mark.parametrize("wrong", ["after", "weight", "fragment", "height", "round"])
def test_a_certificate_that_does_not_lead_where_it_says_is_refused(tmp_path: Path, wrong: str) -> None:
    """Signed by everybody, and yet: what we compute is what counts."""
    line = Line.begin()
    line.grow(round=2 if wrong == "round" else 0)
    round = 2 if wrong == "fragment" else 1
    of = roster(PEOPLE[:3], round=round, fragment=1, before=line.base.tip.base, run=line.rules.run_id)  # type: ignore[union-attr]
    told = line.fork()
    told.grow(round=1)
    blobs = told.entries[-1][1]
    step = line.base.next(1, noise(line.base.layout.size(1), 9))
    vote = voted(line.rules, of, blobs, line.base.tip, step, 1_000_000)  # type: ignore[arg-type]
    if wrong != "after":
        vote = replace(vote, after=told.base.tip.base)  # type: ignore[union-attr]
    vote = replace(vote, **{"weight": {"weight": 7}, "height": {"height": 3}}.get(wrong, {}))
    entry = certified(of, blobs, PEOPLE[:3], vote)

    async def work() -> None:
        live = keeper(line, begin(line, tmp_path))
        live.store.write_entry(*_flat(line.entries[0]))
        assert await live.open() == line.base.tip
        with pytest.raises(Refused) as refused:
            await live._follow(entry, blobs)
        assert refused.value.reason is {"after": Reason.BAD_DIGEST, "weight": Reason.OUT_OF_RANGE}.get(wrong, Reason.OTHER_ROUND)
        assert same(live, line)
        live.store.write_entry(replace(entry, vote=replace(vote, height=2)), *blobs)
        assert await keeper(line, RunStore(tmp_path, line.rules.run_id)).open() == line.base.tip

    go(work)


def _flat(whole: tuple[Entry, list[bytes]]) -> tuple[object, ...]:
    return (whole[0], *whole[1])


# Catching up.


def test_replay_from_a_donor(tmp_path: Path) -> None:
    line = grown(5)
    told: list[Entry] = []

    async def work() -> None:
        live = keeper(line, begin(line, tmp_path), Donors(ann=line), told=told)
        await live.open()
        assert await live.catch_up(line.base.tip, ["ann"]) == line.base.tip  # type: ignore[arg-type]
        assert same(live, line)
        assert told == [entry for entry, _ in line.entries]
        again = keeper(line, RunStore(tmp_path, line.rules.run_id))
        await again.open()
        assert same(again, line)

    go(work)


def test_what_was_reached_is_kept(tmp_path: Path) -> None:
    line = grown(5)

    async def work() -> None:
        donors = Donors(ann=line)
        donors.entries["ann"] = range(1, 4)
        live = keeper(line, begin(line, tmp_path), donors)
        await live.open()
        with pytest.raises(Gone):
            await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert live.base.tip == line.entries[2][0].tip
        del donors.entries["ann"]
        await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert same(live, line)
        assert [height for _, verb, height in donors.asked if verb == "entry"] == [1, 2, 3, 4, 4, 5]

    go(work)


def test_donors_that_went_over_to_a_better_branch_take_us_along(tmp_path: Path) -> None:
    """Asked for what they announced, they have other entries by now, which lead further: no reason to go back for the worse."""
    announced = grown(0)
    theirs = announced.fork()
    for _ in range(2):
        announced.grow(PEOPLE[:2])
        theirs.grow(PEOPLE[:5])

    async def work() -> None:
        donors = Donors(ann=theirs)
        live = keeper(theirs, begin(theirs, tmp_path), donors)
        await live.open()
        assert await live.catch_up(announced.base.tip, ["ann"]) == theirs.entries[0][0].tip  # type: ignore[arg-type]
        assert {verb for _, verb, _ in donors.asked} == {"entry"}

    go(work)


@pytest.mark.parametrize("lower", [0, 1])
def test_our_own_base_told_to_be_heavier_is_not_where_we_are(tmp_path: Path, lower: int) -> None:
    """Else whoever makes that up, with a certificate to show for it, would be believed again and again."""
    line = grown(3)
    here = line.base.tip
    assert here is not None
    false = replace(here, height=here.height - lower, weight=500)

    async def work() -> None:
        live = keeper(line, begin(line, tmp_path), Donors(ann=line))
        for whole in line.entries:
            live.store.write_entry(*_flat(whole))
        assert await live.open() == here
        with pytest.raises(Gone):
            await live.catch_up(false, ["ann"])
        assert same(live, line)

    go(work)


def test_an_entry_of_a_round_yet_to_come_is_refused(tmp_path: Path) -> None:
    """If it were followed, no round could be committed behind it until that one has been."""
    line = grown(3)

    async def work() -> None:
        donors = Donors(ann=line)
        live = keeper(line, begin(line, tmp_path), donors)
        await live.open()
        fetcher = live._fetcher
        fetcher.round_now = lambda: 0  # so that round 1 may be our clock's fault, and round 2 not
        with pytest.raises(Gone):
            await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        with pytest.raises(Refused) as refused:
            await fetcher.prove("ann", line.base.tip)  # type: ignore[arg-type]
        assert refused.value.reason is Reason.OTHER_ROUND
        assert live.base.tip == line.entries[1][0].tip

    go(work)


def test_a_joiner_takes_a_snapshot_and_replays_the_tail(tmp_path: Path) -> None:
    line = grown(3)
    taken = line.snapshot()
    for _ in range(2):
        line.grow()

    async def work() -> None:
        donors = Donors(ann=line)
        donors.snapshots["ann"] = taken
        live = keeper(line, begin(line, tmp_path, genesis=False), donors)
        assert await live.open() is None
        await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert same(live, line)
        assert live.store.load_entry(3, verify) == line.entries[2]  # it can show its snapshot's certificate to the next joiner
        assert live.store.load_entry(2, verify) is None
        assert not list(tmp_path.glob("superseded-*"))
        again = keeper(line, RunStore(tmp_path, line.rules.run_id))
        await again.open()
        assert same(again, line)

    go(work)


def test_a_joiner_tells_how_far_its_snapshot_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that had begun before."""
    monkeypatch.setattr(limits, "PIECE_BYTES", 3500)
    monkeypatch.setattr(keeper_module, "_TELL_S", 0.0)
    line = grown(3)
    snapshot, data = line.snapshot()
    store = begin(line, tmp_path, genesis=False)
    store.download(snapshot).keep(0, data[:3500])

    async def work() -> None:
        donors = Donors(ann=line, bo=line)
        donors.snapshots = dict.fromkeys(("ann", "bo"), (snapshot, data))
        joiner = keeper(line, store, donors)
        told: list[Fetching | None] = []
        answer = donors.ask

        async def ask(peer: str, verb: str, *rest: Any, **more: Any) -> tuple[object, bytearray]:
            if verb == "piece":
                told.append(joiner.fetching)
            return await answer(peer, verb, *rest, **more)

        monkeypatch.setattr(donors, "ask", ask)
        assert await joiner.open() is None
        with caplog.at_level(logging.INFO, "tapestryd.keeper"):
            await joiner.catch_up(snapshot.tip, ["ann", "bo"])
        assert same(joiner, line)
        assert Fetching(3, 3500, 7208, 2) in told
        assert joiner.fetching is None
        assert caplog.messages[-1].endswith("7208 of 7208 bytes are here")

    go(work)


def test_no_crowd_in_front_hides_whoever_keeps_a_snapshot(tmp_path: Path) -> None:
    """All announce the same base; the nearest say that they keep none, and no attempt that fails tells them from the one that does."""
    line = grown(3)

    async def work() -> None:
        crowd = [f"nobody {number}" for number in range(40)]
        donors = Donors(ann=line, **dict.fromkeys(crowd, line))
        donors.snapshots["ann"] = line.snapshot()
        donors.entries = dict.fromkeys(crowd, range(0))
        live = keeper(line, begin(line, tmp_path, genesis=False), donors)
        for _ in range(200):
            with suppress(Gone):
                await live.catch_up(line.base.tip, [*crowd, "ann"])  # type: ignore[arg-type]
                break
        assert same(live, line)
        assert donors.asked[0][0] == crowd[0]  # they are near, after all

    go(work)


def test_a_snapshot_that_was_made_since_is_where_a_joiner_wanted_to_be(tmp_path: Path) -> None:
    """Its donor went on by a round after it had announced its tip."""
    line = grown(5)
    announced = line.base.tip
    line.grow()

    async def work() -> None:
        donors = Donors(ann=line)
        donors.snapshots["ann"] = line.snapshot()
        live = keeper(line, begin(line, tmp_path, genesis=False), donors)
        await live.open()
        assert await live.catch_up(announced, ["ann"]) == line.base.tip  # type: ignore[arg-type]
        assert same(live, line)

    go(work)


def test_donors_that_never_had_our_next_entry_give_a_snapshot(tmp_path: Path) -> None:
    """They joined by a snapshot beyond our height: without this we would ask for the missing entry for ever."""
    line = grown(6)
    begun = begin(line, tmp_path)
    begun.write_entry(*_flat(line.entries[0]))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(ann=line)
        donors.entries["ann"] = range(6, 7)
        donors.snapshots["ann"] = line.snapshot()
        live = keeper(line, begun, donors)
        assert await live.open() == line.entries[0][0].tip
        await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert same(live, line)

    go(work)


@pytest.mark.parametrize(("missing", "snapshot", "fetched"), [(14, True, False), (15, True, True), (15, False, False)])
def test_a_returner_takes_whichever_is_fewer_bytes(tmp_path: Path, missing: int, snapshot: bool, fetched: bool) -> None:
    """An entry is half an encoded vector of 991 bytes here, a snapshot 7,208 bytes."""
    line = grown(1 + missing)
    begun = begin(line, tmp_path)
    begun.write_entry(*_flat(line.entries[0]))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(ann=line)
        if snapshot:
            donors.snapshots["ann"] = line.snapshot()
        live = keeper(line, begun, donors)
        await live.open()
        await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert same(live, line)
        assert any(verb == "piece" for _, verb, _ in donors.asked) is fetched
        assert sum(verb == "entry" for _, verb, _ in donors.asked) == (1 if fetched else missing)

    go(work)


def test_a_donor_on_another_branch_is_left_out_of_a_replay(tmp_path: Path) -> None:
    """Its entries are certified and do not follow on ours: the others' do, so nothing is given up for it."""
    line = grown(2)
    other = line.fork()
    for _ in range(4):
        line.grow()
        other.grow(PEOPLE[3:6], seed=5)
    begun = begin(line, tmp_path)
    for whole in line.entries[:3]:
        begun.write_entry(*_flat(whole))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(liar=other, ann=line)
        live = keeper(line, begun, donors)
        await live.open()
        await live.catch_up(line.base.tip, ["liar", "ann"])  # type: ignore[arg-type]
        assert same(live, line)
        assert not list(tmp_path.glob("superseded-*"))

    go(work)


def test_a_donors_trouble_is_no_reason_to_go_back(tmp_path: Path) -> None:
    """It lost the entry we need, and its snapshot is older than our base: stay."""
    line = grown(1)
    old = line.snapshot()
    for _ in range(3):
        line.grow()
    begun = begin(line, tmp_path)
    for whole in line.entries[:2]:
        begun.write_entry(*_flat(whole))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(ann=line)
        donors.entries["ann"] = range(1, 3)
        donors.snapshots["ann"] = old
        live = keeper(line, begun, donors)
        here = await live.open()
        with pytest.raises(Gone):
            await live.catch_up(line.base.tip, ["ann"])  # type: ignore[arg-type]
        assert live.base.tip == here == line.entries[1][0].tip
        assert not list(tmp_path.glob("superseded-*"))

    go(work)


def _branches() -> tuple[Line, Line]:
    """Two branches from height 2: ours goes on alone with three, theirs with five."""
    ours = grown(2)
    theirs = ours.fork()
    ours.grow()
    ours.grow()
    for _ in range(3):
        theirs.grow(PEOPLE[:5], seed=7)
    assert theirs.base.tip.better_than(ours.base.tip)  # type: ignore[union-attr,arg-type]
    return ours, theirs


@pytest.mark.parametrize("by", ["entries", "snapshot"])
def test_the_heavier_branch_takes_over_and_ours_is_kept_aside(tmp_path: Path, by: str) -> None:
    ours, theirs = _branches()
    store = begin(ours, tmp_path)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(ann=theirs)
        donors.snapshots["ann"] = theirs.snapshot()
        if by == "snapshot":  # of the newest entry only is there more than its certificate
            donors.entries["ann"] = range(5, 6)
        told: list[Entry] = []
        live = keeper(ours, store, donors, told=told)
        assert await live.open() == ours.base.tip
        assert await live.catch_up(theirs.base.tip, ["ann"]) == theirs.base.tip  # type: ignore[arg-type]
        assert same(live, theirs)
        assert told == [entry for entry, _ in theirs.entries[2 if by == "entries" else 4 :]]
        assert any(verb == "piece" for _, verb, _ in donors.asked) == (by == "snapshot")
        aside = tmp_path / "superseded-0" / "log"
        first = 3 if by == "entries" else 1
        assert sorted(path.name for path in aside.iterdir()) == [f"{height:010d}.entry" for height in range(first, 5)]
        again = keeper(ours, RunStore(tmp_path, ours.rules.run_id))
        await again.open()
        assert same(again, theirs)

    go(work)


@pytest.mark.parametrize("other", ["dead", "joined", "liar", "liar with our log"])
def test_one_donor_that_has_the_better_branch_is_enough(tmp_path: Path, other: str) -> None:
    """Whoever is asked after it is gone, has but its snapshot, or lies: an entry of its own people on our base, of a false weight."""
    ours, theirs = _branches()
    theirs.grow(PEOPLE[:5], seed=7)
    store = begin(ours, tmp_path)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]
    false = ours.fork()
    honest = false.grow()
    blobs = false.entries.pop()[1]
    false.entries.append((certified(honest.roster, blobs, PEOPLE[:3], replace(honest.vote, weight=honest.vote.weight + 1)), blobs))

    async def work() -> None:
        donors = Donors(ann=theirs)
        donors.snapshots["ann"] = theirs.snapshot()
        if other != "dead":
            donors.lines["other"] = theirs if other == "joined" else false
            donors.entries["other"] = {"joined": range(6, 7), "liar": range(5, 6)}.get(other, range(1, 6))
        live = keeper(ours, store, donors)
        await live.open()
        assert await live.catch_up(theirs.base.tip, ["ann", "other"]) == theirs.base.tip  # type: ignore[arg-type]
        assert same(live, theirs)
        assert ("other", "entry", 5) in donors.asked
        assert any(verb == "piece" for _, verb, _ in donors.asked) == (other == "liar with our log")

    go(work)


@pytest.mark.parametrize("by", ["entries", "snapshot"])
def test_a_disk_that_stays_full_costs_nothing_however_often_we_try(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts once made the third empty folder, and threw the first with our only files away."""
    ours, theirs = _branches()
    store = begin(ours, tmp_path)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def work() -> None:
        donors = Donors(ann=theirs)
        donors.snapshots["ann"] = theirs.snapshot()
        if by == "snapshot":
            donors.entries["ann"] = range(5, 6)
        live = keeper(ours, store, donors)
        await live.open()
        for _ in range(4):
            with monkeypatch.context() as patch:
                patch.setattr(store_module.os, "fsync", full)
                with pytest.raises(DiskFull):
                    await live.catch_up(theirs.base.tip, ["ann"])  # type: ignore[arg-type]
            assert same(live, ours)
            again = keeper(ours, RunStore(tmp_path, ours.rules.run_id))
            await again.open()
            assert same(again, ours)
            assert store.load_entry(4, verify) == ours.entries[3]  # what we announce, we can show
        assert await live.catch_up(theirs.base.tip, ["ann"]) == theirs.base.tip  # type: ignore[arg-type]
        assert same(live, theirs)
        assert sum(verb == "piece" for _, verb, _ in donors.asked) == (by == "snapshot")  # nor is a piece fetched twice

    go(work)


@pytest.mark.parametrize("file", ["snapshots/0000000000.base", "log/0000000002.entry"])
def test_what_of_ours_cannot_be_read_is_a_sentence_and_nothing_is_given_up(tmp_path: Path, file: str) -> None:
    ours, theirs = _branches()
    store = begin(ours, tmp_path)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]

    async def work() -> None:
        live = keeper(ours, store, Donors(ann=theirs))
        await live.open()
        (tmp_path / file).unlink()
        (tmp_path / file).mkdir()
        with pytest.raises(Unavailable, match=f"{file} cannot be read"):
            await live.catch_up(theirs.base.tip, ["ann"])  # type: ignore[arg-type]
        assert same(live, ours)
        assert not list(tmp_path.glob("superseded-*"))

    go(work)


class _Killed(BaseException):
    """Nothing is caught, and nothing is cleared away."""


@pytest.mark.parametrize("by", ["entries", "snapshot"])
def test_killed_at_any_move_the_start_has_a_lineage_or_nothing_and_goes_on(tmp_path: Path, by: str) -> None:
    ours, theirs = _branches()

    def left_by(folder: Path, moves: int) -> bool:
        """What lies there if we are killed after so many renames; False: all of them were done before."""
        store = begin(ours, folder)
        for whole in ours.entries:
            store.write_entry(*_flat(whole))  # type: ignore[arg-type]
        made, data = theirs.snapshot()
        (folder / f"{made.tip.base}.part").write_bytes(data)
        move_all = files_module.move_all

        def killed(all_of_them: list[tuple[Path, Path]]) -> None:
            move_all(all_of_them[:moves])
            if moves < len(all_of_them):
                raise _Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_module, "move_all", killed)
            patch.setattr(store_module.shutil, "rmtree", lambda *_, **__: None)
            with suppress(_Killed):
                if by == "entries":
                    store.take_over(theirs.entries[2:], beyond=2)
                else:
                    store.take_over(theirs.entries[-1:], made)
                return False
        return True

    async def work() -> None:
        lineages = {entry.tip for line in (ours, theirs) for entry, _ in line.entries} | {Tip(0, 0, ours.rules.model.genesis)}
        for moves in range(100):
            folder = tmp_path / str(moves)
            if not left_by(folder, moves):
                break
            donors = Donors(ann=theirs)
            donors.snapshots["ann"] = theirs.snapshot()
            live = keeper(ours, RunStore(folder, ours.rules.run_id), donors)
            tip = await live.open()
            assert tip in lineages or (by == "snapshot" and tip is None)
            await live.catch_up(theirs.base.tip, ["ann"])  # type: ignore[arg-type]
            assert same(live, theirs)
            assert not any(verb == "piece" for _, verb, _ in donors.asked)  # what was downloaded is still there
            again = keeper(ours, RunStore(folder, ours.rules.run_id))
            await again.open()
            assert same(again, theirs)
        assert moves == (5 if by == "entries" else 9)

    go(work)


def test_entries_without_a_base_are_not_left_below_a_snapshot(tmp_path: Path) -> None:
    """Killed while our lineage moved aside: its snapshots are away already, its log is not."""
    ours, theirs = _branches()
    store = begin(ours, tmp_path, genesis=False)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]

    async def work() -> None:
        donors = Donors(ann=theirs)
        donors.snapshots["ann"] = theirs.snapshot()
        live = keeper(ours, store, donors)
        assert await live.open() is None
        await live.catch_up(theirs.base.tip, ["ann"])  # type: ignore[arg-type]
        assert [path.name for path in (tmp_path / "log").iterdir()] == ["0000000005.entry"]
        assert len(list((tmp_path / "superseded-0" / "log").iterdir())) == 4

    go(work)


@pytest.mark.parametrize("every", [2, 3])
def test_our_own_snapshot_of_the_other_branch_is_not_come_back_to(tmp_path: Path, every: int) -> None:
    """The branches part behind height 2; ours has written a snapshot there, or of height 3, which only ours has."""
    ours, theirs = _branches()
    store = begin(ours, tmp_path)

    async def work() -> None:
        donors = Donors(ann=theirs, bo=ours)
        live = keeper(ours, store, donors, every=every)
        await live.open()
        assert await live.catch_up(ours.base.tip, ["bo"]) == ours.base.tip  # type: ignore[arg-type]
        assert await live.catch_up(theirs.base.tip, ["ann"]) == theirs.base.tip  # type: ignore[arg-type]
        assert not any(verb == "piece" for _, verb, _ in donors.asked)
        assert same(live, theirs)
        again = keeper(ours, RunStore(tmp_path, ours.rules.run_id))
        await again.open()
        assert same(again, theirs)

    go(work)


@pytest.mark.parametrize("by", ["entries", "snapshot"])
def test_a_snapshot_of_ours_that_is_still_being_written_goes_with_ours(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its disk takes; only a stop does not wait for that."""
    ours, theirs = _branches()
    store = begin(ours, tmp_path)
    slow = threading.Event()
    write = store.write_snapshot
    monkeypatch.setattr(store, "write_snapshot", lambda *made: slow.wait(20) and write(*made))
    monkeypatch.setattr(keeper_module, "_STOP_S", 0.05)

    async def work() -> None:
        donors = Donors(ann=theirs, bo=ours)
        donors.snapshots["ann"] = theirs.snapshot()
        if by == "snapshot":
            donors.entries["ann"] = range(5, 6)
        live = keeper(ours, store, donors, every=4)
        await live.open()
        assert await live.catch_up(ours.base.tip, ["bo"]) == ours.base.tip  # type: ignore[arg-type]
        await live.stop()
        over = asyncio.create_task(live.catch_up(theirs.base.tip, ["ann"]))  # type: ignore[arg-type]
        await asyncio.wait([over], timeout=0.5)
        assert not over.done()
        assert same(live, ours)
        slow.set()
        await over
        assert same(live, theirs)
        await live.stop()
        assert [snapshot.tip for snapshot in store.snapshots()] == [
            Tip(0, 0, ours.rules.model.genesis) if by == "entries" else live.base.tip
        ]
        assert (tmp_path / "superseded-0" / "snapshots" / "0000000004.json").exists()

    go(work)


def test_who_voted_on_both_branches_is_convicted(tmp_path: Path) -> None:
    """In one round; that three of the same people met on both branches in different rounds proves nothing."""
    ours = grown(2)
    theirs, later = ours.fork(), ours.fork()
    ours.grow(PEOPLE[:3])
    theirs.grow([PEOPLE[0], *PEOPLE[3:6]])
    later.grow(PEOPLE[:4], round=5)
    both = PEOPLE[0].peer

    async def work() -> None:
        for name, line, guilty in (("theirs", theirs, [both]), ("later", later, [])):
            store = begin(ours, tmp_path / name)
            donors = Donors(ann=line, bo=ours)
            live = keeper(ours, store, donors)
            await live.open()
            await live.catch_up(ours.base.tip, ["bo"])  # type: ignore[arg-type]
            assert await live.catch_up(line.base.tip, ["ann"]) == line.base.tip  # type: ignore[arg-type]
            assert [(peer, reason) for peer, _, reason in donors.faults] == [(peer, Reason.EQUIVOCATION) for peer in guilty]
            kept = [path.name[: len(both)] for path in (store.path / "proofs").glob("*")]
            assert kept == guilty

    go(work)


@pytest.mark.parametrize("fault", ["manifest", "file", "nothing"])
def test_a_false_snapshot_replaces_nothing_and_the_next_donor_is_asked(tmp_path: Path, fault: str) -> None:
    """The pieces' digests in a manifest are one donor's word: only the whole file shows whether it was true."""
    ours, theirs = _branches()
    store = begin(ours, tmp_path)
    for whole in ours.entries:
        store.write_entry(*_flat(whole))  # type: ignore[arg-type]
    good = theirs.snapshot()
    data = bytearray(good[1])
    data[100] ^= 1
    liar = {"manifest": (replace(good[0], pieces=(digest(data),)), bytes(data)), "file": (good[0], b""), "nothing": None}[fault]

    async def work() -> None:
        donors = Donors(liar=theirs, ann=theirs)
        donors.entries = {"liar": range(5, 6), "ann": range(5, 6)}  # or it would be taken entry by entry
        if liar:
            donors.snapshots["liar"] = liar
        live = keeper(ours, store, donors)
        await live.open()
        with pytest.raises(Gone):
            await live.catch_up(theirs.base.tip, ["liar"])  # type: ignore[arg-type]
        assert same(live, ours)
        told = {"manifest": [("liar", "snapshot", Reason.BAD_DIGEST)], "file": [("liar", "piece", Reason.BAD_DIGEST)], "nothing": []}
        assert donors.faults == told[fault]
        assert not list(tmp_path.glob("superseded-*"))
        again = keeper(ours, RunStore(tmp_path, ours.rules.run_id))
        await again.open()
        assert same(again, ours)
        donors.snapshots["ann"] = good
        donors.faults.clear()
        await live.catch_up(theirs.base.tip, ["liar", "ann"])  # type: ignore[arg-type]
        assert same(live, theirs)
        assert {who for who, _, _ in donors.faults} <= {"liar"}

    go(work)
