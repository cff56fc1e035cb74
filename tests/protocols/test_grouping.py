"""Leaders in turn, parts that cover exactly, rosters that nobody else could have made, and the bitmap."""

import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, digest, dumps
from protocols.grouping import (
    BITMAP_BYTES,
    CELLS,
    Candidate,
    Claim,
    Roster,
    accept,
    bitmap,
    cells,
    in_bitmap,
    leaders,
    order,
    seated,
    shares,
)
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
from tests.people import BLANK, CAST, MEMBERS, RULES, RUN, Person, certified, delegations, in_roster_mode, roster, verify

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "roster.json").read_text())
PEOPLE = list(CAST.values())


def test_reads_and_writes_the_vector() -> None:
    assert {key["name"]: (key["seed"], key["peer"]) for key in VECTOR["keys"]} == {p.name: (p.seed.hex(), p.peer) for p in PEOPLE}
    for round, members in VECTOR["order"].items():
        assert order(VECTOR["run"], int(round), [key["peer"] for key in VECTOR["keys"]]) == members
    for case in VECTOR["leaders"]:
        candidates = {peer: Candidate(owner, dialled) for peer, (owner, dialled) in case["peers"].items()}
        assert leaders(VECTOR["run"], case["round"], candidates) == case["leaders"]
    for case in VECTOR["shares"]:
        assert shares(case["rates"], case["owners"]) == case["cells"]
    signed = Signed.from_json(VECTOR["signed"], "roster", verify)
    assert Signed.message("roster", signed.body).decode() == VECTOR["message"]
    read = Roster.from_body(signed.body, verify)
    assert read.digest == VECTOR["digest"] == digest(dumps(signed.body))
    assert Signed.make("roster", read.to_body(), signed.peer, CAST[signed.peer].sign) == signed
    assert [list(part) for part in read.parts] == VECTOR["parts"]["cells"]
    assert [list(part) for part in read.slices(VECTOR["parts"]["elements"], VECTOR["parts"]["block"])] == VECTOR["parts"]["slices"]


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


candidates = st.dictionaries(st.sampled_from(sorted(CAST)), st.builds(Candidate, st.sampled_from("ABC"), st.booleans()), min_size=1)


@given(st.integers(0, 10**9), candidates)
def test_leaders_are_of_different_owners_and_can_be_dialled(round: int, peers: dict[str, Candidate]) -> None:
    able = {peer: one.owner for peer, one in peers.items() if one.dialled} or {peer: one.owner for peer, one in peers.items()}
    found = leaders(RUN, round, peers)
    assert len(found) == len({able[peer] for peer in found}) == min(2, len(set(able.values())))
    for peer in found:
        assert peer == order(RUN, round, [one for one in able if able[one] == able[peer]])[0]
    assert leaders(RUN, round, {peer: Candidate(peer, dialled=True) for peer in peers}) == order(RUN, round, peers)[:2]


def test_a_member_leads_as_often_with_many_nodes_as_with_one() -> None:
    peers = {peer: Candidate("many" if place else "one", dialled=True) for place, peer in enumerate(CAST)}
    led = Counter(peers[leaders(RUN, round, peers)[0]].owner for round in range(600))
    assert abs(led["many"] - led["one"]) < 100


# Cells, shares, parts.


