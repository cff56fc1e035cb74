"""Merkle roots against an independent RFC 6962, votes both ways, and: never two winners."""

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols.canonical import Signed, digest
from protocols.refusal import Reason, Refused
from protocols.settling import Vote, coverage_ppm, decided, equivocation, made_by, merkle, part_body, quorum
from tests.people import CAST, MEMBERS, RULES, Person, delegations, in_roster_mode, roster, verify, vote

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "vote.json").read_text())
PARTS = [b"one", b"two", b"three"]
VOTE = vote(roster(list(CAST.values())[:4]), PARTS)


def test_reads_and_writes_the_vector() -> None:
    for case in VECTOR["merkle"]:
        assert merkle(case["leaves"]) == case["root"]
    for members, votes in VECTOR["quorum"].items():
        assert quorum(int(members)) == votes
    for case in VECTOR["coverage"]:
        assert coverage_ppm(case["sizes"], case["contributors"], case["owners"]) == case["ppm"]
    for value in VECTOR["signed"]:
        signed = Signed.from_json(value, "vote", verify)
        read = Vote.from_body(signed.body)
        assert Signed.message("vote", read.to_body()).decode() == VECTOR["message"]
        assert Signed.make("vote", read.to_body(), signed.peer, CAST[signed.peer].sign).to_json() == value


def _oracle(leaves: list[str]) -> str:
    """The same tree bottom-up, as certificate transparency logs append: full subtrees of 2^k leaves, then folded from the right."""
    stack: list[tuple[int, bytes]] = []
    for leaf in leaves:
        size, node = 1, sha256(b"\x00" + bytes.fromhex(leaf)).digest()
        while stack and stack[-1][0] == size:
            _, left = stack.pop()
            size, node = size * 2, sha256(b"\x01" + left + node).digest()
        stack.append((size, node))
    if not stack:
        return sha256(b"").hexdigest()
    _, node = stack.pop()
    while stack:
        node = sha256(b"\x01" + stack.pop()[1] + node).digest()
    return node.hex()


@given(st.lists(st.binary(max_size=3).map(digest), max_size=70))
def test_merkle_is_rfc_6962(leaves: list[str]) -> None:
    assert merkle(leaves) == _oracle(leaves)


@given(st.lists(st.binary(max_size=2).map(digest), min_size=1, max_size=9), st.data())
def test_any_change_is_another_root(leaves: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(leaves) - 1))
    other = [*leaves[:place], digest(b"another"), *leaves[place + 1 :]]
    assert len({merkle(leaves), merkle(other), merkle([*leaves, leaves[-1]]), merkle(leaves[:-1])}) == 4


@given(st.integers(1, 300))
def test_two_quora_have_more_in_common_than_may_lie(members: int) -> None:
    """And no fewer votes would do, and those who do not lie are enough."""
    liars = (members - 1) // 3
    assert 2 * quorum(members) - members > liars
    assert 2 * (quorum(members) - 1) - members <= liars
    assert quorum(members) <= members - liars


