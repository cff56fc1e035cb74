"""Scores that fall and mend, bans that end, and a memory that no crowd of throwaway peers can fill."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.control import Ban
from protocols.refusal import Reason
from tapestryd import standing as standing_module
from tapestryd.config import Trust
from tapestryd.standing import FAULTS, PEERS, Standing, Tolerance, Trusted

TERMS = Trust()
NOW = 1_700_000_000.0


def test_every_reason_is_decided() -> None:
    assert set(FAULTS) == set(Reason)


def test_the_page_of_the_treaty_says_the_same() -> None:
    page = (Path(__file__).parents[1] / "protocols" / "streams.md").read_text()
    for tolerance in Tolerance:
        row = re.search(rf"^\| ([\w, ]+) \| {-tolerance.value:.0f} \| (\d+) \|$", page, re.MULTILINE)
        assert row is not None
        assert set(row[1].split(", ")) == {reason.value for reason, cost in FAULTS.items() if cost is tolerance}
        assert int(row[2]) == max(1, TERMS.score_ban / tolerance.value)


@pytest.mark.parametrize("reason", Reason)
def test_how_many_at_once_are_a_ban(reason: Reason) -> None:
    standing, tolerance = Standing(TERMS), FAULTS[reason]
    falls = [standing.fault("eve", reason, NOW) for _ in range(200)]
    if tolerance is None:
        assert set(falls) == {None}
        assert standing.score("eve", NOW) == 0
        return
    expected = {Tolerance.NONE: (None, 0), Tolerance.LOW: (1, 4), Tolerance.MID: (3, 9), Tolerance.HIGH: (19, 49)}[tolerance]
    warily = falls.index(Trusted.WARILY) if Trusted.WARILY in falls else None
    assert (warily, falls.index(Trusted.NO)) == expected
    assert sum(fall is not None for fall in falls) == 1 + (warily is not None)
    assert standing.bans(NOW) == (Ban("eve", "faults", f"{reason.value} ×{expected[1] + 1}", round((NOW + 43_200) * 1000)),)


def test_spread_out_faults_are_borne_with() -> None:
    """One low-tolerance fault every half-life and a bit never comes to -20, nor does a stall a minute."""
    standing = Standing(TERMS)
    for turn in range(100):
        standing.fault("eve", Reason.MALFORMED, NOW + 610 * turn)
        assert standing.score("eve", NOW + 610 * turn) > -20
    for minute in range(10_000):
        standing.fault("bo", Reason.STALLED, NOW + 60 * minute)
    assert standing.trusted("bo", NOW + 60 * 10_000) is Trusted.YES


def test_a_ban_ends_and_what_was_held_against_the_peer_has_mended_by_then() -> None:
    standing = Standing(TERMS)
    standing.fault("eve", Reason.EQUIVOCATION, NOW)
    assert standing.trusted("eve", NOW + 43_199) is Trusted.NO
    assert standing.ended(NOW + 43_199) == ()
    assert standing.trusted("eve", NOW + 43_201) is Trusted.YES
    assert [ban.peer_id for ban in standing.ended(NOW + 43_201)] == ["eve"]
    assert standing.bans(NOW + 43_201) == ()
    assert standing.fault("eve", Reason.MALFORMED, NOW + 43_201) is None
    assert standing.why("eve") == "malformed ×1"


def test_the_operators_word() -> None:
    standing = Standing(Trust(deny=("mallory",)), [Ban("old", "operator", "", round((NOW + 9) * 1000))])
    assert standing.ban("bo", 60, "spam", NOW) == Ban("bo", "operator", "spam", round((NOW + 60) * 1000))
    assert standing.ban("cyd", None, "", NOW).until_ms == round((NOW + 43_200) * 1000)
    assert [ban.peer_id for ban in standing.bans(NOW)] == ["mallory", "cyd", "bo", "old"]
    assert standing.trusted("mallory", NOW + 1e9) is Trusted.NO
    assert not standing.unban("mallory")
    for _ in range(4):
        standing.fault("dee", Reason.MALFORMED, NOW)
    assert standing.trusted("dee", NOW) is Trusted.WARILY
    assert not standing.unban("dee")  # it was not banned; what it did is forgotten all the same
    assert standing.trusted("dee", NOW) is Trusted.YES
    assert standing.unban("bo")
    assert standing.trusted("bo", NOW) is Trusted.YES


def test_a_clock_that_goes_back_makes_nobody_worse() -> None:
    standing = Standing(TERMS)
    standing.fault("eve", Reason.MALFORMED, NOW)
    assert standing.score("eve", NOW - 10_000) == -10
    assert standing.score("eve", NOW + 1e12) == 0


peers, reasons = st.sampled_from("abcdefgh"), st.sampled_from(Reason)
steps = st.lists(st.tuples(peers, reasons, st.floats(0, 3_000)), max_size=120)


@given(steps)
def test_scores_stay_in_bounds_and_only_mend_with_time(history: list[tuple[str, Reason, float]]) -> None:
    standing, now = Standing(TERMS), NOW
    for peer, reason, wait_s in history:
        now += wait_s
        before, trusted = standing.score(peer, now), standing.trusted(peer, now)
        fall = standing.fault(peer, reason, now)
        after = standing.score(peer, now)
        assert -100 <= after <= before <= 0
        assert (after < before) == (FAULTS[reason] is not None and trusted is not Trusted.NO and before > -100)
        assert after <= standing.score(peer, now + 1) <= standing.score(peer, now + 600) <= 0
        assert standing.score(peer, now + 600) == pytest.approx(after / 2)
        assert fall is None or fall is standing.trusted(peer, now)
        assert (fall is Trusted.NO) == (trusted is not Trusted.NO and standing.trusted(peer, now) is Trusted.NO)
    for ban in standing.bans(now):
        assert ban.until_ms is not None
        assert standing.trusted(ban.peer_id, now) is Trusted.NO
        assert standing.trusted(ban.peer_id, ban.until_ms / 1000) is not Trusted.NO
    assert standing.bans(now + 43_200.001) == ()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), reasons), max_size=200))
def test_no_crowd_fills_the_memory(history: list[tuple[int, Reason]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing_module, "PEERS", 4)
        standing = Standing(TERMS)
        for step, (peer, reason) in enumerate(history):
            standing.ban(f"kept {step % 3}", 1e6, "", NOW)
            worst = min((standing.score(str(other), NOW + step), other) for other in range(31))
            standing.fault(str(peer), reason, NOW + step)
            assert len(standing._records) <= 4
            assert sum(ban.by == "faults" for ban in standing.bans(NOW + step)) <= 4
            assert sum(ban.by == "operator" for ban in standing.bans(NOW + step)) == min(3, step + 1)
            if worst[0] < -1:  # the least bad are forgotten, never the worst
                assert standing.score(str(worst[1]), NOW + step) < 0


def test_thousands_of_throwaway_peers_do_not_hide_one_that_goes_on() -> None:
    standing = Standing(TERMS)
    for number in range(4 * PEERS):
        standing.fault(f"throwaway {number}", Reason.MALFORMED, NOW + number / 1000)
        if number % PEERS == 0:
            standing.fault("eve", Reason.BAD_SIGNATURE, NOW + number / 1000)
            standing.fault("eve", Reason.BAD_SIGNATURE, NOW + number / 1000)
    assert len(standing._records) == PEERS
    assert standing.trusted("eve", NOW + 5) is Trusted.NO