@given(st.integers(1, 100_000), st.sampled_from([1, 7, 64, 256]))
def test_cells_cover_exactly_in_blocks(elements: int, block: int) -> None:
    edges = cells(elements, block)
    assert (len(edges), edges[0], edges[-1]) == (CELLS + 1, 0, elements)
    assert edges == sorted(edges)
    assert all(edge % block == 0 for edge in edges[:-1] if edge < elements)
    blocks = [-(-(stop - start) // block) for start, stop in pairwise(edges)]
    assert max(blocks) - min(blocks) <= 1


@given(st.lists(st.integers(1, limits.RATE), min_size=1, max_size=64))
def test_shares_are_as_fast_as_cells_allow(rates: list[int]) -> None:
    """The oracle: no cell could move to another reducer, with room, that would then be done before this one is now."""
    dealt = shares(rates, list(map(str, range(len(rates)))))
    most = -(-2 * CELLS // len(rates))
    assert sum(dealt) == CELLS
    assert max(dealt) <= most
    for one, of_one in zip(dealt, rates, strict=True):
        for other, of_other in zip(dealt, rates, strict=True):
            assert one == 0 or other >= most or Fraction(other + 1, of_other) >= Fraction(one, of_one)


def test_shares_follow_the_rates() -> None:
    def alone(*rates: int) -> list[int]:
        return shares(rates, list(map(str, range(len(rates)))))

    assert alone(5, 5, 5, 5) == [16, 16, 16, 16]
    assert alone(3, 1, 1, 1) == [32, 11, 11, 10]  # nobody has more than twice an equal share
    assert alone(2, 1, 1) == [32, 16, 16]
    assert alone(1 << 40, 1) == [64, 0]
    assert alone(7) == [64]
    assert sorted(alone(*[9] * 70), reverse=True) == [1] * 64 + [0] * 6


def test_shares_are_bounded_by_owner() -> None:
    """Twice an equal share is what all nodes of a Member have together at most."""
    assert shares([9, 9, 9, 1, 1, 1], "AAABCD") == [11, 11, 10, 11, 11, 10]
    assert shares([1] * 6, "AABBCC") == [11, 11, 11, 11, 10, 10]
    assert sum(shares([1 << 40] * 60 + [1] * 3, "A" * 60 + "BCD")[:60]) == 32


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6), st.integers(1, 5000), st.sampled_from([64, 256]))
def test_parts_cover_exactly(rates: list[int], elements: int, block: int) -> None:
    of = roster(PEOPLE[: len(rates)])
    of = replace(of, claims=tuple(replace(claim, rate=rate) for claim, rate in zip(of.claims, rates, strict=True)))
    assert of.reducers == tuple(peer for peer, rate in zip(of.members, rates, strict=True) if rate)
    if of.reducers:
        cut = of.slices(elements, block)
        assert len(cut) == len(of.reducers)
        assert [0, *(stop for _, stop in cut)] == [*(start for start, _ in cut), elements]


# Claims.


@given(
    st.integers(1, limits.STEPS), st.integers(0, limits.RATE), st.lists(st.floats(0, 2.0**120, width=32), min_size=CELLS, max_size=CELLS)
)
def test_a_claim_comes_back(steps: int, rate: int, norms: list[float]) -> None:
    claim = Claim.of(steps, rate, [abs(norm) for norm in norms])
    assert Claim.from_body(claim.to_body(), verify) == claim
    assert claim.norm == pytest.approx(math.hypot(*norms), rel=1e-9)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"steps": 0}, Reason.OUT_OF_RANGE),
        ({"steps": limits.STEPS + 1}, Reason.OUT_OF_RANGE),
        ({"steps": True}, Reason.WRONG_TYPE),
        ({"rate": -1}, Reason.OUT_OF_RANGE),
        ({"rate": limits.RATE + 1}, Reason.OUT_OF_RANGE),
        ({"norms": "00000000" * (CELLS - 1)}, Reason.MALFORMED),
        ({"norms": "00000000" * (CELLS + 1)}, Reason.MALFORMED),
        ({"norms": "0000000G" + "00000000" * (CELLS - 1)}, Reason.MALFORMED),
        ({"norms": "0000C07F" * CELLS}, Reason.MALFORMED),
        ({"norms": "0000c07f" * CELLS}, Reason.NOT_FINITE),
        ({"norms": "0000807f" * CELLS}, Reason.NOT_FINITE),
        ({"norms": "000080bf" * CELLS}, Reason.NOT_FINITE),
        ({"norms": "00000080" * CELLS}, Reason.NOT_FINITE),
        ({"extra": 1}, Reason.UNKNOWN_FIELD),
    ],
)
def test_each_other_claim_is_refused_with_its_reason(changed: dict[str, object], reason: Reason) -> None:
    good = Claim(3, 5, (1.5,) * CELLS).to_body()
    with pytest.raises(Refused) as refused:
        Claim.from_body({**good, **changed}, verify)
    assert refused.value.reason is reason


# Rosters.

ROSTER = roster(PEOPLE[:4], reducers=3)
LEADER = CAST[ROSTER.members[0]]
ME, CLAIM = ROSTER.members[2], ROSTER.claims[2]


def _accept(value: object, **changed: object) -> Roster:
    expected = {
        "run": RUN, "round": 7, "fragment": 1, "before": "b0" * 32, "me": ME, "claim": CLAIM, "leader": LEADER.peer, "min_peers": 2,
        "verify": verify,
    }  # fmt: skip
    return accept(value, **{**expected, **changed})  # type: ignore[arg-type]


