"""Delegations: the vector both ways, each refusal; epochs; and quorums of Members that always meet in a node."""

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import limits
from protocols.canonical import Signed, dumps
from protocols.membership import Delegation, Epochs, from_file, maybe, member_quorum, owner, to_file
from protocols.refusal import Reason, Refused
from protocols.settling import quorum
from tests.people import CAST, MEMBERS, RUN, Person, delegations, verify

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "membership.json").read_text())
ADA, BO, CYD, DEE, *_ = CAST.values()
NORTH, SOUTH, EAST = MEMBERS
IDS = tuple(member.peer for member in MEMBERS)
END = 1_700_000_000_000
GOOD = delegations(NORTH, [ADA, BO], epoch=5, not_after_ms=END)[0]


def test_reads_and_writes_the_vector() -> None:
    assert {key["name"]: (key["seed"], key["peer"]) for key in VECTOR["keys"]} == {
        person.name: (person.seed.hex(), person.peer) for person in [*MEMBERS, *CAST.values()]
    }
    made = from_file(VECTOR["file"].encode(), verify)
    assert to_file(made).decode() == VECTOR["file"]
    assert [delegation.to_json() for delegation in made] == VECTOR["signed"]
    assert Signed.message("delegation", VECTOR["signed"][0]["body"]).decode() == VECTOR["message"]
    names = {key["name"]: key["peer"] for key in VECTOR["keys"]}
    nodes = [Person(name) for name in VECTOR["nodes"]]
    assert (
        delegations(Person(VECTOR["member"]), nodes, run=VECTOR["run"], epoch=VECTOR["epoch"], not_after_ms=VECTOR["not_after_ms"]) == made
    )
    for case in VECTOR["owner"]:
        found = judged(
            maybe(case["delegation"], verify), run=VECTOR["run"], members=case["members"], node=names[case["node"]], at_ms=case["at_ms"]
        )
        assert found == case.get("reason", names.get(case.get("owner", "")))
    for case in VECTOR["quorum"]:
        voters = [replace(made[0], member=names[member], node=names[node], nodes=nodes) for member, node, nodes in case["voters"]]
        assert member_quorum([names[member] for member in case["members"]], voters) is case["quorum"]


def judged(delegation: Delegation | None = GOOD, **changed: object) -> str:
    """The owner, or why there is none."""
    said: dict[str, object] = {"run": RUN, "members": IDS, "node": ADA.peer, "at_ms": END, **changed}
    try:
        return owner(delegation, **said)  # type: ignore[arg-type]
    except Refused as refused:
        return refused.reason.value


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: judged(), NORTH.peer),
        (lambda: judged(at_ms=END + 1), "expired"),
        (lambda: judged(at_ms=0), NORTH.peer),
        (lambda: judged(None), "not_delegated"),
        (lambda: judged(node=BO.peer), "not_delegated"),
        (lambda: judged(members=[SOUTH.peer]), "not_delegated"),
        (lambda: judged(run="00" * 32), "other_run"),
        (lambda: judged(delegations(ADA, [ADA])[0]), "not_delegated"),
        (lambda: judged(None, members=()), ADA.peer),
        (lambda: judged(members=()), "out_of_range"),
    ],
)
def test_whose_voice_a_node_has(found: object, expected: str) -> None:
    assert found() == expected  # type: ignore[operator]


