"""This node's lineage: the Shared Base in memory together with its log and snapshots on disk, and catching up on others.

An entry is on disk, synced, before the base in memory moves; so a crash at any instruction leaves a base that the
log can rebuild. Called from the event loop; heavy work goes to threads.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from protocols.canonical import Verify
from protocols.layout import Layout
from protocols.lineage import Entry, Tip
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from tapestryd.base import Next, SharedBase, describe
from tapestryd.exchange import assemble
from tapestryd.host.store import RunStore
from tapestryd.swarm.lineage import Fetcher

log = logging.getLogger(__name__)


class Keeper:
    """`on_replay(entry)` is told of every entry that was not committed here."""

    def __init__(
        self, rules: RunRules, layout: Layout, store: RunStore, fetcher: Fetcher, verify: Verify, snapshot_every: int, keep_snapshots: int,
        on_replay: Callable[[Entry], None],
    ) -> None:  # fmt: skip
        self.rules = rules
        self.store = store
        self.base = SharedBase(rules, layout)
        self._fetcher = fetcher
        self._verify = verify
        self._every = snapshot_every
        self._keep = keep_snapshots
        self._on_replay = on_replay
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> Tip | None:
        """Load what the disk holds: the newest good snapshot and the log behind it. None: nothing yet."""
        for snapshot in reversed(await asyncio.to_thread(self.store.snapshots)):
            try:
                await asyncio.to_thread(self.base.load, snapshot, self.store.snapshot_file(snapshot))
                break
            except Refused as refused:
                self.store.set_snapshot_aside(snapshot, str(refused))
        while self.base.tip is not None:
            loaded = await asyncio.to_thread(self.store.load_entry, self.base.tip.height + 1, self._verify)
            if loaded is None or loaded[0].vote.before != self.base.tip.base:
                break
            await asyncio.to_thread(self.base.put, await self._follow(*loaded), loaded[0].tip)
        return self.base.tip

    async def commit(self, entry: Entry, blobs: Sequence[bytes], step: Next) -> Tip:
        """Entry to disk, then base. Raises DiskFull with nothing changed."""
        await asyncio.to_thread(self.store.write_entry, entry, *blobs)
        await asyncio.to_thread(self.base.put, step, entry.tip)
        await self._snapshot_if_due()
        return entry.tip

    async def catch_up(self, target: Tip, donors: Sequence[str]) -> Tip:
        """Bring the base to `target` by replay, or, on another branch or without any base, by snapshot and replay.
        Raises Gone when the donors do not have what they announced; whatever was reached by then is kept."""
        if self.base.tip is None or not await self._replay(target, donors):
            await self._fetch_snapshot(donors)
            await self._replay(target, donors)
        assert self.base.tip is not None
        return self.base.tip

    async def stop(self) -> None:
        if self._writing:
            await asyncio.wait([self._writing], timeout=10)

    async def _replay(self, target: Tip, donors: Sequence[str]) -> bool:
        """Follow the donors' log up to `target`. False: it does not go on from our base."""
        while self.base.tip is not None and self.base.tip.height < target.height:
            entry, data = await self._fetcher.entry(donors, self.base.tip.height + 1)
            if entry.vote.before != self.base.tip.base:
                return False
            entry, parts = await asyncio.to_thread(Entry.split, data, self.rules.run_id, self._verify)
            step = await self._follow(entry, parts)
            await self.commit(entry, parts, step)
            self._on_replay(entry)
        return self.base.tip is not None and self.base.tip.base == target.base

    async def _follow(self, entry: Entry, parts: list[bytes]) -> Next:
        """The step that an entry on our tip makes. Refused if it does not lead where its certificate says."""
        tip = self.base.tip
        assert tip is not None
        vote = entry.vote
        if vote.fragment != vote.round % self.base.layout.fragments or vote.height != tip.height + 1:
            raise Refused(Reason.OTHER_ROUND, f"entry {vote.height} is of fragment {vote.fragment}")
        if vote.weight != tip.weight + len(entry.roster.members):
            raise Refused(Reason.OUT_OF_RANGE, f"entry {vote.height} claims weight {vote.weight}")
        mean, _ = await asyncio.to_thread(assemble, self.rules, entry.roster, parts)
        step = await asyncio.to_thread(self.base.next, vote.fragment, mean)
        if step.base != vote.after:
            raise Refused(Reason.BAD_DIGEST, f"entry {vote.height} leads to {step.base[:12]} here, to {vote.after[:12]} for its voters")
        return step

    async def _fetch_snapshot(self, donors: Sequence[str]) -> None:
        layout = self.base.layout
        snapshot = await self._fetcher.snapshot(donors, layout.elements, layout.fragments, self.rules.model.genesis)
        log.info("fetching snapshot height=%d of %.1f MB from %d peers", snapshot.tip.height, snapshot.size / 1e6, len(donors))
        download = self.store.download(snapshot)
        await self._fetcher.pieces(donors, snapshot, download.have, download.keep)
        if self.base.tip is not None:
            self.store.supersede()
        self.store.keep_download(snapshot, download)
        await asyncio.to_thread(self.base.load, snapshot, self.store.snapshot_file(snapshot))

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
