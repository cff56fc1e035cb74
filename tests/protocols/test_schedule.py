"""Swarm time → round: the windows tile time, and every instant belongs to one round."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.schedule import Schedule

SCHEDULES = st.builds(Schedule, st.integers(0, 1 << 45), st.integers(500, 10**9), st.integers(1000, 10**8))


def test_as_drawn() -> None:
    schedule = Schedule(1000, 300, 100)
    assert schedule.period_ms == 400
    assert [schedule.round_at(now) for now in (999, 1000, 1399, 1400)] == [-1, 0, 0, 1]
    assert (schedule.start(2), schedule.boundary(2), schedule.deadline(2)) == (1800, 2100, 2200)
    assert (schedule.gather_by(2), schedule.reduce_by(2)) == (2133, 2166)


@given(SCHEDULES, st.integers(-(10**12), 1 << 46))
def test_rounds_tile_time(schedule: Schedule, now_ms: int) -> None:
    round = schedule.round_at(now_ms)
    assert schedule.start(round) <= now_ms < schedule.start(round + 1)
    stages = [
        schedule.start(round),
        schedule.boundary(round),
        schedule.gather_by(round),
        schedule.reduce_by(round),
        schedule.deadline(round),
    ]
    assert stages == sorted(set(stages))
    assert schedule.deadline(round) == schedule.start(round + 1)
