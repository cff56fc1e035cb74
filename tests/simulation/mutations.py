"""Rules dropped or weakened, one at a time: what the histories must catch, or they prove nothing.

Where a rule is a function of `protocols/`, that function is changed; where it is one of `tapestryd/`, its model in peer.py.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from protocols import grouping, lineage, rounds, settling
from protocols.grouping import Candidate, Claim, Roster, accept, leaders
from protocols.lineage import Entry, Tip
from protocols.membership import Delegation
from protocols.rules import Averaging
from protocols.schedule import Schedule
from protocols.settling import Vote
from tapestryd.swarm.silence import Silence
from tests.simulation import peer as room
from tests.simulation.peer import Disk, Peer, Work
from tests.simulation.run import GENESIS


def _set(holder: object, name: str, value: object) -> None:
    setattr(holder, name, value)


def _quorum(enough: Callable[[int], int]) -> None:
    _set(settling, "quorum", enough)


def _decided(changed: Callable[[Mapping[str, Vote], Roster, Sequence[str], int], Vote | None]) -> None:
    _set(settling, "decided", changed)


def _certified(changed: Callable[[Collection[str], Roster, Sequence[str]], bool]) -> None:
    for module in (settling, lineage):
        _set(module, "certified", changed)


def _voices(enough: Callable[[Sequence[str], Iterable[Delegation]], bool]) -> None:
    _set(settling, "member_quorum", enough)


def _accept(**forced: Callable[[Any], object]) -> None:
    """As the roster says, whatever we know better."""

    def any_roster(value: Any, **known: Any) -> Roster:
        return accept(value, **{**known, **{key: said(value["body"]) for key, said in forced.items()}})

    _set(room, "accept", any_roster)


def half() -> None:
    _quorum(lambda members: max(1, members // 2))


def majority() -> None:
    _quorum(lambda members: members // 2 + 1)


def roster_only() -> None:
    plain = settling.decided
    _decided(lambda ballots, roster, members, present: plain(ballots, roster, members, 1))


def present_only() -> None:
    _set(settling, "certified", lambda voters, roster, members: True)


def counted_twice() -> None:
    plain = settling.decided
    _decided(lambda ballots, *rest: plain({**ballots, **{f"{peer} again": vote for peer, vote in ballots.items()}}, *rest))


def before_the_quorum() -> None:
    _decided(lambda ballots, *_: next(iter(ballots.values())))


def own_result_only() -> None:
    """Whatever wins, we hold that it is ours."""
    plain = Peer.count

    def count(self: Peer, work: Work) -> None:
        meeting = work.meeting
        if work.vote is not None and meeting is not None and len(meeting.ballots) * 2 > len(meeting.members):
            meeting.ballots = {name: (work.vote, parts) for name, (_, parts) in meeting.ballots.items()}
        plain(self, work)

    _set(Peer, "count", count)


def lighter_is_better() -> None:
    _set(Tip, "better_than", lambda self, other: (other.weight, self.base) > (self.weight, other.base))


def no_tie_break() -> None:
    _set(Tip, "better_than", lambda self, other: self.weight > other.weight)


def higher_is_better() -> None:
    _set(Tip, "better_than", lambda self, other: (self.height, other.base) > (other.height, self.base))


def roster_of_any_base() -> None:
    _accept(before=lambda body: body["before"])


def no_gather_deadline() -> None:
    _set(Schedule, "gather_by", lambda self, round: self.deadline(round + 10))


def no_stage_deadline() -> None:
    for state in (rounds.State.STOPPING, rounds.State.GATHERING, rounds.State.REDUCING, rounds.State.SETTLING):
        del rounds.MOVES[state, rounds.Tick]


def no_certificate() -> None:
    _set(lineage, "certified", lambda voters, roster, members: True)


def believes_tips() -> None:
    _set(Peer, "seen", lambda self: tuple(record.seen for record, _ in self.known.values()))


def follows_any_weight() -> None:
    _set(Vote, "from_body", classmethod(lambda cls, body: cls(**body)))


def _follow(*blind: str) -> None:
    """Of an entry, these things may be as they like."""
    plain = lineage.follow

    def follow(tip: Tip, entry: Entry, rules: Averaging, *, last_round: int) -> None:
        vote, members = entry.vote, len(entry.roster.members)
        right = {"weight": tip.weight + members, "fragment": vote.round % rules.fragments, "coverage_ppm": 10**6}
        seen = replace(entry, vote=replace(vote, **{name: right[name] for name in blind if name in right}))
        few = replace(rules, min_peers=1) if "members" in blind else rules
        plain(tip, seen, few, last_round=-1 if "round" in blind else last_round)

    _set(lineage, "follow", follow)


def follows_any_step_in_weight() -> None:
    _follow("weight")


def follows_any_fragment() -> None:
    _follow("fragment")


def follows_a_round_that_was() -> None:
    _follow("round")


def follows_one_alone() -> None:
    _follow("members")


def follows_any_coverage() -> None:
    _follow("coverage_ppm")


def takes_rounds_to_come() -> None:
    _set(Peer, "parsed", lambda self, data: self.world.ledger.parsed(data) if data else None)


def a_round_twice() -> None:
    _set(Peer, "may_gather", lambda self, work: True)


def discard_keeps_the_base() -> None:
    plain = Peer.perform

    def perform(self: Peer, effect: rounds.Effect) -> None:
        work = self.work
        if isinstance(effect, rounds.Discard) and work is not None and work.vote is not None:
            self.tip = self.member.tip = Tip(work.vote.height, work.vote.weight, work.vote.after)
        plain(self, effect)

    _set(Peer, "perform", perform)


def base_before_disk() -> None:
    def write(self: Peer, work: Work) -> None:
        self.later(0, plain, self, work)
        if work.vote is not None and not self.disk_full:
            self.moved(Tip(work.vote.height, work.vote.weight, work.vote.after))
            self.publish()
            self.spark()

    plain = Peer.write
    _set(Peer, "write", write)


def keeps_a_failed_commit() -> None:
    """A full disk is taken for a commit all the same."""

    def write(self: Peer, work: Work) -> None:
        if self.disk_full and work.vote is not None:
            self.put(work, Tip(work.vote.height, work.vote.weight, work.vote.after))
        else:
            plain(self, work)

    plain = Peer.write
    _set(Peer, "write", write)


def presences_for_ever() -> None:
    _set(room, "PRESENCE_MS", 10**9)


def goes_back_for_a_snapshot() -> None:
    """Catching up begins with whatever snapshot there is."""

    def catch_up(self: Peer, target: Tip, donors: tuple[str, ...]) -> Generator[Any, Any, bool]:
        self.tip, self.disk = GENESIS, Disk(GENESIS)
        return (yield from plain(self, target, donors))

    plain = Peer.catch_up
    _set(Peer, "catch_up", catch_up)


def computes_by_name() -> None:
    """The same parts do not lead everybody to the same base."""
    plain = Peer.push

    def push(self: Peer, name: str, vote: Vote, parts: Any, tries: int) -> None:
        plain(self, name, replace(vote, after=room.step(vote.after, self.name)), parts, tries)

    _set(Peer, "push", push)


def anybody_leads() -> None:
    """Also who cannot be dialled."""
    _set(room, "leaders", lambda run, round, peers: leaders(run, round, {peer: replace(one, dialled=True) for peer, one in peers.items()}))


def nobody_tells() -> None:
    """Whoever cannot be dialled hears the votes of those only who dial it."""
    _set(Peer, "told", lambda self, roster, asker: None)


def blames_who_is_absent_only() -> None:
    """A reducer has failed a round if its part never came, and not if it came too late, or left everybody out."""

    def unsettled(self: Peer, work: Work, reason: str) -> None:
        meeting = work.meeting
        assert meeting is not None
        absent = [peer for place, peer in enumerate(meeting.reducers) if place not in meeting.parts]
        self.silence.lost(meeting.roster, absent, self.name)
        self.stage_ends(work, rounds.Failed(work.number, reason))

    _set(Peer, "unsettled", unsettled)


def blames_nobody() -> None:
    _set(Silence, "lost", lambda self, roster, failed, me: None)


def one_leader() -> None:
    for module in (grouping, room):
        _set(module, "ATTEMPTS", 1)


def always_counted() -> None:
    """Also who never has a delta in time."""
    _set(rounds.Member, "counts", True)


# Roster mode: what is counted by Member is counted by node, or not shared by its nodes.


def most_of_the_nodes_too() -> None:
    plain, enough = settling.certified, settling.quorum
    _certified(lambda voters, roster, members: plain(voters, roster, members) and len(voters) >= enough(len(roster.members)))


def coverage_by_node() -> None:
    plain = settling.coverage_ppm
    _set(room, "coverage_ppm", lambda sizes, contributors, owners: plain(sizes, contributors, list(map(str, range(len(owners))))))


def leaders_by_node() -> None:
    def by_node(run: str, round: int, peers: Mapping[str, Candidate]) -> list[str]:
        return leaders(run, round, {peer: Candidate(peer, one.dialled) for peer, one in peers.items()})

    _set(room, "leaders", by_node)


def blamed_by_node() -> None:
    """So more than half of the reducers are never to blame, if they are one Member's."""
    lost, check = Silence.lost, Silence.check

    def alone(claim: Claim) -> Claim:
        return replace(claim, delegation=None)

    _set(Silence, "lost", lambda self, roster, *rest: lost(self, replace(roster, claims=tuple(map(alone, roster.claims))), *rest))
    _set(Silence, "check", lambda self, peer, claim, round: check(self, peer, alone(claim), round))


