"""What the operator asked for, one word after another, and as a file keeps it."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.host.policy import Hold, Reason
from tapestryd.host.will import Mode, Will

PAUSED = Will(paused=True)
TIMES = st.none() | st.floats(-1e12, 1e12)
WILLS = st.builds(Will, st.sampled_from(Mode), TIMES, st.booleans(), TIMES, st.booleans())


@pytest.mark.parametrize(
    ("will", "after"),
    [
        (Will().pause(None), PAUSED),
        (Will().pause(5.0), Will(paused=True, pause_until_s=5.0)),
        (Will().pause(5.0).pause(None), PAUSED),
        (Will().pause(5.0).resume(), Will()),
        (Will().finish(), Will(finishing=True)),
        (Will().finish().round_over(), PAUSED),
        (Will().finish().pause(5.0), Will(paused=True, pause_until_s=5.0)),
        (Will().finish().resume(), Will()),
        (Will().finish().resume().round_over(), Will()),
        (Will().pause(5.0).finish(), PAUSED),
        (Will().round_over(), Will()),
        (Will().choose(Mode.NEVER, 9.0).resume(), Will()),
        (Will().choose(Mode.ALWAYS, 9.0).resume(), Will(Mode.ALWAYS, 9.0)),
        (Will().choose(Mode.ALWAYS, 9.0).pause(None).resume(), Will(Mode.ALWAYS, 9.0)),
        (Will().choose(Mode.ALWAYS, 9.0).choose(Mode.AUTO, 3.0), Will()),
        (Will().choose(Mode.NEVER, 9.0).at(8.9), Will(Mode.NEVER, 9.0)),
        (Will().choose(Mode.NEVER, 9.0).at(9.0), Will()),
        (Will().pause(5.0).choose(Mode.NEVER, 9.0).at(7.0), Will(Mode.NEVER, 9.0)),
        (Will().pause(None).at(1e12), PAUSED),
    ],
)
def test_one_word_after_another(will: Will, after: Will) -> None:
    assert will == after


@pytest.mark.parametrize(
    ("will", "until_s"),
    [
        (Will().pause(5.0), 5.0),
        (Will().pause(5.0).choose(Mode.NEVER, 9.0), 9.0),
        (Will().pause(5.0).choose(Mode.NEVER, None), None),
        (Will().pause(None).choose(Mode.NEVER, 9.0), None),
        (Will().finish(), None),
        (Will().finish().choose(Mode.NEVER, 9.0), None),
    ],
)
def test_until_when_the_operator_holds(will: Will, until_s: float | None) -> None:
    assert will.judge(()) == (Hold(Reason.USER, until_s),)


@given(WILLS)
def test_a_file_keeps_all_of_it(will: Will) -> None:
    assert Will.from_json(json.loads(json.dumps(will.to_json()))) == will


RAW = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6), lambda one: st.lists(one, max_size=2))


@given(RAW | st.fixed_dictionaries(dict.fromkeys(Will().to_json(), RAW | st.sampled_from(["auto", "never"]))))
def test_a_damaged_file_is_a_value_error(raw: Any) -> None:
    with suppress(ValueError):
        assert isinstance(Will.from_json(raw), Will)
