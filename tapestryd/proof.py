"""Proving a base from files alone: rules, a snapshot to begin with, and every log entry behind it, replayed.

Nothing is believed but the run id. The checks of an entry are those of every peer that replays it (protocols.lineage,
replay.py); here is what only a whole archive can show: that nothing is missing, and that snapshots on the way are the base
that the log leads to. Heavy: hours for a long log of a large model.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from protocols import limits
from protocols.canonical import digest
from protocols.lineage import Entry, Snapshot, Tip, follow
from protocols.refusal import Refused
from tapestryd.archive import Archive, Fault, read
from tapestryd.base import SharedBase, describe
from tapestryd.exchange import entry_bytes
from tapestryd.host.keys import verify
from tapestryd.replay import replay


@dataclass(slots=True)
class Proof:
    """What has been shown so far. `start`: the base that the proof begins from, certified by what `certified_by` says;
    `tip`: the base that it has reached; `members`: peer id → rosters that it was in; `snapshots`: heights checked."""

    start: Tip | None = None
    certified_by: str = ""
    tip: Tip | None = None
    round: int = -1
    entries: int = 0
    bytes: int = 0
    members: Counter[str] = field(default_factory=Counter)
    snapshots: list[int] = field(default_factory=list)


def prove(archive: Archive, *, from_genesis: bool, told: Callable[[int, int], None]) -> Proof:
    """Replay the archive. `told(height, last)` after each entry. Raises Fault at the first thing that is wrong."""
    first, last = min(archive.entries, default=1), max(archive.entries, default=0)
    if from_genesis and (first > 1 or 0 not in archive.snapshots):
        lacking = f"entries 1 to {first - 1} are not here" if first > 1 else "the genesis snapshot is not here"
        raise Fault(archive.rules_file.parent, None, f"that the base comes from genesis cannot be shown with these files: {lacking}")
    walk = _Walk(archive)
    walk.begin(first)
    for height in range(first, last + 1):
        walk.entry(height, f"{height:010d}.entry")
        told(height, last)
    beyond = [height for height in archive.snapshots if height > last]
    if last and beyond:
        raise Fault(archive.snapshots[beyond[0]][1], beyond[0], f"nothing certifies it: the log here ends at height {last}")
    if walk.proof.start is None:
        raise Fault(archive.rules_file.parent, None, _no_start(archive, first, last))
    return walk.proof


def _no_start(archive: Archive, first: int, last: int) -> str:
    if not last:
        return "there is neither genesis nor any log entry here"
    return f"there is no snapshot to begin from; one of height {first - 1} to {last} is needed, or entries down to a snapshot's height"


class _Walk:
    """From the earliest snapshot that the log reaches, up. Entries below it are checked in all but their arithmetic."""

    def __init__(self, archive: Archive) -> None:
        self.proof = Proof(bytes=archive.rules_file.stat().st_size)
        self._archive = archive
        self._base = SharedBase(archive.rules, archive.rules.layout())
        self._bound = entry_bytes(archive.rules)

    def begin(self, first: int) -> None:
        """Genesis is what the rules name; another snapshot just below the log is certified by the entry that starts from it."""
        snapshots, genesis = self._archive.snapshots, Tip(0, 0, self._archive.rules.model.genesis)
        if 0 in snapshots and snapshots[0][0].tip != genesis:
            raise Fault(snapshots[0][1], 0, f"base {snapshots[0][0].tip.base[:12]}, where the rules name genesis {genesis.base[:12]}")
        if first - 1 in snapshots:
            self._load(first - 1, "the rules" if first == 1 else f"entry {first}")
        elif first == 1:
            self.proof.tip = genesis

    def entry(self, height: int, name: str) -> None:
        proof, file = self.proof, self._archive.entries.get(height)
        if file is None:
            raise Fault(self._archive.entries[min(self._archive.entries)].with_name(name), height, "missing")
        data = read(file, self._bound, height)
        try:
            entry, parts = Entry.split(data, self._archive.rules, verify)
            if entry.vote.height != height:
                raise Fault(file, height, f"holds the entry of height {entry.vote.height}")
            if self._base.tip is not None:
                self._base.put(replay(self._base, entry, parts, last_round=proof.round), entry.tip)
            elif proof.tip is not None:
                follow(proof.tip, entry, self._archive.rules.averaging, last_round=proof.round)
        except Refused as refused:
            raise Fault(file, height, str(refused)) from None
        proof.tip, proof.round = entry.tip, entry.vote.round
        proof.entries += 1
        proof.bytes += len(data)
        proof.members.update(entry.roster.members)
        if height in self._archive.snapshots:
            self._check(height) if self._base.tip is not None else self._load(height, f"entry {height}")

    def _load(self, height: int, certified_by: str) -> None:
        """Begin at the snapshot of this height."""
        snapshot, file = self._archive.snapshots[height]
        if self.proof.tip not in (None, snapshot.tip):
            raise Fault(file, height, f"says base {snapshot.tip.base[:12]}, weight {snapshot.tip.weight}; its entry says otherwise")
        base = file.with_suffix(".base")
        try:
            self._base.load(snapshot, base)
        except Refused as refused:
            raise Fault(base, height, str(refused)) from None
        self._same(snapshot, file)
        self.proof.start = self.proof.tip = snapshot.tip
        self.proof.certified_by = certified_by
        self._checked(snapshot, file)

    def _check(self, height: int) -> None:
        """The snapshot of this height is the base that was replayed, byte for byte."""
        snapshot, file = self._archive.snapshots[height]
        self._same(snapshot, file)
        base = file.with_suffix(".base")
        try:
            with base.open("rb") as data:
                for number, expected in enumerate(snapshot.pieces):
                    if digest(data.read(limits.PIECE_BYTES)) != expected:
                        start = number * limits.PIECE_BYTES
                        raise Fault(
                            base, height, f"bad_digest: not the base that the log leads to, within {limits.PIECE_BYTES} bytes from {start}"
                        )
        except FileNotFoundError:
            return  # a daemon that is at work here pruned it
        self._checked(snapshot, file)

    def _same(self, snapshot: Snapshot, file: Path) -> None:
        """The manifest is that of the base at hand."""
        base = self._base
        assert base.tip is not None
        true, _, _ = describe(self._archive.rules.run_id, base.tip, base.pairs, base.theta, base.velocity)
        if snapshot.tip != true.tip:
            raise Fault(file, snapshot.tip.height, f"says base {snapshot.tip.base[:12]}; the log leads to {true.tip.base[:12]}")
        if snapshot != true:
            raise Fault(file, snapshot.tip.height, "bad_digest: names pieces that this base does not have")

    def _checked(self, snapshot: Snapshot, file: Path) -> None:
        self.proof.snapshots.append(snapshot.tip.height)
        self.proof.bytes += snapshot.size + len(snapshot.to_bytes())
