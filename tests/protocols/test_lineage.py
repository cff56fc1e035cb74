"""Log entries and snapshots: vectors both ways, and every way to touch a certificate refused with its reason."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, digest, dumps, loads
from protocols.lineage import MAGIC, Entry, Snapshot, Tip, base_digest, follow, manifest_bytes, piece_count
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
from tests.people import CAST, MEMBERS, RULES, RUN, Person, certified, delegations, in_roster_mode, roster, rules, verify, vote

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "entry.json").read_text())
PARTS = [bytes([i]) * (40 + i) for i in range(3)]
ROSTER = roster(list(CAST.values())[:4], reducers=3)
VOTERS = [CAST[peer] for peer in ROSTER.members]
ENTRY = certified(ROSTER, PARTS, VOTERS[:3])
WHOLE = ENTRY.head() + b"".join(PARTS)


def test_reads_and_writes_the_vector() -> None:
    data = bytes.fromhex(VECTOR["bytes"])
    assert VECTOR["run"] == RUN
    entry, parts = Entry.split(data, RULES, verify)
    assert [part.hex() for part in parts] == VECTOR["parts"]
    assert entry.tip == Tip(**VECTOR["tip"])
    assert entry.head() + b"".join(parts) == data == WHOLE
    assert entry == ENTRY


def test_more_votes_than_members_cost_no_check_of_a_signature() -> None:
    """Some 5,000 fit into a head."""
    checked: list[int] = []

    def counted(*signed: Any) -> bool:
        checked[-1] += 1
        return verify(*signed)

    for times in (1, 1000):
        checked.append(0)
        with pytest.raises(Refused) as refused:
            Entry.parse(tampered(lambda body, times=times: body["votes"].extend(body["votes"][:1] * times)), RULES, counted)
        assert refused.value.reason is Reason.NO_QUORUM
    assert checked[0] - checked[1] == len(ENTRY.votes) + 1


def test_the_head_says_where_the_parts_begin() -> None:
    entry, start = Entry.parse(WHOLE, RULES, verify)
    assert (entry, WHOLE[start:]) == (ENTRY, b"".join(PARTS))
    assert Entry.parse(WHOLE[:start], RULES, verify) == (ENTRY, start)


def tampered(change: object, tail: bytes = b"".join(PARTS)) -> bytes:
    """WHOLE with its head's JSON changed by `change(body)`."""
    _, start = Entry.parse(WHOLE, RULES, verify)
    body = loads(WHOLE[12:start], 1 << 20)
    change(body)  # type: ignore[operator]
    raw = dumps(body)
    return MAGIC + struct.pack("<I", len(raw)) + raw + tail


def put(*path: object, value: object) -> object:
    def change(body: dict[str, object]) -> None:
        table: object = body
        for step in path[:-1]:
            table = table[step]  # type: ignore[index]
        table[path[-1]] = value  # type: ignore[index]

    return change


def _resigned(**changed: object) -> bytes:
    """A vote that says something else, and truly signed by three of the roster."""
    return certified(ROSTER, PARTS, VOTERS[:3], vote(ROSTER, PARTS, **changed)).head() + b"".join(PARTS)