def taken(made: Roster | dict[str, object] = ROSTER, by: Person = LEADER, **changed: object) -> Roster:
    body = made.to_body() if isinstance(made, Roster) else made
    return _accept(Signed.make("roster", body, by.peer, by.sign).to_json(), **changed)


def test_a_good_roster_is_accepted() -> None:
    assert taken() == ROSTER
    assert taken(min_peers=4) == ROSTER


def _body(**changed: object) -> dict[str, object]:
    return {**ROSTER.to_body(), **changed}


M, C = list(ROSTER.members), [claim.to_body() for claim in ROSTER.claims]
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
        (lambda: taken(_body(members=[*M, M[0]], claims=[*C, C[0]])), Reason.MALFORMED),
        (lambda: taken(_body(members=M[::-1])), Reason.MALFORMED),
        (lambda: taken(_body(members=[*M[:2], *M[3:1:-1]])), Reason.MALFORMED),
        (lambda: taken(_body(members=[])), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(members=M * 65)), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(members=[*M[:3], 4])), Reason.WRONG_TYPE),
        (lambda: taken(_body(members=[*M[:3], "x"])), Reason.MALFORMED),
        (lambda: taken(_body(members=[*M[:3], "1" * 1000])), Reason.TOO_LARGE),
        (lambda: taken(_body(claims=[])), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(claims=C[:3])), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(claims=[*C, C[0]])), Reason.OUT_OF_RANGE),
        (lambda: taken(_body(claims=[C[3]] * 4)), Reason.MALFORMED),  # nobody reduces
        (lambda: taken(_body(claims=[*C[:3], []])), Reason.WRONG_TYPE),
        (lambda: taken(_body(claims=[*C[:2], {**C[2], "steps": 11}, C[3]])), Reason.MALFORMED),
        (lambda: taken(_body(claims=[*C[:2], C[3], C[2]])), Reason.MALFORMED),
        (lambda: taken(_body(before="x")), Reason.MALFORMED),
        (lambda: taken(_body(round=True)), Reason.WRONG_TYPE),
        (lambda: taken(_body(round="7")), Reason.WRONG_TYPE),
        (lambda: taken(_body(extra=1)), Reason.UNKNOWN_FIELD),
        (lambda: _accept({}), Reason.MALFORMED),
        (lambda: _accept(None), Reason.WRONG_TYPE),
    ],
)  # fmt: skip
def test_each_other_roster_is_refused_with_its_reason(make: object, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        make()  # type: ignore[operator]
    assert refused.value.reason is reason


def test_a_roster_touched_on_its_way_is_refused() -> None:
    value = Signed.make("roster", ROSTER.to_body(), LEADER.peer, LEADER.sign).to_json()
    value["body"] = _body(claims=[C[3], *C[1:]])
    with pytest.raises(Refused) as refused:
        _accept(value)
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


# Roster mode.

NORTH, SOUTH, EAST = MEMBERS
WITH_MEMBERS = in_roster_mode(RULES)
BOUNDARY = WITH_MEMBERS.schedule.boundary(7)


def delegated(*shown: Delegation) -> Roster:
    return roster(PEOPLE[:3], run=WITH_MEMBERS.run_id, delegated=shown)


def given(member: Person, *nodes: Person, **changed: object) -> list[Delegation]:
    return delegations(member, nodes, **{"run": WITH_MEMBERS.run_id, **changed})  # type: ignore[arg-type]


ADA, BO, CYD = PEOPLE[:3]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ([*given(NORTH, ADA, BO), *given(EAST, CYD)], {ADA: NORTH, BO: NORTH, CYD: EAST}),
        ([*given(NORTH, ADA, BO, not_after_ms=BOUNDARY), *given(EAST, CYD)], {ADA: NORTH, BO: NORTH, CYD: EAST}),
        ([*given(NORTH, ADA, BO, not_after_ms=BOUNDARY - 1), *given(EAST, CYD)], Reason.EXPIRED),
        (given(NORTH, ADA, BO), Reason.NOT_DELEGATED),
        ([*given(NORTH, ADA, BO), *given(PEOPLE[5], CYD)], Reason.NOT_DELEGATED),
        ([*given(NORTH, ADA, BO), *given(EAST, CYD, run=RUN)], Reason.OTHER_RUN),
        ([*given(NORTH, ADA, epoch=1), *given(NORTH, BO, epoch=2), *given(EAST, CYD)], Reason.REVOKED),
        ([*given(NORTH, ADA, epoch=2), *given(NORTH, BO, epoch=1), *given(EAST, CYD)], Reason.REVOKED),
        ([*given(NORTH, ADA, epoch=2), *given(SOUTH, BO, epoch=1), *given(EAST, CYD)], {ADA: NORTH, BO: SOUTH, CYD: EAST}),
    ],
)
def test_whose_voices_a_roster_has(shown: list[Delegation], expected: dict[Person, Person] | Reason) -> None:
    made = delegated(*shown)
    if isinstance(expected, Reason):
        with pytest.raises(Refused) as refused:
            made.check(WITH_MEMBERS)
        assert refused.value.reason is expected
    else:
        made.check(WITH_MEMBERS)
        assert dict(zip(made.members, made.owners, strict=True)) == {a.peer: b.peer for a, b in expected.items()}
    assert Roster.from_body(made.to_body(), verify) == made


