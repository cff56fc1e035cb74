"""Rounds in roster mode between real nodes: who is let in, what a Member's nodes weigh, and what commits."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protocols.canonical import Signed, digest
from protocols.grouping import Claim, Roster
from protocols.lineage import Entry
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
from protocols.rounds import Committed, Event, Failed
from protocols.rules import RunRules
from tapestryd.exchange import assemble
from tests.people import CAST, MEMBERS, Person, delegations, verify
from tests.swarm.rooms import Peer, agreed, go, others, peers
from tests.swarm.test_round import by_lead

ADA, BO, CYD, DEE, EVE, FAY = CAST.values()
NORTH, SOUTH, EAST = MEMBERS


def given(rules: RunRules, member: Person, *nodes: Person, **changed: int) -> list[Delegation]:
    return delegations(member, nodes, run=rules.run_id, **changed)


def three_members(rules: RunRules) -> list[Delegation]:
    """North has two nodes; fay's delegation ended a millisecond before the boundary of round 0; eve has none."""
    ended = rules.schedule.boundary(0) - 1
    return [
        *given(rules, NORTH, ADA, BO), *given(rules, SOUTH, CYD, not_after_ms=ended + 1), *given(rules, EAST, DEE),
        *given(rules, SOUTH, FAY, not_after_ms=ended),
    ]  # fmt: skip


async def together(found: Sequence[Peer], known: Sequence[Peer]) -> list[Event]:
    """A round of all `found`; all know of `known`, and whoever is not among them knows of itself, too."""
    return list(await asyncio.gather(*(peer.round(others(peer, known)) for peer in found)))


def test_a_round_of_three_members_one_with_two_nodes(tmp_path: Path) -> None:
    """Who has no delegation, or one that has ended, calls in vain; a Member with two nodes weighs as much as one with one."""

    async def work() -> None:
        async with peers(tmp_path, 6, fragments=1, bits=32, average_ms=30_000, delegate=three_members) as found:
            *here, eve, fay = found
            events = await together(found, here)
            agreed(here, events[:4])
            assert events[4:] == [Failed(0, "no_roster")] * 2
            assert {peer.keeper.base.tip.height for peer in (eve, fay)} == {0}  # type: ignore[union-attr]
            told = [reason for peer in here for reason in peer.refused()]
            assert set(told) == {"not_delegated", "expired"}
            rules = here[0].rules
            entry, blobs = here[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert set(entry.roster.members) == {person.peer for person in (ADA, BO, CYD, DEE)}
            deltas = {}
            for peer in here:
                peer.begin(others(peer, here))
                deltas[peer.person] = peer.averaging.round.delta.double()  # type: ignore[union-attr]
                peer.averaging.drop()
            expected = ((deltas[ADA] + deltas[BO]) / 2 + deltas[CYD] + deltas[DEE]) / 3
            mean, coverage = assemble(rules, entry.roster, blobs)
            assert coverage == 1_000_000
            assert torch.allclose(mean.double(), expected, rtol=1e-5, atol=1e-9)
            audited(entry, blobs, rules)

    go(work, timeout_s=120)


def audited(entry: Entry, blobs: list[bytes], rules: RunRules) -> None:
    """By a third party, with nothing but the rules: two voices of three are good, a voice and a half is not enough."""
    by_node = {vote.peer: vote for vote in entry.votes}

    def whole(*voters: Person) -> tuple[Entry, list[bytes]]:
        body = entry.vote.to_body()
        votes = tuple(by_node.get(person.peer) or Signed.make("vote", body, person.peer, person.sign) for person in voters)
        return Entry.split(replace(entry, votes=votes).head() + b"".join(blobs), rules, verify)

    assert [digest(part) for part in whole(CYD, DEE, ADA)[1]] == list(entry.parts)
    whole(ADA, BO, CYD)
    whole(CYD, DEE)
    for few in ((ADA, BO), (ADA, CYD), (BO, DEE)):
        with pytest.raises(Refused) as refused:
            whole(*few)
        assert refused.value.reason is Reason.NO_QUORUM


def test_two_nodes_of_one_member_commit_nothing(tmp_path: Path) -> None:
    """They are all of their roster and of those present, but one voice of three."""

    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=12_000, delegate=lambda rules: given(rules, NORTH, ADA, BO)) as found:
            assert await together(found, found) == [Failed(0, "no_majority")] * 2
            assert {peer.keeper.base.tip.height for peer in found} == {0}  # type: ignore[union-attr]

    go(work)


