"""What agreeing costs: bytes of control messages in one round, from 4 to 64 peers, by the production encodings.

`pytest tests/simulation/test_costs.py -s` prints the tables. All members reduce; DHT upkeep is not counted. What the same
costs on the wire, and in time, is measured by tests/benchmarks/rounds.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from protocols import limits
from protocols.canonical import Json, digest, dumps
from protocols.grouping import BITMAP_BYTES, CELLS, Claim, Roster, order
from protocols.lineage import Entry
from protocols.membership import Delegation
from protocols.records import Presence
from protocols.settling import Vote, merkle, part_body
from tapestryd.training.codec import encoded_bytes
from tests.simulation.run import FRAGMENTS, RUN, name_of, signature_of, signed

FRAME = 12
"""The two lengths in front of every message."""
LOOK_S = 5.0


@dataclass(frozen=True)
class Costs:
    """Bytes in one round. `sent`, `received`: by a peer that does not lead; `led`: what leading adds to what is sent."""

    peers: int
    call: int
    roster: int
    made: int
    vote: int
    presence: int
    certificate: int

    @property
    def sent(self) -> int:
        """One call, the heads of offers and parts, a vote to each."""
        others = self.peers - 1
        return self.call + others * (self.made + self.vote)

    @property
    def led(self) -> int:
        return (self.peers - 1) * self.roster

    @property
    def each(self) -> float:
        """Of a round that everybody leads in turn."""
        return self.sent + self.led / self.peers

    @property
    def looked(self) -> float:
        """Presences read a second, at most: everybody's record, each time that a peer looks around."""
        return self.peers * self.presence / LOOK_S


def message(head: Json) -> int:
    return FRAME + len(dumps(head))


def costs(peers: int, *, delegated: bool = False) -> Costs:
    """`delegated`: in roster mode, where claims and presences show a Member's delegation."""
    names = [name_of(number) for number in range(peers)]
    shown = Delegation(RUN, names[0], names[0], 2, 1_700_000_000, 1_800_000_000_000, "5a" * 64) if delegated else None
    claim = Claim.of(400, 12_500_000, [0.125] * CELLS, shown)
    members = order(RUN, 812, names)
    roster = Roster(RUN, 812, 812 % FRAGMENTS, "b0" * 32, tuple(members), (claim,) * peers)
    parts = [digest(name.encode()) for name in members]
    vote = Vote(RUN, 812, 0, roster.digest, merkle(parts), 1_000_000, "b0" * 32, "a1" * 32, 700, 700 * peers)
    votes = tuple(signed("vote", vote.to_body(), name) for name in members)
    presence = Presence(
        run=RUN, peer=names[0], name="a node's name", state="training", height=700, weight=700 * peers, base="a1" * 32,
        addrs=("/ip4/203.0.113.17/tcp/40401", "/ip6/2001:db8::17/tcp/40401"), version="0.1.0", delegation=shown, made_ms=1_700_000_000_000,
    )  # fmt: skip
    return Costs(
        peers=peers,
        call=message({"round": 812, "before": "b0" * 32, "claim": claim.to_body()}),
        roster=message({"roster": signed("roster", roster.to_body(), names[0]).to_json()}) + message({"accepted": True}),
        made=message({"roster": roster.digest}) + message({"go": True}) + message({})
        + message({"made": signed("part", part_body(roster, 0, parts[0]), members[0]).to_json()}),
        vote=message({"vote": votes[0].to_json(), "parts": parts}) + message({"counted": True}),
        presence=len(presence.to_bytes(lambda _: signature_of(names[0]))),
        certificate=len(Entry(vote, roster, tuple(parts), (1 << 20,) * peers, votes).head()),
    )  # fmt: skip


def vectors(peers: int, elements: int, bits: int) -> int:
    """Bytes of vectors that a peer sends in a round of one of four fragments: a share of its offer to each of the others, and its
    own part to each of them."""
    share = encoded_bytes(elements // 4 // peers, bits, 256)
    return (peers - 1) * (share + BITMAP_BYTES + share)


def table(rows: Sequence[Costs]) -> str:
    lines = ["peers   call  roster  offer+part heads   vote  presence  certificate | a peer sends  the leader more  reads/s"]
    lines += [
        f"{c.peers:5} {c.call:6} {c.roster:7} {c.made:17} {c.vote:6} {c.presence:9} {c.certificate:12} | "
        f"{c.sent:12} {c.led:16} {c.looked:8.0f}"
        for c in rows
    ]
    return "\n".join(lines)


def test_what_a_round_costs_in_control() -> None:
    rows = [costs(peers) for peers in (4, 8, 16, 32, 64)]
    print("\n" + table(rows))
    for one, twice in pairwise(rows):
        each = (twice.roster - one.roster) / one.peers
        of_vote = (twice.vote - one.vote) / one.peers
        print(f"{one.peers:3} → {twice.peers:3}: a member adds {each:.0f} bytes to a roster, {of_vote:.0f} to a vote")
    assert [row.call for row in rows] == [rows[0].call] * len(rows)


def test_control_beside_ten_million_parameters() -> None:
    """The goal: under 1 % of what moves, at 8 peers."""
    print("\npeers  control, 10 M parameters: 8 bits   4 bits")
    for peers in (4, 8, 16, 32, 64):
        shares = [costs(peers).each / vectors(peers, 10_000_000, bits) for bits in (8, 4)]
        print(f"{peers:5}{shares[0]:33.2%}{shares[1]:9.2%}")
        assert peers > 8 or max(shares) < 0.01


def test_the_largest_roster_fits_its_messages() -> None:
    """256 members, each with its claim and delegation, votes and parts: every head is within what may arrive."""
    largest = costs(limits.ROSTER_MEMBERS, delegated=True)
    assert max(largest.roster, largest.certificate) <= limits.FRAME_BYTES
    assert largest.vote <= limits.VOTE_BYTES
    assert max(largest.call, largest.made) <= limits.HEAD_BYTES
    assert largest.presence <= limits.RECORD_BYTES
