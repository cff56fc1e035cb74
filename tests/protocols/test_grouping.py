"""Leaders in turn, parts that cover exactly, rosters that nobody else could have made, and the bitmap."""

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, digest, dumps
from protocols.grouping import BITMAP_BYTES, Roster, accept, bitmap, in_bitmap, order, parts
from protocols.refusal import Reason, Refused
from tests.people import CAST, RUN, Person, roster, verify

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "roster.json").read_text())
PEOPLE = list(CAST.values())


def test_reads_and_writes_the_vector() -> None:
    assert {key["name"]: (key["seed"], key["peer"]) for key in VECTOR["keys"]} == {p.name: (p.seed.hex(), p.peer) for p in PEOPLE}
    for round, members in VECTOR["order"].items():
        assert order(VECTOR["run"], int(round), [key["peer"] for key in VECTOR["keys"]]) == members
    signed = Signed.from_json(VECTOR["signed"], "roster", verify)
    assert Signed.message("roster", signed.body).decode() == VECTOR["message"]
    read = Roster.from_body(signed.body)
    assert read.digest == VECTOR["digest"] == digest(dumps(signed.body))
    assert Signed.make("roster", read.to_body(), signed.peer, CAST[signed.peer].sign) == signed


@given(st.integers(0, 10**9), st.permutations([person.peer for person in PEOPLE]))
def test_the_order_is_a_hash_and_does_not_depend_on_who_asks(round: int, peers: list[str]) -> None:
    ordered = order(RUN, round, peers)
    assert ordered == order(RUN, round, reversed(ordered))
    keys = [sha256(f"{RUN}/{round}/{peer}".encode()).hexdigest() for peer in ordered]
    assert keys == sorted(keys)


def test_the_lead_rotates() -> None:
    led = Counter(order(RUN, round, CAST)[0] for round in range(600))
    assert set(led) == set(CAST)
    assert max(led.values()) < 2 * 600 / len(CAST)


@given(st.integers(1, 5000), st.integers(1, 40), st.sampled_from([1, 7, 64, 256]))
def test_parts_cover_exactly_in_blocks(elements: int, reducers: int, block: int) -> None:
    cut = parts(elements, reducers, block)
    assert len(cut) == reducers
    edge = 0
    for start, stop in cut:
        assert start == edge <= stop
        edge = stop
    assert edge == elements
    assert all(stop % block == 0 for _, stop in cut[:-1] if stop < elements)
    blocks = [-(-(stop - start) // block) for start, stop in cut]
    assert max(blocks) - min(blocks) <= 1


# Rosters.

ROSTER = roster(PEOPLE[:4], reducers=3)
LEADER = CAST[ROSTER.members[0]]
ME = ROSTER.members[2]


def taken(made: Roster | dict[str, object] = ROSTER, by: Person = LEADER, **changed: object) -> Roster:
    body = made.to_body() if isinstance(made, Roster) else made
    expected = {
        "run": RUN, "round": 7, "fragment": 1, "before": "b0" * 32, "me": ME, "leader": LEADER.peer, "min_peers": 2, "verify": verify
    }  # fmt: skip
    return accept(Signed.make("roster", body, by.peer, by.sign).to_json(), **{**expected, **changed})  # type: ignore[arg-type]


def test_a_good_roster_is_accepted() -> None:
    assert taken() == ROSTER
    assert taken(min_peers=4) == ROSTER


def _body(**changed: object) -> dict[str, object]:
    return {**ROSTER.to_body(), **changed}


M, R = list(ROSTER.members), list(ROSTER.reducers)
OUTSIDER = PEOPLE[5].peer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: taken(by=CAST[M[1]]), Reason.OTHER_ROSTER),
        (lambda: taken(by=PEOPLE[5], leader=OUTSIDER), Reason.OTHER_ROSTER),
        (lambda: taken(roster(PEOPLE[:4], run="00" * 32)), Reason.OTHER_RUN),
        (lambda: taken(roster(PEOPLE[:4], round=8)), Reason.OTHER_ROUND),
        (lambda: taken(replace(ROSTER, fragment=0)), Reason.OTHER_ROUND),
        (lambda: taken(replace(ROSTER, before="bb" * 32)), Reason.OTHER_BASE),
        (lambda: taken(me=OUTSIDER), Reason.NOT_A_MEMBER),
        (lambda: taken(min_peers=5), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(members=[*M, M[0]])), Reason.MALFORMED),
        (lambda: taken(_body(members=M[::-1])), Reason.MALFORMED),
        (lambda: taken(_body(members=[*M[:2], *M[3:1:-1]])), Reason.MALFORMED),
        (lambda: taken(_body(members=[])), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(members=M * 65)), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(members=[*M[:3], 4])), Reason.WRONG_TYPE),
        (lambda: taken(_body(members=[*M[:3], "x"])), Reason.MALFORMED),
        (lambda: taken(_body(members=[*M[:3], "1" * 1000])), Reason.TOO_LARGE),
        (lambda: taken(_body(reducers=[])), Reason.MALFORMED),
        (lambda: taken(_body(reducers=[OUTSIDER])), Reason.MALFORMED),
        (lambda: taken(_body(reducers=[R[0], R[0]])), Reason.MALFORMED),
        (lambda: taken(_body(reducers=R[::-1])), Reason.MALFORMED),
        (lambda: taken(_body(reducers=[[]])), Reason.WRONG_TYPE),
        (lambda: taken(_body(before="x")), Reason.MALFORMED),
        (lambda: taken(_body(round=True)), Reason.WRONG_TYPE),
        (lambda: taken(_body(round="7")), Reason.WRONG_TYPE),
        (lambda: taken(_body(extra=1)), Reason.UNKNOWN_FIELD),
        (lambda: accept({}, run=RUN, round=7, fragment=1, before="", me=ME, leader=ME, min_peers=2, verify=verify), Reason.MALFORMED),
        (lambda: accept(None, run=RUN, round=7, fragment=1, before="", me=ME, leader=ME, min_peers=2, verify=verify), Reason.WRONG_TYPE),
    ],
)  # fmt: skip
def test_each_other_roster_is_refused_with_its_reason(make: object, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        make()  # type: ignore[operator]
    assert refused.value.reason is reason


def test_a_roster_touched_on_its_way_is_refused() -> None:
    value = Signed.make("roster", ROSTER.to_body(), LEADER.peer, LEADER.sign).to_json()
    value["body"] = _body(reducers=R[:2])
    with pytest.raises(Refused) as refused:
        accept(value, run=RUN, round=7, fragment=1, before="b0" * 32, me=ME, leader=LEADER.peer, min_peers=2, verify=verify)
    assert refused.value.reason is Reason.BAD_SIGNATURE


@given(st.sets(st.integers(0, limits.ROSTER_MEMBERS - 1), min_size=1))
def test_the_bitmap_comes_back(members: set[int]) -> None:
    bits = bitmap(members)
    assert len(bits) == BITMAP_BYTES
    assert in_bitmap(bits, limits.ROSTER_MEMBERS) == sorted(members)
    assert bits == bytes(sum(1 << bit for bit in range(8) if at * 8 + bit in members) for at in range(BITMAP_BYTES))  # the oracle
    with pytest.raises(Refused):
        in_bitmap(bits, max(members))


def test_a_bitmap_names_somebody() -> None:
    with pytest.raises(Refused):
        in_bitmap(bytes(BITMAP_BYTES), 4)
    with pytest.raises(Refused):
        in_bitmap(b"", 4)
