"""Presence: the vector both ways, each refusal in the docstring, hostile bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, dumps, loads
from protocols.lineage import Tip
from protocols.membership import Delegation
from protocols.records import ACTIVE, STATES, Presence
from protocols.refusal import Reason, Refused
from protocols.rules import Invite
from tests.people import CAST, RUN, verify

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "presence.json").read_text())
ADA, BO = list(CAST.values())[:2]
NOW = 1_700_000_125_000
DELEGATION = Delegation.parse(VECTOR["fields"]["delegation"], verify)
FIELDS = {**VECTOR["fields"], "addrs": tuple(VECTOR["fields"]["addrs"]), "delegation": DELEGATION}
PRESENCE = Presence(**FIELDS)


def parse(data: object, **changed: object) -> Presence:
    return Presence.parse(data, **{"run": RUN, "peer": ADA.peer, "now_ms": NOW, "verify": verify, **changed})  # type: ignore[arg-type]


def test_reads_and_writes_the_vector() -> None:
    assert (VECTOR["run"], VECTOR["peer"], VECTOR["now_ms"]) == (RUN, ADA.peer, NOW)
    assert parse(VECTOR["record"].encode()) == PRESENCE
    assert PRESENCE.to_bytes(ADA.sign).decode() == VECTOR["record"]


def test_what_a_presence_says() -> None:
    assert PRESENCE.tip == Tip(40, 120, "cd" * 32)
    assert replace(PRESENCE, base="").tip is None
    assert {state for state in STATES if replace(PRESENCE, state=state).active} == set(ACTIVE)


def made(**changed: object) -> bytes:
    body = {**loads(VECTOR["record"].encode(), 4096)["body"], **changed}
    return dumps(Signed.make("presence", body, ADA.peer, ADA.sign).to_json())


LONGEST = limits.ADDRESS_BYTES - len("/p2p/") - len(ADA.peer)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: parse(made(), peer=BO.peer), Reason.BAD_SIGNATURE),
        (lambda: parse(VECTOR["record"].replace("aspen", "ashes").encode()), Reason.BAD_SIGNATURE),
        (lambda: parse(dumps(Signed.make("vote", VECTOR["fields"], ADA.peer, ADA.sign).to_json())), Reason.MALFORMED),
        (lambda: parse(made(), run="00" * 32), Reason.OTHER_RUN),
        (lambda: parse(made(state="dancing")), Reason.OUT_OF_RANGE),
        (lambda: parse(made(), now_ms=NOW + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS), Reason.STALE),
        (lambda: parse(made(), now_ms=NOW - 2 * limits.PRESENCE_MS), Reason.STALE),
        (lambda: parse(made(made_ms=-1)), Reason.STALE),
        (lambda: parse(made(name="x" * 65)), Reason.OUT_OF_RANGE),
        (lambda: parse(made(name="\x1b[31mred")), Reason.OUT_OF_RANGE),
        (lambda: parse(made(version="1\n2")), Reason.OUT_OF_RANGE),
        (lambda: parse(made(version="x" * 65)), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/ip4/1.2.3.4/tcp/1"] * 9)), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=[7])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=[["/ip4"]])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/" + "x" * LONGEST])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["ip4/1.2.3.4"])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=[""])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/ip4/1.2.3.4/tcp/1,/ip4/5.6.7.8/tcp/1"])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/ip4/1.2.3.4 -evil"])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/dns4/\u2603/tcp/1"])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(addrs=["/ip4/1.2.3.4/tcp/1\n"])), Reason.OUT_OF_RANGE),
        (lambda: parse(made(base="cd" * 31)), Reason.MALFORMED),
        (lambda: parse(made(height=-1)), Reason.OUT_OF_RANGE),
        (lambda: parse(made(weight=1 << 53)), Reason.OUT_OF_RANGE),
        (lambda: parse(made(height=True)), Reason.WRONG_TYPE),
        (lambda: parse(made(addrs="/ip4")), Reason.WRONG_TYPE),
        (lambda: parse(made(extra=1)), Reason.UNKNOWN_FIELD),
        (lambda: parse(made(delegation="")), Reason.WRONG_TYPE),
        (lambda: parse(made(delegation={"member": ADA.peer})), Reason.UNKNOWN_FIELD),
        (lambda: parse(made(delegation={**DELEGATION.to_json(), "peer": BO.peer})), Reason.BAD_SIGNATURE),
        (lambda: parse(b" " * (limits.RECORD_BYTES + 1)), Reason.TOO_LARGE),
        (lambda: parse(made().decode()), Reason.WRONG_TYPE),
        (lambda: parse(7), Reason.WRONG_TYPE),
        (lambda: parse(None), Reason.WRONG_TYPE),
    ],
)
def test_each_refusal(data: object, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        data()  # type: ignore[operator]
    assert refused.value.reason is reason


@pytest.mark.parametrize("missing", [name for name in FIELDS if name != "peer"])
def test_a_presence_says_everything(missing: str) -> None:
    body = loads(VECTOR["record"].encode(), 4096)["body"]
    del body[missing]
    with pytest.raises(Refused) as refused:
        parse(dumps(Signed.make("presence", body, ADA.peer, ADA.sign).to_json()))
    assert refused.value.reason is Reason.MALFORMED


def test_its_life_is_bounded_to_the_millisecond() -> None:
    made_ms = PRESENCE.made_ms
    parse(made(), now_ms=made_ms + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS)
    parse(made(), now_ms=made_ms - limits.PRESENCE_MS)
    for now_ms in (made_ms + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS + 1, made_ms - limits.PRESENCE_MS - 1):
        with pytest.raises(Refused):
            parse(made(), now_ms=now_ms)


def test_our_own_that_is_too_large_is_refused_at_home() -> None:
    with pytest.raises(Refused):
        replace(PRESENCE, addrs=("/" + "x" * 600,) * 8).to_bytes(ADA.sign)


def test_the_largest_presence_that_is_accepted_can_be_sent() -> None:
    addrs = ("/" + "x" * (LONGEST - 1),) * limits.ADDRESSES
    full = replace(PRESENCE, name="織" * 64, version="9" * 64, addrs=addrs)
    assert parse(full.to_bytes(ADA.sign)) == full
    assert full.delegation


def test_in_an_open_run_there_is_no_delegation() -> None:
    alone = replace(PRESENCE, delegation=None)
    assert parse(alone.to_bytes(ADA.sign)) == alone
    assert loads(alone.to_bytes(ADA.sign), 4096)["body"]["delegation"] == {}


@given(st.lists(st.text(max_size=12).map("/{}".format) | st.from_regex(r"\A/[!-~]{0,30}\Z"), max_size=4))
def test_addresses_that_are_accepted_can_stand_in_an_invite(addrs: list[str]) -> None:
    """An invite with the peers' addresses is what we come back by after a restart: no peer's record may spoil it."""
    try:
        found = parse(made(addrs=addrs))
    except Refused:
        return
    invite = Invite(RUN, tuple(f"{address}/p2p/{ADA.peer}" for address in found.addrs))
    assert Invite.parse(str(invite)) == invite
    assert "," not in str(invite)


@given(st.binary(max_size=80) | st.text(max_size=30) | st.integers() | st.none() | st.lists(st.integers(), max_size=2))
def test_hostile_records_are_refused(data: object) -> None:
    with pytest.raises(Refused):
        parse(data)


@given(
    st.sampled_from([name for name in FIELDS if name != "peer"]),
    st.recursive(
        st.text(max_size=70) | st.integers(-(1 << 53), 1 << 53) | st.booleans(),
        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=12,
    ),
)
def test_any_value_in_any_field_is_refused_or_within_bounds(field: str, value: object) -> None:
    try:
        found = parse(made(**{field: value}))
    except Refused:
        return
    assert len(found.name) <= limits.NAME_CHARS
    assert found.name.isprintable()
    assert 0 <= found.height < 1 << 53
    assert abs(found.made_ms - NOW) <= limits.PRESENCE_MS + limits.CLOCK_SKEW_MS
    hash(found)
