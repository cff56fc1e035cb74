"""Peers that lie. Each runs a Member of its own, takes part as others do, and lies in the ways that are its `traits`.

A liar says anything in its own name and in the names of keys that it made (`GHOSTS`), and nothing in another's.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from protocols.canonical import Json
from protocols.grouping import Claim, Roster, order
from protocols.limits import INTEGER, RATE, ROSTER_MEMBERS
from protocols.lineage import Entry, Tip
from protocols.settling import Vote, merkle
from tests.simulation.peer import SILENT_MS, Disk, Meeting, Parked, Part, Peer, Work, part_of, roster_of, step
from tests.simulation.run import FRAGMENTS, GENESIS, MIN_PEERS, RUN, SCHEDULE, claim, name_of, signed
from tests.simulation.world import Record, World

TRAITS = (
    "false", "mirror", "mute", "two rosters", "leaves out", "two parts", "no parts", "heavy tip", "false base", "ghosts", "stalls",
    "forges", "unvoted", "replays", "wrong base", "silent", "late", "thin",
)  # fmt: skip
"""What each does is said where it is done."""

FORKING = (frozenset({"mirror", "two parts"}), frozenset({"mirror", "two rosters"}))
"""What it takes to make two halves of a crowd each believe that they are enough."""

CROWDS = (frozenset({"silent"}), frozenset({"late"}), frozenset({"thin"}))
"""What a Member's many nodes do that would stop everybody."""

STUBBORN = (frozenset({"silent"}), frozenset({"thin"}))
"""Those of them that go on with it in the quiet rounds, for it costs one round at most. Who is late may cost some more: it is not blamed
by those who still had time to commit."""

WRONG = ("weight", "base", "round that was", "round to come", "fragment", "members", "coverage")
"""What a forged entry is refused for; all else of it is right, its arithmetic, too."""

LATE_MS = 220
"""Before the deadline: enough for a part to come from who votes then, mostly, but not for a vote on what it leads to."""

GHOSTS = range(100, 116)
"""Numbers of the names of peers that never come."""


