"""What the honest peers of one history did, and what must hold of it."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from protocols.lineage import Entry, Tip
from protocols.refusal import Refused
from protocols.settling import Vote
from tests.simulation.run import COVERAGE_PPM, FRAGMENTS, GENESIS, MIN_PEERS, SCHEDULE, verify

if TYPE_CHECKING:
    from tests.simulation.peer import Peer, Work
    from tests.simulation.world import World

PROGRESS_ROUNDS = 4
"""After faults stop, every honest peer has committed again within so many rounds: one in which the presences of the dead and
of liars run out, one to catch up in, and two of which one may be lost to a leader that is not there."""


def better(one: Tip, other: Tip) -> bool:
    """The fork choice, said once more: more weight, then the lower base."""
    return one.weight > other.weight or (one.weight == other.weight and one.base < other.base)


def goes_on(entry: Entry, tip: Tip, last_round: int) -> bool:
    """What a log allows behind `tip`, said once more."""
    vote, members = entry.vote, len(entry.roster.members)
    return (
        (vote.before, vote.height, vote.weight) == (tip.base, tip.height + 1, tip.weight + members)
        and vote.round > last_round
        and vote.fragment == vote.round % FRAGMENTS
        and members >= MIN_PEERS
        and vote.coverage_ppm >= COVERAGE_PPM
    )


@dataclass(frozen=True)
class Fault:
    invariant: str
    what: str


class Ledger:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.faults: list[Fault] = []
        self.discarded: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._crowds: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
        self._votes: dict[tuple[str, int, str], Vote] = {}
        self._commits: list[tuple[int, str, int, Entry]] = []
        """(when, who, how many it counted as present, what)."""
        self._least: dict[Vote, int] = {}
        """Votes in the smallest certificate of each result."""
        self._bytes: dict[int, tuple[Entry, bytes]] = {}
        self._parsed: dict[bytes, Entry | None] = {}
        self._sound: dict[Vote, bool] = {}
        self._invented: set[str] = set()
        """Bases that honest peers took by a certificate for which nobody honest had voted."""

    def broken(self, invariant: str, what: str) -> None:
        self.faults.append(Fault(invariant, what))

    def gathered(self, peer: "Peer", round: int, before: str) -> None:
        self._crowds[round, before].add(peer.name)

    def voted(self, peer: "Peer", vote: Vote) -> None:
        """Invariant: an honest peer has one vote a round and base, whatever happens to it."""
        if peer.honest and self._votes.setdefault((peer.name, vote.round, vote.before), vote) != vote:
            self.broken("two votes", f"{peer.label} votes twice in round {vote.round} on {vote.before[:6]}")

    def committed(self, peer: "Peer", work: "Work", entry: Entry, right: bool) -> None:
        """`right`: the arithmetic of it. Invariant: a machine that computes other bits commits none of them."""
        if not peer.honest:
            return
        self.counts["commits"] += 1
        self._commits.append((peer.world.now, peer.label, work.present, entry))
        least = self._least.setdefault(entry.vote, len(entry.votes) + 1)
        self._least[entry.vote] = min(least, len(entry.votes))
        if len(entry.votes) < least and self.parsed(self.bytes_of(entry)) != entry:
            self.broken("no certificate", f"{peer.label} commits round {work.number} by an entry that nobody would take")
        if not right and not self._by_the_faulty(peer, work, entry):
            self.broken("other bits", f"{peer.label} commits other bits than round {work.number} leads to")

    def _by_the_faulty(self, peer: "Peer", work: "Work", entry: Entry) -> bool:
        """Whether `peer` and liars alone voted for it, and are more than half of all that it counted: then no protocol keeps it
        from believing itself. Nobody who computes rightly takes such an entry (`follows`)."""
        peers = self.world.peers
        others = [peers.get(vote.peer) for vote in entry.votes if vote.peer != peer.name]
        return not any(other.honest for other in others if other) and self._most(entry, max(work.present, len(entry.roster.members)))

    def _most(self, entry: Entry, crowd: int) -> bool:
        """Whether the votes for it are more than half: of so many, or in roster mode of the voices. Counted here anew."""
        voters = {vote.peer for vote in entry.votes} & set(entry.roster.members)
        if not self.world.rules.members:
            return len(voters) * 2 > crowd
        voices = sum(Fraction(1, shown.nodes) for shown in entry.roster.delegations(voters))
        return voices * 2 > len(self.world.rules.members)

    def adopted(self, peer: "Peer", entry: Entry) -> None:
        """Invariant: nothing becomes part of an honest peer's lineage without more than half of its roster, or in roster mode of
        all voices."""
        voters = {vote.peer for vote in entry.votes} & set(entry.roster.members)
        if peer.honest and (len(voters) < len(entry.votes) or not self._most(entry, len(entry.roster.members))):
            self.broken("no certificate", f"{peer.label} takes height {entry.vote.height} by {len(voters)} votes of a roster of "
                        f"{len(entry.roster.members)}")  # fmt: skip
        if peer.honest and not any(other.honest for voter in voters if (other := self.world.peers.get(voter))):
            self._invented.add(entry.vote.after)

    # Bytes of entries, as donors send and joiners parse them; each once a history.

    def bytes_of(self, entry: Entry) -> bytes:
        if id(entry) not in self._bytes:
            self._bytes[id(entry)] = (entry, entry.head())
        return self._bytes[id(entry)][1]

    def parsed(self, data: bytes) -> Entry | None:
        """Entry.parse, the production function; None: refused."""
        if data not in self._parsed:
            try:
                self._parsed[data] = Entry.parse(data, self.world.rules, verify)[0]
            except Refused as refused:
                self.refused[refused.reason.value] += 1
                self._parsed[data] = None
        return self._parsed[data]

    def sound(self, vote: Vote) -> bool:
        """Whether Vote.from_body takes it."""
        if vote not in self._sound:
            try:
                self._sound[vote] = Vote.from_body(vote.to_body()) == vote
            except Refused as refused:
                self.refused[refused.reason.value] += 1
                self._sound[vote] = False
        return self._sound[vote]

    # What must hold.

    def judge(self, world: "World", calm_ms: int) -> None:
        """At the end, PROGRESS_ROUNDS and one more after faults stopped at `calm_ms`."""
        honest = [peer for peer in world.peers.values() if peer.honest]
        liars = len(world.peers) - len(honest)
        self._judge_results(liars)
        self._judge_lineage(honest)
        for peer in honest:
            assert peer.up
            if peer.stuck:
                continue
            after = [when for when, who, _, _ in self._commits if who == peer.label and when >= calm_ms]
            if not after or after[0] > calm_ms + PROGRESS_ROUNDS * SCHEDULE.period_ms:
                self.broken("no progress", f"{peer.label} has not committed within {PROGRESS_ROUNDS} rounds after the faults: "
                            f"{peer.member.state.value} {peer.member.reasons}")  # fmt: skip

    def _judge_results(self, liars: int) -> None:
        """One result a round and base, among those who saw all that took part, if liars are less than a third of them; in roster
        mode among all."""
        results: defaultdict[tuple[int, str], dict[str, list[tuple[str, bool]]]] = defaultdict(lambda: defaultdict(list))
        for _, who, present, entry in self._commits:
            key = (entry.vote.round, entry.vote.before)
            crowd = len(self._crowds[key])
            results[key][entry.vote.after].append((who, bool(self.world.rules.members) or (present >= crowd and liars * 3 < crowd)))
        for (round, before), found in results.items():
            if len(found) == 1:
                continue
            self.counts["forks"] += 1
            seeing = [who for after in found.values() for who, full in after if full]
            if sum(any(full for _, full in after) for after in found.values()) > 1:
                self.broken("forked", f"{len(found)} results of round {round} on {before[:6]}; saw all: {seeing}")

    def _judge_lineage(self, honest: list["Peer"]) -> None:
        where: dict[str, tuple[int, int]] = {GENESIS.base: (0, 0)}
        for peer in honest:
            for tip in peer.tips:
                if where.setdefault(tip.base, (tip.height, tip.weight)) != (tip.height, tip.weight) and tip.base not in self._invented:
                    self.broken("two heights", f"{tip.base[:6]} of {peer.label}")
        longest = max((peer.disk for peer in honest if peer.tip), key=lambda disk: disk.tip.weight if disk.tip else 0)
        assert longest.tip is not None
        line = {tip.base for tip in ([longest.first] if longest.first else []) + [entry.tip for entry in longest.entries]}
        for peer in honest:
            if peer.tip is None or peer.tip.base not in line or peer.tip.height < longest.tip.height - 1:
                self.broken("apart", f"{peer.label} at {peer.tip}, others at {longest.tip}")
            for held in peer.tips:
                if better(held, longest.tip):
                    self.broken("lost", f"{peer.label} held {held}, and all end at {longest.tip}")
        self.counts["height"] = longest.tip.height
