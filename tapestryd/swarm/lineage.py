"""Fetch what makes a lineage: run rules, tokenizer, snapshots, log entries. Serving is in donor.py.

All of it is immutable and named by digest, so a download goes on from whoever is still there. What comes is verified
before it is returned. Formats and checks are in protocols/lineage.py.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from protocols import limits
from protocols.canonical import Json, Verify, digest, take
from protocols.lineage import ENTRY_HEAD_BYTES, Entry, Snapshot, Tip, manifest_bytes
from protocols.refusal import Declined, Reason, Refused
from protocols.rules import RunRules
from tapestryd.swarm.draw import SLOW_BYTES_PER_S, Draw, Flight
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)

_PROVEN = 16

_MANIFESTS = 16
"""Donors asked for their manifests; of more, the first half of that, and any others: who is near may be a crowd that keeps nothing."""
_MANIFEST_S = 30.0
"""How long they all wait for one of them; and as long as it takes at the rate below which a donor is slow."""

_PIECES_AHEAD = 8
_ENTRIES_AHEAD = 4
"""Pieces and entries that wait in memory to be written or applied; of entries also those under way, which keep their order."""

T = TypeVar("T")

Whole = tuple[Entry, list[bytes]]
"""A log entry and its parts, all verified."""


class Fetcher:
    """Everything from several donors side by side."""

    def __init__(self, node: Node, run: str, verify: Verify) -> None:
        self._node = node
        self._run = run
        self._verify = verify
        self.agreed: RunRules | None = None
        self.entry_bytes = 0
        self.round_now: Callable[[], int] = lambda: limits.INTEGER
        """The rules, the largest entry that they allow, and which round it is; set once they are known. Until then no entry is
        asked for."""
        self.patience_s: Callable[[], float] = lambda: math.inf
        """For how long slow donors of snapshots and entries are waited for."""
        self._proven: dict[Tip, Whole | None] = {}
        """Tips whose certificate we have seen, newest last; with the entry if the proof held all of it."""

    def _rules(self) -> RunRules:
        assert self.agreed is not None, "whoever asks for entries has the rules"
        return self.agreed

    async def rules(self, donors: Sequence[str]) -> RunRules:
        """The rules of our run, of its hash."""
        return await self._whole("rules", donors, limits.RULES_BYTES, lambda data: RunRules.from_canonical(data, self._run))

    async def tokenizer(self, donors: Sequence[str], expected: str) -> bytes:
        def check(data: bytes) -> bytes:
            if digest(data) != expected:
                raise Refused(Reason.BAD_DIGEST, "not the tokenizer of the rules")
            return data

        return await self._whole("tokenizer", donors, limits.TOKENIZER_BYTES, check)

    async def _whole(self, what: str, donors: Sequence[str], most_bytes: int, read: Callable[[bytes], T]) -> T:
        """What is asked for in one piece: of the first donor, and of the next ones when it fails or is slow."""

        async def ask(flight: Flight[T]) -> T:
            with self._faults(what, flight.donor):
                head, body = await self._node.ask(flight.donor, what, {}, body_bytes=most_bytes, moved=flight.has)
                take(head, {})
                return read(bytes(body))

        async with Draw([0], donors, ask, ahead=1, in_order=True) as coming:
            return await anext(found async for _, _, found in coming)

    async def manifests(self, donors: Sequence[str], base: str, elements: int, fragments: int) -> dict[str, Snapshot]:
        """What each donor says of its snapshot of `base` (""; its newest), of those that say something sensible and are not slow."""
        most_bytes = manifest_bytes(elements, fragments)
        near, others = list(donors[: _MANIFESTS // 2]), list(donors[_MANIFESTS // 2 :])
        asked = [*near, *random.sample(others, min(len(others), _MANIFESTS - len(near)))]

        async def ask(donor: str) -> tuple[str, Snapshot] | None:
            try:
                async with asyncio.timeout(_MANIFEST_S + most_bytes / SLOW_BYTES_PER_S):
                    head, body = await self._node.ask(donor, "snapshots", {"base": base}, body_bytes=most_bytes)
                take(head, {})
                found = Snapshot.parse(bytes(body), run=self._run, elements=elements, fragments=fragments)
                if base and found.tip.base != base:
                    raise Refused(Reason.OTHER_BASE, "the manifest of another base")
                return donor, found
            except (Gone, TimeoutError) as gone:
                log.info("snapshots of %s: %s", donor[-6:], str(gone) or "too slow")
            except Refused as refused:
                self._node.refused(refused, "snapshots", donor)
            return None

        return dict(filter(None, await asyncio.gather(*map(ask, asked))))

    async def certificate(self, donors: Sequence[str], tip: Tip) -> Whole | None:
        """The whole entry that led to `tip`, from donors that keep a snapshot of it; None for genesis."""
        if tip == Tip(0, 0, self._rules().model.genesis):
            return None
        async with self.entries(donors, tip.height, tip) as coming:
            async for _, _, whole in coming:
                return whole
        raise Gone("not the genesis of the rules")

    def pieces(self, donors: Sequence[str], snapshot: Snapshot, wanted: Sequence[int]) -> Draw[bytes]:
        """Those pieces of a snapshot, as they come, from all donors side by side, each checked. The donors must all have said
        this very manifest: only then is a piece that differs from it its donor's fault."""

        async def ask(flight: Flight[bytes]) -> bytes:
            asked = {"base": snapshot.tip.base, "piece": flight.item}
            with self._faults("piece", flight.donor):
                head, body = await self._node.ask(flight.donor, "piece", asked, body_bytes=limits.PIECE_BYTES, moved=flight.has)
                take(head, {})
                piece = bytes(body)
                if await asyncio.to_thread(digest, piece) != snapshot.pieces[flight.item]:
                    raise Refused(Reason.BAD_DIGEST, f"piece {flight.item}")
                return piece

        return Draw(wanted, donors, ask, ahead=_PIECES_AHEAD, in_order=False, patience_s=self.patience_s)

    def entries(self, donors: Sequence[str], first: int, target: Tip) -> Draw[Whole]:
        """The certified entries that led to heights `first` to that of `target`, in order, fetched ahead from all donors."""
        shown = self._proven.get(target)

        async def ask(flight: Flight[Whole]) -> Whole:
            if shown and flight.item == target.height:
                return shown
            with self._faults("entry", flight.donor):
                whole = await self._entry(flight)
                if flight.item == target.height and whole[0].tip != target:
                    raise Refused(Reason.NO_QUORUM, f"its entry {flight.item} is no certificate of what it announced")
                return whole

        wanted = range(max(1, first), target.height + 1)
        return Draw(wanted, donors, ask, ahead=_ENTRIES_AHEAD, in_order=True, patience_s=self.patience_s)

    @contextmanager
    def _faults(self, what: str, donor: str) -> Iterator[None]:
        """What is refused is counted, and this donor cannot give it."""
        try:
            yield
        except Refused as refused:
            self._node.refused(refused, what, donor)
            raise Gone(f"{what} by {donor[-6:]}: {refused}") from None

    def refused(self, refused: Refused, what: str, donor: str) -> None:
        self._node.refused(refused, what, donor)

    def proven(self, tip: Tip) -> bool:
        return tip in self._proven

    async def prove(self, donor: str, tip: Tip) -> None:
        """`donor`, which announces `tip`, shows that it is genesis, or was committed. A small entry comes whole with its
        head, and is not fetched again. Raises Gone, or Refused: NO_QUORUM if there is nothing to show for this tip."""
        if tip in self._proven:
            return
        whole: Whole | None = None
        if tip.height == 0:
            if tip != Tip(0, 0, self._rules().model.genesis):
                raise Refused(Reason.NO_QUORUM, "not the genesis of the rules")
        else:
            try:
                _, body = await self._ask_entry(donor, tip.height, 0, ENTRY_HEAD_BYTES)
            except Declined as declined:
                if declined.reason is Reason.STALE:
                    raise Refused(Reason.NO_QUORUM, f"announces height {tip.height} and does not keep its entry") from None
                raise
            entry, start = self._parse(bytes(body))
            if entry.tip != tip:
                raise Refused(Reason.NO_QUORUM, f"its entry {tip.height} is no certificate of what it announces")
            if start + sum(entry.sizes) == len(body):
                whole = await asyncio.to_thread(Entry.split, bytes(body), self._rules(), self._verify)
        self._proven[tip] = whole
        if len(self._proven) > _PROVEN:
            del self._proven[next(iter(self._proven))]

    def _parse(self, data: bytes) -> tuple[Entry, int]:
        """As Entry.parse. Refused if it is of a round that is yet to come: nothing that is committed until then could follow it."""
        entry, start = Entry.parse(data, self._rules(), self._verify)
        if entry.vote.round > self.round_now() + 1:
            raise Refused(Reason.OTHER_ROUND, f"an entry of round {entry.vote.round} in round {self.round_now()}")
        return entry, start

    async def _entry(self, flight: Flight[Whole]) -> Whole:
        donor, height = flight.donor, flight.item
        data = bytearray()
        entry: Entry | None = None
        size = 1
        while len(data) < size:
            head, body = await self._ask_entry(donor, height, len(data), limits.PIECE_BYTES, flight.has)
            data += body
            if entry is None:
                entry, start = self._parse(bytes(data))
                size = start + sum(entry.sizes)
                if size > self.entry_bytes:
                    raise Refused(Reason.TOO_LARGE, f"an entry of {size} bytes where the rules allow {self.entry_bytes}")
            if head["size"] != size or not body or len(data) > size:
                raise Refused(Reason.MALFORMED, f"entry {height} has another size than its head says")
        assert entry is not None
        if entry.vote.height != height:
            raise Refused(Reason.OTHER_ROUND, f"an entry of height {entry.vote.height} for {height}")
        return await asyncio.to_thread(Entry.split, bytes(data), self._rules(), self._verify)

    async def _ask_entry(
        self, donor: str, height: int, offset: int, size: int, has: Callable[[int], None] | None = None
    ) -> tuple[Json, bytearray]:
        asked: Json = {"height": height, "offset": offset, "bytes": size}
        moved = (lambda came: has(offset + came)) if has else None
        head, body = await self._node.ask(donor, "entry", asked, body_bytes=size, moved=moved)
        take(head, {"size": int})
        return head, body
