"""This node's lineage: the Shared Base in memory together with its log and snapshots on disk, and catching up on others.

An entry is on disk, synced, before the base in memory moves; so a crash at any instruction leaves a base that the
log can rebuild. Called from the event loop; heavy work goes to threads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from protocols import limits
from protocols.canonical import Verify
from protocols.control import Fetching
from protocols.layout import Layout
from protocols.lineage import Entry, Snapshot, Tip
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from protocols.settling import equivocation
from tapestryd.base import Next, SharedBase, describe
from tapestryd.exchange import part_bytes
from tapestryd.host.files import saying_unreadable
from tapestryd.host.store import RunStore
from tapestryd.replay import replay
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)

_BRANCH = 8
"""Entries back to where a branch may have parted from ours, and beyond our height, for us to change over entry by entry: all in
memory until then, and together fewer bytes than a snapshot."""

_TELL_S = 30.0
"""So often the log says how far a snapshot is."""

_STOP_S = 10.0
"""A snapshot that is being written when we end has so long; without it the next start replays a few entries more."""


class Keeper:
    """`on_replay(entry, parts)` is told of every entry of others that went on from our base, `on_replace(entries)` of those that
    came with another base in its place: what the better branch holds since it parted, or what proves a snapshot."""

    def __init__(
        self, rules: RunRules, layout: Layout, store: RunStore, fetcher: Fetcher, verify: Verify, snapshot_every: int, keep_snapshots: int,
        on_replay: Callable[[Entry, list[bytes]], None], on_replace: Callable[[Sequence[Entry]], None],
    ) -> None:  # fmt: skip
        self.rules = rules
        self.store = store
        self.base = SharedBase(rules, layout)
        self._fetcher = fetcher
        self._verify = verify
        self._every = snapshot_every
        self._keep = keep_snapshots
        self._on_replay = on_replay
        self._on_replace = on_replace
        self._writing: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self.fetching: Fetching | None = None
        self.round = -1
        """Of the entry that led to the tip; -1: the tip is genesis, or that entry is not here."""

    async def open(self) -> Tip | None:
        """Load what the disk holds: the newest good snapshot and the log behind it. None: nothing yet."""
        for snapshot in reversed(await asyncio.to_thread(self.store.snapshots)):
            file = self.store.snapshot_file(snapshot)
            try:
                with saying_unreadable(file):
                    await asyncio.to_thread(self.base.load, snapshot, file)
                break
            except Refused as refused:
                self.store.set_snapshot_aside(snapshot, str(refused))
        if self.base.tip is not None:
            proof = await asyncio.to_thread(self.store.load_entry, self.base.tip.height, self._verify)
            self.round = proof[0].vote.round if proof and proof[0].tip == self.base.tip else -1
        while self.base.tip is not None:
            loaded = await asyncio.to_thread(self.store.load_entry, self.base.tip.height + 1, self._verify)
            if loaded is None or loaded[0].vote.before != self.base.tip.base:
                break
            try:
                step = await self._follow(*loaded)
            except Refused as refused:
                self.store.set_entry_aside(loaded[0].vote.height, str(refused))
                break
            await asyncio.to_thread(self.base.put, step, loaded[0].tip)
            self.round = loaded[0].vote.round
        return self.base.tip

    async def commit(self, entry: Entry, blobs: Sequence[bytes], step: Next) -> Tip:
        """Entry to disk, then base. Raises DiskFull with nothing changed."""
        await asyncio.to_thread(self.store.write_entry, entry, *blobs)
        async with self._moving:
            await asyncio.to_thread(self.base.put, step, entry.tip)
            self.round = entry.vote.round
        await self._snapshot_if_due()
        return entry.tip

    async def catch_up(self, target: Tip, donors: Sequence[str]) -> Tip:
        """Bring the base to `target`, a proven tip, or to a better one: by replay, or by snapshot and replay where the log does not
        reach back, is of another branch, or would take more bytes. Raises Gone when the donors do not have what they announced;
        whatever was reached by then is kept."""
        far = self._far(target)
        if far:
            with suppress(Gone):
                await self._fetch_snapshot(donors, self.base.tip)
        beyond: Tip | None = None
        try:
            there = await self._replay(target, donors)
        except Gone:  # they lie, or joined by a snapshot and never had the entry that we lack
            there, beyond = False, self.base.tip
        if not there and self._behind(target) and not (beyond is None and await self._change_branch(target, donors)):
            await self._fetch_snapshot(donors, beyond)
            if not await self._replay(target, donors) and self._behind(target):
                raise Gone(f"the donors' log does not lead to the announced base at height {target.height}")
        assert self.base.tip is not None
        return self.base.tip

    async def copy(self) -> tuple[Tip, Tensor] | None:
        """The base of one moment: its tip and a copy of theta, (n,) float32; None without a base."""
        async with self._moving:
            return (self.base.tip, await asyncio.to_thread(self.base.theta.clone)) if self.base.tip else None

    async def stop(self) -> None:
        await self._snapshot_written(_STOP_S)

    async def _snapshot_written(self, timeout_s: float | None = None) -> None:
        """To its end, before its lineage gives way: it would else come to lie among the files of the other one. Nor are older ones
        pruned behind it while they are read."""
        if self._writing:
            await asyncio.wait([self._writing], timeout=timeout_s)

    def _behind(self, target: Tip) -> bool:
        """Else the donors went on, or over to what is no worse, and so have we."""
        return self.base.tip is None or target.better_than(self.base.tip)

    def _far(self, target: Tip) -> bool:
        """The entries that we lack are more bytes than a snapshot."""
        if self.base.tip is None:
            return False
        elements, fragments = self.base.layout.elements, self.base.layout.fragments
        return (target.height - self.base.tip.height) * part_bytes(self.rules, elements) > 8 * elements * fragments

    async def _replay(self, target: Tip, donors: Sequence[str]) -> bool:
        """Follow the donors' log up to `target`. False: it does not go on from our base, or it is our base that they tell of, at
        another height or weight. A donor whose entry does not follow is left out: it may be on a branch that lost, or lie; but if
        it shows another branch, no other donor hides that again by lying or having nothing. Raises Gone when nobody has what
        comes next, nor another branch."""
        able, parted = list(donors), False
        while self.base.tip is not None and self.base.tip.height < target.height:
            try:
                async with self._fetcher.entries(able, self.base.tip.height + 1, target) as coming:
                    async for _, donor, (entry, parts) in coming:
                        try:
                            step = await self._follow(entry, parts)
                        except Refused as refused:
                            parted |= refused.reason is Reason.OTHER_BASE
                            able.remove(donor)
                            log.info("entry %d by %s does not follow: %s", entry.vote.height, donor[-6:], refused)
                            break
                        await self.commit(entry, parts, step)
                        self._on_replay(entry, parts)
            except Gone:
                if parted:
                    return False
                raise
        return self.base.tip == target

    async def _change_branch(self, target: Tip, donors: Sequence[str]) -> bool:
        """Take the last base that both branches have from our own files, and from there the donors' entries; ours is given up
        once theirs is the better one. False, with nothing changed: they parted too long ago, or the entries do not come."""
        ours = self.base.tip
        if ours is None or target.height - ours.height > _BRANCH:
            return False
        aside: SharedBase | None = None
        last_round = -1
        taken: list[tuple[Entry, list[bytes]]] = []
        await self._snapshot_written()
        try:
            async with self._fetcher.entries(donors, max(1, ours.height - _BRANCH), target) as coming:
                async for height, _, (entry, parts) in coming:
                    if aside is None:
                        own = await asyncio.to_thread(self.store.entry_head, height, self._verify)
                        if own is not None and own.tip == entry.tip:
                            last_round = own.vote.round
                            continue
                        if own is not None:
                            self._compare(own, entry)
                        rebuilt, last_round = await asyncio.to_thread(self._rebuilt, height - 1)
                        aside = rebuilt
                    step = await asyncio.to_thread(replay, aside, entry, parts, last_round=last_round)
                    aside.put(step, entry.tip)
                    last_round = entry.vote.round
                    taken.append((entry, parts))
        except (Gone, Refused) as error:
            log.info("the other branch, entry by entry: %s", error)
            return False
        if aside is None or aside.tip != target or not target.better_than(ours):
            return False
        common = taken[0][0].vote.height - 1
        log.warning("over to the better branch: back from height %d to %d, on to %d", ours.height, common, target.height)
        await asyncio.to_thread(self.store.take_over, taken, beyond=common)
        async with self._moving:
            self.base, self.round = aside, last_round
        self._on_replace([entry for entry, _ in taken])
        return True

    def _compare(self, ours: Entry, theirs: Entry) -> None:
        """Where two branches part: whoever voted for both has forked the run."""
        cast = {vote.peer: vote for vote in ours.votes}
        for vote in theirs.votes:
            if vote.peer in cast and equivocation(cast[vote.peer], vote):
                self.store.keep_proof(cast[vote.peer], vote)
                self._fetcher.refused(Refused(Reason.EQUIVOCATION, "voted for two results of one round"), "vote", vote.peer)

    def _rebuilt(self, height: int) -> tuple[SharedBase, int]:
        """Our base as it was at `height`, from our own files, and the round that led there. Raises Refused if they do not reach back,
        StateFault, Unavailable if one cannot be read at all."""
        base, last_round = SharedBase(self.rules, self.base.layout), -1
        for snapshot in reversed(self.store.snapshots()):
            if snapshot.tip.height <= height:
                file = self.store.snapshot_file(snapshot)
                with saying_unreadable(file):
                    base.load(snapshot, file)
                break
        while base.tip is not None and base.tip.height < height:
            loaded = self.store.load_entry(base.tip.height + 1, self._verify)
            if loaded is None:
                break
            base.put(replay(base, *loaded, last_round=last_round), loaded[0].tip)
            last_round = loaded[0].vote.round
        if base.tip is None or base.tip.height != height:
            raise Refused(Reason.STALE, f"our own files do not lead to height {height}")
        return base, last_round

    async def _follow(self, entry: Entry, parts: list[bytes]) -> Next:
        return await asyncio.to_thread(replay, self.base, entry, parts, last_round=self.round)

    async def _fetch_snapshot(self, donors: Sequence[str], beyond: Tip | None) -> None:
        """Replace base and files by a snapshot that donors keep; it must be better than `beyond`, if there is such. Only the whole
        file shows whether a manifest was true; until then nothing is replaced."""
        why = "nobody keeps one"
        async for snapshot, keepers in self._manifests(donors):
            if beyond and not snapshot.tip.better_than(beyond):
                continue
            try:
                proof = await self._fetcher.certificate(keepers, snapshot.tip)
                file = await self._download(snapshot, keepers)
            except Gone as gone:
                why = str(gone)
                log.info("no snapshot of height %d: %s", snapshot.tip.height, gone)
                continue
            try:
                both, pairs = await asyncio.to_thread(self.base.read, snapshot, file)
            except Refused as refused:  # every piece was as they all said
                why = str(refused)
                for keeper in keepers:
                    self._fetcher.refused(refused, "snapshot", keeper)
                continue
            await self._snapshot_written()
            await asyncio.to_thread(self.store.take_over, [proof] if proof else [], snapshot)
            async with self._moving:
                await asyncio.to_thread(self.base.replace, snapshot, both, pairs)
                self.round = proof[0].vote.round if proof else -1
            self._on_replace([proof[0]] if proof else [])
            return
        raise Gone(f"no snapshot: {why}")

    async def _manifests(self, donors: Sequence[str]) -> AsyncIterator[tuple[Snapshot, list[str]]]:
        """Snapshots with the donors that say the very same of them: first what we have begun to fetch, then the best; of one
        base what most say first. A donor may lie in its manifest, but never makes another one look guilty."""
        layout = self.base.layout
        newest = await self._fetcher.manifests(donors, "", layout.elements, layout.fragments)
        best = sorted({snapshot.tip for snapshot in newest.values()}, key=lambda tip: (-tip.weight, tip.base))
        for base in dict.fromkeys([*self.store.begun(), *(tip.base for tip in best)]):
            found = {donor: snapshot for donor, snapshot in newest.items() if snapshot.tip.base == base}
            others = [donor for donor in donors if donor not in found]
            found |= await self._fetcher.manifests(others, base, layout.elements, layout.fragments)
            said: dict[Snapshot, list[str]] = {}
            for donor, snapshot in found.items():
                said.setdefault(snapshot, []).append(donor)
            for snapshot, keepers in sorted(said.items(), key=lambda one: -len(one[1])):
                yield snapshot, keepers

    async def _download(self, snapshot: Snapshot, keepers: Sequence[str]) -> Path:
        download = await asyncio.to_thread(self.store.download, snapshot)
        wanted = await asyncio.to_thread(download.wanted)
        log.info(
            "fetching snapshot height=%d: %d of %d pieces, from %d peers",
            snapshot.tip.height, len(wanted), len(snapshot.pieces), len(keepers),
        )  # fmt: skip
        missing_bytes = sum(min(limits.PIECE_BYTES, snapshot.size - piece * limits.PIECE_BYTES) for piece in wanted)
        now = Fetching(snapshot.tip.height, snapshot.size - missing_bytes, snapshot.size, len(keepers))
        told = time.monotonic()
        try:
            async with self._fetcher.pieces(keepers, snapshot, wanted) as coming:
                self.fetching = now
                async for piece, _, data in coming:
                    await asyncio.to_thread(download.keep, piece, data)
                    self.fetching = now = replace(now, here_bytes=now.here_bytes + len(data))
                    if time.monotonic() - told > _TELL_S:
                        told = time.monotonic()
                        log.info("fetching snapshot height=%d: %d of %d bytes are here", now.height, now.here_bytes, now.bytes)
        finally:
            self.fetching = None
        return download.path

    async def _snapshot_if_due(self) -> None:
        tip = self.base.tip
        assert tip is not None
        if tip.height % self._every or (self._writing and not self._writing.done()):
            return
        pairs = list(self.base.pairs)
        theta, velocity = await asyncio.to_thread(lambda: (self.base.theta.clone(), self.base.velocity.clone()))

        def write() -> None:
            snapshot, first, second = describe(self.rules.run_id, tip, pairs, theta, velocity)
            self.store.write_snapshot(snapshot, first, second)
            self.store.prune_snapshots(self._keep)

        async def later() -> None:
            try:
                await asyncio.to_thread(write)
            except Exception as error:
                log.warning("snapshot of height %d not written: %s", tip.height, error)

        self._writing = asyncio.create_task(later())
