"""The ring of samples against a list that forgets nothing."""

import math
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.host.trends import KEPT_S, POINTS, SERIES, STEP_S, Trends
from tests.scripted import IDLE, STATUS

NOW = 1_760_000_000_000


def training(loss: float | None) -> object:
    return replace(STATUS, trainer=replace(STATUS.trainer, loss=loss))


@given(
    st.lists(st.tuples(st.integers(1, 4_000), st.none() | st.floats(0, 9)), min_size=1, max_size=60),
    st.sampled_from([30, 600, 3_600, 7_200, KEPT_S]),
)
def test_means_are_those_of_all_samples(steps: list[tuple[int, float | None]], range_s: int) -> None:
    trends, kept, now, last = Trends(), [], NOW, -math.inf
    for wait_s, loss in steps:
        now += wait_s * 1000
        trends.add(training(loss), now)  # type: ignore[arg-type]
        if now - last >= STEP_S * 1000:
            kept.append((now, loss))
            last = now
    answer = trends.of(["loss"], range_s, now)
    begin, step = answer["from_ms"], answer["step_s"]
    points = answer["series"]["loss"]  # type: ignore[index]
    assert len(points) <= POINTS
    assert begin + len(points) * step * 1000 > now >= begin + (len(points) - 1) * step * 1000  # type: ignore[operator]
    for place, point in enumerate(points):
        low = begin + place * step * 1000  # type: ignore[operator]
        inside = [loss for at, loss in kept if low <= at < low + step * 1000 and loss is not None]  # type: ignore[operator]
        assert point == (pytest.approx(mean(inside), abs=1e-6) if inside else None)


def test_bytes_become_rates_and_a_new_meter_is_no_negative_rate() -> None:
    trends = Trends()
    for at_s, sent in ((0, 1000), (10, 21_000), (20, 500), (30, 1500)):
        trends.add(replace(STATUS, traffic=replace(STATUS.traffic, sent_bytes=sent)), NOW + at_s * 1000)
    assert trends.of(["sent_bytes_per_s"], 40, NOW + 30_000)["series"] == {"sent_bytes_per_s": [None, 2000.0, None, 100.0]}


def test_what_is_not_there_is_null() -> None:
    trends = Trends()
    assert set(trends.of(tuple(SERIES), 20, NOW)["series"]) == set(SERIES)  # type: ignore[call-overload]
    trends.add(IDLE, NOW)
    assert trends.of(tuple(SERIES), 10, NOW)["series"] == {name: [0.0] if name == "tokens_per_s" else [None] for name in SERIES}


def test_the_oldest_give_way() -> None:
    trends = Trends()
    for step in range(KEPT_S // STEP_S + 7):
        trends.add(training(float(step)), NOW + step * STEP_S * 1000)  # type: ignore[arg-type]
    points = trends.of(["loss"], KEPT_S, NOW + step * STEP_S * 1000)["series"]["loss"]  # type: ignore[index]
    assert points[0] == pytest.approx(7 + (KEPT_S // POINTS / STEP_S - 1) / 2, abs=KEPT_S / POINTS / STEP_S)
    assert None not in points


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    trends = Trends()
    trends.add(training(1.0), NOW)  # type: ignore[arg-type]
    trends.add(training(2.0), NOW - 3_600_000)  # type: ignore[arg-type]
    assert trends.of(["loss"], 10, NOW - 3_600_000)["series"] == {"loss": [2.0]}
