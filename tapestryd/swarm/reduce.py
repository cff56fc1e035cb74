"""The butterfly: each member sends part i of its delta to reducer i, and each reducer sends the SAME bytes back to all.

One stream a pair: the offer goes up, the reduced part comes down on it. The arithmetic is handed in; here are only
streams, sizes and time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from protocols.canonical import Sign, Signed, Verify, digest, take
from protocols.grouping import Roster
from protocols.refusal import Reason, Refused
from protocols.settling import made_by, part_body
from tapestryd.swarm.meeting import Meeting, Meetings, Sizes
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stalled, Stream

log = logging.getLogger(__name__)

_BEGUN = 3
"""Streams on which a member may begin to offer us its part, each in place of the one before. An honest one begins anew when its
stream was lost, which we may learn later than it does, or never."""

Aggregate = Callable[[int, Mapping[int, bytes | bytearray]], Awaitable[bytes]]
"""(part, place in roster → encoded offer) → the part's bytes: bitmap and encoded mean. Leaves out what it refuses."""


class Reduction:
    def __init__(self, node: Node, meetings: Meetings, sizes: Sizes, sign: Sign, verify: Verify) -> None:
        self._node = node
        self._meetings = meetings
        self._sizes = sizes
        self._sign = sign
        self._verify = verify

    async def serve(self) -> None:
        await self._node.serve("reduce", self._offered)

    async def _offered(self, stream: Stream) -> None:
        """We are the reducer: take a member's offer, and when our part is reduced, send it back."""
        head = await stream.question({"roster": str})
        meeting = await self._meetings.find(head["roster"])
        meeting.index(stream.peer)
        mine = self._my_part(meeting.roster)
        if mine is None or meeting.begun[stream.peer] == _BEGUN:
            raise Refused(Reason.OTHER_ROSTER, "we reduce nothing for you in this roster, or do already")
        if earlier := meeting.offering.get(stream.peer):
            earlier.abort()
        meeting.begun[stream.peer] += 1
        meeting.offering[stream.peer] = stream
        try:
            await self._take(meeting, mine, stream)
        finally:
            if meeting.offering.get(stream.peer) is stream:
                del meeting.offering[stream.peer]

    async def _take(self, meeting: Meeting, mine: int, stream: Stream) -> None:
        start, stop = meeting.slices[mine]
        await stream.send({"go": True})
        size = self._sizes.offer(stop - start)
        try:
            async with asyncio.timeout_at(meeting.ends):
                head, offer = await stream.receive(size)
        except TimeoutError:
            raise Stalled(f"{stream.peer[-6:]} still offers when the round is over") from None
        take(head, {})
        if len(offer) != size:
            raise Refused(Reason.MALFORMED, f"an offer of {len(offer)} bytes for {size}")
        meeting.begun[stream.peer] = _BEGUN  # nothing was lost
        if mine not in meeting.blobs:
            meeting.offers[stream.peer] = offer
            await meeting.note()
        if not await meeting.wait(lambda: mine in meeting.blobs, meeting.ends):
            raise Gone("our part was never reduced")
        await stream.send({"made": meeting.made[mine].to_json()}, meeting.blobs[mine])

    def _my_part(self, roster: Roster) -> int | None:
        return roster.reducers.index(self._node.peer_id) if self._node.peer_id in roster.reducers else None

    async def perform(self, meeting: Meeting, offers: Sequence[bytes], aggregate: Aggregate, by: float, give_up: float) -> None:
        """Fill `meeting.blobs` as far as parts come. `offers[i]`: our encoded delta for part i. `by`: loop time at which
        our own part closes with what has arrived; `give_up`: when the others' parts are left to settling."""
        await self._meetings.open(meeting)
        mine = self._my_part(meeting.roster)
        tasks = [asyncio.create_task(self._exchange(meeting, i, offers[i])) for i in range(len(offers)) if i != mine]
        try:
            if mine is not None:
                await self._reduce(meeting, mine, offers[mine], aggregate, by)
            async with asyncio.timeout_at(give_up):
                await asyncio.gather(*tasks)
        except TimeoutError:
            log.info("round=%d parts that did not come in time are left to settling", meeting.roster.round)
        finally:
            for task in tasks:
                task.cancel()

    async def _reduce(self, meeting: Meeting, mine: int, own: bytes, aggregate: Aggregate, by: float) -> None:
        others = set(meeting.roster.members) - {self._node.peer_id}
        await meeting.wait(lambda: others <= set(meeting.offers), by)
        offers: dict[int, bytes | bytearray] = {meeting.index(peer): offer for peer, offer in list(meeting.offers.items())}
        offers[meeting.index(self._node.peer_id)] = own
        blob = await aggregate(mine, offers)
        said = part_body(meeting.roster, mine, await asyncio.to_thread(digest, blob))
        meeting.offers.clear()
        await meeting.take(mine, blob, Signed.make("part", said, self._node.peer_id, self._sign))

    async def _exchange(self, meeting: Meeting, part: int, offer: bytes) -> None:
        """Send our offer to reducer `part` and take its result; a part that does not come is left to settling."""
        peer = meeting.roster.reducers[part]
        start, stop = meeting.slices[part]
        try:
            timeout = meeting.ends - asyncio.get_running_loop().time()
            stream = await self._node.begin(peer, "reduce", {"roster": meeting.roster.digest}, timeout)
            try:
                await stream.send({}, offer)
                head, blob = await stream.answer(self._sizes.part(stop - start), timeout=meeting.ends - asyncio.get_running_loop().time())
            finally:
                stream.close()
            if len(blob) != self._sizes.part(stop - start):
                raise Refused(Reason.MALFORMED, f"a part of {len(blob)} bytes")
            take(head, {"made": dict})
            await meeting.take(part, blob, made_by(head["made"], meeting.roster, part, self._verify))
        except Gone as gone:
            meeting.lost[part] = str(gone)
            log.info("round=%d part=%d of %s did not come: %s", meeting.roster.round, part, peer[-6:], gone)
        except Refused as refused:
            meeting.lost[part] = str(refused)
            self._node.refused(refused, "part", peer)
