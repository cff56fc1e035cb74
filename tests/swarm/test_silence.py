"""For how long a reducer whose parts never came reduces nothing."""

import pytest

from protocols.grouping import CELLS, Claim
from protocols.refusal import Reason, Refused
from tapestryd.swarm.silence import FIRST_ROUNDS, LONGEST_ROUNDS, Silence

REDUCERS = ["A", "B", "C", "D"]
REDUCES, SENDS = Claim.of(1, 1, [0.0] * CELLS), Claim.of(1, 0, [0.0] * CELLS)


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
    silence, now, found = Silence(), 5, []
    for _ in range(8):
        silence.note(now, REDUCERS, ["B"])
        with pytest.raises(Refused) as refused:
            silence.check("B", REDUCES, now + 1)
        assert refused.value.reason is Reason.SILENT
        found.append(rounds(silence, "B", now))
        now += found[-1] + 1
    assert found == [8, 16, 32, 64, 128, 256, 512, 512]
    assert rounds(silence, "A", now) == 0


def test_forgotten_when_as_many_rounds_have_passed_as_the_longest_lasts() -> None:
    for more, expected in ((-1, 2 * FIRST_ROUNDS), (0, FIRST_ROUNDS)):
        silence = Silence()
        silence.note(0, REDUCERS, ["B"])
        now = FIRST_ROUNDS + LONGEST_ROUNDS + more
        silence.note(now, REDUCERS, ["B"])
        assert rounds(silence, "B", now) == expected


@pytest.mark.parametrize(("silent", "noted"), [(["B"], True), (["B", "C"], True), (["B", "C", "D"], False)])
def test_more_than_half_are_not_to_blame(silent: list[str], noted: bool) -> None:
    silence = Silence()
    silence.note(0, REDUCERS, silent)
    assert [bool(rounds(silence, peer, 0)) for peer in silent] == [noted] * len(silent)
