"""Who has a voice in a run: Members, the delegations by which their nodes speak for them, and what a quorum of them is.

In roster mode the rules list Members, each by the id of an Ed25519 key that it keeps offline; in open mode they list
none, and every node speaks for itself. A delegation is judged at a time that the caller names, the same for everybody
(a round's boundary, a record's making), never by a clock. Specified in membership.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from protocols import limits
from protocols.canonical import Json, Sign, Signed, Verify, dumps, is_digest, loads, take
from protocols.identity import public_key
from protocols.refusal import Reason, Refused


@dataclass(frozen=True, slots=True)
class Delegation:
    """`member` lets `node` speak for it in `run` until `not_after_ms`, that millisecond included, as one of `nodes` that
    share its voice. Of one Member's delegations only those of its greatest `epoch` hold (see Epochs)."""

    run: str
    member: str
    node: str
    nodes: int
    epoch: int
    not_after_ms: int
    signature: str

    @classmethod
    def make(cls, sign: Sign, *, run: str, member: str, nodes: Sequence[str], epoch: int, not_after_ms: int) -> "list[Delegation]":
        """One for each of a Member's `nodes`. Raises Refused for what no peer would take."""
        if len(set(nodes)) != len(nodes):
            raise Refused(Reason.MALFORMED, "a node is named twice")
        found = []
        for node in nodes:
            body: Json = {"run": run, "node": node, "nodes": len(nodes), "epoch": epoch, "not_after_ms": not_after_ms}
            found.append(cls._of(Signed.make("delegation", body, member, sign)))
        return found

    def to_json(self) -> Json:
        body: Json = {"run": self.run, "node": self.node, "nodes": self.nodes, "epoch": self.epoch, "not_after_ms": self.not_after_ms}
        return Signed("delegation", body, self.member, self.signature).to_json()

    @classmethod
    def parse(cls, value: object, verify: Verify) -> "Delegation":
        """Parse and verify. Refused unless its Member signed it and every value is within bounds; whether it holds is for `owner`."""
        return cls._of(Signed.from_json(value, "delegation", verify))

    @classmethod
    def _of(cls, signed: Signed) -> "Delegation":
        body = signed.body
        take(body, {"run": str, "node": str, "nodes": int, "epoch": int, "not_after_ms": int})
        if not is_digest(body["run"]):
            raise Refused(Reason.MALFORMED, "run is not a digest")
        public_key(body["node"])
        if not 1 <= body["nodes"] <= limits.MEMBER_NODES:
            raise Refused(Reason.OUT_OF_RANGE, f"a Member of {body['nodes']} nodes")
        if not 0 <= body["epoch"] < limits.INTEGER or not 0 <= body["not_after_ms"] < limits.INTEGER:
            raise Refused(Reason.OUT_OF_RANGE, "epoch or not_after_ms")
        return cls(member=signed.peer, signature=signed.signature, **body)


def maybe(value: Json, verify: Verify) -> Delegation | None:
    """What a record or a claim holds in the place of a delegation: an empty object where there is none."""
    return Delegation.parse(value, verify) if value else None


def owner(delegation: Delegation | None, *, run: str, members: Sequence[str], node: str, at_ms: int) -> str:
    """Whose voice `node` speaks with at `at_ms`: its Member's or, where the rules list no `members`, its own. Refused where it has none."""
    if not members:
        if delegation is not None:
            raise Refused(Reason.OUT_OF_RANGE, "a delegation in an open run")
        return node
    if delegation is None:
        raise Refused(Reason.NOT_DELEGATED, f"{node[-6:]} shows no delegation")
    if delegation.run != run:
        raise Refused(Reason.OTHER_RUN, "a delegation for another run")
    if delegation.node != node:
        raise Refused(Reason.NOT_DELEGATED, f"{node[-6:]} shows a delegation of {delegation.node[-6:]}")
    if delegation.member not in members:
        raise Refused(Reason.NOT_DELEGATED, f"{delegation.member[-6:]}, who delegates {node[-6:]}, is no Member of this run")
    if at_ms > delegation.not_after_ms:
        raise Refused(Reason.EXPIRED, f"the delegation of {node[-6:]} ended {at_ms - delegation.not_after_ms} ms before")
    return delegation.member


@dataclass(frozen=True, slots=True)
class Epochs:
    """The greatest epoch that was seen of each Member: smaller ones are void for whoever has seen it. Give it delegations
    that have an owner only, and it holds at most as many Members as the rules."""

    greatest: Mapping[str, int] = field(default_factory=dict)

    def seen(self, delegation: Delegation) -> "Epochs":
        if delegation.epoch <= self.greatest.get(delegation.member, -1):
            return self
        return Epochs({**self.greatest, delegation.member: delegation.epoch})

    def check(self, delegation: Delegation) -> None:
        """Refused if a greater epoch of its Member was seen."""
        greatest = self.greatest.get(delegation.member, -1)
        if delegation.epoch < greatest:
            raise Refused(Reason.REVOKED, f"{delegation.node[-6:]} is of epoch {delegation.epoch}, its Member has gone on to {greatest}")

    def to_bytes(self) -> bytes:
        return dumps(dict(self.greatest))

    @classmethod
    def parse(cls, data: bytes) -> "Epochs":
        """What `to_bytes` wrote."""
        body = loads(data, limits.EPOCHS_BYTES)
        for member, epoch in body.items():
            public_key(member)
            if type(epoch) is not int or not 0 <= epoch < limits.INTEGER:
                raise Refused(Reason.OUT_OF_RANGE, f"epoch of {member[-6:]}")
        return cls(body)


def member_quorum(members: Sequence[str], voters: Iterable[Delegation]) -> bool:
    """Whether `voters`, who voted for one result, are a quorum of all Members in the rules, present or not: as settling.quorum
    has it, but counted in voices. Every Member has one, and each of its nodes 1 / nodes of it: so two quora always share nodes,
    with more voice than a third of the Members could lend to liars."""
    voices: dict[str, dict[str, Fraction]] = {member: {} for member in members}
    for voter in voters:
        voices[voter.member][voter.node] = Fraction(1, voter.nodes)
    voice = sum((min(Fraction(1), sum(shares.values(), Fraction(0))) for shares in voices.values()), Fraction(0))
    return 2 * voice > len(members) + (len(members) - 1) // 3


def to_file(delegations: Sequence[Delegation]) -> bytes:
    """What a Member hands to its nodes: one file with the delegations of all of them."""
    return dumps({"delegations": [delegation.to_json() for delegation in delegations]}) + b"\n"


def from_file(data: bytes, verify: Verify) -> list[Delegation]:
    """Raises Refused for anything but what `to_file` wrote."""
    body = loads(data.rstrip(b"\n"), limits.DELEGATIONS_BYTES)
    take(body, {"delegations": list})
    return [Delegation.parse(value, verify) for value in body["delegations"]]
