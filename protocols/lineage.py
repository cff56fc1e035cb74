"""The Shared Base is a fold over a log: genesis, then one entry a committed round; anyone can replay it.

    base[h + 1] = outer_step(base[h], decode(entry[h + 1]))

A base is theta and the outer velocity, fragment by fragment; its digest is the digest of their digests, so a commit
rehashes one fragment only. Entries and snapshots are immutable files; a snapshot is fetched in pieces from anybody,
each checked on arrival. Formats are specified in lineage.md. Knows nothing of disks or tensors.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from protocols import limits
from protocols.canonical import Json, Signed, Verify, digest, dumps, is_digest, loads, take
from protocols.grouping import Roster
from protocols.refusal import Reason, Refused
from protocols.rules import Averaging, RunRules
from protocols.settling import Vote, certified, merkle

Pair = tuple[str, str]
"""(digest of theta, digest of velocity) of one fragment: SHA-256 of little-endian float32."""

MAGIC = b"TAPENTRY"
_HEAD = struct.Struct("<8sI")
ENTRY_HEAD_BYTES = _HEAD.size + limits.FRAME_BYTES
"""An entry is no longer than that before its parts begin."""


def base_digest(pairs: Sequence[Pair]) -> str:
    return digest(dumps([list(pair) for pair in pairs]))


@dataclass(frozen=True, slots=True)
class Tip:
    """Where a lineage has got to. `height`: commits since genesis. `weight`: members of all committed rosters, added up:
    between two branches the heavier wins, then the lower digest."""

    height: int
    weight: int
    base: str

    def better_than(self, other: "Tip") -> bool:
        return (self.weight, other.base) > (other.weight, self.base)


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed round: what was decided (all voters sign it), the digests and sizes of the mean's encoded parts, and the votes."""

    vote: Vote
    roster: Roster
    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    votes: tuple[Signed, ...]

    @property
    def tip(self) -> Tip:
        return Tip(self.vote.height, self.vote.weight, self.vote.after)

    def head(self) -> bytes:
        """MAGIC, u32 length, canonical JSON; the parts' bytes follow in order."""
        body = dumps(
            {
                "vote": self.vote.to_body(), "roster": self.roster.to_body(), "parts": list(self.parts),
                "sizes": list(self.sizes), "votes": [[vote.peer, vote.signature] for vote in self.votes],
            }
        )  # fmt: skip
        return _HEAD.pack(MAGIC, len(body)) + body

    @classmethod
    def parse(cls, data: bytes, rules: RunRules, verify: Verify) -> tuple["Entry", int]:
        """(entry, where its parts begin). Verified: the certificate holds a quorum of the roster or, in roster mode, of the
        voices of all Members; every vote is signed and for this very result; every delegation held at the round's boundary;
        and the parts' digests have the root that was voted for."""
        if len(data) < _HEAD.size:
            raise Refused(Reason.MALFORMED, "shorter than an entry's head")
        magic, length = _HEAD.unpack_from(data)
        if magic != MAGIC or length > limits.FRAME_BYTES:
            raise Refused(Reason.MALFORMED, "not a log entry")
        start = _HEAD.size + length
        body = loads(data[_HEAD.size : start], limits.FRAME_BYTES)
        take(body, {"vote": dict, "roster": dict, "parts": list, "sizes": list, "votes": list})
        vote, roster = Vote.from_body(body["vote"]), Roster.from_body(body["roster"], verify)
        parts, sizes = body["parts"], body["sizes"]
        if {vote.run, roster.run} != {rules.run_id}:
            raise Refused(Reason.OTHER_RUN, "an entry of another run")
        if vote.roster != roster.digest or vote.fragment != roster.fragment or vote.before != roster.before or vote.round != roster.round:
            raise Refused(Reason.OTHER_ROSTER, "the votes are for another roster")
        if len(parts) != len(roster.reducers) or len(sizes) != len(parts) or not all(is_digest(part) for part in parts):
            raise Refused(Reason.MALFORMED, f"{len(parts)} parts for {len(roster.reducers)} reducers")
        if not all(type(size) is int and 0 <= size <= limits.ELEMENTS * 4 for size in sizes):
            raise Refused(Reason.OUT_OF_RANGE, "a part's size")
        if merkle(parts) != vote.root:
            raise Refused(Reason.BAD_DIGEST, "the parts do not have the root that was voted for")
        if len(body["votes"]) > len(roster.members):  # before a signature of them is checked
            raise Refused(Reason.NO_QUORUM, f"{len(body['votes'])} votes of a roster of {len(roster.members)}")
        votes = []
        for item in body["votes"]:
            if not isinstance(item, list) or len(item) != 2:
                raise Refused(Reason.MALFORMED, "a vote is [peer, signature]")
            value = {"kind": "vote", "body": body["vote"], "peer": item[0], "signature": item[1]}
            votes.append(Signed.from_json(value, "vote", verify))
        voters = {signed.peer for signed in votes} & set(roster.members)
        roster.check(rules)
        if len(voters) != len(votes) or not certified(voters, roster, rules.members):
            raise Refused(Reason.NO_QUORUM, f"{len(voters)} votes of a roster of {len(roster.members)}")
        return cls(vote, roster, tuple(parts), tuple(sizes), tuple(votes)), start

    @classmethod
    def split(cls, data: bytes, rules: RunRules, verify: Verify) -> tuple["Entry", list[bytes]]:
        """A whole entry's bytes → (entry, its parts, each of the digest that was voted for)."""
        entry, at = cls.parse(data, rules, verify)
        parts = []
        for size, expected in zip(entry.sizes, entry.parts, strict=True):
            part = data[at : at + size]
            if digest(part) != expected:
                raise Refused(Reason.BAD_DIGEST, f"a part of entry {entry.vote.height}")
            parts.append(part)
            at += size
        if at != len(data):
            raise Refused(Reason.MALFORMED, f"bytes behind entry {entry.vote.height}")
        return entry, parts


