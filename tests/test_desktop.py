"""What `tapestry-session` says, and when; and the program itself, on a real X server and a real control socket."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.desktop import AGAIN_S, POLL_S, SAY_S, Report
from tests.host.test_sensors import display
from tests.scripted import Served

__all__ = ("display",)

POLLS = st.lists(st.tuples(st.booleans(), st.sampled_from([None, None, True, False])), min_size=1, max_size=120)


@given(POLLS)
def test_whoever_comes_back_is_told_of_at_once_and_whoever_stays_now_and_then(polls: list[tuple[bool, bool | None]]) -> None:
    """At each poll: was there an input since the last one, and what does the network cost? Nothing untold is older than it may be."""
    report = Report()
    input_s, told_input_s, told_s = -1e9, -1e10, -1e10
    known: bool | None = None
    for number, (touched, metered) in enumerate(polls):
        now_s = POLL_S * number
        input_s = now_s - 0.5 if touched else input_s
        due = report.due(now_s, now_s - input_s, metered)
        changed, old = metered != known, metered is not None and now_s - told_s >= AGAIN_S
        assert due == (changed or old or (input_s > told_input_s and now_s - told_s >= SAY_S))
        if due:
            report.said(now_s, now_s - input_s, metered)
            told_input_s, told_s, known = input_s, now_s, metered


def test_where_nothing_is_known_nothing_is_said() -> None:
    assert not Report().due(1000.0, None, None)


@pytest.fixture
def session(served: Served, display: str) -> Iterator["subprocess.Popen[str]"]:
    environment = {"PATH": os.environ["PATH"], "DISPLAY": display, "TAPESTRY_SOCKET": str(served.socket)}
    command = [sys.executable, "-m", "tapestryd.desktop"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
        yield program
        program.terminate()


def test_the_program_says_at_once_how_long_nobody_has_touched_this_desktop(served: Served, session: "subprocess.Popen[str]") -> None:
    assert served.operator.heard.wait(60)
    said, idle_s, metered = served.operator.asked[0]  # type: ignore[misc]
    assert said == "active"
    assert 0 <= idle_s < 60
    assert metered in (None, True, False)
    assert session.poll() is None
