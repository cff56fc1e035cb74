"""A liar that reduces, and one that votes. What the others can see of it costs the round, and is charged to it; what they cannot
see is bounded by what was claimed."""

import asyncio
import math
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.canonical import digest, loads
from protocols.grouping import BITMAP_BYTES, Roster
from protocols.rounds import Committed, Failed
from protocols.settling import part_body, quorum
from tapestryd.base import SharedBase
from tapestryd.swarm import silence
from tests.hostile.liar import framed, read
from tests.hostile.world import Turn, World, fought, idle
from tests.people import RATE, verify
from tests.swarm.rooms import go, until

Bend = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Lie:
    """`bent`: what becomes of the liar's part. `ends`: how the round does, empty: committed.
    `refused`: what every honest peer counts."""

    name: str
    bent: Bend
    ends: str
    refused: str


def scales(factor: float) -> Bend:
    """All scales of the encoded mean times `factor`; of a negative one, the integers take the sign."""

    def bend(part: bytes) -> bytes:
        blocks = -(-(len(part) - BITMAP_BYTES) // 68)
        edge = BITMAP_BYTES + 4 * blocks
        found = np.frombuffer(part[BITMAP_BYTES:edge], "<f4") * np.float32(abs(factor))
        codes = np.frombuffer(part[edge:], np.int8)
        return part[:BITMAP_BYTES] + found.tobytes() + (codes if factor > 0 else -codes).tobytes()

    return bend


def first(value: float) -> Bend:
    return lambda part: part[:BITMAP_BYTES] + struct.pack("<f", value) + part[BITMAP_BYTES + 4 :]


def bits(value: int) -> Bend:
    return lambda part: value.to_bytes(BITMAP_BYTES, "little") + part[BITMAP_BYTES:]


LIES = [
    Lie("the truth", bytes, "", ""),
    Lie("sign-flipped", scales(-1), "", ""),
    Lie("zero", scales(0), "", ""),
    Lie("one honest offer less", bits(0b1110), "", ""),
    Lie("x100", scales(100), "norm", "norm"),
    Lie("sign-flipped x10", scales(-10), "norm", "norm"),
    Lie("NaN", first(math.nan), "not_finite", "not_finite"),
    Lie("Inf", first(math.inf), "not_finite", "not_finite"),
    Lie("negative scale", first(-1.0), "malformed", "malformed"),
    Lie("the integer -128", lambda part: part[:-1] + b"\x80", "malformed", "malformed"),
    Lie("of nobody's offers", bits(0), "malformed", "malformed"),
    Lie("of strangers' offers", bits(1 << 200), "malformed", "malformed"),
    Lie("a byte short", lambda part: part[:-1], "missing_part", "malformed"),
]


def test_a_reducer_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "FIRST_ROUNDS", 0)  # or nobody would have it reduce after the first lie that is seen

    async def work(here: World) -> None:
        for lie in LIES:
            turn = here.next()
            events = await here.play(turn, reduces(here, turn, lambda _, part, lie=lie: lie.bent(part)))  # type: ignore[misc]
            if lie.ends:
                assert events == [Failed(turn.number, lie.ends)] * 3, (lie.name, events)
                assert {peer.keeper.base.tip for peer in here.honest} == {turn.before}, lie.name
            else:
                here.agreed(events)
            assert here.counted() == [{lie.refused: 1} if lie.refused else {}] * 3, lie.name
        here.agreed(await here.play(here.next(), idle()))

    go(fought(tmp_path, 3, work, average_ms=6000), timeout_s=200)


def test_a_silent_reducer_loses_one_round_and_not_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leads has it reduce no more, or leaves it out; with no part to reduce it is welcome."""
    monkeypatch.setattr(silence, "FIRST_ROUNDS", 1000)  # there are some between those in which the liar is last to lead

    async def work(here: World) -> None:
        turn = here.next()
        assert await here.play(turn, reduces(here, turn, lambda *_: None)) == [Failed(turn.number, "missing_part")] * 3
        assert here.counted() == [{}] * 3
        await reduces_no_more(here)
        assert here.liar.peer not in here.last().roster.members
        turn = here.next()
        here.agreed(await here.play(turn, sends(here, turn)))
        assert here.liar.peer in set(here.last().roster.members) - set(here.last().roster.reducers)

    go(fought(tmp_path, 3, work, average_ms=6000))


def test_a_reducer_that_leaves_all_others_out_loses_one_round_and_not_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some that claim to be fast could else keep a run below its coverage for as long as they like."""
    monkeypatch.setattr(silence, "FIRST_ROUNDS", 1000)

    async def work(here: World) -> None:
        turn = here.next()
        assert await here.play(turn, reduces(here, turn, lambda _, part: bits(0b1000)(part))) == [Failed(turn.number, "coverage")] * 3
        assert here.counted() == [{}] * 3
        await reduces_no_more(here)

    go(fought(tmp_path, 3, work, average_ms=6000, coverage="0.9"))


