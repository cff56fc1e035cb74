"""Offers that lie: what is not as claimed is left out and counted by every reducer; what is as claimed moves the mean as far as one may."""

import asyncio
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from protocols.canonical import dumps, loads
from protocols.grouping import Roster
from protocols.weighting import scales, weights
from tapestryd.exchange import Offer
from tests.hostile.liar import framed, read
from tests.hostile.world import World, fought, idle
from tests.people import BLANK
from tests.swarm.rooms import go


@dataclass(frozen=True)
class Lie:
    """`claimed`, `offered`: what becomes of an honest delta before the norms are claimed of it, and before it is sent;
    `bent`: what becomes of each encoded part. `refused`: by what reason; empty: it cannot be, and enters the mean."""

    name: str
    claimed: Callable[[Tensor], Tensor]
    offered: Callable[[Tensor], Tensor]
    bent: Callable[[bytes], bytes]
    refused: str = ""


def true(delta: Tensor) -> Tensor:
    return delta


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda delta: delta * factor


def peak(delta: Tensor) -> Tensor:
    return torch.zeros_like(delta).index_fill_(0, torch.tensor([0]), 1e35)


def whole(part: bytes) -> bytes:
    return part


def scale(value: float) -> Callable[[bytes], bytes]:
    """The first block's scale is `value`."""
    return lambda part: struct.pack("<f", value) + part[4:]


BY_CLAIM = [
    Lie("nothing", true, true, whole),
    Lie("sign-flipped", times(-1), times(-1), whole),
    Lie("sign-flipped x10", times(-10), times(-10), whole),
    Lie("x1e30", times(1e30), times(1e30), whole),
    Lie("one element 1e35", peak, peak, whole),
    Lie("zero", times(0), times(0), whole),
    Lie("sign-flipped, claimed unflipped", true, times(-1), whole),
]
"""True to their norms: nothing tells them from what an honest peer could have learned."""

AGAINST_CLAIM = [
    Lie("sign-flipped x10, claimed x1", true, times(-10), whole, "norm"),
    Lie("x1e30, claimed x1", true, times(1e30), whole, "norm"),
    Lie("zero, claimed x1", true, times(0), whole, "norm"),
    Lie("x1, claimed zero", times(0), true, whole, "norm"),
    Lie("x1, claimed x1e30", times(1e30), true, whole, "norm"),
    Lie("greatest scale", true, true, scale(2.0**121), "norm"),
    Lie("NaN", true, true, scale(math.nan), "not_finite"),
    Lie("Inf", true, true, scale(math.inf), "not_finite"),
    Lie("-Inf", true, true, scale(-math.inf), "malformed"),
    Lie("beyond the greatest scale", true, true, scale(2.0**122), "not_finite"),
    Lie("all bits set", true, true, lambda part: b"\xff" * len(part), "not_finite"),
    Lie("negative scale", true, true, scale(-1.0), "malformed"),
    Lie("subnormal scale", true, true, scale(1e-40), "malformed"),
    Lie("the integer -128", true, true, lambda part: part[:-1] + b"\x80", "malformed"),
    Lie("a byte short", true, true, lambda part: part[:-1], "malformed"),
    Lie("a byte long", true, true, lambda part: part + b"\0", "too_large"),
]


@pytest.mark.parametrize("lies", [BY_CLAIM, AGAINST_CLAIM], ids=["as claimed", "not as claimed"])
def test_offers(tmp_path: Path, lies: list[Lie]) -> None:
    """Refused by every reducer for the same reason, or in the mean, and there no heavier than anybody."""

    async def work(here: World) -> None:
        for lie in lies:
            await takes_part(here, lie)

    go(fought(tmp_path, 3, work, average_ms=9000), timeout_s=200)


def test_claims_that_cannot_be(tmp_path: Path) -> None:
    """Refused by whoever is called; the round goes on without the caller."""

    async def work(here: World) -> None:
        good = BLANK.to_body()
        norms = good["norms"]
        cases: list[tuple[object, str]] = [
            *(({**good, "norms": struct.pack("<f", lie).hex() + norms[8:]}, "not_finite") for lie in (math.nan, math.inf, -1.0, -0.0)),
            ({**good, "norms": norms[:-1]}, "malformed"),
            ({**good, "norms": norms[:-1] + "G"}, "malformed"),
            ({**good, "norms": norms * 4}, "malformed"),
            ({**good, "steps": 0}, "out_of_range"),
            ({**good, "steps": 1 << 50}, "out_of_range"),
            ({**good, "rate": -1}, "out_of_range"),
            ({**good, "rate": True}, "wrong_type"),
            ({**good, "weight": 9}, "unknown_field"),
            ([], "wrong_type"),
        ]
        turn = here.next()
        leader = here.peer(turn.order[0])
        for claim, reason in cases:
            head, _ = await here.liar.ask(turn.order[0], "call", {"round": turn.number, "before": turn.before.base, "claim": claim})
            assert loads(head, 9999)["refused"] == reason, claim
            assert leader.refused() == {reason: 1}, claim
            leader.node.refusals.clear()
        here.agreed(await here.play(turn, idle()))

    go(fought(tmp_path, 3, work))