def test_a_vote_comes_back() -> None:
    assert Vote.from_body(VOTE.to_body()) == VOTE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *[({name: bad}, Reason.MALFORMED) for name in ("run", "roster", "root", "before", "after") for bad in ("", "x" * 64, "A" * 64)],
        *[({name: 1}, Reason.WRONG_TYPE) for name in ("run", "roster", "root", "before", "after")],
        *[({name: "1"}, Reason.WRONG_TYPE) for name in ("round", "fragment", "coverage_ppm", "height", "weight")],
        ({"coverage_ppm": -1}, Reason.OUT_OF_RANGE), ({"coverage_ppm": 1_000_001}, Reason.OUT_OF_RANGE),
        ({"fragment": -1}, Reason.OUT_OF_RANGE), ({"fragment": 64}, Reason.OUT_OF_RANGE),
        ({"height": 0}, Reason.OUT_OF_RANGE), ({"height": 1 << 53}, Reason.OUT_OF_RANGE),
        ({"weight": 0}, Reason.OUT_OF_RANGE), ({"weight": 1 << 53}, Reason.OUT_OF_RANGE), ({"weight": True}, Reason.WRONG_TYPE),
        ({"round": VOTE.height - 2}, Reason.OUT_OF_RANGE), ({"height": VOTE.round + 2}, Reason.OUT_OF_RANGE),  # heights without rounds
        ({"weight": VOTE.height - 1}, Reason.OUT_OF_RANGE), ({"weight": VOTE.height * 256 + 1}, Reason.OUT_OF_RANGE),
        ({"extra": 1}, Reason.UNKNOWN_FIELD),
    ],
)  # fmt: skip
def test_other_votes_are_refused(change: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        Vote.from_body({**VOTE.to_body(), **change})
    assert refused.value.reason is reason


@pytest.mark.parametrize("missing", list(VOTE.to_body()))
def test_a_vote_says_everything(missing: str) -> None:
    body = VOTE.to_body()
    del body[missing]
    with pytest.raises(Refused):
        Vote.from_body(body)


def winner(votes: Sequence[Vote], members: int, present: int) -> Vote | None:
    """Of an open run: one vote of each of the first members."""
    crowd = tuple(map(str, range(members)))
    return decided(dict(zip(crowd, votes, strict=False)), replace(roster([]), members=crowd), (), present)


RESULTS = [replace(VOTE, root=f"{i:02x}" * 32) for i in range(3)]


@given(st.lists(st.sampled_from(RESULTS), max_size=12), st.integers(0, 5), st.data())
def test_no_two_winners_whatever_was_voted(votes: list[Vote], silent: int, data: st.DataObject) -> None:
    """One vote a member. Each peer may have seen other votes and other crowds; those who see a winner see the same."""
    members = len(votes) + silent
    won = set()
    for _ in range(4):
        seen = data.draw(st.permutations(votes))[: data.draw(st.integers(0, len(votes)))]
        result = winner(seen, members, data.draw(st.integers(1, 2 * members + 1)))
        if result is not None:
            assert 2 * seen.count(result) > members
            won.add(result)
    assert len(won) <= 1


@given(st.integers(1, 12), st.data())
def test_liars_may_vote_for_everything(members: int, data: st.DataObject) -> None:
    """Less than a third of the crowd tells everybody that it is right: still no two winners."""
    liars = (members - 1) // 3
    honest = [data.draw(st.sampled_from(RESULTS)) for _ in range(members - liars)]
    won = {winner([vote for vote in honest if vote == result] + [result] * liars, members, members) for result in RESULTS}
    assert len(won - {None}) <= 1


def test_a_quorum_beyond_the_roster() -> None:
    """Two leaders, two rosters of the same crowd of five: only one of them can have a quorum of it, even if one of the
    five leads both and votes for both."""
    assert winner([VOTE] * 2, 2, present=5) is None
    assert winner([VOTE] * 2, 2, present=3) == VOTE
    assert winner([VOTE] * 3, 3, present=5) is None
    assert winner([VOTE] * 4, 4, present=5) == VOTE
    assert winner([VOTE] * 2, 3, present=1) == VOTE
    assert winner([VOTE], 3, present=1) is None
    assert winner([], 1, present=1) is None


@given(
    st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 1000), st.sets(st.integers(0, 11))), min_size=1, max_size=8),
)
def test_coverage_counts_owners_and_elements(owners: list[str], parts: list[tuple[int, set[int]]]) -> None:
    """The oracle: of each part the share of each owner's nodes that are in it, each owner counting the same."""
    sizes = [size + 1 for size, _ in parts]
    inside = [[place for place in places if place < len(owners)] for _, places in parts]
    found = coverage_ppm(sizes, inside, owners)
    shares = [sum(Fraction(1, owners.count(owners[place])) for place in places) for places in inside]
    expected = sum(size * share for size, share in zip(sizes, shares, strict=True)) / (sum(sizes) * len(set(owners)))
    assert found == expected * 1_000_000 // 1
    assert coverage_ppm(sizes, [range(len(owners))] * len(sizes), owners) == 1_000_000


def test_coverage_of_an_open_run_counts_members() -> None:
    assert coverage_ppm([10, 30], [[0, 1, 2], [0]], "ABCD") == (10 * 3 + 30) * 1_000_000 // (40 * 4)


def test_nodes_that_send_nothing_lower_their_members_part_only() -> None:
    """Sixty nodes of one Member of four call and send nothing."""
    assert coverage_ppm([64], [[0, 1, 2]], [*"ABC", *"D" * 60]) == 750_000


# Equivocation.


