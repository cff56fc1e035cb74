"""Agreeing on a round's result: Merkle roots over parts, signed votes, and when votes are enough.

Everybody who holds all parts computes the next base and votes for it, so a vote certifies the bits that came out,
not only the bytes that went in: a machine whose arithmetic differs is found out before it commits anything.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import lcm

from protocols import limits
from protocols.canonical import Json, Signed, Verify, is_digest, take
from protocols.grouping import Roster
from protocols.membership import member_quorum
from protocols.refusal import Reason, Refused


def merkle(leaves: Sequence[str]) -> str:
    """Root over hexadecimal digests, in order: the tree hash of RFC 6962 §2.1 (leaves 0x00, nodes 0x01)."""

    def tree(hashes: Sequence[bytes]) -> bytes:
        if len(hashes) == 1:
            return hashes[0]
        split = 1 << (len(hashes) - 1).bit_length() - 1
        return sha256(b"\x01" + tree(hashes[:split]) + tree(hashes[split:])).digest()

    if not leaves:
        return sha256(b"").hexdigest()
    return tree([sha256(b"\x00" + bytes.fromhex(leaf)).digest() for leaf in leaves]).hex()


def quorum(members: int) -> int:
    """Votes that commit. If f = floor((members - 1) / 3) of the members lie and the others have one vote each, then of two
    quora one honest member is in both: so there are no two results, though every liar votes for either. All but f are enough."""
    return (members + (members - 1) // 3) // 2 + 1


@dataclass(frozen=True, slots=True)
class Vote:
    """What a member of `roster` (a digest) holds to be the result of `round`: `root` over the encoded parts, and the
    base `after`, at `height` and `weight`, that they lead to from `before`. `coverage_ppm`: parts per million of
    (member, element) pairs that are in the mean."""

    run: str
    round: int
    fragment: int
    roster: str
    root: str
    coverage_ppm: int
    before: str
    after: str
    height: int
    weight: int

    def to_body(self) -> Json:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_body(cls, body: Json) -> "Vote":
        take(body, cls.__annotations__)
        vote = cls(**body)
        if not all(map(is_digest, (vote.run, vote.roster, vote.root, vote.before, vote.after))):
            raise Refused(Reason.MALFORMED, "something that should be a digest is not")
        if not 0 <= vote.coverage_ppm <= 1_000_000 or not 0 <= vote.fragment < 64:
            raise Refused(Reason.OUT_OF_RANGE, "coverage or fragment")
        if not 0 < vote.height <= vote.round + 1 or not vote.height <= vote.weight <= vote.height * limits.ROSTER_MEMBERS:
            raise Refused(Reason.OUT_OF_RANGE, "more height than rounds have been, or weight than they can have had")
        return vote


def part_body(roster: Roster, part: int, made: str) -> Json:
    """What the reducer of `part` signs (kind "part"): the digest of the one result it made."""
    return {"run": roster.run, "roster": roster.digest, "part": part, "digest": made}


def made_by(value: object, roster: Roster, part: int, verify: Verify) -> Signed:
    """The statement of the part's reducer on what it made of it, or Refused: whoever passes a part on passes this on."""
    signed = Signed.from_json(value, "part", verify)
    take(signed.body, {"run": str, "roster": str, "part": int, "digest": str})
    if signed.peer != roster.reducers[part] or signed.body != part_body(roster, part, signed.body["digest"]):
        raise Refused(Reason.OTHER_ROSTER, f"not the statement of part {part}'s reducer")
    if not is_digest(signed.body["digest"]):
        raise Refused(Reason.MALFORMED, "a part's digest is none")
    return signed


def equivocation(one: Signed, other: Signed) -> bool:
    """Whether two verified statements prove that their peer said two things where only one can be true: two results of
    one part, or two votes in one round on one base. An honest peer never signs such a pair, not even across a crash."""
    if (one.kind, one.peer) != (other.kind, other.peer) or one.body == other.body:
        return False
    return one.kind in _ONCE and all(one.body[key] == other.body[key] for key in _ONCE[one.kind])


_ONCE = {"part": ("run", "roster", "part"), "vote": ("run", "round", "before")}
"""What a peer signs at most one statement for, by kind."""


def coverage_ppm(sizes: Sequence[int], contributors: Sequence[Iterable[int]], owners: Sequence[str]) -> int:
    """`sizes[i]` elements of part i, which the members at the places `contributors[i]` are in, of a roster of `owners`. Every owner
    counts the same, and each of its nodes for its share of that: nodes that call and send nothing lower nobody else's part."""
    nodes = Counter(owners)
    one = lcm(*nodes.values())
    pairs = sum(size * sum(one // nodes[owners[place]] for place in places) for size, places in zip(sizes, contributors, strict=True))
    return pairs * 1_000_000 // (sum(sizes) * len(nodes) * one)


def certified(voters: Collection[str], roster: Roster, rules_members: Sequence[str]) -> bool:
    """Whether the votes of `voters`, members of the roster, for one result are enough for a log entry: in an open run of a quorum of
    the roster, in roster mode of one of the voices of all Members, however many nodes are in the roster."""
    if rules_members:
        return member_quorum(rules_members, roster.delegations(voters))
    return len(voters) >= quorum(len(roster.members))


def decided(ballots: Mapping[str, Vote], roster: Roster, rules_members: Sequence[str], present: int) -> Vote | None:
    """The result that wins. `ballots`: one vote of each member of the roster that voted. In an open run its voters are also a quorum
    of the `present` peers that we saw live on this base at the boundary: two leaders can make two rosters, but not two
    majorities of the same crowd. In roster mode nobody's view counts."""
    results: dict[Vote, list[str]] = {}
    for peer, vote in ballots.items():
        results.setdefault(vote, []).append(peer)
    for result, voters in results.items():
        if certified(voters, roster, rules_members) and (rules_members or len(voters) >= quorum(present)):
            return result
    return None
