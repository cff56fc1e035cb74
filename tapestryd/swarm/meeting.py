"""One roster at work on this node: the parts and votes that have arrived, and who waits for them.

Streams of other members may come before our own roster does, so they wait here for it, by digest.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from protocols.canonical import Signed, digest
from protocols.grouping import Roster
from protocols.refusal import Reason, Refused
from protocols.settling import Vote
from tapestryd.swarm.streams import Stream

_EARLY_S = 15.0
_KEPT = 3
"""Meetings kept after their round, for members that repair late."""


Ballot = tuple[Signed, Vote, tuple[str, ...]]
"""A verified vote, what it says, and the digests of the parts that it is for."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements → bytes on the wire, exactly: of an encoded offer, and of a part (bitmap and encoded mean)."""

    offer: Callable[[int], int]
    part: Callable[[int], int]


class Meeting:
    """`slices[i]`: elements of the fragment that reducer i reduces. `begun`: how many streams each member has begun to send us
    its part on, `offering`: the one on which it does, and `offers`: what came.
    `blobs[i]`: part i as its reducer published it, `made[i]`: its reducer's signed word that it did; `repaired[i]`: which other
    member we had it from. `ends`: loop time after which nobody waits for anything of this round.
    `convicted`: members that have said two things of which only one can be true.
    `ballots`: first vote of each member; `won`: the result that has enough of them for us.
    For the round's story: `lost[i]`, why part i did not come from its reducer; `refused`, member → why its offer to our part was."""

    def __init__(self, roster: Roster, elements: int, block: int, ends: float) -> None:
        self.roster = roster
        self.ends = ends
        self.slices = roster.slices(elements, block)
        self.begun: Counter[str] = Counter()
        self.offering: dict[str, Stream] = {}
        self.offers: dict[str, bytearray] = {}
        self.blobs: dict[int, bytes] = {}
        self.made: dict[int, Signed] = {}
        self.repaired: dict[int, str] = {}
        self.convicted: set[str] = set()
        self.ballots: dict[str, Ballot] = {}
        self.won: Vote | None = None
        self.lost: dict[int, str] = {}
        self.refused: dict[str, str] = {}
        self.changed = asyncio.Condition()

    async def take(self, part: int, blob: bytes | bytearray, made: Signed) -> None:
        """Keep a part, if these are the bytes that its reducer signed for, and it is not here yet. Refused otherwise."""
        if await asyncio.to_thread(digest, blob) != made.body["digest"]:
            raise Refused(Reason.BAD_DIGEST, f"part {part} is not what its reducer signed for")
        if part not in self.blobs:
            self.blobs[part], self.made[part] = bytes(blob), made
        await self.note()

    def fits(self, named: Sequence[str]) -> bool:
        """Whether parts of these digests can be ours, too: of those that are here they are the same."""
        return all(named[part] == made.body["digest"] for part, made in self.made.items())

    def digests(self) -> tuple[str, ...]:
        """Of all parts, which must be here."""
        return tuple(self.made[part].body["digest"] for part in range(len(self.slices)))

    async def note(self) -> None:
        """Something arrived: wake whoever waits."""
        async with self.changed:
            self.changed.notify_all()

    async def wait(self, done: Callable[[], bool], by: float) -> bool:
        """Wait until `done()` or loop time `by`; says whether it is done. `done` is asked again after each arrival."""
        try:
            async with asyncio.timeout_at(by), self.changed:
                await self.changed.wait_for(done)
        except TimeoutError:
            return done()
        return True

    def index(self, peer: str) -> int:
        """Place of `peer` in the roster; Refused if it has none."""
        try:
            return self.roster.members.index(peer)
        except ValueError:
            raise Refused(Reason.NOT_A_MEMBER, f"{peer[-6:]} is not in this roster") from None


class Meetings:
    def __init__(self) -> None:
        self._open: dict[str, Meeting] = {}
        self._opened = asyncio.Condition()

    async def open(self, meeting: Meeting) -> None:
        while len(self._open) >= _KEPT:
            del self._open[next(iter(self._open))]
        self._open[meeting.roster.digest] = meeting
        async with self._opened:
            self._opened.notify_all()

    async def find(self, digest: str) -> Meeting:
        """The meeting of that roster, waited for if its members are ahead of us. Refused if it does not come."""
        try:
            async with asyncio.timeout(_EARLY_S), self._opened:
                await self._opened.wait_for(lambda: digest in self._open)
        except TimeoutError:
            raise Refused(Reason.OTHER_ROSTER, f"no roster {digest[:12]} here") from None
        return self._open[digest]
