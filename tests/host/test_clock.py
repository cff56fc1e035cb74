"""The clock's verdict on itself: the median of the others, so that one liar moves nothing."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import limits
from tapestryd.host.clock import now_ms, verdict


def test_swarm_time_is_unix_time() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= now_ms() <= time.time_ns() // 1_000_000 + 1


@pytest.mark.parametrize(
    ("skews", "said"),
    [
        ([], (True, None)),
        ([5], (True, 5)),
        ([limits.CLOCK_SKEW_MS], (True, limits.CLOCK_SKEW_MS)),
        ([-limits.CLOCK_SKEW_MS - 1], (False, -limits.CLOCK_SKEW_MS - 1)),
        ([0, 1, 10**9], (True, 1)),
        ([3, 10**9], (True, 3)),
        ([-(10**9), 3], (True, 3)),
        ([9000, 9001], (False, 9000)),
        ([0, 9000, 9000], (False, 9000)),
    ],
)
def test_verdict(skews: list[int], said: tuple[bool, int | None]) -> None:
    assert verdict(iter(skews)) == said


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=6), st.integers(-limits.INTEGER, limits.INTEGER))
def test_one_liar_moves_nothing(skews: list[int], lie: int) -> None:
    good, offset = verdict([*skews, lie])
    assert good
    assert offset is not None
    assert abs(offset) <= 100