def test_what_was_said_before_is_not_said_again(tmp_path: Path) -> None:
    """Every message of the last round once more, as it was, from the same mouth and from another's."""

    async def work(here: World) -> None:
        liar = here.liar
        roster = await takes_part(here, BY_CLAIM[0])
        spoken = here.honest[0].averaging._last
        assert spoken is not None
        assert spoken.meeting is not None
        vote, _, parts = spoken.meeting.ballots[here.honest[0].node.peer_id]
        turn = here.next()
        claim = BLANK.to_body()
        stale = [
            ("call", {"round": roster.round - 2, "before": roster.before, "claim": claim}, "other_round"),
            ("call", {"round": turn.number + 2, "before": turn.before.base, "claim": claim}, "other_round"),
            ("reduce", {"roster": roster.digest}, "other_roster"),
            ("vote", {"vote": {**vote.to_json(), "peer": liar.peer}, "parts": list(parts)}, "bad_signature"),
            ("vote", {"vote": {**vote.to_json(), "kind": "roster"}, "parts": list(parts)}, "malformed"),
            ("part", {"roster": roster.digest, "part": len(parts)}, "stale"),
        ]
        leader = here.peer(turn.order[0])
        for verb, head, reason in stale:
            answer, _ = await liar.ask(turn.order[0], verb, head)
            assert loads(answer, 9999).get("refused") == reason, (verb, head)
            assert leader.refused() == {reason: 1}, (verb, head)
            leader.node.refusals.clear()
        # A true vote is anybody's to pass on, and counts once: nothing comes of it.
        assert (await liar.ask(turn.order[0], "vote", {"vote": vote.to_json(), "parts": list(parts)}))[0] == b'{"counted":true}'
        here.agreed(await here.play(turn, idle()))
        assert here.counted() == [{}] * 3

    go(fought(tmp_path, 3, work))


@pytest.mark.parametrize("lost", [2, 3])
def test_an_offer_may_be_begun_three_times(tmp_path: Path, lost: int) -> None:
    """Each time in place of the last, of which nothing stays; after the third that is all that is heard of it."""

    async def work(here: World) -> None:
        turn = here.next()
        offer = here.offer(turn)
        came = []

        async def insists(reducer: str, roster: Roster, part: bytes) -> None:
            streams = [await begins(here, reducer, roster, part) for _ in range(lost)]
            try:
                for reader, _ in streams[:-1]:
                    with pytest.raises(EOFError):
                        await read(reader)
                came.append(await here.liar.offer(reducer, roster.digest, part))
            finally:
                streams[-1][1].close()

        async def offers() -> None:
            roster = await here.joins(turn, here.liar.claim(offer))
            slices = roster.slices(offer.owed.numel(), here.rules.codec.block)
            async with asyncio.TaskGroup() as group:
                for reducer, here_ in zip(roster.reducers, slices, strict=True):
                    group.create_task(insists(reducer, roster, offer.part(*here_)))

        here.agreed(await here.play(turn, offers()))
        assert [loads(head, 9999).get("refused") for head, _ in came] == [None if lost < 3 else "other_roster"] * 3
        assert here.counted() == [{} if lost < 3 else {"other_roster": 1}] * 3
        assert here.last().vote.coverage_ppm == (1_000_000 if lost < 3 else 750_000)

    go(fought(tmp_path, 3, work, average_ms=9000))


async def begins(here: World, reducer: str, roster: Roster, part: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream on which all of an offer has gone but its last byte."""
    reader, writer = await here.liar.open(reducer, "reduce")
    writer.write(framed({"roster": roster.digest}))
    assert await read(reader) == (dumps({"go": True}), b"")
    writer.write(framed({}, part)[:-1])
    return reader, writer


async def takes_part(here: World, lie: Lie) -> Roster:
    """One whole round with the liar in its roster."""
    turn = here.next()
    delta = here.offer(turn).owed
    offered = Offer(here.rules, lie.offered(delta))
    found: list[Roster] = []

    async def lies() -> None:
        found.append(await here.joins(turn, here.liar.claim(Offer(here.rules, lie.claimed(delta)))))
        await here.brings(found[0], offered, lie.bent)

    here.agreed(await here.play(turn, lies()))
    (roster,) = found
    assert here.counted() == [{lie.refused: 1} if lie.refused else {}] * len(here.honest), lie.name
    assert here.last().vote.coverage_ppm == (750_000 if lie.refused else 1_000_000), lie.name
    if not lie.refused:
        bounded(here, roster, offered, lie.name)
    return roster


def bounded(here: World, roster: Roster, offered: Offer, name: str) -> None:
    """What the liar adds to the mean is no longer than its share of the longest that an honest peer could add."""
    rounds = [peer.averaging._last for peer in here.honest]
    told = [claim.norm for claim in roster.claims]
    scaled = dict(zip(roster.members, scales("clipped", "uniform", told, [1] * len(told), weights(roster.members)), strict=True))
    sent = {peer.node.peer_id: r.offer.sent for peer, r in zip(here.honest, rounds, strict=True)}  # type: ignore[union-attr]
    by_all = {**sent, here.liar.peer: offered.sent}
    assert rounds[0] is not None
    assert rounds[0].exchange is not None
    assert rounds[0].meeting is not None
    mean, _ = rounds[0].exchange.mean([rounds[0].meeting.blobs[part] for part in range(len(roster.reducers))])
    wanted = sum(scaled[peer] * x.double() for peer, x in by_all.items()) / len(by_all)
    assert (mean - wanted).norm() < 0.02 * wanted.norm(), name  # the codec's share
    assert scaled[here.liar.peer] * offered.sent.double().norm() <= max(x.double().norm() for x in sent.values()) * 1.001, name