def test_a_part_that_comes_too_late_to_vote_loses_one_round_and_not_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets it from its reducer, who votes; whoever then asks it gets the part, but has no time left for what leads from it to
    a vote. That may be long: here it is longer than settling."""
    monkeypatch.setattr(silence, "FIRST_ROUNDS", 1000)
    plain = SharedBase.next

    def slow(*args: Any) -> Any:
        time.sleep(8)
        return plain(*args)

    async def work(here: World) -> None:
        turn = here.next()
        with monkeypatch.context() as patch:
            patch.setattr(SharedBase, "next", slow)
            assert await here.play(turn, votes_and_then_gives(here, turn)) == [Failed(turn.number, "no_majority")] * 3
        assert here.now_ms() < here.rules.schedule.deadline(turn.number) + 3000
        assert all(peer.averaging._last.meeting.repaired for peer in here.honest)  # type: ignore[union-attr]
        await reduces_no_more(here)

    go(fought(tmp_path, 3, work, average_ms=9000))


def test_a_round_that_is_lost_to_one_alone_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a part from those who voted, for the line to its reducer failed it, and then computes too long; the others commit."""
    monkeypatch.setattr(silence, "FIRST_ROUNDS", 1000)
    plain = SharedBase.next

    async def work(here: World) -> None:
        turn, (alone, *others) = here.next(), here.honest
        here.liar.answer("vote", here.liar.echoing(lambda _: here.ids))

        def slow(base: SharedBase, *args: Any) -> Any:
            if base is alone.keeper.base:
                time.sleep(8)
            return plain(base, *args)

        with monkeypatch.context() as patch:
            patch.setattr(SharedBase, "next", slow)
            lie = reduces(here, turn, lambda peer, part: None if peer == alone.node.peer_id else part)
            events = await here.play(turn, lie)
        assert events[0] == Failed(turn.number, "no_majority")
        assert all(isinstance(event, Committed) for event in events[1:]), events
        roster = others[0].keeper.store.load_entry(1, verify)[0].roster  # type: ignore[index]
        assert here.liar.peer in roster.reducers
        assert alone.averaging._last.meeting.repaired  # type: ignore[union-attr]
        for peer, claim in zip(roster.members, roster.claims, strict=True):
            alone.gathering._silence.check(peer, claim, turn.number + 1)

    go(fought(tmp_path, 3, work, average_ms=9000))