def test_in_an_open_run_every_member_has_its_own_voice() -> None:
    ROSTER.check(RULES)
    assert ROSTER.owners == ROSTER.members
    made = roster(PEOPLE[:3], delegated=delegations(NORTH, [ADA]))
    with pytest.raises(Refused) as refused:
        made.check(RULES)
    assert refused.value.reason is Reason.OUT_OF_RANGE


def test_places_in_a_roster() -> None:
    """No more nodes of a Member than it said that it has, the least it said, nor more than an equal part of all places."""

    def claims(count: int, nodes: int) -> list[Claim]:
        [shown] = given(NORTH, ADA)
        return [replace(BLANK, delegation=replace(shown, nodes=nodes)) for _ in range(count)]

    def seats(shown: list[Claim], members: int) -> int:
        return len(seated(list(map(str, range(len(shown)))), shown, members))

    assert seats(claims(3, 2), 3) == 2
    assert seats([*claims(2, 3), *claims(2, 2)], 3) == 2
    assert seats(claims(64, 64), 4) == 64
    assert seats(claims(64, 64), 8) == 32
    assert seats(claims(2, 2), 256) == 1
    assert seats([BLANK] * 300, 0) == 300
    with pytest.raises(Refused) as refused:
        delegated(*given(NORTH, ADA), *given(NORTH, BO), *given(EAST, CYD)).check(WITH_MEMBERS)
    assert refused.value.reason is Reason.OUT_OF_RANGE


def test_a_claim_shows_only_what_a_member_signed() -> None:
    body = delegated(*given(NORTH, ADA, BO), *given(EAST, CYD)).to_body()
    body["claims"][0]["delegation"]["body"]["epoch"] += 1
    with pytest.raises(Refused) as refused:
        Roster.from_body(body, verify)
    assert refused.value.reason is Reason.BAD_SIGNATURE


def test_the_largest_roster_fits_its_messages() -> None:
    """256 nodes with claims and delegations, signed; the log entry's head, with a vote of each; one of them, and all; a call."""
    people = [Person(f"node {number}") for number in range(limits.ROSTER_MEMBERS)]
    shown = [delegation for at in range(0, len(people), 64) for delegation in delegations(Person(f"{at}"), people[at : at + 64])]
    largest = Claim(limits.STEPS, limits.RATE, (1.0,) * CELLS)
    made = replace(roster(people), claims=tuple(replace(largest, delegation=delegation) for delegation in shown))
    assert len(dumps({"roster": Signed.make("roster", made.to_body(), people[0].peer, people[0].sign).to_json()})) < limits.FRAME_BYTES
    entry = certified(made, [b""] * len(people), people)
    assert len(entry.head()) < limits.FRAME_BYTES
    parts, votes = list(entry.parts), [[vote.peer, vote.signature] for vote in entry.votes]
    assert len(dumps({"vote": entry.votes[0].to_json(), "parts": parts})) < limits.VOTE_BYTES * 0.6
    assert len(dumps({"vote": entry.vote.to_body(), "parts": parts, "votes": votes})) < limits.VOTES_BYTES * 0.75
    assert len(dumps({"round": limits.INTEGER, "before": made.before, "claim": made.claims[0].to_body()})) < limits.HEAD_BYTES / 2