def signed(by: Person = NORTH, **changed: object) -> dict[str, object]:
    return Signed.make("delegation", {**GOOD.to_json()["body"], **changed}, by.peer, by.sign).to_json()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({**signed(), "peer": SOUTH.peer}, Reason.BAD_SIGNATURE),
        ({**signed(), "signature": "0" * 128}, Reason.BAD_SIGNATURE),
        ({**signed(), "body": {**GOOD.to_json()["body"], "epoch": 6}}, Reason.BAD_SIGNATURE),
        (Signed.make("vote", GOOD.to_json()["body"], NORTH.peer, NORTH.sign).to_json(), Reason.MALFORMED),
        ({**signed(), "signature": "x"}, Reason.MALFORMED),
        (signed(run="x"), Reason.MALFORMED),
        (signed(node="x"), Reason.MALFORMED),
        (signed(node="x" * 61), Reason.TOO_LARGE),
        (signed(nodes=0), Reason.OUT_OF_RANGE),
        (signed(nodes=65), Reason.OUT_OF_RANGE),
        (signed(epoch=-1), Reason.OUT_OF_RANGE),
        (signed(epoch=1 << 53), Reason.OUT_OF_RANGE),
        (signed(not_after_ms=-1), Reason.OUT_OF_RANGE),
        (signed(nodes=True), Reason.WRONG_TYPE),
        (signed(epoch="1"), Reason.WRONG_TYPE),
        (signed(member=NORTH.peer), Reason.UNKNOWN_FIELD),
        ([], Reason.WRONG_TYPE),
        ("", Reason.WRONG_TYPE),
        ({}, Reason.MALFORMED),
    ],
)
def test_what_is_no_delegation(value: object, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        Delegation.parse(value, verify)
    assert refused.value.reason is reason


def test_nothing_in_its_place_is_none() -> None:
    assert maybe({}, verify) is None
    assert maybe(GOOD.to_json(), verify) == GOOD


@given(
    st.sampled_from(["run", "node", "nodes", "epoch", "not_after_ms"]),
    st.text(max_size=70) | st.integers(-(1 << 53), 1 << 53) | st.booleans() | st.lists(st.integers(), max_size=2),
)
def test_any_value_in_any_field_is_refused_or_within_bounds(name: str, value: object) -> None:
    try:
        found = Delegation.parse(signed(**{name: value}), verify)
    except Refused:
        return
    assert Delegation.parse(found.to_json(), verify) == found
    assert 1 <= found.nodes <= limits.MEMBER_NODES


def test_a_member_delegates_what_peers_take() -> None:
    for nodes, reason in (([ADA, ADA], Reason.MALFORMED), ([Person(str(number)) for number in range(65)], Reason.OUT_OF_RANGE)):
        with pytest.raises(Refused) as refused:
            delegations(NORTH, nodes)
        assert refused.value.reason is reason
    many = delegations(NORTH, [Person(str(number)) for number in range(limits.MEMBER_NODES)], epoch=(1 << 53) - 1)
    data = to_file(many)
    assert len(data) <= limits.DELEGATIONS_BYTES
    assert from_file(data, verify) == many


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.MALFORMED),
        (b"x" * (limits.DELEGATIONS_BYTES + 1), Reason.TOO_LARGE),
        (dumps({"delegations": {}}), Reason.WRONG_TYPE),
        (dumps({"delegations": [{}]}), Reason.MALFORMED),
        (dumps({"delegations": [], "more": 1}), Reason.UNKNOWN_FIELD),
        (to_file([replace(GOOD, epoch=6)]), Reason.BAD_SIGNATURE),
    ],
)
def test_what_is_no_file_of_delegations(data: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        from_file(data, verify)
    assert refused.value.reason is reason


# Epochs.


@given(st.lists(st.tuples(st.sampled_from(MEMBERS), st.integers(0, 4)), max_size=12))
def test_the_greatest_epoch_of_each_member_holds(seen: list[tuple[Person, int]]) -> None:
    epochs = Epochs()
    for member, epoch in seen:
        epochs = epochs.seen(replace(GOOD, member=member.peer, epoch=epoch))
    for member in MEMBERS:
        greatest = max([epoch for of, epoch in seen if of is member], default=0)
        epochs.check(replace(GOOD, member=member.peer, epoch=greatest))
        if greatest:
            with pytest.raises(Refused) as refused:
                epochs.check(replace(GOOD, member=member.peer, epoch=greatest - 1))
            assert refused.value.reason is Reason.REVOKED
    assert Epochs.parse(epochs.to_bytes()) == epochs


@pytest.mark.parametrize("data", [b"", b"[]", b'{"x":1}', dumps({NORTH.peer: "1"}), dumps({NORTH.peer: -1}), dumps({NORTH.peer: True})])
def test_what_are_no_epochs(data: bytes) -> None:
    with pytest.raises(Refused):
        Epochs.parse(data)


def test_epochs_of_the_most_members_can_be_kept() -> None:
    epochs = Epochs({Person(str(number)).peer: (1 << 53) - 1 for number in range(limits.MEMBERS)})
    assert Epochs.parse(epochs.to_bytes()) == epochs


# Quorum.


def voters(*shares: tuple[Person, Person, int]) -> list[Delegation]:
    return [replace(GOOD, member=member.peer, node=node.peer, nodes=nodes) for member, node, nodes in shares]


@pytest.mark.parametrize(
    ("shares", "enough"),
    [
        ([], False),
        ([(NORTH, ADA, 1)], False),
        ([(NORTH, ADA, 1), (SOUTH, BO, 1)], True),
        ([(NORTH, ADA, 1), (NORTH, BO, 1), (NORTH, CYD, 1)], False),  # more nodes than it said: one voice
        ([(NORTH, ADA, 2), (NORTH, BO, 2)], False),
        ([(NORTH, ADA, 2), (SOUTH, BO, 1)], False),  # one and a half of three are not more than half
        ([(NORTH, ADA, 2), (NORTH, CYD, 2), (SOUTH, BO, 1)], True),
        ([(NORTH, ADA, 2), (SOUTH, BO, 1), (EAST, CYD, 3)], True),
        ([(NORTH, ADA, 1), (NORTH, ADA, 1), (SOUTH, BO, 3), (SOUTH, BO, 3)], False),  # a node counts once
    ],
)
def test_a_quorum_of_all_members(shares: list[tuple[Person, Person, int]], enough: bool) -> None:
    assert member_quorum(IDS, voters(*shares)) is enough


def test_shares_are_added_up_exactly() -> None:
    """One voice of two Members, put together of both Members' nodes, is no more than half; in floats it often is."""
    floats = 0
    for size in (3, 7, 49):
        for count in range(1, size):
            made = [
                Delegation(RUN, member.peer, f"{member.name} {node}", size, 1, END, "")
                for member, voting in ((NORTH, count), (SOUTH, size - count))
                for node in range(voting)
            ]
            assert not member_quorum(IDS[:2], made)
            assert member_quorum(IDS[:2], [*made, replace(made[0], node="another")])
            floats += sum([1 / size] * count) + sum([1 / size] * (size - count)) > 1
    assert floats


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.data())
def test_no_two_results_have_a_quorum(sizes: list[int], data: st.DataObject) -> None:
    """However Members' nodes split over two results, or over two rosters, or do not vote."""
    members = [Person(f"member {number}") for number in range(len(sizes))]
    split: list[list[Delegation]] = [[], [], []]
    for member, size in zip(members, sizes, strict=True):
        for delegation in delegations(member, [Person(f"{member.name}.{node}") for node in range(size)]):
            split[data.draw(st.integers(0, 2))].append(delegation)
    ids = [member.peer for member in members]
    first, second, silent = (member_quorum(ids, part) for part in split)
    assert first + second + silent <= 1
    assert member_quorum(ids, [*split[0], *split[1], *split[2]])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=7), st.data())
