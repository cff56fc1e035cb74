"""Accounts from certificates: the vector, a dumb recount, and that nothing that counts can be changed without being noticed."""

import ast
import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols.accounts import WHOLE, Account, Accounting, opening, read
from protocols.canonical import digest
from protocols.lineage import Entry
from protocols.membership import Delegation
from protocols.refusal import Refused
from protocols.rules import RunRules
from tests.people import BLANK, CAST, MEMBERS, RULES, Person, certified, delegations, in_roster_mode, roster, verify, vote
from tests.test_import_law import syntax

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "account.json").read_text())
PEOPLE = list(CAST.values())
ROSTER_MODE = in_roster_mode(RULES)
DELEGATED = [
    one
    for member, nodes in zip(MEMBERS, (PEOPLE[:1], PEOPLE[1:3], PEOPLE[3:4]), strict=True)
    for one in delegations(member, nodes, run=ROSTER_MODE.run_id)
]


def chain(rules: RunRules, groups: Sequence[Sequence[Person]], delegated: Sequence[Delegation] = ()) -> list[Entry]:
    """One committed round of each group, every other round from 0 on; the i-th member of a roster claims i + 1 steps."""
    before, weight, found = rules.model.genesis, 0, []
    for height, people in enumerate(groups, 1):
        round = 2 * height - 2
        of = roster(people, round=round, fragment=round % 2, before=before, run=rules.run_id, delegated=delegated)
        of = replace(of, claims=tuple(replace(claim, steps=place + 1) for place, claim in enumerate(of.claims)))
        parts = [bytes([place]) for place in range(len(of.members))]
        weight += len(people)
        on = vote(of, parts, height=height, weight=weight, after=digest(height.to_bytes(4)), coverage_ppm=1_000_000 - height)
        entry = certified(of, parts, people, on)
        found.append(entry)
        before = on.after
    return found


def evidence(rules: RunRules, entries: Sequence[Entry]) -> bytes:
    return opening(rules) + b"".join(entry.head() for entry in entries)


def proved(data: bytes, run: str = "") -> Account:
    return read(io.BytesIO(data).read, run, verify)[1]


GROUPS = [PEOPLE[:3], PEOPLE[1:4], PEOPLE[:4]]
OPEN = chain(RULES, GROUPS)
DATA = evidence(RULES, OPEN)
ACCOUNT = proved(DATA)


def test_reads_and_writes_the_vector() -> None:
    data = bytes.fromhex(VECTOR["bytes"])
    assert json.loads(json.dumps(asdict(proved(data, VECTOR["account"]["run"])))) == VECTOR["account"]
    assert data == evidence(ROSTER_MODE, chain(ROSTER_MODE, [PEOPLE[:4], [PEOPLE[0], *PEOPLE[2:4]]], DELEGATED))


@settings(max_examples=30)
@given(st.lists(st.sets(st.sampled_from(range(len(PEOPLE))), min_size=2), min_size=1, max_size=4))
def test_as_counted_by_hand(groups: list[set[int]]) -> None:
    entries = chain(RULES, [[PEOPLE[place] for place in sorted(group)] for group in groups])
    found = proved(evidence(RULES, entries))
    rounds, steps = Counter[str](), Counter[str]()
    for entry in entries:
        for place, peer in enumerate(entry.roster.members):
            rounds[peer] += 1
            steps[peer] += place + 1
    assert {share.peer: (share.rounds, share.steps, share.weight_ppm) for share in found.shares} == {
        peer: (rounds[peer], steps[peer], rounds[peer] * WHOLE) for peer in rounds
    }
    assert all(share.tokens == share.steps * RULES.inner.sequences * RULES.inner.tokens for share in found.shares)
    assert [share.weight_ppm for share in found.shares] == sorted(rounds[peer] * WHOLE for peer in rounds)[::-1]
    assert (found.first, found.last, found.last_round) == (1, len(groups), 2 * len(groups) - 2)


def test_nodes_of_one_member_share_its_weight() -> None:
    found = {share.peer: share for share in proved(evidence(ROSTER_MODE, chain(ROSTER_MODE, [PEOPLE[:4]], DELEGATED))).shares}
    assert [found[person.peer].weight_ppm for person in PEOPLE[:4]] == [WHOLE, WHOLE // 2, WHOLE // 2, WHOLE]
    assert [found[person.peer].member for person in PEOPLE[1:3]] == [MEMBERS[1].peer] * 2


@settings(max_examples=300)
@given(st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_no_bit_that_counts_can_be_changed(place: int, bit: int) -> None:
    """The sizes of parts are not signed, and not counted."""
    bent = bytearray(DATA)
    bent[place] ^= 1 << bit
    with suppress(Refused):
        assert proved(bytes(bent)) == ACCOUNT


@settings(max_examples=50)
@given(st.integers(0, len(DATA) - 1))
def test_what_ends_early_is_noticed_or_says_so(end: int) -> None:
    with suppress(Refused):
        assert proved(DATA[:end]).last < ACCOUNT.last


@pytest.mark.parametrize(
    "entries", [[OPEN[0], OPEN[2]], [OPEN[1], OPEN[0]], [OPEN[0], OPEN[0]], [*OPEN, OPEN[0]], [chain(RULES, [PEOPLE[3:5]])[0], OPEN[1]]]
)
def test_entries_that_do_not_follow_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(Refused):
        proved(evidence(RULES, entries))


def test_more_steps_for_oneself_need_the_votes_of_others() -> None:
    of = OPEN[0].roster
    more = replace(of, claims=(replace(of.claims[0], steps=1_000), *of.claims[1:]))
    for entry in (
        replace(OPEN[0], roster=more),
        certified(more, [b""] * 3, [CAST[of.members[0]]], replace(OPEN[0].vote, roster=more.digest)),
        replace(OPEN[0], votes=OPEN[0].votes[:1]),
    ):
        with pytest.raises(Refused):
            proved(evidence(RULES, [entry]))


def test_another_run_genesis_or_nothing() -> None:
    with pytest.raises(Refused):
        proved(DATA, "ab" * 32)
    other = replace(RULES, model=replace(RULES.model, genesis="11" * 32))
    with pytest.raises(Refused):  # the same certificates under other rules
        proved(opening(other) + DATA[len(opening(RULES)) :])
    for data in (b"", opening(RULES), b"x" * 100, opening(RULES)[:8] + b"\xff" * 4):
        with pytest.raises(Refused):
            proved(data)
    assert Accounting(RULES, verify).account() is None


def test_a_log_that_begins_later_says_from_where() -> None:
    found = proved(evidence(RULES, OPEN[1:]))
    assert (found.first, found.last, found.first_round) == (2, 3, 2)
    assert sum(share.rounds for share in found.shares) == len(GROUPS[1]) + len(GROUPS[2])
    assert BLANK.steps not in {share.steps for share in found.shares}


def test_nothing_but_the_account_itself_reads_it() -> None:
    """It must never feed weights."""
    root = Path(protocols.__file__).parent.parent
    importers = set()
    for path in (*root.glob("protocols/**/*.py"), *root.glob("tapestryd/**/*.py")):
        for node in ast.walk(syntax(path)):
            names = [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("protocols.accounts") for name in names):
                importers.add(path.name)
    assert importers == {"contrib.py"}