def a_voice_a_node() -> None:
    """Whichever of its nodes votes, it is a Member's whole voice."""
    _voices(lambda members, voters: 2 * len({voter.member for voter in voters}) > len(members) + (len(members) - 1) // 3)


def most_of_the_voices() -> None:
    """More than half are enough."""
    _voices(lambda members, voters: 2 * sum(Fraction(1, voter.nodes) for voter in voters) > len(members))


QUICK = (half, roster_only, counted_twice, before_the_quorum, lighter_is_better, believes_tips, own_result_only, computes_by_name)
ALL = (
    *QUICK, majority, present_only, discard_keeps_the_base, no_tie_break, higher_is_better, roster_of_any_base,
    no_gather_deadline, no_stage_deadline, no_certificate, follows_any_weight, takes_rounds_to_come, a_round_twice,
    base_before_disk, keeps_a_failed_commit, presences_for_ever, goes_back_for_a_snapshot, anybody_leads, nobody_tells, always_counted,
    follows_any_step_in_weight, follows_any_fragment, follows_a_round_that_was, follows_one_alone,
    follows_any_coverage, blames_who_is_absent_only, blames_nobody, one_leader,
    most_of_the_nodes_too, coverage_by_node, leaders_by_node, blamed_by_node, a_voice_a_node, most_of_the_voices,
)  # fmt: skip