class Liar(Peer):
    honest = False

    def __init__(self, world: World, name: str, label: str, disk: Disk, traits: frozenset[str]) -> None:
        super().__init__(world, name, label, disk)
        self.traits = traits
        self.ghosts = [name_of(number) for number in GHOSTS[: 1 + int(world.random() * 3)]]
        self.invented: Entry | None = None
        self.heard: list[tuple[str, Vote, tuple[Part, ...]]] = []
        self.old: list[Record] = []
        self.said: set[tuple[str, Vote]] = set()

    def moved(self, tip: Tip) -> None:
        self.tip = tip

    def keep(self, entry: Entry, *, own: bool = False) -> None:
        self.disk.entries.append(entry)

    @property
    def can(self) -> Claim:
        """thin: it says that it is fast, so as to reduce much."""
        return claim(RATE, self.delegation) if "thin" in self.traits else super().can

    # Presences.

    def claim(self) -> tuple[Tip | None, bool, bool]:
        """heavy tip: a new, heavier one each time, that nobody can show. false base: of the weight that others have."""
        tip, active, left = super().claim()
        if tip and tip.height and ("forges" in self.traits or "unvoted" in self.traits):
            tip = self.forged(tip)
        elif tip and "heavy tip" in self.traits:
            tip = Tip(tip.height + 2, tip.weight + 40, step(tip.base, str(self.world.now)))
        elif tip and tip.height and "false base" in self.traits:
            tip = replace(tip, base=step(tip.base, self.name))
        return tip, active, left

    def publish(self) -> None:
        """ghosts: peers that never come are said to be there. replays: old presences of others are told again."""
        super().publish()
        world = self.world
        if "ghosts" in self.traits:
            for ghost in self.ghosts:
                world.publish(self, Record(ghost, self.tip, True, False, self.clock(), 0, None))
        if "replays" in self.traits:
            self.old += [records[0] for records in world.board.values() if world.random() < 0.1]
            for record in self.old[-40::7]:
                again = Record(record.peer, record.tip, record.active, record.left, record.made_ms, 0, None)
                records = world.board[record.peer]
                world.publish(self, again)
                records.remove(again)
                records.append(again)

    def forged(self, tip: Tip) -> Tip:
        """forges: an entry of its own making on the base that it has, certified by keys of its own making, in which one thing is wrong;
        "base": it leads back to the base that it began from. unvoted: with other peers in the roster, who never voted."""
        if self.invented is None or tip.better_than(self.invented.tip):
            wrong = self.world.rng.choice(WRONG) if "forges" in self.traits else ""
            round = {"round that was": self.disk.last_round, "round to come": self.member.round + 1000}.get(wrong, self.member.round)
            voters = [self.name, *self.ghosts, name_of(GHOSTS[-1])] if wrong not in ("", "members") else [self.name]
            members = order(RUN, round, voters if wrong else self.world.peers)
            fragment = (round + (wrong == "fragment")) % FRAGMENTS
            roster = replace(roster_of(round, tip.base, members, [claim(1, None)] * len(members)), fragment=fragment)
            parts = tuple(step(name, str(round)) for name in members)
            root, weight, coverage = merkle(parts), tip.weight + len(members), 0 if wrong == "coverage" else 10**6
            after, height = step(tip.base, root), tip.height + 1
            if wrong in ("weight", "base"):
                weight = min(INTEGER - 1, tip.weight + (ROSTER_MEMBERS if self.world.random() < 0.7 else INTEGER))
            if wrong == "base":
                after, height = tip.base, tip.height
            vote = Vote(RUN, round, fragment, roster.digest, root, coverage, tip.base, after, height, weight)
            votes = tuple(signed("vote", vote.to_body(), name) for name in voters)
            self.invented = Entry(vote, roster, parts, (1,) * len(parts), votes)
        return self.invented.tip

    def serve(self, verb: str, what: Any) -> tuple[int, Any]:
        """stalls: says nothing until it is given up."""
        if "stalls" in self.traits:
            return SILENT_MS, None
        if self.invented is not None and verb in ("entry", "proof") and what == self.invented.vote.height:
            return 0, self.world.ledger.bytes_of(self.invented)
        if self.invented is not None and verb == "snapshot":
            return 0, (self.invented.tip, self.world.ledger.bytes_of(self.invented))
        return super().serve(verb, what)

    # Leading.

    def roster_closes(self, work: Work) -> None:
        """mute: nobody gets a roster. wrong base: they get one on another base. leaves out: somebody gets one without being in it.
        two rosters: each half gets its own."""
        key = (work.number, work.before.base)
        if self.work is not work or work.meeting is not None or key not in self.parked:
            return
        callers = sorted(self.parked[key].callers)
        if "mute" in self.traits:
            del self.parked[key]
            return
        if "wrong base" in self.traits:
            made = roster_of(work.number, GENESIS.base, *self.hand(work, callers))
            self.close(key, signed("roster", made.to_body(), self.name).to_json())
            self.rostered(work, made)
            return
        if "leaves out" in self.traits and len(callers) > MIN_PEERS:
            out = callers[int(self.world.random() * len(callers))]
            made = self.made_of(work, [name for name in callers if name != out])
            self.close(key, signed("roster", made.to_body(), self.name).to_json())
            self.rostered(work, made)
        elif "two rosters" in self.traits and len(callers) >= MIN_PEERS:
            half = len(callers) // 2
            hands = [self.made_of(work, callers[:half]), self.made_of(work, callers[half:])]
            for name, (caller, its, number) in self.parked.pop(key, Parked()).callers.items():
                hand = hands[0] if name in hands[0].members else hands[1]
                self.answer(caller, its, number, signed("roster", hand.to_body(), self.name).to_json())
            self.rostered(work, hands[0])
            self.meetings[hands[1].digest] = second = Meeting(hands[1], self.name)
            second.offers = set(second.members)
            if second.mine is not None:
                second.parts[second.mine] = part_of(second, second.mine, second.offers)
        else:
            super().roster_closes(work)

    def hand(self, work: Work, callers: list[str]) -> tuple[list[str], list[Claim]]:
        members, called = order(RUN, work.number, [self.name, *callers]), self.parked[work.number, work.before.base].callers
        return members, [self.can if name == self.name else called[name][1].claim for name in members]

    def made_of(self, work: Work, callers: list[str]) -> Roster:
        return roster_of(work.number, work.before.base, *self.hand(work, callers))

    def answer(self, caller: Peer, work: Work, number: int, roster: Json) -> None:
        self.world.send(self, caller, caller.answered, work, number, self.name, roster)

    # Reducing.

    def reduce(self, roster: Roster) -> None:
        """silent: it called, and then offers nothing, reduces nothing and votes for nothing."""
        if "silent" not in self.traits:
            super().reduce(roster)

    def offer(self, meeting: Meeting, part: int, reducer: str) -> None:
        """thin: nothing of it is in others' parts, and nothing of others in its own."""
        if "thin" not in self.traits:
            super().offer(meeting, part, reducer)

    def part_closes(self, meeting: Meeting) -> None:
        if "thin" in self.traits:
            meeting.offers = {self.name}
        super().part_closes(meeting)

    def return_part(self, meeting: Meeting, sender: Peer) -> None:
        """two parts: one half of the members gets another result than the other. no parts: they get none. late: nobody gets it here."""
        assert meeting.mine is not None
        place = meeting.members.index(sender.name)
        if "late" in self.traits or ("no parts" in self.traits and place % 2):
            return
        part = meeting.parts[meeting.mine]
        if "two parts" in self.traits and place % 2:
            part = part_of(meeting, meeting.mine, set(meeting.members), "another")
        self.world.send(self, sender, sender.part_came, meeting.digest, meeting.mine, part)

    # Settling.

    def push(self, name: str, vote: Vote, parts: tuple[Part, ...], tries: int) -> None:
        """false: votes for what nobody has, and for two such things. mirror: has no opinion of its own (`heard_vote`). late: votes when
        nobody has the time left for more than to ask it for its part."""
        if "mirror" in self.traits:
            return
        if "late" in self.traits:
            wait_ms = SCHEDULE.deadline(vote.round) - LATE_MS - self.clock()
            self.later(max(0, wait_ms), partial(super().push, name, vote, parts, tries))
            return
        if "false" in self.traits:
            vote = replace(vote, after=step(vote.after, name if self.world.random() < 0.5 else self.name))
        super().push(name, vote, parts, tries)

    def told(self, roster: str, asker: Peer) -> None:
        if "stalls" not in self.traits:
            super().told(roster, asker)

    def heard_vote(self, voter: str, vote: Vote, parts: tuple[Part, ...]) -> None:
        """mirror: tells every voter that it is right. replays: says again what it heard, in its own name and late."""
        if "mirror" in self.traits and (voter, vote) not in self.said:
            self.said.add((voter, vote))
            super().push(voter, vote, parts, 2)
        if "replays" in self.traits:
            self.heard.append((voter, vote, parts))
            if len(self.heard) > 20:
                old = self.heard.pop(0)
                self.later(100, partial(super().push, voter, old[1], old[2], 1))
        super().heard_vote(voter, vote, parts)
