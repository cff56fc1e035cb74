"""Who leads a roster, who is in it, and who reduces what. Pure: the calls themselves are in tapestryd/swarm/gather.py.

A leader serves for one round only, and two leaders at once do no harm: a roster is a proposal, and only a quorum
of votes commits. The order is a hash of run, round and peer, so the part rotates and nobody can choose to have it.

Whose voice a node has is its owner: its Member or, in an open run, the node itself. Leaders, shares and places in a
roster are by owner, so that a Member gets no more of them, and no more in its power, by running more nodes.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise

from protocols import limits
from protocols.canonical import Json, Signed, Verify, digest, dumps, is_digest, take
from protocols.identity import public_key
from protocols.membership import Delegation, Epochs, maybe, owner
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from protocols.weighting import norm

ATTEMPTS = 2
"""Leaders tried in one round. The second has the second half of the gather window to itself."""


def order(run_id: str, round: int, peers: Iterable[str]) -> list[str]:
    """`peers` in the order in which they lead round `round`, and in which a roster lists them."""
    return sorted(peers, key=lambda peer: (sha256(f"{run_id}/{round}/{peer}".encode()).digest(), peer))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that is on our base. `dialled`: it says where it can be dialled."""

    owner: str
    dialled: bool


def leaders(run_id: str, round: int, peers: Mapping[str, Candidate]) -> list[str]:
    """Whom to call in round `round`, first to last: one node each of ATTEMPTS owners, if there are as many. Who cannot be dialled, so
    not called by others like it, leads only where nobody can be."""
    able = {peer: candidate.owner for peer, candidate in peers.items() if candidate.dialled}
    owners = able or {peer: candidate.owner for peer, candidate in peers.items()}
    first: dict[str, str] = {}
    for peer in order(run_id, round, owners):
        first.setdefault(owners[peer], peer)
    return [first[owner] for owner in order(run_id, round, first)[:ATTEMPTS]]


CELLS = 64
"""A fragment's elements lie in so many cells, near equal. Norms are announced, and parts shared out, by the cell."""


