"""This node's lineage: the Shared Base in memory together with its log and snapshots on disk, and catching up on others.

An entry is on disk, synced, before the base in memory moves; so a crash at any instruction leaves a base that the
log can rebuild. Called from the event loop; heavy work goes to threads.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from torch import Tensor

from protocols.canonical import Verify
from protocols.layout import Layout
from protocols.lineage import Entry, Tip
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd.base import Next, SharedBase, describe
from tapestryd.host.store import RunStore
from tapestryd.replay import replay
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)


class Keeper:
    """`on_replay(entry, parts)` is told of every entry that was not committed here, `on_replace` of a snapshot
    that took the base's place."""

    def __init__(
        self, rules: RunRules, layout: Layout, store: RunStore, fetcher: Fetcher, verify: Verify, snapshot_every: int, keep_snapshots: int,
        on_replay: Callable[[Entry, list[bytes]], None], on_replace: Callable[[], None],
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
        self._round = -1
        """Of the entry that led to the tip; -1: the tip is genesis, or that entry is not here."""

    async def open(self) -> Tip | None:
        """Load what the disk holds: the newest good snapshot and the log behind it. None: nothing yet."""
        for snapshot in reversed(await asyncio.to_thread(self.store.snapshots)):
            try:
                await asyncio.to_thread(self.base.load, snapshot, self.store.snapshot_file(snapshot))
                break
            except Refused as refused:
                self.store.set_snapshot_aside(snapshot, str(refused))
        if self.base.tip is not None:
            proof = await asyncio.to_thread(self.store.load_entry, self.base.tip.height, self._verify)
            self._round = proof[0].vote.round if proof and proof[0].tip == self.base.tip else -1
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
            self._round = loaded[0].vote.round
        return self.base.tip

    async def commit(self, entry: Entry, blobs: Sequence[bytes], step: Next) -> Tip:
        """Entry to disk, then base. Raises DiskFull with nothing changed."""
        await asyncio.to_thread(self.store.write_entry, entry, *blobs)
        async with self._moving:
            await asyncio.to_thread(self.base.put, step, entry.tip)
            self._round = entry.vote.round
        await self._snapshot_if_due()
        return entry.tip

    async def catch_up(self, target: Tip, donors: Sequence[str]) -> Tip:
        """Bring the base to `target` by replay, or, on another branch or without any base, by snapshot and replay.
        Raises Gone when the donors do not have what they announced; whatever was reached by then is kept."""
        beyond: Tip | None = None
        try:
            there = await self._replay(target, donors)
        except Gone:  # they may have joined by a snapshot, and never had the entry that we lack
            there, beyond = False, self.base.tip
        if not there:
            if self.base.tip is not None and beyond is None:
                await self._certified(target, donors)
            await self._fetch_snapshot(donors, beyond)
            if not await self._replay(target, donors):
                raise Gone(f"the donors' log does not lead to the announced base at height {target.height}")
        assert self.base.tip is not None
        return self.base.tip

    async def copy(self) -> tuple[Tip, Tensor] | None:
        """The base of one moment: its tip and a copy of theta, (n,) float32; None without a base."""
        async with self._moving:
            return (self.base.tip, await asyncio.to_thread(self.base.theta.clone)) if self.base.tip else None

    async def stop(self) -> None:
        if self._writing:
            await asyncio.wait([self._writing], timeout=10)

    async def _certified(self, target: Tip, donors: Sequence[str]) -> None:
        """Before our own branch is given up for it: somebody shows a certificate of `target`."""
        if target.height:
            entry, _ = await self._fetcher.entry(donors, target.height)
            if entry.tip == target:
                return
        raise Gone(f"nobody shows a certificate of the announced base at height {target.height}")

    async def _replay(self, target: Tip, donors: Sequence[str]) -> bool:
        """Follow the donors' log up to `target`. False: it does not go on from our base."""
        while self.base.tip is not None and self.base.tip.height < target.height:
            entry, parts = await self._fetcher.entry(donors, self.base.tip.height + 1)
            if entry.vote.before != self.base.tip.base:
                return False
            step = await self._follow(entry, parts)
            await self.commit(entry, parts, step)
            self._on_replay(entry, parts)
        return self.base.tip is not None and self.base.tip.base == target.base

    async def _follow(self, entry: Entry, parts: list[bytes]) -> Next:
        return await asyncio.to_thread(replay, self.base, entry, parts, last_round=self._round)

    async def _fetch_snapshot(self, donors: Sequence[str], beyond: Tip | None) -> None:
        """Replace base and files by a donor's newest snapshot; it must be better than `beyond`, if there is such. One donor's
        manifest after the other, because only the whole file shows whether a manifest was true; until then nothing is replaced."""
        layout, why = self.base.layout, "nobody to ask"
        for donor in donors:
            try:
                snapshot, proof = await self._fetcher.snapshot([donor], layout.elements, layout.fragments, self.rules.model.genesis)
                if beyond and not snapshot.tip.better_than(beyond):
                    raise Gone(f"{donor[-6:]} keeps no snapshot beyond height {beyond.height}")
                log.info("fetching snapshot height=%d of %.1f MB from %d peers", snapshot.tip.height, snapshot.size / 1e6, len(donors))
                download = await asyncio.to_thread(self.store.download, snapshot)
                await self._fetcher.pieces(donors, snapshot, download.have, download.keep)
                both, pairs = await asyncio.to_thread(self.base.read, snapshot, download.path)
            except (Gone, Refused) as error:
                why = str(error)
                log.info("no snapshot by %s: %s", donor[-6:], error)
                continue
            if self.base.tip is not None:
                self.store.supersede()
            if proof:
                await asyncio.to_thread(self.store.write_entry, proof[0], *proof[1])
            await asyncio.to_thread(self.store.keep_download, snapshot, download)
            async with self._moving:
                await asyncio.to_thread(self.base.replace, snapshot, both, pairs)
                self._round = proof[0].vote.round if proof else -1
            self._on_replace()
            return
        raise Gone(f"no snapshot: {why}")

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
