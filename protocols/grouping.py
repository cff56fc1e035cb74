"""Who leads a roster, who is in it, and who reduces what. Pure: the calls themselves are in tapestryd/swarm/gather.py.

A leader serves for one round only, and two leaders at once do no harm: a roster is a proposal, and only a majority
of votes commits. The order is a hash of run, round and peer, so the part rotates and nobody can choose to have it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from protocols import limits
from protocols.canonical import Json, Signed, Verify, digest, dumps, is_digest, take
from protocols.identity import public_key
from protocols.refusal import Reason, Refused

ATTEMPTS = 2
"""Leaders tried in one round. The second has the second half of the gather window to itself."""


def order(run_id: str, round: int, peers: Iterable[str]) -> list[str]:
    """`peers` in the order in which they lead round `round`, and in which a roster lists them."""
    return sorted(peers, key=lambda peer: (sha256(f"{run_id}/{round}/{peer}".encode()).digest(), peer))


def parts(elements: int, reducers: int, block: int) -> list[tuple[int, int]]:
    """Cut [0, elements) in `reducers` slices, near equal, each but the last a multiple of the codec's block (some may be empty)."""
    blocks = -(-elements // block)
    edges = [min(elements, (blocks * i // reducers) * block) for i in range(reducers)] + [elements]
    return list(pairwise(edges))


@dataclass(frozen=True, slots=True)
class Roster:
    """Who averages round `round`. `members` in canonical order; `reducers`: the members that can be dialled, each
    reducing one part; `before`: the base that all of them hold."""

    run: str
    round: int
    fragment: int
    before: str
    members: tuple[str, ...]
    reducers: tuple[str, ...]

    def to_body(self) -> Json:
        return {
            "run": self.run, "round": self.round, "fragment": self.fragment, "before": self.before,
            "members": list(self.members), "reducers": list(self.reducers),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        return digest(dumps(self.to_body()))

    @classmethod
    def from_body(cls, body: Json) -> "Roster":
        """Parse. Refused unless members are distinct Ed25519 peer ids in canonical order and reducers are among them, in order."""
        take(body, {"run": str, "round": int, "fragment": int, "before": str, "members": list, "reducers": list})
        members, reducers = body["members"], body["reducers"]
        if not 1 <= len(members) <= limits.ROSTER_MEMBERS:
            raise Refused(Reason.OUT_OF_RANGE, f"a roster of {len(members)}")
        if not all(isinstance(peer, str) for peer in [*members, *reducers]):
            raise Refused(Reason.WRONG_TYPE, "a member is not text")
        for peer in members:
            public_key(peer)
        if len(set(members)) != len(members) or order(body["run"], body["round"], members) != members:
            raise Refused(Reason.MALFORMED, "members are not distinct and in canonical order")
        able = set(reducers)
        if not reducers or [peer for peer in members if peer in able] != reducers:
            raise Refused(Reason.MALFORMED, "reducers are not members in canonical order")
        if not is_digest(body["before"]):
            raise Refused(Reason.MALFORMED, "before is not a digest")
        return cls(body["run"], body["round"], body["fragment"], body["before"], tuple(members), tuple(reducers))


def accept(
    value: object, *, run: str, round: int, fragment: int, before: str, me: str, leader: str, min_peers: int, verify: Verify
) -> Roster:
    """The roster that `leader` sent me for this round, or Refused with what is wrong with it."""
    signed = Signed.from_json(value, "roster", verify)
    roster = Roster.from_body(signed.body)
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