def test_a_members_silent_nodes_stop_nobody(tmp_path: Path) -> None:
    """Four nodes of one Member of three call, and then offer nothing and vote for nothing: two thirds of the roster, but one voice."""

    def delegate(rules: RunRules) -> list[Delegation]:
        return [*given(rules, NORTH, ADA, BO, CYD, DEE), *given(rules, SOUTH, EVE), *given(rules, EAST, FAY)]

    async def work() -> None:
        async with peers(tmp_path, 6, average_ms=15_000, delegate=delegate) as found:
            *silent, eve, fay = found

            async def call(peer: Peer) -> None:
                peer.begin(others(peer, found))
                await peer.averaging.run(peer.averaging.gather(0, peer.roll.own), 0)
                peer.averaging.drop()

            events = await asyncio.gather(*(peer.round(others(peer, found)) for peer in (eve, fay)), *map(call, silent))
            agreed([eve, fay], events[:2])
            entry, _ = eve.keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert len(entry.roster.members) == 6
            assert entry.vote.coverage_ppm == 666_666
            assert {signed.peer for signed in entry.votes} == {EVE.peer, FAY.peer}

    go(work, timeout_s=120)


def test_a_revoked_node_is_out_as_soon_as_the_new_epoch_is_seen(tmp_path: Path) -> None:
    """Bo was delegated once; ada calls with the epoch that leaves bo out. Whoever leads, bo included, the others go on without."""

    def delegate(rules: RunRules) -> list[Delegation]:
        return [
            *given(rules, NORTH, BO, epoch=1), *given(rules, NORTH, ADA, epoch=2),
            *given(rules, SOUTH, CYD), *given(rules, EAST, DEE),
        ]  # fmt: skip

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=30_000, delegate=delegate) as (ada, bo, cyd, dee):
            ada_cyd_dee_bo = await together([ada, cyd, dee, bo], [ada, bo, cyd, dee])
            agreed([ada, cyd, dee], ada_cyd_dee_bo[:3])
            assert not isinstance(ada_cyd_dee_bo[3], Committed)
            for peer in (ada, cyd, dee):
                assert peer.roll.epochs.greatest[NORTH.peer] == 2
                entry, _ = peer.keeper.store.load_entry(1, verify)  # type: ignore[misc]
                assert BO.peer not in entry.roster.members

    go(work, timeout_s=120)


def test_an_epoch_shown_to_all_but_the_leader_stops_nobody(tmp_path: Path) -> None:
    """North's second node is of a greater epoch, and shows that to some only: who leads lets in the first, and all others know better."""

    def delegate(rules: RunRules) -> list[Delegation]:
        return [*given(rules, NORTH, ADA, epoch=1), *given(rules, SOUTH, CYD), *given(rules, EAST, DEE)]

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=15_000, delegate=delegate) as (ada, _, cyd, dee):
            _, *led = by_lead([ada, cyd, dee])
            for peer in set(led) - {ada}:
                peer.roll.admit(BO.peer, *given(peer.rules, NORTH, BO, epoch=2), peer.rules.schedule.boundary(0))
            agreed([ada, cyd, dee], await together([ada, cyd, dee], [ada, cyd, dee]))

    go(work)


def test_a_leader_that_lets_in_whom_it_likes_has_no_followers(tmp_path: Path) -> None:
    """Eve has no delegation, and the first leader does not mind: its roster is refused, the second leader's holds."""

    class Lenient:
        def admit_caller(self, *_: object) -> None: ...
        def admit_roster(self, roster: Roster) -> None: ...
        def seated(self, claims: Mapping[str, Claim]) -> list[str]:
            return list(claims)

    def delegate(rules: RunRules) -> list[Delegation]:
        return [*given(rules, NORTH, ADA), *given(rules, SOUTH, BO, CYD), *given(rules, EAST, DEE)]

    async def work() -> None:
        async with peers(tmp_path, 5, average_ms=20_000, delegate=delegate) as found:
            *four, eve = found
            leader, *honest = by_lead(four)
            leader.gathering._roll = Lenient()
            events = await asyncio.gather(
                *(peer.round(others(peer, four)) for peer in honest), leader.round(others(leader, found)), eve.round(others(eve, four))
            )
            agreed(honest, events[:3])
            assert not any(isinstance(event, Committed) for event in events[3:])
            entry, _ = honest[0].keeper.store.load_entry(1, verify)  # type: ignore[misc]
            assert EVE.peer not in entry.roster.members

    go(work, timeout_s=120)
