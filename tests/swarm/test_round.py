"""Whole rounds between real nodes: gather, reduce, settle, commit, with production arithmetic; and with somebody failing in each stage."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocols.canonical import Signed, digest, loads
from protocols.grouping import BITMAP_BYTES, Roster, leaders, order
from protocols.refusal import Reason, Refused
from protocols.rounds import Committed, Event, Failed, Reduced, Rostered
from protocols.settling import Vote, equivocation, merkle
from tapestryd.exchange import Exchange, Offer, assemble
from tapestryd.swarm.meeting import Meeting
from tapestryd.swarm.streams import Gone, Stream
from tests.people import BLANK, CAST, RATE, verify
from tests.swarm.rooms import Peer, agreed, at_boundary, go, others, peers, until


def by_lead(found: Sequence[Peer], number: int = 0) -> list[Peer]:
    """In the order in which they lead: the first leader first, and so are the roster's members."""
    candidates = found[0].candidates([peer.node.peer_id for peer in found])
    ids = [*leaders(found[0].rules.run_id, number, candidates), *order(found[0].rules.run_id, number, candidates)]
    return sorted(found, key=lambda peer: ids.index(peer.node.peer_id))


async def together(found: Sequence[Peer], everybody: Sequence[Peer] = (), number: int = 0) -> list[Event]:
    return list(await asyncio.gather(*(peer.round(others(peer, everybody or found), number) for peer in found)))


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize(("count", "fragments", "bits"), [(2, 1, 8), (4, 2, 8), (3, 4, 32)])
def test_a_round_ends_in_the_same_bits_everywhere(tmp_path: Path, uv: bool, count: int, fragments: int, bits: int) -> None:
    async def work() -> None:
        async with peers(tmp_path, count, fragments=fragments, bits=bits, average_ms=30_000) as found:
            events = await together(found)
            agreed(found, events)
            entry, blobs = found[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert len(entry.roster.members) == len(entry.roster.reducers) == count
            assert entry.vote.coverage_ppm == 1_000_000
            deltas = []
            for member in entry.roster.members:
                peer = next(peer for peer in found if peer.node.peer_id == member)
                peer.begin(others(peer, found))
                deltas.append(peer.averaging.round.delta)  # type: ignore[union-attr]
                peer.averaging.drop()
            if bits == 32:
                plain = torch.stack([delta.double() for delta in deltas]).sum(0).div(count).float()
                assert torch.equal(assemble(found[0].rules, entry.roster, blobs)[0], plain)
            assert all(peer.refused() == {} for peer in found)

    go(work, uv=uv)


def test_rounds_follow_one_another(tmp_path: Path) -> None:
    """Fragment by fragment; the second round's base is the first one's result, and the log leads there."""

    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=60_000) as found:
            for number in (0, 1):
                events = await together(found, number=number)
                assert all(isinstance(event, Committed) for event in events), events
            assert len({peer.keeper.base.tip for peer in found}) == 1
            for peer in found:
                first, second = (peer.keeper.store.load_entry(height, verify) for height in (1, 2))
                assert first is not None
                assert second is not None
                assert (second[0].vote.before, second[0].tip) == (first[0].vote.after, peer.keeper.base.tip)

    go(work)


def test_no_second_entry_of_a_round(tmp_path: Path) -> None:
    """A clock that was set back comes to a round again: whatever came of it then could not be followed."""

    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=60_000) as found:
            agreed(found, await together(found))
            tip = found[0].keeper.base.tip
            assert await together(found) == [Failed(0, "other_round")] * 2
            assert found[0].keeper.base.tip == tip

    go(work)


# Gathering.