OTHER = roster(list(CAST.values())[1:5], reducers=3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: tampered(put("vote", "after", value="00" * 32)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("vote", "height", value=4)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("vote", "weight", value=10)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("vote", "coverage_ppm", value=1)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("vote", "round", value=8)), Reason.OTHER_ROSTER),
        (lambda: tampered(put("vote", "fragment", value=0)), Reason.OTHER_ROSTER),
        (lambda: tampered(put("vote", "before", value="00" * 32)), Reason.OTHER_ROSTER),
        (lambda: tampered(put("vote", "run", value="00" * 32)), Reason.OTHER_RUN),
        (lambda: tampered(put("roster", "run", value="00" * 32)), Reason.MALFORMED),
        (lambda: tampered(put("vote", "root", value="00" * 32)), Reason.BAD_DIGEST),
        (lambda: tampered(put("roster", value=OTHER.to_body())), Reason.OTHER_ROSTER),
        (lambda: tampered(put("roster", "claims", 0, "steps", value=11)), Reason.OTHER_ROSTER),
        (lambda: tampered(lambda body: body["votes"].pop()), Reason.NO_QUORUM),
        (lambda: tampered(put("votes", value=[])), Reason.NO_QUORUM),
        (lambda: tampered(lambda body: body["votes"].append(body["votes"][0])), Reason.NO_QUORUM),
        (lambda: tampered(lambda body: body["votes"].__setitem__(2, body["votes"][1])), Reason.NO_QUORUM),
        (lambda: tampered(put("votes", 0, 1, value="00" * 64)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("votes", 0, 0, value=VOTERS[3].peer)), Reason.BAD_SIGNATURE),
        (lambda: tampered(put("votes", 0, value=["x"])), Reason.MALFORMED),
        (lambda: tampered(put("votes", 0, value="x")), Reason.MALFORMED),
        (lambda: tampered(put("votes", 0, value=[1, 2])), Reason.WRONG_TYPE),
        (lambda: tampered(put("parts", 0, value="00" * 32)), Reason.BAD_DIGEST),
        (lambda: tampered(put("parts", 0, value=7)), Reason.MALFORMED),
        (lambda: tampered(lambda body: body["parts"].pop()), Reason.MALFORMED),
        (lambda: tampered(lambda body: body["sizes"].pop()), Reason.MALFORMED),
        (lambda: tampered(put("sizes", 0, value=41)), Reason.BAD_DIGEST),
        (lambda: tampered(put("sizes", 0, value=1 << 50)), Reason.OUT_OF_RANGE),
        (lambda: tampered(put("sizes", 2, value=1 << 42)), Reason.MALFORMED),
        (lambda: tampered(put("sizes", 0, value=-1)), Reason.OUT_OF_RANGE),
        (lambda: tampered(put("sizes", 0, value=True)), Reason.OUT_OF_RANGE),
        (lambda: tampered(put("sizes", 0, value="40")), Reason.OUT_OF_RANGE),
        (lambda: tampered(put("extra", value=1)), Reason.UNKNOWN_FIELD),
        (lambda: WHOLE + b"\0", Reason.MALFORMED),
        (lambda: WHOLE[:-1], Reason.BAD_DIGEST),
        (lambda: WHOLE[:-1] + b"\xff", Reason.BAD_DIGEST),
        (lambda: b"TAPENTRX" + WHOLE[8:], Reason.MALFORMED),
        (lambda: MAGIC + struct.pack("<I", limits.FRAME_BYTES + 1) + b"{}", Reason.MALFORMED),
        (lambda: MAGIC + struct.pack("<I", 0), Reason.MALFORMED),
        (lambda: b"", Reason.MALFORMED),
        (lambda: _resigned(roster=OTHER.digest), Reason.OTHER_ROSTER),
        (lambda: certified(ROSTER, PARTS, [VOTERS[0], VOTERS[1], CAST[OTHER.members[0]]]).head() + b"".join(PARTS), Reason.NO_QUORUM),
        (lambda: certified(ROSTER, PARTS, list(CAST.values())).head() + b"".join(PARTS), Reason.NO_QUORUM),
    ],
)  # fmt: skip
def test_each_tampering_is_refused_with_its_reason(data: object, reason: Reason) -> None:
    if reason is Reason.NO_QUORUM and set(OTHER.members[:1]) <= set(ROSTER.members[:2]):
        pytest.skip("the outsider would be an insider")
    with pytest.raises(Refused) as refused:
        Entry.split(data(), RULES, verify)  # type: ignore[operator]
    assert refused.value.reason is reason


def test_votes_for_another_result_do_not_add_up() -> None:
    """Two honest votes and one for another base: each signature is good, but not for this certificate."""
    stray = vote(ROSTER, PARTS, after="ee" * 32)
    mixed = replace(ENTRY, votes=(*ENTRY.votes[:2], Signed.make("vote", stray.to_body(), VOTERS[2].peer, VOTERS[2].sign)))
    with pytest.raises(Refused) as refused:
        Entry.split(mixed.head() + b"".join(PARTS), RULES, verify)
    assert refused.value.reason is Reason.BAD_SIGNATURE


def test_an_entry_of_another_run_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        Entry.parse(WHOLE, rules(fragments=1), verify)
    assert refused.value.reason is Reason.OTHER_RUN


def test_cut_at_each_byte_it_is_refused() -> None:
    for end in range(len(WHOLE)):
        with pytest.raises(Refused):
            Entry.split(WHOLE[:end], RULES, verify)


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_byte_changed_it_is_refused(at: int, flip: int) -> None:
    with pytest.raises(Refused):
        Entry.split(WHOLE[:at] + bytes([WHOLE[at] ^ flip]) + WHOLE[at + 1 :], RULES, verify)


@given(st.binary(max_size=64).map(lambda tail: MAGIC + tail) | st.binary(max_size=40))
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        Entry.split(data, RULES, verify)


JSON = st.recursive(
    st.text(max_size=4) | st.integers(-9, 1 << 60) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["vote", "roster", "parts", "sizes", "votes", "vote.run", "vote.height", "roster.members", "roster.claims", "votes.0", "parts.1"]
)