def test_two_statements_where_one_can_be_true() -> None:
    ann, bo = (CAST[peer] for peer in list(CAST)[:2])
    of = roster(list(CAST.values())[:4])
    other = roster(list(CAST.values())[:3])

    def part(by: object = ann, made: str = "aa" * 32, **changed: object) -> Signed:
        return Signed.make("part", {**part_body(of, 0, made), **changed}, by.peer, by.sign)  # type: ignore[attr-defined]

    def voted(by: object = ann, **changed: object) -> Signed:
        return Signed.make("vote", vote(of, PARTS, **changed).to_body(), by.peer, by.sign)  # type: ignore[attr-defined]

    assert equivocation(part(), part(made="bb" * 32))
    assert not equivocation(part(), part())
    assert not equivocation(part(), part(bo, "bb" * 32))
    assert not equivocation(part(), part(made="bb" * 32, part=1))
    assert not equivocation(part(), part(made="bb" * 32, roster=other.digest))
    assert equivocation(voted(), voted(after="cc" * 32))
    assert equivocation(voted(), voted(roster=other.digest))  # two rosters of one round
    assert not equivocation(voted(), voted())
    assert not equivocation(voted(), voted(bo, after="cc" * 32))
    assert not equivocation(voted(), voted(round=8))
    assert not equivocation(voted(), voted(before="cc" * 32))  # on another branch
    assert not equivocation(voted(), part())


@pytest.mark.parametrize(
    ("changed", "by", "reason"),
    [
        ({}, 1, Reason.OTHER_ROSTER),  # not its reducer
        ({"part": 1}, 0, Reason.OTHER_ROSTER),
        ({"roster": "00" * 32}, 0, Reason.OTHER_ROSTER),
        ({"run": "00" * 32}, 0, Reason.OTHER_ROSTER),
        ({"digest": "AA" * 32}, 0, Reason.MALFORMED),
        ({"digest": 7}, 0, Reason.WRONG_TYPE),
        ({"more": 7}, 0, Reason.UNKNOWN_FIELD),
    ],
)
def test_a_part_is_vouched_for_by_its_reducer_only(changed: dict[str, object], by: int, reason: Reason) -> None:
    of = roster(list(CAST.values())[:4])
    good = Signed.make("part", part_body(of, 0, "aa" * 32), of.reducers[0], CAST[of.reducers[0]].sign)
    assert made_by(good.to_json(), of, 0, verify) == good
    signer = CAST[of.reducers[by]]
    with pytest.raises(Refused) as refused:
        made_by(Signed.make("part", {**good.body, **changed}, signer.peer, signer.sign).to_json(), of, 0, verify)
    assert refused.value.reason is reason


NORTH, SOUTH, EAST = MEMBERS
ADA, BO, CYD, DEE, EVE, _ = CAST.values()
WITH_MEMBERS = in_roster_mode(RULES)


@pytest.mark.parametrize(
    ("nodes", "voters", "wins"),
    [
        ([(NORTH, [ADA]), (SOUTH, [BO]), (EAST, [CYD])], [ADA, BO], True),
        ([(NORTH, [ADA]), (SOUTH, [BO]), (EAST, [CYD])], [ADA], False),
        ([(NORTH, [ADA]), (SOUTH, [BO])], [ADA, BO], True),  # two of three Members, the third away
        ([(NORTH, [ADA, BO])], [ADA, BO], False),  # all of the roster, one Member
        ([(NORTH, [ADA, BO]), (SOUTH, [CYD])], [ADA, BO, CYD], True),
        ([(NORTH, [ADA, BO]), (SOUTH, [CYD])], [ADA, CYD], False),  # most of the roster, one voice and a half
        ([(NORTH, [ADA, BO, CYD]), (SOUTH, [DEE]), (EAST, [EVE])], [DEE, EVE], True),  # two voices, whatever the third's nodes are
        ([(NORTH, [ADA, BO, CYD]), (SOUTH, [DEE]), (EAST, [EVE])], [ADA, BO, DEE, EVE], True),
    ],
)
def test_what_wins_in_roster_mode(nodes: list[tuple[Person, list[Person]]], voters: list[Person], wins: bool) -> None:
    """Whoever was present: a crowd that nobody delegated cannot hold a round up."""
    shown = [delegation for member, theirs in nodes for delegation in delegations(member, theirs, run=WITH_MEMBERS.run_id)]
    of = roster([person for _, theirs in nodes for person in theirs], run=WITH_MEMBERS.run_id, delegated=shown)
    result = vote(of, PARTS)
    ballots = {person.peer: result for person in voters}
    for present in (1, 1000):
        assert decided(ballots, of, WITH_MEMBERS.members, present) == (result if wins else None)
    others = {peer: replace(result, after="ee" * 32) for peer in of.members if peer not in ballots}
    assert decided({**ballots, **others}, of, WITH_MEMBERS.members, 1) in ((result,) if wins else (None, *others.values()))


def test_what_wins_in_an_open_run_is_as_it_was() -> None:
    of = roster([ADA, BO, CYD])
    ballots = {peer: vote(of, PARTS) for peer in of.members[:2]}
    assert decided(ballots, of, (), 3) == vote(of, PARTS)
    assert decided(ballots, of, (), 4) is None