def test_one_member_silent_at_the_call_the_others_go_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            *here, silent = by_lead(found)
            events = await together(here, found)
            # A majority beyond the roster: three of four that were seen.
            agreed(here, events)
            assert silent.keeper.base.tip.height == 0  # type: ignore[union-attr]
            entry, _ = here[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert set(entry.roster.members) == {peer.node.peer_id for peer in here}

    go(work)


def test_a_gathering_dropped_while_it_leads_keeps_nothing(tmp_path: Path) -> None:
    """Paused in the middle of leading, often, also just as somebody calls: no call is held for good, nobody is given a roster that we
    have left, and the next round gathers as ever."""

    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=9000) as found:
            leader, other = by_lead(found)
            before = leader.keeper.base.tip.base  # type: ignore[union-attr]
            seen = leader.candidates(others(leader, found))
            for later in range(5):
                leading = asyncio.create_task(leader.gathering.perform(0, 0, before, seen, BLANK, [30.0, 60.0]))
                await asyncio.sleep(0.01)
                leader.gathering._parked[0, before].changed.set()
                for _ in range(later):
                    await asyncio.sleep(0)
                leading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leading
            assert leader.gathering._parked == {}
            agreed([leader, other], await together([leader, other], found))

    go(work)


def test_the_first_leader_dead_the_second_leads(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            dead, *here = by_lead(found)
            await dead.node.stop()
            at_boundary(found)
            events = await together(here, found)
            agreed(here, events)
            entry, _ = here[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert entry.roster.members == tuple(peer.node.peer_id for peer in here)

    go(work)


def test_the_first_leader_hangs_the_second_leads(tmp_path: Path) -> None:
    """It takes calls, and then nothing: the roster has to come in its window."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            _, *here = by_lead(found)  # the first one serves, but never performs
            agreed(here, await together(here, found))

    go(work)


def test_two_of_five_are_no_majority_of_those_seen(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=4000) as found:
            absent = [peer for peer in CAST if peer not in [each.node.peer_id for each in found]][:3]
            events = await asyncio.gather(*(peer.round([*others(peer, found), *absent]) for peer in found))
            assert all(event in (Failed(0, "no_majority"), Failed(0, "no_roster")) for event in events), events
            assert {peer.keeper.base.tip.height for peer in found} == {0}  # type: ignore[union-attr]

    go(work)


def test_too_few_come_and_all_are_told(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=4000, min_peers=3) as found:
            here = by_lead(found)[:2]
            assert await together(here, found) == [Failed(0, "no_roster")] * 2

    go(work)


def test_nobody_crowds_out_the_callers_of_this_round(tmp_path: Path) -> None:
    """One peer calls the leader with many bases and the next round's number, before and while the others call."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            leader, *rest = by_lead(found)
            evil, here = rest[-1], rest[:-1]
            held = []

            async def crowd(many: int) -> None:
                for number in range(many):
                    stream = await evil.node.open(leader.node.peer_id, "call")
                    await stream.send({"round": number % 2, "before": f"{number:064x}", "claim": BLANK.to_body()})
                    await stream.answer()
                    held.append(stream)

            await crowd(6)
            jobs = asyncio.gather(crowd(20), *(peer.round(others(peer, [leader, *here])) for peer in [leader, *here]))
            _, *events = await jobs
            agreed([leader, *here], events)
            for stream in held:
                stream.close()

    go(work)


def test_calls_of_other_rounds_are_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=60_000) as (one, two):
            for number in (7, -3, 1 << 53):
                with pytest.raises(Refused) as refused:
                    await one.node.ask(two.node.peer_id, "call", {"round": number, "before": "", "claim": BLANK.to_body()})
                assert refused.value.reason is Reason.OTHER_ROUND
            assert two.refused() == {"other_round": 3}

    go(work)


def test_a_caller_that_got_no_answer_is_in_no_roster(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=30_000) as found:
            leader, ghost = by_lead(found)
            leader.gathering._hold_s = 0.2
            before = leader.keeper.base.tip
            assert before is not None
            stream = await ghost.node.open(leader.node.peer_id, "call")
            await stream.send({"round": 0, "before": before.base, "claim": BLANK.to_body()})
            await stream.answer()
            with pytest.raises(Refused, match="nobody gathers"):
                await stream.answer()
            stream.close()
            leader.begin([])
            assert await leader.averaging.run(leader.averaging.gather(RATE, None), 0) == Failed(0, "no_roster")

    go(work)


# Reducing.


def cut_off(peer: Peer, verb: str, *, toward: str) -> None:
    """`peer` cannot open streams for `verb` to `toward`."""
    opened = peer.node.open

    async def open(to: str, kind: str) -> Any:
        if kind == verb and to == toward:
            raise Gone(f"{kind} to {to[-6:]}: cut off")
        return await opened(to, kind)

    peer.node.open = open  # type: ignore[method-assign]


@pytest.mark.parametrize("early", [True, False], ids=["before the reducer has a roster", "when it waits for the offer"])
def test_one_whose_stream_to_a_reducer_was_lost_offers_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """Its reducer may not know that it was."""
    monkeypatch.setattr("tapestryd.swarm.node._AT_ONCE_S", 60)

    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=9000) as found:
            reducer, unlucky, _ = by_lead(found)
            opened = unlucky.node.open
            lost: list[Stream] = []

            async def open(to: str, verb: str) -> Stream:
                stream = await opened(to, verb)
                if verb == "reduce" and to == reducer.node.peer_id and not lost:
                    lost.append(stream)
                    answered = stream.answer

                    async def answer(*args: Any, **kwargs: Any) -> Any:
                        if not early:
                            await answered(*args, **kwargs)
                        raise Gone("lost")

                    stream.answer = answer  # type: ignore[method-assign]
                    stream.close = lambda: None  # type: ignore[method-assign]
                return stream

            begins, finds, waiting = reducer.meetings.open, reducer.meetings.find, list[str]()

            async def all_wait() -> bool:
                return len(waiting) == 3  # one by the third member

            async def begin(meeting: Meeting) -> None:
                if early:
                    await until(all_wait)
                await begins(meeting)

            async def find(digest: str) -> Meeting:
                waiting.append(digest)
                return await finds(digest)

            reducer.meetings.open, reducer.meetings.find = begin, find  # type: ignore[method-assign]
            unlucky.node.open = open  # type: ignore[method-assign]
            agreed(found, await together(found))
            await lost[0]._reader.read()  # to its end
            entry, _ = unlucky.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert entry.vote.coverage_ppm == 1_000_000
            assert unlucky.averaging._last.meeting.lost == {}  # type: ignore[union-attr]
            assert [peer.refused() for peer in found] == [{}] * 3

    go(work)