@settings(max_examples=200)
@given(FIELDS, JSON)
def test_any_value_in_any_field_is_refused(field: str, value: object) -> None:
    path = [int(step) if step.isdigit() else step for step in field.split(".")]
    try:
        data = tampered(put(*path, value=value))
    except Refused:  # beyond 2^53: it cannot even be said
        return
    with pytest.raises(Refused):
        Entry.split(data, RULES, verify)


def test_the_largest_certificate_fits_a_frame() -> None:
    """256 members, all reducing, all voting."""
    members = [f"12D3KooW{'x' * 44}"] * limits.ROSTER_MEMBERS
    body = ENTRY.head()[12:]
    made = loads(body, len(body))
    made["roster"] |= {"members": members, "claims": [ROSTER.claims[0].to_body()] * len(members)}
    made |= {"parts": ["00" * 32] * 256, "sizes": [limits.ELEMENTS] * 256, "votes": [[members[0], "00" * 64]] * 256}
    assert len(dumps(made)) < limits.FRAME_BYTES // 2


# Tips.


def test_the_heavier_branch_is_better_then_the_lower_digest() -> None:
    heavy, light = Tip(3, 9, "bb" * 32), Tip(8, 8, "aa" * 32)
    assert heavy.better_than(light)
    assert not light.better_than(heavy)
    lower = replace(heavy, base="ba" * 32)
    assert lower.better_than(heavy)
    assert not heavy.better_than(lower)
    assert not heavy.better_than(heavy)


# Snapshots.

PAIRS = (("11" * 32, "22" * 32), ("33" * 32, "44" * 32))
ELEMENTS = limits.PIECE_BYTES // 4 + 7
SNAPSHOT = Snapshot(RUN, Tip(8, 24, base_digest(PAIRS)), PAIRS, ELEMENTS, ("55" * 32,) * 3)


def _parse(data: bytes, **changed: object) -> Snapshot:
    return Snapshot.parse(data, **{"run": RUN, "elements": ELEMENTS, "fragments": 2, **changed})  # type: ignore[arg-type]


def test_a_manifest_comes_back() -> None:
    assert _parse(SNAPSHOT.to_bytes()) == SNAPSHOT
    assert SNAPSHOT.size == 8 * ELEMENTS
    assert piece_count(SNAPSHOT.size) == 3
    most = Tip(limits.INTEGER - 1, limits.INTEGER - 1, base_digest(PAIRS * 32))
    for elements in (1, limits.PIECE_BYTES * 9):
        largest = Snapshot(RUN, most, PAIRS * 32, elements, ("55" * 32,) * piece_count(8 * elements))
        assert _parse(largest.to_bytes(), elements=elements, fragments=64) == largest
    with pytest.raises(Refused, match="too_large"):
        _parse(SNAPSHOT.to_bytes().ljust(manifest_bytes(ELEMENTS, 2) + 1))
    assert [piece_count(size) for size in (0, 1, limits.PIECE_BYTES, limits.PIECE_BYTES + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("run", value="00" * 32), Reason.OTHER_RUN),
        (put("elements", value=7), Reason.MALFORMED),
        (put("elements", value="7"), Reason.WRONG_TYPE),
        (put("pieces", value=["55" * 32] * 2), Reason.MALFORMED),
        (put("pieces", value=["55" * 32] * 2 + ["x"]), Reason.MALFORMED),
        (put("pieces", value=[1, 2, 3]), Reason.MALFORMED),
        (put("fragments", value=[]), Reason.MALFORMED),
        (put("fragments", value=["x", "y"]), Reason.MALFORMED),
        (put("fragments", 0, value=["11" * 32]), Reason.MALFORMED),
        (put("fragments", 0, value=["11" * 32, 4]), Reason.MALFORMED),
        (put("fragments", 0, value=["11" * 32, "23" * 32]), Reason.BAD_DIGEST),
        (put("fragments", value=[list(PAIRS[1]), list(PAIRS[0])]), Reason.BAD_DIGEST),
        (put("fragments", value=[*map(list, PAIRS), "x"]), Reason.MALFORMED),
        (put("base", value="00" * 32), Reason.BAD_DIGEST),
        (put("height", value=-1), Reason.OUT_OF_RANGE),
        (put("weight", value=1 << 53), Reason.OUT_OF_RANGE),
        (put("height", value=True), Reason.WRONG_TYPE),
        (put("extra", value=1), Reason.UNKNOWN_FIELD),
    ],
)
def test_other_manifests_are_refused(change: object, reason: Reason) -> None:
    body = loads(SNAPSHOT.to_bytes(), 1 << 20)
    change(body)  # type: ignore[operator]
    with pytest.raises(Refused) as refused:
        _parse(dumps(body))
    assert refused.value.reason is reason


def test_a_manifest_for_another_model_is_refused() -> None:
    for changed in ({"elements": 8}, {"fragments": 1}, {"run": "00" * 32}):
        with pytest.raises(Refused):
            _parse(SNAPSHOT.to_bytes(), **changed)


