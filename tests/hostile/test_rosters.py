"""A liar that leads. A false roster is refused by all, and the second leader serves; two rosters of one crowd never make two bases."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.canonical import Json
from protocols.grouping import Claim, Roster, order
from protocols.rounds import Committed, Failed
from tests.hostile.world import Turn, World, fought
from tests.lineages import PEOPLE
from tests.swarm.rooms import go

Claims = Mapping[str, Claim]


def true(here: World, turn: Turn, claims: Claims) -> Roster:
    """By the book: all who called, and the liar, which cannot reduce."""
    return here.liar.roster(here.rules, turn.number, turn.before.base, {**claims, here.liar.peer: here.liar.claim(here.offer(turn))})


def altered(**changed: object) -> Callable[[World, Turn, Claims], Json]:
    """Every claim but the liar's own."""
    return lambda here, turn, claims: true(here, turn, {peer: replace(claim, **changed) for peer, claim in claims.items()}).to_body()


def told(**changed: object) -> Callable[[World, Turn, Claims], Json]:
    return lambda here, turn, claims: true(here, turn, claims).to_body() | changed


def elsewhere(**changed: object) -> Callable[[World, Turn, Claims], Json]:
    """In the order that it would have there."""

    def made(here: World, turn: Turn, claims: Claims) -> Json:
        body = true(here, turn, claims).to_body() | changed
        by_peer = dict(zip(body["members"], body["claims"], strict=True))
        members = order(body["run"], body["round"], by_peer)
        return body | {"members": members, "claims": [by_peer[peer] for peer in members]}

    return made


def each(change: Callable[[list[object]], list[object]], *fields: str) -> Callable[[World, Turn, Claims], Json]:
    def made(here: World, turn: Turn, claims: Claims) -> Json:
        body = true(here, turn, claims).to_body()
        return body | {field: change(body[field]) for field in fields}

    return made


def without_leader(here: World, turn: Turn, claims: Claims) -> Json:
    return here.liar.roster(here.rules, turn.number, turn.before.base, claims).to_body()


FALSE: dict[str, tuple[Callable[[World, Turn, Claims], Json], str]] = {
    "norms altered": (altered(norms=(1.0,) * 64), "malformed"),
    "steps altered": (altered(steps=1), "malformed"),
    "rates altered": (altered(rate=1), "malformed"),
    "of another round": (elsewhere(round=1 << 40), "other_round"),
    "of another fragment": (told(fragment=7), "other_round"),
    "of another run": (elsewhere(run="00" * 32), "other_run"),
    "on another base": (told(before="00" * 32), "other_base"),
    "on no base": (told(before=""), "malformed"),
    "in another order": (each(lambda found: found[::-1], "members", "claims"), "malformed"),
    "all twice": (each(lambda found: found * 2, "members", "claims"), "malformed"),
    "a claim too few": (each(lambda found: found[1:], "claims"), "out_of_range"),
    "members that are none": (each(lambda found: ["x"] * len(found), "members"), "malformed"),
    "members that are no text": (each(lambda found: [7] * len(found), "members"), "wrong_type"),
    "300 members": (each(lambda found: found * 100, "members", "claims"), "out_of_range"),
    "without its leader": (without_leader, "other_roster"),
    "empty": (lambda here, turn, claims: {}, "malformed"),
}  # fmt: skip


def test_a_false_roster_is_refused_and_the_second_leader_serves(tmp_path: Path) -> None:
    async def work(here: World) -> None:
        honest = {peer.node.peer_id for peer in here.honest}
        for name, (false, reason) in FALSE.items():
            turn = here.next(leads=True)

            def lies(_: str, claims: Claims, turn: Turn = turn, false: Callable[[World, Turn, Claims], Json] = false) -> Json:
                return {"roster": here.liar.signed("roster", false(here, turn, claims))}

            here.liar.answer("call", here.liar.leading(lies, len(honest)))
            here.agreed(await here.play(turn, comes_along(here, turn)))
            assert here.last().roster.members[0] == here.liar.peer, name
            counted = here.counted()  # on a busy machine one may have given the leader up before its roster came
            assert {reason: 1} in counted, name
            assert all(found in ({}, {reason: 1}) for found in counted), (name, counted)

    go(fought(tmp_path, 3, work), timeout_s=200)


async def comes_along(here: World, turn: Turn) -> None:
    """To the second leader, by the book."""
    offer = here.offer(turn)
    await here.brings(await here.joins(turn, here.liar.claim(offer), leader=1), offer)


def test_a_roster_signed_by_nobody_or_never_sent(tmp_path: Path) -> None:
    async def work(here: World) -> None:
        honest = {peer.node.peer_id for peer in here.honest}

        def forged(turn: Turn, claims: Claims) -> Json:
            return here.liar.signed("roster", true(here, turn, claims).to_body()) | {"peer": PEOPLE[4].peer}

        for kind, counted in (("forged", {"bad_signature": 1}), ("no roster", {"malformed": 1}), ("silent", {})):
            turn = here.next(leads=True)

            def lies(_: str, claims: Claims, turn: Turn = turn, kind: str = kind) -> Json | None:
                return {"forged": {"roster": forged(turn, claims)}, "no roster": {"hello": "there"}, "silent": None}[kind]

            here.liar.answer("call", here.liar.leading(lies, len(honest)))
            here.agreed(await here.play(turn, comes_along(here, turn)))
            found = here.counted()
            if kind == "no roster":
                assert all(sum(one.values()) == 1 for one in found), found
            else:
                assert found == [counted] * len(honest), (kind, found)

    go(fought(tmp_path, 3, work, average_ms=9000), timeout_s=100)


@pytest.mark.parametrize(("count", "first"), [(3, 2), (4, 2), (4, 3)])
def test_two_rosters_of_one_crowd_never_make_two_bases(tmp_path: Path, count: int, first: int) -> None:
    """The liar tells `first` of `count` one roster and the others another one, brings its offer to both and votes for whatever
    is voted for in each. At most one side commits; and when the liar is gone, so do all on that side."""

    async def work(here: World) -> None:
        turn = here.next(leads=True)
        offer = here.offer(turn)
        sides = [set(turn.order[1 : 1 + first]), set(turn.order[1 + first :])]
        rosters: dict[str, Roster] = {}
        both = asyncio.Event()

        def lies(caller: str, claims: Claims) -> Json:
            (mine,) = (side for side in sides if caller in side)
            rosters[caller] = true(here, turn, {peer: claims[peer] for peer in mine})
            if len(rosters) == count:
                both.set()
            return {"roster": here.liar.signed("roster", rosters[caller].to_body())}

        async def brings() -> None:
            await both.wait()
            await asyncio.gather(*(here.brings(roster, offer) for roster in {each.digest: each for each in rosters.values()}.values()))

        here.liar.answer("call", here.liar.leading(lies, count))
        here.liar.answer("vote", here.liar.echoing(lambda voter: rosters[voter].members))
        events = await here.play(turn, brings())
        tips = {peer.keeper.base.tip for peer in here.honest} - {turn.before}
        committed = [event for event in events if isinstance(event, Committed)]
        assert len(tips) <= 1, events
        assert len(committed) == (first if (count, first) in ((3, 2), (4, 3)) else 0), events
        assert all(isinstance(event, Committed) or event == Failed(turn.number, "no_majority") for event in events), events

    go(fought(tmp_path, count, work, average_ms=9000))
