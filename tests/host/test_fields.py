"""What a field reads is what its schema admits, so that the OpenAPI document tells the truth."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tapestryd.host.fields import FOUNDED, Ago, Choice, Field, Flag, Line, Maybe, Names, PeerId, Seconds, Span, Target, Text, Whole
from tests.scripted import PEER

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(), SCALARS, max_size=2)
NUMBERS = st.integers(-2, 1 << 30) | st.floats(-1, 1e9)


def reads(field: Field, value: Any) -> bool:
    try:
        field.read(value)
    except ValueError:
        return False
    return True


def admits(field: Field, value: Any) -> bool:
    return Draft202012Validator(field.schema()).is_valid(value)


@given(JSON | NUMBERS)
def test_seconds(value: Any) -> None:
    assert reads(Seconds(3600), value) == admits(Seconds(3600), value)


@given(JSON | NUMBERS)
def test_what_may_not_be_known(value: Any) -> None:
    for field in (Ago(3600), Maybe()):
        assert reads(field, value) == admits(field, value)
        assert field.read(None) is None


@given(JSON | NUMBERS)
def test_what_a_body_must_have(value: Any) -> None:
    field = Choice(("always", "never"))
    assert reads(field, value) == admits(field, value)
    assert not reads(field, None)
    assert reads(field, "never")


@given(JSON)
def test_a_line_is_at_most_what_its_schema_admits(value: Any) -> None:
    line = Line(20)
    assert reads(line, value) <= admits(line, value)
    if isinstance(value, str) and value.isprintable():
        assert reads(line, value) == admits(line, value)


@given(st.text() | st.integers(-5, 200).map(str))
def test_whole_numbers(text: str) -> None:
    whole = Whole(3, 120)
    assert reads(whole, text) == (text.isascii() and text.isdigit() and len(text) <= 16 and admits(whole, int(text)))


@given(st.text() | st.sampled_from(["90s", "1h30m", "0.5s", "25h", "24h", "1ms"]))
def test_a_span_is_at_most_what_its_schema_admits(text: str) -> None:
    span = Span(86_400, 60)
    assert reads(span, text) <= admits(span, text)


@given(st.lists(st.sampled_from(["loss", "height", "", "loss ", "peers"]), max_size=4).map(",".join))
def test_names(text: str) -> None:
    names = Names({"loss": "", "height": ""})
    assert reads(names, text) == admits(names, text)


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        (Whole(0, 9), "07", 7),
        (Flag(), "no", True),
        (Text(), "é", "é"),
        (Span(86_400, 60), "1h30m", 5400),
        (Names({"a": "", "b": ""}), "b,a,b", ("b", "a")),
        (PeerId(), PEER, PEER),
        (Seconds(), None, None),
        (Line(9), None, ""),
        (Target(), FOUNDED, FOUNDED),
    ],
)
def test_what_they_read(field: Field, value: Any, read: Any) -> None:
    assert field.read(value) == read
    json.dumps(field.schema())


def test_what_is_no_target() -> None:
    for value in (None, 3, "", "run.toml", "/a/run.toml", "https://x", "tapestry:a\0b", "tapestry:\ud800"):
        assert not reads(Target(), value)


def test_what_is_left_out() -> None:
    fields = (Whole(0, 9, 3), Flag(), Text(), Span(9, 3), Names({"a": ""}), PeerId())
    assert [field.default for field in fields] == [3, False, None, 3, ("a",), None]