def test_one_whose_stream_to_a_reducer_fails_repairs_from_voters(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            reducer, cut, *_ = by_lead(found)
            cut_off(cut, "reduce", toward=reducer.node.peer_id)
            events = await together(found)
            agreed(found, events)
            entry, _ = cut.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            sizes = [stop - start for start, stop in cut.averaging._last.exchange.slices]  # type: ignore[union-attr]
            missing = sizes[entry.roster.reducers.index(reducer.node.peer_id)]
            assert entry.vote.coverage_ppm == (4 * sum(sizes) - missing) * 1_000_000 // (4 * sum(sizes))
            here = cut.keeper.base.slice(0)
            owed = cut.averaging._residual[here]
            start, stop = cut.averaging._last.exchange.slices[entry.roster.reducers.index(reducer.node.peer_id)]  # type: ignore[union-attr]
            assert torch.equal(owed[start:stop], cut.averaging._last.offer.owed[start:stop])  # type: ignore[union-attr]

    go(work)


@pytest.mark.parametrize("others_have_it", [True, False], ids=["another has it", "nobody else has it"])
def test_a_voter_that_stalls_holds_up_no_repair(tmp_path: Path, others_have_it: bool) -> None:
    """A reducer gives its part to one peer or none, votes, and when it is asked for the part says nothing more."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            reducer, *here = by_lead(found)

            async def stalls(stream: Stream) -> None:
                await asyncio.Event().wait()

            await reducer.node._libp2p.p2p.remove_binary_stream_handler(f"/{reducer.node._prefix}/part")
            await reducer.node.serve("part", stalls)
            for peer in here[others_have_it:]:
                cut_off(peer, "reduce", toward=reducer.node.peer_id)
            events = await together([*here, reducer])
            if others_have_it:
                agreed(found, events)
            else:
                assert events[:3] == [Failed(0, "missing_part")] * 3
                assert all(peer.gathering._silence._doubts.times(reducer.node.peer_id) == 1 for peer in here)

    go(work)


@pytest.mark.parametrize("at", ["gathered", "reduced"])
def test_a_reducer_that_dies_holds_nobody_up(tmp_path: Path, at: str) -> None:
    """Before it reduced: its part exists nowhere, and all discard. After: whoever has all parts commits, and so do all."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=12_000) as found:
            *here, dead = by_lead(found)

            async def dies() -> None:
                dead.begin(others(dead, found))
                event = await dead.averaging.run(dead.averaging.gather(RATE, None), 0)
                assert isinstance(event, Rostered)
                if at == "reduced":
                    assert await dead.averaging.run(dead.averaging.reduce(event.roster), 0) == Reduced(0)
                await dead.node.stop()

            began = asyncio.get_running_loop().time()
            *events, _ = await asyncio.gather(*(peer.round(others(peer, found)) for peer in here), dies())
            assert asyncio.get_running_loop().time() - began < 16
            if at == "gathered":
                assert events == [Failed(0, "missing_part")] * 3
                assert {peer.keeper.base.tip.height for peer in here} == {0}  # type: ignore[union-attr]
            else:
                agreed(here, events)

    go(work)


def test_one_that_cannot_be_dialled_neither_leads_nor_reduces_and_is_in_the_mean(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            shy = by_lead(found)[0]
            shy.rate = 0
            for peer in found:
                peer.undialled = {shy.node.peer_id}
            agreed(found, await together(found))
            assert shy.averaging._last.gathered.leader != shy.node.peer_id  # type: ignore[union-attr]
            entry, _ = shy.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert shy.node.peer_id not in entry.roster.reducers
            assert entry.vote.coverage_ppm == 1_000_000

    go(work)


def test_those_who_cannot_be_dialled_hear_of_one_another(tmp_path: Path) -> None:
    """Three of five cannot reach one another, and four votes are needed: those who can be dialled tell of the others' votes."""

    async def work() -> None:
        async with peers(tmp_path, 5, average_ms=30_000) as found:
            *shy, able, last = found
            apart = {peer.node.peer_id for peer in shy}
            for peer in found:
                peer.undialled = apart
            for peer in shy:
                peer.rate = 0
                push = peer.settlement._push

                async def within_reach(to: str, *rest: Any, push: Any = push) -> None:
                    if to not in apart:
                        await push(to, *rest)

                peer.settlement._push = within_reach  # type: ignore[method-assign]
            agreed(found, await together(found))
            entry, _ = able.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert set(entry.roster.reducers) == {able.node.peer_id, last.node.peer_id}
            assert all(peer.refused() == {} for peer in found)

    go(work)


def test_votes_that_others_tell_of_are_checked_as_any(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            agreed(found, await together(found))
            here, there = found[0], found[1].node.peer_id
            meeting = here.averaging._last.meeting  # type: ignore[union-attr]
            assert meeting is not None
            signed, vote, parts = meeting.ballots[there]
            true = {"vote": vote.to_body(), "parts": list(parts), "votes": [[there, signed.signature]]}
            stranger = CAST[next(peer for peer in CAST if peer not in meeting.roster.members)]
            elsewhere = Signed.make("vote", replace(vote, roster="00" * 32).to_body(), stranger.peer, stranger.sign)
            lies = [
                ({"votes": [[there, signed.signature]] * 4}, Reason.OUT_OF_RANGE),
                ({"votes": [[there, "00" * 64]]}, Reason.BAD_SIGNATURE),
                ({"votes": [there]}, Reason.MALFORMED),
                ({"votes": [[7, signed.signature]]}, Reason.WRONG_TYPE),
                ({"votes": [[stranger.peer, elsewhere.signature]], "vote": elsewhere.body}, Reason.NOT_A_MEMBER),
                ({"parts": ["00" * 32] * 3}, Reason.BAD_DIGEST),
                ({"parts": [7, 8, 9]}, Reason.BAD_DIGEST),
                ({"more": 1}, Reason.UNKNOWN_FIELD),
            ]
            for lie, reason in lies:

                async def answer(*_: object, lie: dict[str, object] = lie, **__: object) -> tuple[object, bytearray]:
                    return {**true, **lie}, bytearray()

                del meeting.ballots[there]
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(here.node, "ask", answer)
                    await here.settlement._hear(meeting, there)
                assert here.refused() == {reason.value: 1}, lie
                assert there not in meeting.ballots
                here.node.refusals.clear()
                await here.settlement._hear(meeting, there)  # the truth, from the peer itself
                assert meeting.ballots[there][1] == vote

    go(work)


@pytest.mark.parametrize(("garbage", "reason"), [(b"\xff", Reason.NOT_FINITE), (b"\x80", Reason.MALFORMED)])
def test_a_hostile_offer_is_left_out(tmp_path: Path, garbage: bytes, reason: Reason) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            *honest, evil = found
            perform = evil.reduction.perform

            async def hostile(meeting: Meeting, offers: Sequence[bytes], *rest: Any) -> None:
                await perform(meeting, [garbage * len(offer) for offer in offers], *rest)

            evil.reduction.perform = hostile  # type: ignore[method-assign]
            agreed(honest, (await together(found))[:2])
            entry, _ = honest[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert entry.vote.coverage_ppm == 666_666
            assert all(peer.refused() == {reason.value: 1} for peer in honest)

    go(work)


def test_an_offer_of_another_size_is_left_out(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=9000) as found:
            *honest, evil = found
            perform = evil.reduction.perform

            async def hostile(meeting: Meeting, offers: Sequence[bytes], *rest: Any) -> None:
                await perform(meeting, [offer[:-1] if place % 2 else offer + b"x" for place, offer in enumerate(offers)], *rest)

            evil.reduction.perform = hostile  # type: ignore[method-assign]
            agreed(honest, (await together(found))[:2])
            assert all(sum(peer.refused().values()) == 1 for peer in honest)

    go(work)


@pytest.mark.parametrize("factor", [10.0, -10.0, 0.1, 0.0])
def test_an_offer_that_is_not_what_was_claimed_is_left_out(tmp_path: Path, factor: float) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            *honest, evil = found
            perform = evil.reduction.perform

            async def hostile(meeting: Meeting, offers: Sequence[bytes], *rest: Any) -> None:
                owed = evil.averaging.round.offer.owed * factor  # type: ignore[union-attr]
                larger = Offer(evil.rules, owed)
                await perform(meeting, [larger.part(start, stop) for start, stop in meeting.slices], *rest)

            evil.reduction.perform = hostile  # type: ignore[method-assign]
            agreed(honest, (await together(found))[:2])
            entry, _ = honest[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert entry.vote.coverage_ppm == 666_666
            assert all(peer.refused() == {"norm": 1} for peer in honest)

    go(work)


def test_a_part_beyond_all_offers_is_its_reducers_lie(tmp_path: Path) -> None:
    """Everybody sees it, nobody votes for it, and it is charged to who signed it."""

    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            *honest, evil = found

            def hostile(part: int, offers: object, reduce: Any = Exchange.reduce) -> Any:
                blob, refused = reduce(evil.averaging.round.exchange, part, offers)  # type: ignore[union-attr]
                scales = 4 * -(-(len(blob) - BITMAP_BYTES) // 68)
                at = BITMAP_BYTES
                larger = np.frombuffer(blob[at : at + scales], "<f4") * np.float32(100)
                return blob[:at] + larger.tobytes() + blob[at + scales :], refused

            gather = evil.averaging.reduce

            async def reduce(roster: Roster) -> Event:
                task = asyncio.ensure_future(gather(roster))
                await asyncio.sleep(0)
                evil.averaging.round.exchange.reduce = hostile  # type: ignore[union-attr]
                return await task

            evil.averaging.reduce = reduce  # type: ignore[method-assign]
            events = await together(found)
            assert events[:2] == [Failed(0, "norm")] * 2, events
            assert all(peer.refused() == {"norm": 1} for peer in honest)
            assert {peer.keeper.base.tip.height for peer in honest} == {0}  # type: ignore[union-attr]

    go(work)


def test_a_reducer_with_two_results_is_convicted_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member gets another result, duly signed. The others commit; all honest ones come to hold both signatures."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            evil, victim, *rest = by_lead(found)
            send = Stream.send

            async def two_faced(self: Stream, head: dict[str, Any], body: bytes = b"") -> None:
                if self._meter is evil.node.meter and self.peer == victim.node.peer_id and "made" in head:
                    body = bytes(body[:-1]) + bytes([body[-1] ^ 1])
                    said = {**head["made"]["body"], "digest": digest(body)}
                    head = {"made": Signed.make("part", said, evil.person.peer, evil.person.sign).to_json()}
                await send(self, head, body)

            monkeypatch.setattr(Stream, "send", two_faced)
            events = await together([evil, victim, *rest])
            agreed(rest, events[2:])
            assert events[1] == Failed(0, "outvoted")

            async def convicted() -> bool:
                return all(peer.refused().get("equivocation") == 1 for peer in (victim, *rest))

            await until(convicted)
            for peer in (victim, *rest):
                (proof,) = (peer.keeper.store.path / "proofs").iterdir()
                one, other = (Signed.from_json(value, "part", verify) for value in loads(proof.read_bytes(), 1 << 20)["statements"])
                assert one.peer == evil.person.peer
                assert equivocation(one, other)

    go(work)


def test_parts_are_as_large_as_their_reducers_are_fast(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=30_000) as found:
            for peer, rate in zip(found, (RATE, RATE, 2 * RATE), strict=True):
                peer.rate = rate
            agreed(found, await together(found))
            entry, parts = found[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            fast = entry.roster.reducers.index(found[2].node.peer_id)
            assert sorted(last - first for first, last in entry.roster.parts) == [16, 16, 32]
            assert max(range(3), key=lambda part: len(parts[part])) == fast

    go(work)


# Settling.


async def gathered(found: Sequence[Peer]) -> Roster:
    """All have the roster and their parts; nobody has voted."""

    async def until_reduced(peer: Peer) -> Roster:
        peer.begin(others(peer, found))
        event = await peer.averaging.run(peer.averaging.gather(RATE, None), 0)
        assert isinstance(event, Rostered), event
        assert await peer.averaging.run(peer.averaging.reduce(event.roster), 0) == Reduced(0)
        return event.roster

    return (await asyncio.gather(*(until_reduced(peer) for peer in found)))[0]


def _vote(peer: Peer, roster: Roster, parts: Sequence[str], **changed: object) -> dict[str, Any]:
    body = Vote(
        run=roster.run, round=0, fragment=0, roster=roster.digest, root=merkle(parts), coverage_ppm=1, before=roster.before,
        after="ee" * 32, height=1, weight=3,
    ).to_body() | changed  # fmt: skip
    return {"vote": Signed.make("vote", body, peer.person.peer, peer.person.sign).to_json(), "parts": list(parts)}


def test_one_who_votes_for_something_else_is_outvoted(tmp_path: Path) -> None:
    """It says so twice, differently: that is counted; and to one who lacks parts, first: that one asks the others then."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            liar, victim, *rest = by_lead(found)
            roster = await gathered(found)
            lie = [digest(bytes([part])) for part in range(4)]
            meeting = victim.averaging.round.meeting  # type: ignore[union-attr]
            kept = meeting.blobs.pop(3)  # type: ignore[union-attr]
            for peer in (victim, *rest):
                await liar.node.ask(peer.node.peer_id, "vote", _vote(liar, roster, lie))
                await liar.node.ask(peer.node.peer_id, "vote", _vote(liar, roster, lie, weight=4))
            honest = [victim, *rest]
            settled = await asyncio.gather(*(peer.averaging.run(peer.averaging.settle(), 0) for peer in honest))
            events = await asyncio.gather(*(peer.averaging.run(peer.averaging.commit(), 0) for peer in honest if settled))
            agreed(honest, events)
            assert meeting.blobs[3] == kept  # type: ignore[union-attr]
            assert all(peer.node.refusals["equivocation"] == 1 for peer in honest)
            entry, _ = victim.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert liar.person.peer not in {vote.peer for vote in entry.votes}

    go(work)


def test_votes_of_others_and_of_nobody_are_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=20_000) as everybody:
            *found, stranger = everybody
            roster = await gathered(found)
            one, two, _ = found
            parts = [digest(bytes([part])) for part in range(3)]
            target = two.node.peer_id
            good = _vote(one, roster, parts)
            for value, reason in (
                (_vote(stranger, roster, parts), Reason.NOT_A_MEMBER),
                ({**good, "parts": parts[:2]}, Reason.BAD_DIGEST),
                ({**good, "parts": [*parts[:2], "x"]}, Reason.BAD_DIGEST),
                ({**good, "parts": [parts[1], parts[0], parts[2]]}, Reason.BAD_DIGEST),
                ({**good, "parts": [7, 8, 9]}, Reason.BAD_DIGEST),
                ({**good, "vote": {**good["vote"], "signature": "00" * 64}}, Reason.BAD_SIGNATURE),
                ({**good, "vote": {**good["vote"], "peer": two.person.peer}}, Reason.BAD_SIGNATURE),
                (_vote(one, roster, parts, height=0), Reason.OUT_OF_RANGE),
                ({"vote": good["vote"]}, Reason.MALFORMED),
                ({**good, "more": 1}, Reason.UNKNOWN_FIELD),
            ):
                before = two.node.refusals[reason.value]
                with pytest.raises(Refused) as refused:
                    await one.node.ask(target, "vote", value)
                assert refused.value.reason is reason, value
                assert two.node.refusals[reason.value] == before + 1
            for verb, head in (("reduce", {"roster": roster.digest}), ("part", {"roster": roster.digest, "part": 0})):
                with pytest.raises(Refused) as refused:
                    await stranger.node.ask(target, verb, head)
                assert refused.value.reason is Reason.NOT_A_MEMBER
            for part in (3, -1, 1 << 40):
                with pytest.raises(Refused) as refused:
                    await one.node.ask(target, "part", {"roster": roster.digest, "part": part})
                assert refused.value.reason is Reason.STALE
            settled = await asyncio.gather(*(peer.averaging.run(peer.averaging.settle(), 0) for peer in found))
            agreed(found, await asyncio.gather(*(peer.averaging.run(peer.averaging.commit(), 0) for peer in found if settled)))

    go(work)


def test_a_poisoned_part_from_a_voter_is_refused(tmp_path: Path) -> None:
    """Asked for a part, it sends something else: the digest that it voted for says so, and another voter is asked."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            poisoner, victim, *rest = by_lead(found)
            await gathered(found)
            meeting = victim.averaging.round.meeting  # type: ignore[union-attr]
            good = meeting.blobs.pop(2)  # type: ignore[union-attr]

            async def poison() -> Event:
                return await poisoner.averaging.run(poisoner.averaging.settle(), 0)

            meetings = poisoner.averaging.round.meeting  # type: ignore[union-attr]
            settle = asyncio.gather(*(peer.averaging.run(peer.averaging.settle(), 0) for peer in (victim, *rest)), poison())
            assert await meetings.wait(lambda: poisoner.person.peer in meetings.ballots, asyncio.get_running_loop().time() + 5)  # type: ignore[union-attr]
            meetings.blobs[2] = b"x" * len(good)  # type: ignore[union-attr]
            await settle
            events = await asyncio.gather(*(peer.averaging.run(peer.averaging.commit(), 0) for peer in (victim, *rest)))
            agreed([victim, *rest], events)
            assert meeting.blobs[2] == good  # type: ignore[union-attr]

    go(work)


def test_what_the_others_committed_is_owed_no_more_also_behind_another_lost_round(tmp_path: Path) -> None:
    """One's offers are out when it gives the round up; a second round comes to nothing; then it replays the first."""

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            gone, *here = found

            async def gives_up() -> None:
                gone.begin(others(gone, found))
                event = await gone.averaging.run(gone.averaging.gather(RATE, None), 0)
                assert isinstance(event, Rostered)
                await gone.averaging.run(gone.averaging.reduce(event.roster), 0)
                gone.averaging.drop()

            *events, _ = await asyncio.gather(*(peer.round(others(peer, found)) for peer in here), gives_up())
            agreed(here, events)
            entry, parts = here[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            gone.begin([], 1)
            gone.averaging.drop()
            offer = gone.averaging._last.offer  # type: ignore[union-attr]
            gone.averaging.followed(entry, parts)
            assert torch.equal(gone.averaging._residual[gone.keeper.base.slice(0)], -offer.sent)  # type: ignore[union-attr]

    go(work)
