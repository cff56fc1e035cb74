"""Identities, rules and certificates for tests: real keys, made from fixed seeds, so that every run has the same bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocols import TREATY
from protocols.canonical import Signed, digest
from protocols.grouping import CELLS, Claim, Roster, order
from protocols.identity import peer_id
from protocols.lineage import Entry
from protocols.membership import Delegation
from protocols.rules import Averaging, Codec, Inner, Model, Outer, RunRules, Tokenizer
from protocols.schedule import Schedule
from protocols.settling import Vote, merkle
from tapestryd.host.keys import verify

__all__ = ["CAST", "MEMBERS", "RULES", "RUN", "Person", "certified", "delegations", "in_roster_mode", "roster", "rules", "verify", "vote"]


@dataclass(frozen=True)
class Person:
    """A node's identity: `seed` is the private key (RFC 8032)."""

    name: str

    @property
    def seed(self) -> bytes:
        return sha256(f"tapestry test {self.name}".encode()).digest()

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def peer(self) -> str:
        return peer_id(self.key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)


CAST = {person.peer: person for person in map(Person, ["ada", "bo", "cyd", "dee", "eve", "fay"])}
"""By peer id."""

MEMBERS = tuple(sorted(map(Person, ["north", "south", "east"]), key=lambda person: person.peer))
"""Members of runs in roster mode, as the rules list them: `name` is an organisation's, `peer` its id."""

RULES = RunRules(
    treaty=TREATY, name="test", membership="open", members=(),
    model=Model('{"model_type":"none"}', ("first.weight 8x64", "first.bias 64", "second.weight 64x5", "second.bias 5"), "00" * 32),
    tokenizer=Tokenizer("bytes", ""), schedule=Schedule(1_700_000_000_000, 3000, 3000),
    inner=Inner("adamw8bit", "0.003", "0.9", "0.95", "0.1", "1.0", 4, 32, 2, 100, "0.1"),
    outer=Outer("1.0", "0.5"), codec=Codec(8, 8, 64), averaging=Averaging(2, "mean", "uniform", 2, "0.5"),
)  # fmt: skip
RUN = RULES.run_id
RATE = 1 << 20
BLANK = Claim(10, RATE, (0.0,) * CELLS)
"""Of an offer that holds nothing."""


def rules(fragments: int = 2, bits: int = 8, **averaging: object) -> RunRules:
    return replace(RULES, codec=Codec(bits, bits, 64), averaging=replace(RULES.averaging, fragments=fragments, **averaging))


def in_roster_mode(open_: RunRules, members: Sequence[str] = ()) -> RunRules:
    """The same rules, but with Members: MEMBERS unless others are given."""
    return replace(open_, membership="roster", members=tuple(members or [member.peer for member in MEMBERS]))


def delegations(
    member: Person, nodes: Sequence[Person], *, run: str = RUN, epoch: int = 1, not_after_ms: int = 1 << 52
) -> list[Delegation]:
    """What `member` hands to its nodes."""
    return Delegation.make(
        member.sign, run=run, member=member.peer, nodes=[node.peer for node in nodes], epoch=epoch, not_after_ms=not_after_ms
    )


def roster(
    people: Sequence[Person], *, round: int = 7, fragment: int = 1, before: str = "b0" * 32, run: str = RUN, reducers: int = 0,
    delegated: Sequence[Delegation] = (),
) -> Roster:  # fmt: skip
    """`reducers`: how many of the members, the first ones, reduce; 0: all. Nobody's offer holds anything: see lineages.exchanging."""
    members = order(run, round, [person.peer for person in people])
    claims = [BLANK if place < (reducers or len(members)) else replace(BLANK, rate=0) for place in range(len(members))]
    shown = {delegation.node: delegation for delegation in delegated}
    claims = [replace(claim, delegation=shown.get(peer)) for peer, claim in zip(members, claims, strict=True)]
    return Roster(run, round, fragment, before, tuple(members), tuple(claims))


def vote(of: Roster, parts: Sequence[bytes], **changed: object) -> Vote:
    made = Vote(
        run=of.run, round=of.round, fragment=of.fragment, roster=of.digest, root=merkle([digest(part) for part in parts]),
        coverage_ppm=1_000_000, before=of.before, after="a1" * 32, height=3, weight=9,
    )  # fmt: skip
    return replace(made, **changed)


def certified(of: Roster, parts: Sequence[bytes], voters: Sequence[Person], on: Vote | None = None) -> Entry:
    on = on or vote(of, parts)
    votes = tuple(Signed.make("vote", on.to_body(), person.peer, person.sign) for person in voters)
    return Entry(on, of, tuple(digest(part) for part in parts), tuple(map(len, parts)), votes)