def test_liars_who_vote_for_both_make_no_second_result(sizes: list[int], data: st.DataObject) -> None:
    """The nodes of less than a third of the Members vote for either; the others' nodes each for one."""
    members = [Person(f"member {number}") for number in range(len(sizes))]
    lying = data.draw(st.integers(0, (len(sizes) - 1) // 3))
    results: list[list[Delegation]] = [[], []]
    for place, (member, size) in enumerate(zip(members, sizes, strict=True)):
        for delegation in delegations(member, [Person(f"{member.name}.{node}") for node in range(size)]):
            for result in (0, 1) if place < lying else (data.draw(st.integers(0, 1)),):
                results[result].append(delegation)
    ids = [member.peer for member in members]
    assert not (member_quorum(ids, results[0]) and member_quorum(ids, results[1]))


@pytest.mark.parametrize("count", range(1, 12))
def test_members_of_one_node_each_count_as_peers_do(count: int) -> None:
    members = [Person(f"member {number}") for number in range(count)]
    voters = [delegations(member, [member])[0] for member in members]
    for voting in range(count + 1):
        assert member_quorum([member.peer for member in members], voters[:voting]) is (voting >= quorum(count))


def _oracle(sizes: Sequence[int], voting: Sequence[int]) -> bool:
    return sum((Fraction(count, size) for count, size in zip(voting, sizes, strict=True)), Fraction(0)) > Fraction(len(sizes), 2)


def test_every_small_case_against_an_oracle() -> None:
    people = list(CAST.values())
    for sizes in product([1, 2], repeat=3):
        for voting in product(*[range(size + 1) for size in sizes]):
            made, place = list[Delegation](), 0
            for member, size, count in zip(MEMBERS, sizes, voting, strict=True):
                made += delegations(member, people[place : place + size])[:count]
                place += size
            assert member_quorum(IDS, made) is _oracle(sizes, voting), (sizes, voting)