def follow(tip: Tip, entry: Entry, rules: Averaging, *, last_round: int) -> None:
    """Refused unless `entry` goes on from `tip` as the rules allow. `last_round`: of the entry that led to `tip`; -1 if that is
    genesis, or not known. What is left to check is arithmetic: that its parts have this coverage and lead to `after`."""
    vote, members = entry.vote, len(entry.roster.members)
    if vote.height != tip.height + 1:
        raise Refused(Reason.OTHER_ROUND, f"an entry of height {vote.height} behind height {tip.height}")
    if vote.before != tip.base:
        raise Refused(Reason.OTHER_BASE, f"entry {vote.height} starts from base {vote.before[:12]}, not from {tip.base[:12]}")
    if vote.round <= last_round:
        raise Refused(Reason.OTHER_ROUND, f"entry {vote.height} is of round {vote.round}, the one before it of round {last_round}")
    if vote.fragment != vote.round % rules.fragments:
        raise Refused(Reason.OTHER_ROUND, f"entry {vote.height} is of fragment {vote.fragment} in round {vote.round}")
    if vote.weight != tip.weight + members:
        raise Refused(Reason.OUT_OF_RANGE, f"entry {vote.height} claims weight {vote.weight} for {tip.weight} and {members} members")
    if members < rules.min_peers:
        raise Refused(Reason.NO_QUORUM, f"entry {vote.height} is of a roster of {members}, the rules ask for {rules.min_peers}")
    if vote.coverage_ppm < float(rules.coverage) * 1_000_000:
        raise Refused(Reason.OUT_OF_RANGE, f"entry {vote.height} covers {vote.coverage_ppm / 1e6:.2f}, the rules ask for {rules.coverage}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A base as a file: theta (4 n bytes) then velocity (4 n bytes), little-endian float32, in pieces of PIECE_BYTES."""

    run: str
    tip: Tip
    fragments: tuple[Pair, ...]
    elements: int
    pieces: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the snapshot file."""
        return 8 * self.elements

    def to_bytes(self) -> bytes:
        return dumps(
            {
                "run": self.run, "height": self.tip.height, "weight": self.tip.weight, "base": self.tip.base,
                "fragments": [list(pair) for pair in self.fragments], "elements": self.elements, "pieces": list(self.pieces),
            }
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes, *, run: str, elements: int, fragments: int) -> "Snapshot":
        """Parse a manifest. Refused unless it is of this run and size, and its fragments have its base's digest."""
        body: Json = loads(data, manifest_bytes(elements, fragments))
        take(body, {"run": str, "height": int, "weight": int, "base": str, "fragments": list, "elements": int, "pieces": list})
        pairs = [tuple(pair) if isinstance(pair, list) else () for pair in body["fragments"]]
        if body["run"] != run:
            raise Refused(Reason.OTHER_RUN, "a snapshot of another run")
        if body["elements"] != elements or len(pairs) != fragments or len(body["pieces"]) != piece_count(8 * elements):
            raise Refused(Reason.MALFORMED, "a snapshot of another size")
        if not all(len(pair) == 2 and is_digest(pair[0]) and is_digest(pair[1]) for pair in pairs) or not all(
            map(is_digest, body["pieces"])
        ):
            raise Refused(Reason.MALFORMED, "something that should be a digest is not")
        if base_digest([(a, b) for a, b in pairs]) != body["base"]:
            raise Refused(Reason.BAD_DIGEST, "the fragments do not have the base's digest")
        if not 0 <= body["height"] < 1 << 53 or not 0 <= body["weight"] < 1 << 53:
            raise Refused(Reason.OUT_OF_RANGE, "height or weight")
        tip = Tip(body["height"], body["weight"], body["base"])
        return cls(run, tip, tuple((a, b) for a, b in pairs), elements, tuple(body["pieces"]))


def manifest_bytes(elements: int, fragments: int) -> int:
    """No manifest of a vector of so many elements and fragments is longer."""
    return 512 + 136 * fragments + 67 * piece_count(8 * elements)


def piece_count(size: int) -> int:
    return -(-size // limits.PIECE_BYTES)
