"""For how long a reducer that failed us reduces nothing, and which leader may say so of ourselves."""

from dataclasses import replace

import pytest

from protocols.grouping import CELLS, Claim
from protocols.refusal import Reason, Refused
from tapestryd.swarm.silence import FIRST_ROUNDS, LONGEST_ROUNDS, Silence
from tests.lineages import PEOPLE
from tests.people import MEMBERS, delegations, roster

A, B, C, D = (person.peer for person in PEOPLE[:4])
REDUCES, SENDS = Claim.of(1, 1, [0.0] * CELLS), Claim.of(1, 0, [0.0] * CELLS)


def lost(silence: Silence, round: int, *failed: str) -> None:
    silence.lost(roster(PEOPLE[:4], round=round), failed, A)


def rounds(silence: Silence, peer: str, after: int) -> int:
    """How many rounds after `after` it is to reduce nothing."""
    for number in range(after + 1, after + 10_000):
        try:
            silence.check(peer, REDUCES, number)
        except Refused:
            silence.check(peer, SENDS, number)
        else:
            return number - after - 1
    raise AssertionError


def test_each_time_for_twice_as_long() -> None:
    silence, now, found = Silence(0), 5, []
    for _ in range(8):
        lost(silence, now, B)
        with pytest.raises(Refused) as refused:
            silence.check(B, REDUCES, now + 1)
        assert refused.value.reason is Reason.SILENT
        found.append(rounds(silence, B, now))
        now += found[-1] + 1
    assert found == [8, 16, 32, 64, 128, 256, 512, 512]
    assert rounds(silence, C, now) == 0


def test_forgotten_when_as_many_rounds_have_passed_as_the_longest_lasts() -> None:
    for more, expected in ((-1, 2 * FIRST_ROUNDS), (0, FIRST_ROUNDS)):
        silence = Silence(0)
        lost(silence, 0, B)
        now = FIRST_ROUNDS + LONGEST_ROUNDS + more
        lost(silence, now, B)
        assert rounds(silence, B, now) == expected


@pytest.mark.parametrize(("failed", "noted"), [([B], True), ([B, C], True), ([B, C, D], False)])
def test_more_than_half_are_not_to_blame(failed: list[str], noted: bool) -> None:
    silence = Silence(0)
    lost(silence, 0, *failed)
    assert [bool(rounds(silence, peer, 0)) for peer in failed] == [noted] * len(failed)


def test_a_member_fails_with_all_its_nodes() -> None:
    """Four of five reducers are one Member's, and silent: one owner of two is to blame, and none of its nodes reduces for a while."""
    north = delegations(MEMBERS[0], PEOPLE[1:5])
    shown = [*north, *delegations(MEMBERS[1], PEOPLE[:1])]
    silence = Silence(0)
    silence.lost(roster(PEOPLE[:5], delegated=shown, round=0), [person.peer for person in PEOPLE[1:4]], A)
    for delegation, noted in zip(shown, [True] * 4 + [False], strict=True):
        claim = replace(REDUCES, delegation=delegation)
        if noted:
            with pytest.raises(Refused):
                silence.check(delegation.node, claim, 1)
        else:
            silence.check(delegation.node, claim, 1)


def test_a_leader_is_believed_only_behind_a_round_that_we_reduced_in_and_lost() -> None:
    silence = Silence(100)
    assert silence.ours(101 + LONGEST_ROUNDS - 1)  # before we began to look, anything may have been
    assert not silence.ours(101 + LONGEST_ROUNDS)
    of = roster(PEOPLE[:4], round=1000, reducers=3)
    silence.lost(of, [], of.members[3])
    assert not silence.ours(1001)
    lost(silence, 1000)
    assert silence.ours(1001)
    assert not silence.ours(1001 + LONGEST_ROUNDS)
