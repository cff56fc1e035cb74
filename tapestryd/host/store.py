"""What is kept of one run: rules, stories, log and snapshots. Written temp, fsync, rename.

    state_dir/runs/<run_id>/
    ├── rules.json          canonical run rules
    ├── tokenizer.json      if the rules name one
    ├── epochs.json         in roster mode: the greatest epoch seen of each Member
    ├── rounds.jsonl        what this node lived through, one story a line
    ├── proofs/             equivocations: two signed statements of which only one can be true, a pair a file
    ├── log/0000000012.entry
    ├── snapshots/0000000008.{json,base}
    ├── <base>.part         a snapshot on its way
    ├── incoming/           what is about to take the place of our lineage; gone at the next start
    └── superseded-N/       log and snapshots of a lineage that ours was replaced by
Knows files and digests; nothing of peers, rounds or tensors beyond bytes.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from protocols import limits
from protocols.canonical import Signed, Verify, dumps
from protocols.control import Story
from protocols.layout import Layout
from protocols.lineage import ENTRY_HEAD_BYTES, Entry, Snapshot
from protocols.membership import Epochs
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd.errors import DiskFull, StateFault
from tapestryd.host.download import Download
from tapestryd.host.files import Move, last_lines, move_all, saying_disk_full, saying_unreadable, set_aside, sync, write

log = logging.getLogger(__name__)

STORIES = 500
PROOFS = 256

_HOLD_S = 600.0
_HELD = 2
"""A snapshot that somebody fetched from less than _HOLD_S ago is kept beyond its time; at most so many of them, whoever asks."""

_SUPERSEDED = 2


class RunStore:
    """One run's files; what others may fetch of them is exactly what the Shelf in swarm/donor.py names."""

    def __init__(self, path: Path, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        self._log = path / "log"
        self._snapshots = path / "snapshots"
        self._proofs = path / "proofs"
        self._incoming = path / "incoming"
        self._rules: RunRules | None = None
        self._layout: Layout | None = None
        self._kept: dict[str, Snapshot] = {}
        """Parsed manifests by file name: immutable, asked for with every piece."""
        self._lent: dict[int, float] = {}
        """When a snapshot was last asked for by somebody who fetches it, by height."""
        self._moving = threading.Lock()
        """Held while files of one lineage are exchanged for another's: whoever looks finds either."""
        for folder in (self._log, self._snapshots):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (path, self._log, self._snapshots, self._proofs):
            for leftover in [*folder.glob("*.new")]:
                leftover.unlink()
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._sweep()

    # Rules and tokenizer.

    def rules(self) -> bytes:
        return (self.path / "rules.json").read_bytes()

    def load_rules(self) -> RunRules | None:
        """Raises StateFault if they are damaged."""
        if not (self.path / "rules.json").exists():
            return None
        try:
            return RunRules.from_canonical(self.rules(), self.run_id)
        except Refused as refused:
            raise StateFault(f"{self.path / 'rules.json'}: {refused.detail}; delete it, the peers have it") from None

    def keep_rules(self, rules: RunRules, tokenizer: bytes) -> None:
        if tokenizer:
            write(self.path / "tokenizer.json", tokenizer)
        write(self.path / "rules.json", rules.canonical())

    def tokenizer(self) -> bytes:
        path = self.path / "tokenizer.json"
        return path.read_bytes() if path.exists() else b""

    # Epochs.

    def load_epochs(self) -> Epochs:
        """Damaged ones are set aside: what they forbade, presences tell again."""
        path = self.path / "epochs.json"
        try:
            return Epochs.parse(path.read_bytes())
        except FileNotFoundError:
            return Epochs()
        except Refused as refused:
            set_aside(path, str(refused))
            return Epochs()

    def keep_epochs(self, epochs: Epochs) -> None:
        write(self.path / "epochs.json", epochs.to_bytes())

    # Log.

    @property
    def _judge(self) -> RunRules | None:
        """The rules that entries are held against."""
        if self._rules is None:
            self._rules = self.load_rules()
        return self._rules

    def _entry(self, height: int) -> Path:
        return self._log / f"{height:010d}.entry"

    def write_entry(self, entry: Entry, *parts: bytes) -> None:
        write(self._entry(entry.vote.height), entry.head(), *parts)

    def entry_size(self, height: int) -> int | None:
        path = self._entry(height)
        return path.stat().st_size if path.exists() else None

    def read_entry(self, height: int, offset: int, size: int) -> bytes:
        with self._entry(height).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def load_entry(self, height: int, verify: Verify) -> tuple[Entry, list[bytes]] | None:
        """Entry and parts, verified; a damaged file is set aside and is as good as absent. Raises StateFault, Unavailable if it
        cannot be read at all."""
        path = self._entry(height)
        if self._judge is None or not path.exists():
            return None
        with saying_unreadable(path):
            data = path.read_bytes()
        try:
            return Entry.split(data, self._judge, verify)
        except Refused as refused:
            set_aside(path, str(refused))
            return None

    def entry_head(self, height: int, verify: Verify) -> Entry | None:
        """What an entry certifies, without its parts; None if it is not here, or not good. Raises StateFault, Unavailable if it cannot
        be read at all."""
        if self._judge is None or self.entry_size(height) is None:
            return None
        with saying_unreadable(self._entry(height)):
            head = self.read_entry(height, 0, ENTRY_HEAD_BYTES)
        try:
            return Entry.parse(head, self._judge, verify)[0]
        except Refused:
            return None

    def set_entry_aside(self, height: int, why: str) -> None:
        set_aside(self._entry(height), why)

    # Snapshots.

    def _manifest(self, height: int) -> Path:
        return self._snapshots / f"{height:010d}.json"

    def write_snapshot(self, snapshot: Snapshot, theta: memoryview, velocity: memoryview) -> None:
        write(self._manifest(snapshot.tip.height).with_suffix(".base"), theta, velocity)
        write(self._manifest(snapshot.tip.height), snapshot.to_bytes())

    def prune_snapshots(self, keep: int) -> None:
        """Keep genesis, the newest `keep`, and of the others the oldest _HELD that somebody is fetching: whoever takes longer
        for a snapshot than we for the next ones would else never have a whole one."""
        heights = sorted(int(path.stem) for path in self._snapshots.glob("*.json"))
        old = [height for height in heights if height > 0][:-keep]
        now = time.monotonic()
        held = [height for height in old if now - self._lent.get(height, -_HOLD_S) < _HOLD_S][:_HELD]
        for height in [height for height in old if height not in held]:
            self._lent.pop(height, None)
            self._kept.pop(self._manifest(height).name, None)
            self._manifest(height).unlink()
        self._sweep()

    def _sweep(self) -> None:
        """Remove bases without a manifest: pruned, or a crash or a full disk came between the two, or they are damaged themselves."""
        for base in self._snapshots.glob("*.base"):
            if not base.with_suffix(".json").exists():
                base.unlink()

    def snapshots(self) -> list[Snapshot]:
        """Manifests of whole snapshots, oldest first. Damaged ones are set aside. Raises StateFault, Unavailable if one cannot be
        read at all."""
        if self._layout is None:
            rules = self.load_rules()
            self._layout = rules.layout() if rules else None
        found = []
        with self._moving:
            for path in sorted(self._snapshots.glob("*.json")) if self._layout else []:
                snapshot = self._kept.get(path.name) or self._read_manifest(path)
                if snapshot:
                    self._kept[path.name] = snapshot
                    found.append(snapshot)
        return found

    def _read_manifest(self, path: Path) -> Snapshot | None:
        """None: pruned just now, or damaged, and set aside."""
        assert self._layout is not None
        base = path.with_suffix(".base")
        with saying_unreadable(path), suppress(FileNotFoundError):
            data, size = path.read_bytes(), base.stat().st_size if base.exists() else 0
            try:
                snapshot = Snapshot.parse(data, run=self.run_id, elements=self._layout.elements, fragments=self._layout.fragments)
            except Refused as refused:
                set_aside(path, str(refused))
                set_aside(base, "its manifest is")  # it may be whole: `_sweep` is not to take it
                return None
            if size == snapshot.size:
                return snapshot
            set_aside(path, "its base is missing, or cut short")
        return None

    def lend(self, snapshot: Snapshot) -> None:
        """Somebody is fetching it: keep it a while longer."""
        self._lent[snapshot.tip.height] = time.monotonic()

    def read_snapshot(self, base: str, piece: int) -> bytes | None:
        for snapshot in self.snapshots():
            if snapshot.tip.base == base and 0 <= piece < len(snapshot.pieces):
                self.lend(snapshot)
                with suppress(FileNotFoundError), self.snapshot_file(snapshot).open("rb") as file:  # pruned just now
                    file.seek(piece * limits.PIECE_BYTES)
                    return file.read(limits.PIECE_BYTES)
        return None

    def snapshot_file(self, snapshot: Snapshot) -> Path:
        return self._manifest(snapshot.tip.height).with_suffix(".base")

    def set_snapshot_aside(self, snapshot: Snapshot, why: str) -> None:
        self._kept.pop(self._manifest(snapshot.tip.height).name, None)
        set_aside(self._manifest(snapshot.tip.height), why)

    def begun(self) -> list[str]:
        """Bases whose snapshots we have begun to fetch, the latest first."""
        return [path.stem for path in self._downloads()]

    def _downloads(self) -> list[Path]:
        return sorted(self.path.glob("*.part"), key=lambda path: path.stat().st_mtime, reverse=True)

    def download(self, snapshot: Snapshot) -> Download:
        """Begun, or gone on with. What it has in common with one begun before is taken from there; older ones are dropped."""
        path = self.path / f"{snapshot.tip.base}.part"
        fresh = not path.exists()
        others = [other for other in self._downloads() if other != path]
        download = Download(path, snapshot)
        if fresh and others:
            download.adopt(others[0])
        for abandoned in others[1:]:
            abandoned.unlink()
        return download

    def keep_download(self, snapshot: Snapshot) -> None:
        """Whole and verified: now it is one of our snapshots."""
        self.take_over([], snapshot, beyond=limits.INTEGER)

    def take_over(
        self, entries: Sequence[tuple[Entry, list[bytes]]], snapshot: Snapshot | None = None, *, beyond: int = -1
    ) -> None:  # fmt: skip
        """Put these entries, and the snapshot that was downloaded, in the place of what our log and snapshots hold beyond a height.
        That goes where its owner can still find it; the latest _SUPERSEDED of such are kept. Raises DiskFull with nothing changed:
        the first file of ours moves when all that comes is on disk, synced, and then only names change."""
        part = self.path / f"{snapshot.tip.base}.part" if snapshot else None
        earlier = self._superseded()
        aside = self.path / f"superseded-{int(earlier[-1].name.partition('-')[2]) + 1 if earlier else 0}"
        try:
            coming = self._stage(entries, snapshot, part)
            with self._moving, saying_disk_full(self.path):
                leaving = self._leaving(beyond, aside)
                move_all([*leaving, *coming])
                self._kept.clear()
                self._lent.clear()
        finally:
            shutil.rmtree(self._incoming, ignore_errors=True)
        if leaving:
            log.warning("our branch was superseded; its files are kept in %s", aside)
        for old in self._superseded()[:-_SUPERSEDED]:
            shutil.rmtree(old)
        if snapshot:
            for abandoned in self._downloads():
                abandoned.unlink()

    def _stage(self, entries: Sequence[tuple[Entry, list[bytes]]], snapshot: Snapshot | None, part: Path | None) -> list[Move]:
        """What comes, written and synced, and where it goes. The snapshot's file is last: until then it is a download, whole."""
        moves = []
        with saying_disk_full(self._incoming):
            self._incoming.mkdir(exist_ok=True)
            if part:
                sync(part)
        for entry, parts in entries:
            place = self._entry(entry.vote.height)
            write(self._incoming / place.name, entry.head(), *parts)
            moves.append((self._incoming / place.name, place))
        if snapshot and part:
            place = self._manifest(snapshot.tip.height)
            write(self._incoming / place.name, snapshot.to_bytes())
            moves += [(self._incoming / place.name, place), (part, self.snapshot_file(snapshot))]
        return moves

    def _leaving(self, beyond: int, aside: Path) -> list[Move]:
        """Our files beyond a height. The newest goes first, so that what is left after a crash is a lineage, too."""
        return [
            (path, aside / folder.name / path.name)
            for folder in (self._snapshots, self._log)
            for path in sorted(folder.iterdir(), reverse=True)
            if not path.name[:10].isdigit() or int(path.name[:10]) > beyond
        ]

    def _superseded(self) -> list[Path]:
        """The folders of lineages that lost, oldest first; not what somebody named after one."""
        found = (path for path in self.path.glob("superseded-*") if path.name.partition("-")[2].isdecimal())
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    # History.

    def keep_proof(self, one: Signed, other: Signed) -> None:
        """Proof that their signer said two things. At most PROOFS are kept; the first ones stay."""
        try:
            with saying_disk_full(self._proofs):
                self._proofs.mkdir(exist_ok=True)
            if sum(1 for _ in self._proofs.iterdir()) < PROOFS:
                pair = {"statements": [one.to_json(), other.to_json()]}
                write(self._proofs / f"{one.peer}-{one.body['roster'][:16]}-{one.kind}.json", dumps(pair))
        except DiskFull as full:
            log.error("%s", full)

    def tell(self, story: Story) -> None:
        line = json.dumps(asdict(story)).encode() + b"\n"
        with saying_disk_full(self.path), (self.path / "rounds.jsonl").open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a full disk cut the last one short
                    line = b"\n" + line
            file.write(line)

    def stories(self) -> list[Story]:
        """The latest STORIES of them."""
        path = self.path / "rounds.jsonl"
        if not path.exists():
            return []
        found = []
        for line in last_lines(path, STORIES):
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                found.append(Story.from_json(json.loads(line)))
        return found