def test_a_base_is_its_fragments_in_order() -> None:
    assert base_digest(PAIRS) == digest(dumps([list(pair) for pair in PAIRS]))
    assert len({base_digest(PAIRS), base_digest(PAIRS[::-1]), base_digest(PAIRS[:1]), base_digest([(b, a) for a, b in PAIRS])}) == 4


BEFORE = Tip(2, 5, ROSTER.before)


def test_what_follows() -> None:
    follow(BEFORE, ENTRY, RULES.averaging, last_round=6)
    follow(BEFORE, ENTRY, RULES.averaging, last_round=-1)


@pytest.mark.parametrize(
    ("tip", "on", "last_round", "reason"),
    [
        (replace(BEFORE, height=1), {}, 6, Reason.OTHER_ROUND),
        (replace(BEFORE, height=3), {}, 6, Reason.OTHER_ROUND),
        (replace(BEFORE, base="00" * 32), {}, 6, Reason.OTHER_BASE),
        (BEFORE, {}, 7, Reason.OTHER_ROUND),
        (BEFORE, {}, 8, Reason.OTHER_ROUND),
        (BEFORE, {"fragments": 5}, 6, Reason.OTHER_ROUND),
        (replace(BEFORE, weight=4), {}, 6, Reason.OUT_OF_RANGE),
        (BEFORE, {"min_peers": 5}, 6, Reason.NO_QUORUM),
    ],
)
def test_what_does_not_follow(tip: Tip, on: dict[str, int], last_round: int, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        follow(tip, ENTRY, replace(RULES.averaging, **on), last_round=last_round)
    assert refused.value.reason is reason


def test_too_little_coverage_does_not_follow() -> None:
    """However many signed it: the members of a run promised one another a share."""
    for ppm, good in ((499_999, False), (500_000, True)):
        entry = certified(ROSTER, PARTS, VOTERS, vote(ROSTER, PARTS, coverage_ppm=ppm))
        if good:
            follow(BEFORE, entry, RULES.averaging, last_round=6)
            continue
        with pytest.raises(Refused) as refused:
            follow(BEFORE, entry, RULES.averaging, last_round=6)
        assert refused.value.reason is Reason.OUT_OF_RANGE


# Roster mode.

NORTH, SOUTH, EAST = MEMBERS
ADA, BO, CYD, DEE, *_ = CAST.values()
WITH_MEMBERS = in_roster_mode(RULES)
HELD = WITH_MEMBERS.schedule.boundary(7)


def _signed(member: Person, *nodes: Person, **changed: int) -> list[Delegation]:
    return delegations(member, nodes, run=WITH_MEMBERS.run_id, **changed)


@pytest.mark.parametrize(
    ("shown", "voters", "reason"),
    [
        ([*_signed(NORTH, ADA, BO), *_signed(SOUTH, CYD)], [ADA, BO, CYD], None),
        ([*_signed(NORTH, ADA, BO, not_after_ms=HELD), *_signed(SOUTH, CYD)], [ADA, BO, CYD], None),
        ([*_signed(NORTH, ADA, BO), *_signed(SOUTH, CYD)], [ADA, CYD], Reason.NO_QUORUM),
        (_signed(NORTH, ADA, BO, CYD), [ADA, BO, CYD], Reason.NO_QUORUM),
        ([*_signed(NORTH, ADA, BO, not_after_ms=HELD - 1), *_signed(SOUTH, CYD)], [ADA, BO, CYD], Reason.EXPIRED),
        ([*_signed(NORTH, ADA), *_signed(SOUTH, CYD)], [ADA, BO, CYD], Reason.NOT_DELEGATED),
        ([*_signed(DEE, ADA), *_signed(SOUTH, CYD), *_signed(EAST, BO)], [ADA, BO, CYD], Reason.NOT_DELEGATED),
        ([*_signed(NORTH, ADA, epoch=1), *_signed(NORTH, BO, epoch=2), *_signed(SOUTH, CYD)], [ADA, BO, CYD], Reason.REVOKED),
    ],
)
def test_an_entry_in_roster_mode_is_judged_by_the_rules_alone(shown: list[Delegation], voters: list[Person], reason: Reason | None) -> None:
    made = certified(roster([ADA, BO, CYD], run=WITH_MEMBERS.run_id, delegated=shown), PARTS, voters)
    whole = made.head() + b"".join(PARTS)
    if reason is None:
        assert Entry.split(whole, WITH_MEMBERS, verify) == (made, PARTS)
        return
    with pytest.raises(Refused) as refused:
        Entry.split(whole, WITH_MEMBERS, verify)
    assert refused.value.reason is reason
