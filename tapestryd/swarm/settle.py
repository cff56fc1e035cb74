"""Agree on a round's result: repair missing parts, compute, vote, and count.

What a vote says and when votes are enough is in protocols/settling.py.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from protocols import limits
from protocols.canonical import Sign, Signed, Verify, is_digest, take
from protocols.refusal import Reason, Refused
from protocols.settling import Vote, decided, equivocation, made_by, merkle
from tapestryd.swarm.meeting import Ballot, Meeting, Meetings, Sizes
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream

log = logging.getLogger(__name__)

_ASKED = 3
"""Voters asked for missing parts at once, and reducers for the votes of others."""
_COMPARE_S = 60.0

Compute = Callable[[list[bytes]], Awaitable[Vote]]
"""All parts in order → our vote on what they lead to. Raises Refused if they lead nowhere (coverage, non-finite)."""

KeepProof = Callable[[Signed, Signed], None]
"""Two statements of one peer of which only one can be true: proof of equivocation, to be kept."""


class Unsettled(Exception):
    """No quorum for a result that we hold. Carries the reason word."""


class Settlement:
    """`members`: of the run, in roster mode."""

    def __init__(
        self, node: Node, meetings: Meetings, sizes: Sizes, sign: Sign, verify: Verify, keep_proof: KeepProof, members: Sequence[str]
    ) -> None:
        self._node = node
        self._meetings = meetings
        self._sizes = sizes
        self._sign = sign
        self._verify = verify
        self._keep_proof = keep_proof
        self._members = members
        self._comparing: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        await self._node.serve("vote", self._voted)
        await self._node.serve("votes", self._told)
        await self._node.serve("part", self._asked)

    async def _voted(self, stream: Stream) -> None:
        head = await stream.question({"vote": dict, "parts": list}, limits.VOTE_BYTES)
        ballot = self._ballot(head["vote"], head["parts"])
        meeting = await self._meetings.find(ballot[1].roster)
        self._count(meeting, ballot)
        await meeting.note()
        await stream.send({"counted": True})

    def _ballot(self, value: object, parts: list[str]) -> Ballot:
        """A verified vote, by whomever it came, for these parts. Refused if it is for others than it says."""
        signed = Signed.from_json(value, "vote", self._verify)
        vote = Vote.from_body(signed.body)
        if not 1 <= len(parts) <= limits.ROSTER_MEMBERS or not all(map(is_digest, parts)) or merkle(parts) != vote.root:
            raise Refused(Reason.BAD_DIGEST, "the parts do not have the root that is voted for")
        return signed, vote, tuple(parts)

    def _count(self, meeting: Meeting, ballot: Ballot) -> None:
        """Refused if it is none of this meeting."""
        signed, vote, parts = ballot
        meeting.index(signed.peer)
        if vote.roster != meeting.roster.digest:
            raise Refused(Reason.OTHER_ROSTER, "a vote in another roster")
        if len(parts) != len(meeting.roster.reducers):
            raise Refused(Reason.BAD_DIGEST, f"{len(parts)} parts of a roster of {len(meeting.roster.reducers)} reducers")
        if signed.peer not in meeting.ballots:
            meeting.ballots[signed.peer] = ballot
            self._compare_with(meeting, signed.peer)
        elif equivocation(held := meeting.ballots[signed.peer][0], signed):
            self._convict(meeting, held, signed)

    async def _told(self, stream: Stream) -> None:
        """What has won here, and by whose votes, as soon as something has: for members whom not all others can dial."""
        head = await stream.question({"roster": str})
        meeting = await self._meetings.find(head["roster"])
        meeting.index(stream.peer)
        if not await meeting.wait(lambda: meeting.won is not None, meeting.ends) or meeting.won is None:
            raise Refused(Reason.STALE, "nothing has won here")
        ballots = {peer: ballot for peer, ballot in meeting.ballots.items() if ballot[1] == meeting.won}
        parts = next(iter(ballots.values()))[2]
        votes = [[peer, ballot[0].signature] for peer, ballot in ballots.items()]
        await stream.send({"vote": meeting.won.to_body(), "parts": list(parts), "votes": votes})

    async def _hear(self, meeting: Meeting, peer: str) -> None:
        """Ask `peer` for what has won, and count the votes for it."""
        try:
            timeout = meeting.ends - asyncio.get_running_loop().time()
            asked = {"roster": meeting.roster.digest}
            head, _ = await self._node.ask(peer, "votes", asked, timeout=timeout, head_bytes=limits.VOTES_BYTES)
            take(head, {"vote": dict, "parts": list, "votes": list})
            if len(head["votes"]) > len(meeting.roster.members):
                raise Refused(Reason.OUT_OF_RANGE, f"{len(head['votes'])} votes of a roster of {len(meeting.roster.members)}")
            for item in head["votes"]:
                if not isinstance(item, list) or len(item) != 2:
                    raise Refused(Reason.MALFORMED, "a vote is [peer, signature]")
                value = {"kind": "vote", "body": head["vote"], "peer": item[0], "signature": item[1]}
                self._count(meeting, self._ballot(value, head["parts"]))
        except Gone as gone:
            log.info("votes from %s: %s", peer[-6:], gone)
        except Refused as refused:
            self._node.refused(refused, "votes", peer)
        await meeting.note()

    async def _asked(self, stream: Stream) -> None:
        head = await stream.question({"roster": str, "part": int})
        meeting = await self._meetings.find(head["roster"])
        meeting.index(stream.peer)
        blob = meeting.blobs.get(head["part"])
        if blob is None:
            raise Refused(Reason.STALE, "we do not have that part")
        await stream.send({"made": meeting.made[head["part"]].to_json()}, blob)

    async def perform(self, meeting: Meeting, compute: Compute, present: int, by: float) -> tuple[Vote, list[Signed]]:
        """The agreed vote and its certificate. `present`: peers seen live on this base at the boundary, ourselves
        included; `by`: loop time. Raises Unsettled with the reason."""
        await self._repair(meeting, by)
        try:
            async with asyncio.timeout_at(by):
                vote = await compute([meeting.blobs[part] for part in range(len(meeting.slices))])
        except TimeoutError:  # too late for anybody: the last part came so, or we are too slow
            raise Unsettled("no_majority") from None
        except Refused as refused:
            raise Unsettled(refused.reason.value if refused.reason is not Reason.OUT_OF_RANGE else "coverage") from None
        signed = Signed.make("vote", vote.to_body(), self._node.peer_id, self._sign)
        parts = meeting.digests()
        meeting.ballots[self._node.peer_id] = (signed, vote, parts)
        for peer in list(meeting.ballots):
            self._compare_with(meeting, peer)
        others = [peer for peer in meeting.roster.members if peer != self._node.peer_id]
        pushes = [asyncio.create_task(self._push(peer, signed, parts)) for peer in others]
        ask = meeting.roster.reducers[:_ASKED] if self._node.peer_id not in meeting.roster.reducers else ()
        asked = [asyncio.create_task(self._hear(meeting, peer)) for peer in ask]
        try:
            await meeting.wait(lambda: len(meeting.ballots) == len(meeting.roster.members) or self.result(meeting, present) is not None, by)
            won = meeting.won = self.result(meeting, present)
            if won is None:
                raise Unsettled("no_majority")
            await meeting.note()
            # A moment's grace for the pushes: the others need our vote as we needed theirs, if only to see who told us otherwise.
            grace = max(0.0, min(1.0, by - asyncio.get_running_loop().time()))
            await asyncio.wait(pushes, timeout=grace) if pushes else None
            if won != vote:
                raise Unsettled("outvoted")
        finally:
            for task in (*pushes, *asked):
                task.cancel()
        return vote, [ballot[0] for ballot in meeting.ballots.values() if ballot[1] == vote]

    def result(self, meeting: Meeting, present: int) -> Vote | None:
        """What has won by the votes that are here, if anything has."""
        ballots = {peer: ballot[1] for peer, ballot in meeting.ballots.items()}
        return decided(ballots, meeting.roster, self._members, present)

    async def _push(self, peer: str, vote: Signed, parts: tuple[str, ...]) -> None:
        for _ in range(2):
            try:
                await self._node.ask(peer, "vote", {"vote": vote.to_json(), "parts": list(parts)})
                return
            except Gone as gone:
                log.info("vote to %s: %s", peer[-6:], gone)
            except Refused as refused:
                self._node.refused(refused, "vote", peer)
                return

    async def _repair(self, meeting: Meeting, by: float) -> None:
        """Fetch missing parts from whoever voted for them: a vote says that all parts were here, and its reducer has signed each.
        A few are asked side by side, each for half of the time that is left at most: nobody holds us up."""
        count, now = len(meeting.slices), asyncio.get_running_loop().time
        asked: set[str] = set()
        asking: dict[str, asyncio.Task[None]] = {}

        def voters() -> list[str]:
            """Whom we have not asked, of those that do not gainsay what we hold; first who voted as most did."""
            named = Counter(ballot[2] for ballot in meeting.ballots.values())
            fitting = [peer for peer in meeting.ballots if peer not in asked and meeting.fits(meeting.ballots[peer][2])]
            return sorted(fitting, key=lambda peer: -named[meeting.ballots[peer][2]])

        async def ask(peer: str) -> None:
            try:
                async with asyncio.timeout_at((now() + by) / 2):
                    await self._fetch(meeting, peer, meeting.ballots[peer][2])
            except TimeoutError:
                log.info("repair from %s takes too long", peer[-6:])
            finally:
                del asking[peer]
            await meeting.note()

        try:
            while len(meeting.blobs) < count:
                for peer in voters()[: _ASKED - len(asking)]:
                    asked.add(peer)
                    asking[peer] = asyncio.create_task(ask(peer))
                if not await meeting.wait(lambda: len(meeting.blobs) == count or (len(asking) < _ASKED and bool(voters())), by):
                    raise Unsettled("missing_part")
        finally:
            for task in asking.values():
                task.cancel()

    async def _fetch(self, meeting: Meeting, peer: str, named: tuple[str, ...]) -> None:
        for part in range(len(named)):
            if part in meeting.blobs:
                continue
            if not meeting.fits(named):
                return
            try:
                blob, made = await self._part(meeting, peer, part)
                if made.body["digest"] != named[part]:
                    raise Refused(Reason.BAD_DIGEST, f"part {part} is not what {peer[-6:]} voted for")
                await meeting.take(part, blob, made)
                meeting.repaired.setdefault(part, peer)
            except Gone as gone:
                log.info("repair of part %d from %s: %s", part, peer[-6:], gone)
                return
            except Refused as refused:
                self._node.refused(refused, "part", peer)
                return

    async def _part(self, meeting: Meeting, peer: str, part: int) -> tuple[bytearray, Signed]:
        """`peer`'s version of a part, and its reducer's word for it."""
        start, stop = meeting.slices[part]
        head = {"roster": meeting.roster.digest, "part": part}
        head, blob = await self._node.ask(peer, "part", head, body_bytes=self._sizes.part(stop - start))
        take(head, {"made": dict})
        return blob, made_by(head["made"], meeting.roster, part, self._verify)

    def _compare_with(self, meeting: Meeting, peer: str) -> None:
        """Once `peer` and we have voted: whoever voted for other parts than ours has them from a reducer that signed two
        results, or made them up. Asked for beside everything else."""
        if self._node.peer_id in meeting.ballots and meeting.ballots[peer][2] != meeting.digests():
            task = asyncio.create_task(self._compare(meeting, peer))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)

    async def _compare(self, meeting: Meeting, peer: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_COMPARE_S):
                await self._compare_parts(meeting, peer)

    async def _compare_parts(self, meeting: Meeting, peer: str) -> None:
        for part, (ours, theirs) in enumerate(zip(meeting.digests(), meeting.ballots[peer][2], strict=True)):
            if theirs == ours or meeting.roster.reducers[part] in meeting.convicted:
                continue
            try:
                _, made = await self._part(meeting, peer, part)
            except (Gone, Refused) as error:
                log.info("part %d as %s voted for it: %s", part, peer[-6:], error)
                return
            if equivocation(meeting.made[part], made):
                self._convict(meeting, meeting.made[part], made)

    def _convict(self, meeting: Meeting, one: Signed, other: Signed) -> None:
        if one.peer in meeting.convicted:
            return
        meeting.convicted.add(one.peer)
        self._node.refused(Refused(Reason.EQUIVOCATION, f"two statements of kind {one.kind}"), one.kind, one.peer)
        self._keep_proof(one, other)
