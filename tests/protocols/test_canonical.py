"""Canonical JSON and signed statements: vectors both ways, round trips, and hostile bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, digest, dumps, is_digest, loads, take
from protocols.refusal import Reason, Refused
from tests.people import CAST, verify

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "canonical.json").read_text())
ADA, BO = list(CAST.values())[:2]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = TEXT | st.booleans() | st.integers(-limits.INTEGER, limits.INTEGER)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12)


@pytest.mark.parametrize("case", VECTORS["canonical"], ids=lambda case: case["name"])
def test_reads_and_writes_the_vectors(case: dict[str, object]) -> None:
    data = bytes.fromhex(str(case["bytes"]))
    assert dumps(case["value"]) == data
    assert loads(data, len(data)) == case["value"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_refuses_the_vectors(case: dict[str, str]) -> None:
    data = bytes.fromhex(case["bytes"] if "bytes" in case else case["head"] + case["unit"] * int(case["times"]) + case["tail"])
    with pytest.raises(Refused) as refused:
        loads(data, 1 << 20)
    assert refused.value.reason.value == case["reason"]


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_is_read_and_the_order_of_keys_is_nobodys_choice(value: dict[str, object]) -> None:
    try:
        data = dumps(value)
    except Refused:  # nested too deep
        return
    assert loads(data, len(data)) == value
    assert dumps(dict(reversed(value.items()))) == data
    assert json.loads(data) == value


@pytest.mark.parametrize("value", [1.0, None, {"a": None}, {1: "a"}, (1,), b"x", {"a": [0.5]}, {"a": {1, 2}}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(Refused) as refused:
        dumps(value)
    assert refused.value.reason is Reason.WRONG_TYPE


def test_bounds_are_exact() -> None:
    def nested(depth: int) -> dict[str, object]:
        value: dict[str, object] = {}
        for _ in range(depth - 1):
            value = {"a": value}
        return value

    deepest = dumps(nested(limits.JSON_DEPTH))
    assert loads(deepest, len(deepest)) == nested(limits.JSON_DEPTH)
    for over in (lambda: dumps(nested(limits.JSON_DEPTH + 1)), lambda: loads(b'{"a":' * 16 + b"{}" + b"}" * 16, 1000)):
        with pytest.raises(Refused, match="deeper"):
            over()
    with pytest.raises(Refused) as refused:
        loads(deepest, len(deepest) - 1)
    assert refused.value.reason is Reason.TOO_LARGE
    assert loads(dumps({"n": limits.INTEGER}), 100) == {"n": limits.INTEGER}
    for value in (limits.INTEGER + 1, -limits.INTEGER - 1, 10**400):
        with pytest.raises(Refused) as refused:
            dumps({"n": value})
        assert refused.value.reason is Reason.OUT_OF_RANGE


def test_brackets_in_strings_do_not_nest() -> None:
    value = {"a": '[[[[{{{{"\\"' * 50}
    assert loads(dumps(value), 10_000) == value


@given(
    st.binary(max_size=60)
    | st.text('{}[]":,\\u0dEe+-.19 truefalsn', max_size=60).map(str.encode)
    | st.text(max_size=30).map(lambda t: t.encode("utf-16"))
)
def test_hostile_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        value = loads(data, 1000)
    except Refused:
        return
    assert dumps(value) == data


@pytest.mark.parametrize("unit", [b"[", b'{"a":', b'[{"":', "[".encode("utf-16-le"), b'"\\"[', b'\x22\x01"\x00[\x00'])
def test_bombs_are_refused_without_recursion(unit: bytes) -> None:
    for head in (b"", b'{"a":', '"Ģ"'.encode("utf-16-le")):
        with pytest.raises(Refused):
            loads(head + unit * 100_000, 1 << 30)


def test_half_a_surrogate_pair_cannot_be_said() -> None:
    with pytest.raises(Refused) as refused:
        dumps({"a": "\ud800"})
    assert refused.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"n": 1, "s": "x", "more": 1}, Reason.UNKNOWN_FIELD),
        ({"n": 1}, Reason.MALFORMED),
        ({"n": True, "s": "x"}, Reason.WRONG_TYPE),
        ({"n": "1", "s": "x"}, Reason.WRONG_TYPE),
        ({"n": 1, "s": ["x"]}, Reason.WRONG_TYPE),
    ],
)
def test_take_refuses(body: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        take(body, {"n": int, "s": str})
    assert refused.value.reason is reason


def test_digests() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert is_digest("0" * 64)
    for no in ("0" * 63, "0" * 65, "G" * 64, "A" * 64, 0, None, ["0"] * 64, "٠" * 64, "0" * 63 + "\n"):
        assert not is_digest(no)


# Signed statements.


def _signed() -> dict[str, object]:
    return Signed.make("vote", {"n": 1}, ADA.peer, ADA.sign).to_json()


def test_a_signed_statement_is_its_makers() -> None:
    signed = Signed.from_json(json.loads(dumps(_signed())), "vote", verify)
    assert (signed.body, signed.peer) == ({"n": 1}, ADA.peer)
    assert Signed.message("vote", {"n": 1}) == b'tapestry/1/vote\n{"n":1}'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body": {"n": 2}}, Reason.BAD_SIGNATURE),
        ({"peer": BO.peer}, Reason.BAD_SIGNATURE),
        ({"peer": ""}, Reason.BAD_SIGNATURE),
        ({"peer": "1" * 10_000}, Reason.BAD_SIGNATURE),
        ({"peer": "not base58 0OIl"}, Reason.BAD_SIGNATURE),
        ({"kind": "roster"}, Reason.MALFORMED),
        ({"signature": "00" * 64}, Reason.BAD_SIGNATURE),
        ({"signature": "00" * 63}, Reason.MALFORMED),
        ({"signature": "x" * 128}, Reason.MALFORMED),
        ({"more": 1}, Reason.UNKNOWN_FIELD),
        ({"body": []}, Reason.WRONG_TYPE),
    ],
)
def test_a_statement_that_was_touched_is_refused(change: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        Signed.from_json({**_signed(), **change}, "vote", verify)
    assert refused.value.reason is reason


def test_a_signature_has_one_spelling() -> None:
    """Blanks inside would let a voter blow up every log entry that carries its vote."""
    signature = str(_signed()["signature"])
    for other in (signature.upper(), " " + signature, signature[:2] + " " * 900_000 + signature[2:], signature + "\n"):
        with pytest.raises(Refused) as refused:
            Signed.from_json({**_signed(), "signature": other}, "vote", verify)
        assert refused.value.reason is Reason.MALFORMED


def test_one_kind_cannot_be_read_as_another() -> None:
    value = {**Signed.make("roster", {"n": 1}, ADA.peer, ADA.sign).to_json(), "kind": "vote"}
    with pytest.raises(Refused) as refused:
        Signed.from_json(value, "vote", verify)
    assert refused.value.reason is Reason.BAD_SIGNATURE


@given(VALUES)
def test_any_json_is_a_signed_statement_or_refused(value: object) -> None:
    with pytest.raises(Refused):
        Signed.from_json(value, "vote", verify)