def cells(elements: int, block: int) -> list[int]:
    """The CELLS + 1 edges of the cells of [0, elements): all but the last are multiples of the codec's block; cells may be empty."""
    blocks = -(-elements // block)
    return [min(elements, (blocks * i // CELLS) * block) for i in range(CELLS)] + [elements]


def shares(rates: Sequence[int], owners: Sequence[str]) -> list[int]:
    """How many cells each reducer gets, by its bytes per second (> 0): each cell in turn goes to whoever would be done with it
    first, ties to the earlier one. No owner gets more than twice an equal share, whatever its nodes say of themselves."""
    most = -(-2 * CELLS // len(set(owners)))
    dealt, held = [0] * len(rates), Counter[str]()
    for _ in range(CELLS):
        open_ = [i for i, owner in enumerate(owners) if held[owner] < most]
        found = min(open_, key=lambda i: (Fraction(dealt[i] + 1, rates[i]), i))
        dealt[found] += 1
        held[owners[found]] += 1
    return dealt


_GREATEST = (2.0 - 2.0**-23) * 2.0**127
_NORMS = re.compile(f"[0-9a-f]{{{CELLS * 8}}}")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a member says of its contribution before anybody has seen it, and is held to.

    `steps`: local steps since its last delta, of whichever fragment. `rate`: bytes per second that it can reduce with; 0: it cannot be
    dialled and reduces nothing. `norms`: the L2 norm of each cell of its encoded offer, float32. `delegation`: by its Member; none in
    an open run.
    """

    steps: int
    rate: int
    norms: tuple[float, ...]
    delegation: Delegation | None = None

    @classmethod
    def of(cls, steps: int, rate: int, norms: Sequence[float], delegation: Delegation | None = None) -> "Claim":
        """`norms` in any precision; rounded to float32, or to its greatest number."""
        rounded = struct.unpack(f"<{CELLS}f", struct.pack(f"<{CELLS}f", *(min(norm, _GREATEST) for norm in norms)))
        return cls(steps, rate, rounded, delegation)

    @property
    def norm(self) -> float:
        """Of the whole offer."""
        return norm(self.norms)

    def to_body(self) -> Json:
        """`norms` as the hexadecimal of little-endian float32: canonical JSON has no decimals."""
        return {
            "steps": self.steps, "rate": self.rate, "norms": struct.pack(f"<{CELLS}f", *self.norms).hex(),
            "delegation": self.delegation.to_json() if self.delegation else {},
        }  # fmt: skip

    @classmethod
    def from_body(cls, body: object, verify: Verify) -> "Claim":
        if not isinstance(body, dict):
            raise Refused(Reason.WRONG_TYPE, "a claim is an object")
        take(body, {"steps": int, "rate": int, "norms": str, "delegation": dict})
        if not 1 <= body["steps"] <= limits.STEPS or not 0 <= body["rate"] <= limits.RATE:
            raise Refused(Reason.OUT_OF_RANGE, "steps or rate")
        if not _NORMS.fullmatch(body["norms"]):
            raise Refused(Reason.MALFORMED, f"norms are {CELLS} float32 in hexadecimal")
        norms = struct.unpack(f"<{CELLS}f", bytes.fromhex(body["norms"]))
        if not all(math.copysign(1, norm) > 0 and norm < math.inf for norm in norms):
            raise Refused(Reason.NOT_FINITE, "a norm is negative or not finite")
        return cls(body["steps"], body["rate"], norms, maybe(body["delegation"], verify))


def owner_of(peer: str, claim: Claim) -> str:
    """Whose voice `peer` says that it has."""
    return claim.delegation.member if claim.delegation else peer


def seated(peers: Sequence[str], claims: Sequence[Claim], members: int) -> list[str]:
    """Those of `peers`, in this order, whom one roster has places for: of each of the run's `members` no more nodes than the least
    that their delegations name, nor than an equal part of all places. In an open run, of no Members, everybody."""
    quota = limits.ROSTER_MEMBERS // max(1, members)
    found: list[str] = []
    nodes: dict[str, int] = {}
    held: Counter[str] = Counter()
    for peer, claim in zip(peers, claims, strict=True):
        if claim.delegation:
            member = claim.delegation.member
            nodes[member] = min(nodes.get(member, quota), claim.delegation.nodes)
            if held[member] >= nodes[member]:
                continue
            held[member] += 1
        found.append(peer)
    return found


@dataclass(frozen=True)
class Roster:
    """Who averages round `round`, and what each said of its contribution. `members` in canonical order, `claims` beside them;
    `before`: the base that all of them hold."""

    run: str
    round: int
    fragment: int
    before: str
    members: tuple[str, ...]
    claims: tuple[Claim, ...]

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose voice each member says that it has; it has it if `check` holds."""
        return tuple(owner_of(peer, claim) for peer, claim in zip(self.members, self.claims, strict=True))

    @property
    def reducers(self) -> tuple[str, ...]:
        """The members that can be dialled, in order: each reduces one part."""
        return tuple(peer for peer, claim in zip(self.members, self.claims, strict=True) if claim.rate)

    @cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """The cells of each reducer's part: [first, last). Asked for with each offer, and to deal them out takes a while."""
        reducing = [(claim.rate, owner) for claim, owner in zip(self.claims, self.owners, strict=True) if claim.rate]
        dealt = shares([rate for rate, _ in reducing], [owner for _, owner in reducing])
        return tuple(pairwise(accumulate(dealt, initial=0)))

    def slices(self, elements: int, block: int) -> list[tuple[int, int]]:
        """The elements of each reducer's part: [start, stop). They cover [0, elements); some may be empty."""
        edges = cells(elements, block)
        return [(edges[first], edges[last]) for first, last in self.parts]

    def check(self, rules: RunRules) -> None:
        """Refused unless every delegation holds at the round's boundary, those of one Member are of one epoch, and no Member has more
        places than it may (see `seated`)."""
        at_ms, epochs = rules.schedule.boundary(self.round), Epochs()
        for peer, claim in zip(self.members, self.claims, strict=True):
            owner(claim.delegation, run=self.run, members=rules.members, node=peer, at_ms=at_ms)
        delegations = self.delegations(self.members)
        for delegation in delegations:
            epochs = epochs.seen(delegation)
        for delegation in delegations:
            epochs.check(delegation)
        if len(seated(self.members, self.claims, len(rules.members))) < len(self.members):
            raise Refused(Reason.OUT_OF_RANGE, "a Member has more places in the roster than it may")

    def delegations(self, peers: Iterable[str]) -> list[Delegation]:
        """Of those members of the roster that have one."""
        wanted = set(peers)
        return [
            claim.delegation
            for peer, claim in zip(self.members, self.claims, strict=True)
            if peer in wanted and claim.delegation is not None
        ]

    def to_body(self) -> Json:
        return {
            "run": self.run, "round": self.round, "fragment": self.fragment, "before": self.before,
            "members": list(self.members), "claims": [claim.to_body() for claim in self.claims],
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """Asked for with each part and each vote; a large roster is hundreds of kilobytes."""
        return digest(dumps(self.to_body()))

    @classmethod
    def from_body(cls, body: Json, verify: Verify) -> "Roster":
        """Parse. Refused unless members are distinct Ed25519 peer ids in canonical order, each with a claim, and one can reduce.
        Delegations are verified, but not held against the rules: see `owners`."""
        take(body, {"run": str, "round": int, "fragment": int, "before": str, "members": list, "claims": list})
        members = body["members"]
        if not 1 <= len(members) <= limits.ROSTER_MEMBERS or len(body["claims"]) != len(members):
            raise Refused(Reason.OUT_OF_RANGE, f"a roster of {len(members)} with {len(body['claims'])} claims")
        if not all(isinstance(peer, str) for peer in members):
            raise Refused(Reason.WRONG_TYPE, "a member is not text")
        for peer in members:
            public_key(peer)
        if len(set(members)) != len(members) or order(body["run"], body["round"], members) != members:
            raise Refused(Reason.MALFORMED, "members are not distinct and in canonical order")
        claims = tuple(Claim.from_body(claim, verify) for claim in body["claims"])
        if not any(claim.rate for claim in claims):
            raise Refused(Reason.MALFORMED, "nobody can reduce")
        if not is_digest(body["before"]):
            raise Refused(Reason.MALFORMED, "before is not a digest")
        return cls(body["run"], body["round"], body["fragment"], body["before"], tuple(members), claims)


def accept(
    value: object, *, run: str, round: int, fragment: int, before: str, me: str, claim: Claim, leader: str, min_peers: int, verify: Verify
) -> Roster:
    """The roster that `leader` sent me, who called it with `claim`, for this round; or Refused with what is wrong with it."""
    signed = Signed.from_json(value, "roster", verify)
    roster = Roster.from_body(signed.body, verify)
    if signed.peer != leader or leader not in roster.members:
        raise Refused(Reason.OTHER_ROSTER, f"signed by {signed.peer[-6:]}, led by {leader[-6:]}")
    if roster.run != run:
        raise Refused(Reason.OTHER_RUN, "a roster of another run")
    if (roster.round, roster.fragment) != (round, fragment):
        raise Refused(Reason.OTHER_ROUND, f"a roster of round {roster.round}, fragment {roster.fragment}, in round {round}, {fragment}")
    if roster.before != before:
        raise Refused(Reason.OTHER_BASE, f"a roster on base {roster.before[:12]}, ours is {before[:12]}")
    if me not in roster.members:
        raise Refused(Reason.NOT_A_MEMBER, "the roster leaves us out")
    if roster.claims[roster.members.index(me)] != claim:
        raise Refused(Reason.MALFORMED, "the roster alters our claim")
    if len(roster.members) < min_peers:
        raise Refused(Reason.OUT_OF_RANGE, f"a roster of {len(roster.members)} where the rules ask for {min_peers}")
    return roster


BITMAP_BYTES = limits.ROSTER_MEMBERS // 8
"""In front of each reduced part: bit i (of byte i // 8, least significant first) is set if member i is in the mean."""


def bitmap(members: Iterable[int]) -> bytes:
    bits = sum(1 << member for member in members)
    return bits.to_bytes(BITMAP_BYTES, "little")


def in_bitmap(bits: bytes, members: int) -> list[int]:
    """The members whose bits are set. Refused if there is none, or one beyond the roster."""
    value = int.from_bytes(bits, "little")
    if value == 0 or value >> members:
        raise Refused(Reason.MALFORMED, "a part's bitmap names nobody, or somebody beyond the roster")
    return [member for member in range(members) if value >> member & 1]
