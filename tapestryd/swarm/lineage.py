"""Serve and fetch what makes a lineage: run rules, tokenizer, snapshots, log entries.

All of it is immutable and named by digest, so any peer may serve it, donors never pause, and a download goes on
from whoever is still there. Formats and checks are in protocols/lineage.py.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from protocols import limits
from protocols.canonical import Json, Verify, digest, take
from protocols.lineage import Entry, Snapshot, Tip
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream

log = logging.getLogger(__name__)

_PROOF_BYTES = limits.FRAME_BYTES + 12
"""The longest head of an entry."""
_PROVEN = 16

T = TypeVar("T")

Whole = tuple[Entry, list[bytes]]
"""A log entry and its parts, all verified."""


class Shelf(Protocol):
    """The files that this node can serve; implemented by the store."""

    def rules(self) -> bytes: ...
    def tokenizer(self) -> bytes: ...
    def snapshots(self) -> list[Snapshot]: ...
    def read_snapshot(self, base: str, piece: int) -> bytes | None: ...
    def entry_size(self, height: int) -> int | None: ...
    def read_entry(self, height: int, offset: int, size: int) -> bytes: ...


class Donor:
    """Answers the four questions of a joiner. Never blocks on anything but its own disk."""

    def __init__(self, node: Node, shelf: Shelf) -> None:
        self._node = node
        self._shelf = shelf

    async def serve(self) -> None:
        for verb, handler in (("rules", self._rules), ("tokenizer", self._tokenizer), ("snapshots", self._snapshots)):
            await self._node.serve(verb, handler)
        await self._node.serve("piece", self._piece)
        await self._node.serve("entry", self._entry)

    async def _rules(self, stream: Stream) -> None:
        await stream.receive(0)
        await stream.send({}, self._shelf.rules())

    async def _tokenizer(self, stream: Stream) -> None:
        await stream.receive(0)
        await stream.send({}, await asyncio.to_thread(self._shelf.tokenizer))

    async def _snapshots(self, stream: Stream) -> None:
        """The manifest of the snapshot asked for by base digest; without one, of the newest."""
        head, _ = await stream.receive(0)
        take(head, {"base": str})
        found = [snapshot for snapshot in self._shelf.snapshots() if head["base"] in ("", snapshot.tip.base)]
        if not found:
            raise Refused(Reason.STALE, "we do not keep that snapshot")
        await stream.send({}, max(found, key=lambda snapshot: snapshot.tip.height).to_bytes())

    async def _piece(self, stream: Stream) -> None:
        head, _ = await stream.receive(0)
        take(head, {"base": str, "piece": int})
        piece = await asyncio.to_thread(self._shelf.read_snapshot, head["base"], head["piece"])
        if piece is None:
            raise Refused(Reason.STALE, "we do not keep that piece")
        await stream.send({}, piece)

    async def _entry(self, stream: Stream) -> None:
        head, _ = await stream.receive(0)
        take(head, {"height": int, "offset": int, "bytes": int})
        size = self._shelf.entry_size(head["height"])
        if size is None or not 0 <= head["offset"] < size:
            raise Refused(Reason.STALE, f"we do not keep entry {head['height']}")
        if not 0 < head["bytes"] <= limits.PIECE_BYTES:
            raise Refused(Reason.OUT_OF_RANGE, f"{head['bytes']} bytes of an entry")
        data = await asyncio.to_thread(self._shelf.read_entry, head["height"], head["offset"], head["bytes"])
        await stream.send({"size": size}, data)


class Fetcher:
    """Asks donors, one after the other, until one has it. What comes is verified before it is returned."""

    def __init__(self, node: Node, run: str, verify: Verify) -> None:
        self._node = node
        self._run = run
        self._verify = verify
        self.entry_bytes = 0
        self.genesis = ""
        """The largest entry that the rules allow, and the digest of genesis; set once the rules are known."""
        self._proven: dict[Tip, Whole | None] = {}
        """Tips whose certificate we have seen, newest last; with the entry if the proof held all of it."""

    async def _any(self, donors: Sequence[str], what: str, ask: Callable[[str], Awaitable[T]]) -> T:
        why = "nobody to ask"
        for donor in donors:
            try:
                return await ask(donor)
            except Gone as gone:
                why = str(gone)
            except Refused as refused:
                self._node.refused(refused, what, donor)
                why = str(refused)
        raise Gone(f"{what}: {why}")

    async def rules(self, donors: Sequence[str]) -> RunRules:
        """The rules of our run, of its hash."""

        async def ask(donor: str) -> RunRules:
            _, body = await self._node.ask(donor, "rules", {}, body_bytes=limits.RULES_BYTES)
            return RunRules.from_canonical(bytes(body), self._run)

        return await self._any(donors, "rules", ask)

    async def tokenizer(self, donors: Sequence[str], expected: str) -> bytes:
        async def ask(donor: str) -> bytes:
            _, body = await self._node.ask(donor, "tokenizer", {}, body_bytes=limits.TOKENIZER_BYTES)
            if digest(bytes(body)) != expected:
                raise Refused(Reason.BAD_DIGEST, "not the tokenizer of the rules")
            return bytes(body)

        return await self._any(donors, "tokenizer", ask)

    async def snapshot(self, donors: Sequence[str], elements: int, fragments: int, genesis: str) -> tuple[Snapshot, Whole | None]:
        """A manifest whose base is genesis, or what a certified log entry leads to; and that entry."""

        async def ask(donor: str) -> tuple[Snapshot, Whole | None]:
            _, body = await self._node.ask(donor, "snapshots", {"base": ""}, body_bytes=limits.MANIFEST_BYTES)
            found = Snapshot.parse(bytes(body), run=self._run, elements=elements, fragments=fragments)
            if found.tip.height == 0:
                if found.tip != Tip(0, 0, genesis):
                    raise Refused(Reason.BAD_DIGEST, "not the genesis of the rules")
                return found, None
            proof = await self._entry(donor, found.tip.height)
            if proof[0].tip != found.tip:
                raise Refused(Reason.NO_QUORUM, "no certificate leads to this snapshot")
            return found, proof

        return await self._any(donors, "snapshot", ask)

    async def pieces(
        self, donors: Sequence[str], snapshot: Snapshot, have: Callable[[int], bool], keep: Callable[[int, bytes], None]
    ) -> None:
        """Every piece that `have` lacks, from all donors side by side; each is checked, then handed to `keep`. A donor
        that fails is left out; Gone when none is left."""
        pieces = range(len(snapshot.pieces) - 1, -1, -1)
        wanted = await asyncio.to_thread(lambda: [piece for piece in pieces if not have(piece)])

        async def draw(donor: str) -> bool:
            while wanted:
                piece = wanted.pop()
                try:
                    head = {"base": snapshot.tip.base, "piece": piece}
                    _, body = await self._node.ask(donor, "piece", head, body_bytes=limits.PIECE_BYTES)
                    if digest(bytes(body)) != snapshot.pieces[piece]:
                        raise Refused(Reason.BAD_DIGEST, f"piece {piece}")
                    await asyncio.to_thread(keep, piece, bytes(body))
                except Gone as gone:
                    wanted.append(piece)
                    log.info("snapshot: %s", gone)
                    return False
                except Refused as refused:
                    wanted.append(piece)
                    self._node.refused(refused, "piece", donor)
                    return False
            return True

        able = list(donors)
        while wanted and able:  # again, for what a donor gave back after the others had found nothing more to draw
            drawn = await asyncio.gather(*map(draw, able))
            able = [donor for donor, good in zip(able, drawn, strict=True) if good]
        if wanted:
            raise Gone(f"{len(wanted)} pieces of snapshot {snapshot.tip.base[:12]} are not to be had")

    def proven(self, tip: Tip) -> bool:
        return tip in self._proven

    async def prove(self, donor: str, tip: Tip) -> None:
        """`donor`, which announces `tip`, shows that it is genesis, or was committed. A small entry comes whole with its
        head, and is not fetched again. Raises Gone, or Refused: NO_QUORUM if there is nothing to show for this tip."""
        if tip in self._proven:
            return
        whole: Whole | None = None
        if tip.height == 0:
            if tip != Tip(0, 0, self.genesis):
                raise Refused(Reason.NO_QUORUM, "not the genesis of the rules")
        else:
            try:
                _, body = await self._ask_entry(donor, tip.height, 0, _PROOF_BYTES)
            except Refused as refused:
                if refused.reason is Reason.STALE:
                    raise Refused(Reason.NO_QUORUM, f"announces height {tip.height} and does not keep its entry") from None
                raise
            entry, start = Entry.parse(bytes(body), self._run, self._verify)
            if entry.tip != tip:
                raise Refused(Reason.NO_QUORUM, f"its entry {tip.height} is no certificate of what it announces")
            if start + sum(entry.sizes) == len(body):
                whole = await asyncio.to_thread(Entry.split, bytes(body), self._run, self._verify)
        self._proven[tip] = whole
        if len(self._proven) > _PROVEN:
            del self._proven[next(iter(self._proven))]

    async def entry(self, donors: Sequence[str], height: int) -> Whole:
        """The certified entry that led to `height`."""

        async def ask(donor: str) -> Whole:
            return await self._entry(donor, height)

        shown = self._shown(height)
        return shown if shown is not None else await self._any(donors, "entry", ask)

    def _shown(self, height: int) -> Whole | None:
        """The entry of that height, if a proof brought it along and all that was shown us at that height is one tip."""
        found = [whole for tip, whole in self._proven.items() if tip.height == height]
        return found[0] if len(found) == 1 else None

    async def _entry(self, donor: str, height: int) -> Whole:
        data = bytearray()
        entry: Entry | None = None
        size = 1
        while len(data) < size:
            head, body = await self._ask_entry(donor, height, len(data), limits.PIECE_BYTES)
            data += body
            if entry is None:
                entry, start = Entry.parse(bytes(data), self._run, self._verify)
                size = start + sum(entry.sizes)
                if size > self.entry_bytes:
                    raise Refused(Reason.TOO_LARGE, f"an entry of {size} bytes where the rules allow {self.entry_bytes}")
            if head["size"] != size or not body or len(data) > size:
                raise Refused(Reason.MALFORMED, f"entry {height} has another size than its head says")
        assert entry is not None
        if entry.vote.height != height:
            raise Refused(Reason.OTHER_ROUND, f"an entry of height {entry.vote.height} for {height}")
        return await asyncio.to_thread(Entry.split, bytes(data), self._run, self._verify)

    async def _ask_entry(self, donor: str, height: int, offset: int, size: int) -> tuple[Json, bytearray]:
        head, body = await self._node.ask(donor, "entry", {"height": height, "offset": offset, "bytes": size}, body_bytes=size)
        take(head, {"size": int})
        return head, body