async def votes_and_then_gives(here: World, turn: Turn) -> None:
    """No part of ours on the stream that an offer came on; but to whoever asks for it behind our vote."""
    liar, offer = here.liar, here.offer(turn)
    roster = await here.joins(turn, liar.claim(offer, rate=RATE))
    reduced = asyncio.get_running_loop().create_future()

    def keeps(_: str, part: bytes) -> None:
        if not reduced.done():
            reduced.set_result(part)

    liar.answer("reduce", liar.reducing(here.rules, roster, offer, keeps))
    slices = roster.slices(offer.owed.numel(), here.rules.codec.block)
    others = [(peer, offer.part(*at)) for peer, at in zip(roster.reducers, slices, strict=True) if peer != liar.peer]
    heads = await asyncio.gather(*(liar.offer(peer, roster.digest, part) for peer, part in others))
    parts = {peer: loads(head, 9999)["made"]["body"]["digest"] for (peer, _), (head, _) in zip(others, heads, strict=True)}
    ours = await reduced
    parts[liar.peer] = digest(ours)
    made = liar.signed("part", part_body(roster, roster.reducers.index(liar.peer), parts[liar.peer]))

    async def gives(_: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(framed({"made": made}, ours))
        await writer.drain()

    liar.answer("part", gives)
    vote = liar.vote(roster, [parts[peer] for peer in roster.reducers], height=turn.before.height + 1, weight=4)
    await asyncio.gather(*(liar.ask(peer.node.peer_id, "vote", vote) for peer in here.honest))
    await asyncio.Event().wait()


async def reduces_no_more(here: World) -> None:
    """The next round: the liar calls and would reduce, is told that it will not, and stays away."""
    turn = here.next()

    async def insists() -> None:
        head = await here.liar.call(turn.order[0], turn.number, turn.before.base, here.liar.claim(here.offer(turn), rate=RATE))
        assert loads(head, 1 << 10)["refused"] == "silent"

    here.agreed(await here.play(turn, insists()))


def test_a_part_that_one_honest_member_got_is_everybodys(tmp_path: Path) -> None:
    async def work(here: World) -> None:
        turn, lucky = here.next(), here.honest[1].node.peer_id
        here.agreed(await here.play(turn, reduces(here, turn, lambda peer, part: part if peer == lucky else None)))
        assert here.liar.peer in here.last().roster.reducers

    go(fought(tmp_path, 3, work, average_ms=6000))


def test_a_vote_said_again_and_again_is_looked_into_once(tmp_path: Path) -> None:
    """For parts that nobody else has: whoever voted otherwise asks for one of them, and not once for each time that it hears it."""

    async def work(here: World) -> None:
        turn, rosters, asked = here.next(), list[Roster](), Counter[str]()

        async def votes_later() -> None:
            offer = here.offer(turn)
            rosters.append(await here.joins(turn, here.liar.claim(offer)))
            await here.brings(rosters[0], offer)

        async def counts(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked[peer] += 1
            await read(reader)

        here.agreed(await here.play(turn, votes_later()))
        here.liar.answer("part", counts)
        vote = here.liar.vote(rosters[0], [f"{part:064x}" for part in range(3)], height=1, weight=4)
        for _ in range(20):
            for peer in here.honest:
                await here.liar.ask(peer.node.peer_id, "vote", vote)
        await asyncio.sleep(0.5)
        assert asked == {peer.node.peer_id: 1 for peer in here.honest}

    go(fought(tmp_path, 3, work))


async def sends(here: World, turn: Turn) -> None:
    """An honest round of a member that reduces nothing."""
    offer = here.offer(turn)
    await here.brings(await here.joins(turn, here.liar.claim(offer)), offer)


async def reduces(here: World, turn: Turn, lie: Callable[[str, bytes], bytes | None]) -> None:
    """The liar's whole round: its offer is true, and so is its word that it can reduce."""
    offer = here.offer(turn)
    roster = await here.joins(turn, here.liar.claim(offer, rate=RATE))
    here.liar.answer("reduce", here.liar.reducing(here.rules, roster, offer, lie))
    await here.brings(roster, offer)
    await asyncio.Event().wait()


def test_a_reducer_with_two_faces_is_convicted_by_all(tmp_path: Path) -> None:
    """One member gets other bytes than the rest, duly signed: no quorum, and everybody comes to hold both signatures."""

    async def work(here: World) -> None:
        turn = here.next()
        victim = here.honest[0]
        events = await here.play(turn, reduces(here, turn, lambda peer, part: scales(-1)(part) if peer == victim.node.peer_id else part))
        assert len({peer.keeper.base.tip for peer in here.honest}) == 1
        assert set(events) == {Failed(turn.number, "no_majority")}
        await until(lambda: convicted(here))
        here.agreed(await here.play(here.next(), idle()))

    go(fought(tmp_path, 3, work, average_ms=6000))


async def convicted(here: World) -> bool:
    return all(peer.node.refusals["equivocation"] == 1 for peer in here.honest)


def test_votes_for_nothing_that_came_out(tmp_path: Path) -> None:
    """Forged, for parts that nobody has, for a base that does not follow, and two of one member: the honest commit without it."""

    async def work(here: World) -> None:
        turn = here.next()
        offer = here.offer(turn)
        honest = [peer.node.peer_id for peer in here.honest]
        liar = here.liar

        async def votes() -> None:
            roster = await here.joins(turn, liar.claim(offer))
            parts = [f"{part:064x}" for part in range(len(roster.reducers))]
            height = turn.before.height + 1
            one = liar.vote(roster, parts, height=height, weight=height * 4)
            other = liar.vote(roster, parts, height=height, weight=height * 4, after="dd" * 32)
            forged = {**one, "vote": {**one["vote"], "peer": honest[0]}}
            cut = {**one, "parts": parts[:-1]}
            for peer in honest:
                for head in (one, other, other, forged, cut):
                    await liar.ask(peer, "vote", head)
            await here.brings(roster, offer)

        here.agreed(await here.play(turn, votes()))
        entry = here.last()
        assert liar.peer in entry.roster.members
        assert liar.peer not in {vote.peer for vote in entry.votes}
        assert len(entry.votes) >= quorum(len(entry.roster.members))
        assert here.counted() == [{"equivocation": 1, "bad_signature": 1, "bad_digest": 1}] * 3

    go(fought(tmp_path, 3, work))
