"""Peers that lie. Each runs a Member of its own, takes part as others do, and lies in the ways that are its `traits`.

A liar says anything in its own name and in the names of keys that it made (`GHOSTS`), and nothing in another's.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from protocols.canonical import Json
from protocols.grouping import Claim, Roster, order
from protocols.limits import INTEGER, ROSTER_MEMBERS
from protocols.lineage import Entry, Tip
from protocols.settling import Vote, merkle
from tests.simulation.peer import RATE, SILENT_MS, Disk, Meeting, Parked, Part, Peer, Work, part_of, roster_of, step
from tests.simulation.run import FRAGMENTS, GENESIS, MIN_PEERS, RUN, claim, name_of, signed
from tests.simulation.world import Record, World

TRAITS = (
    "false", "mirror", "mute", "two rosters", "leaves out", "two parts", "no parts", "heavy tip", "false base", "ghosts", "stalls",
    "forges", "unvoted", "replays", "wrong base", "silent",
)  # fmt: skip
"""What each does is said where it is done."""

FORKING = (frozenset({"mirror", "two parts"}), frozenset({"mirror", "two rosters"}))
"""What it takes to make two halves of a crowd each believe that they are enough."""

CROWD = frozenset({"silent"})
"""What a Member's many nodes do that would stop everybody."""

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
        """forges: a branch of its own making, certified by keys of its own making, and heavier than any; perhaps of a round that
        is yet to come; in every third round it leads to the base that all have. unvoted: the same with other peers in the
        roster, who never voted."""
        if self.invented is None or tip.better_than(self.invented.tip):
            round = self.member.round + (1000 if self.world.random() < 0.2 else 0)
            voters = [self.name, *self.ghosts, name_of(GHOSTS[-1])] if "forges" in self.traits else [self.name]
            members = order(RUN, round, voters if "forges" in self.traits else self.world.peers)
            roster = roster_of(round, tip.base, members, [claim(RATE, None)] * len(members))
            parts = tuple(step(name, str(round)) for name in members)
            heavy = min(INTEGER - 1, tip.weight + (ROSTER_MEMBERS if self.world.random() < 0.7 else INTEGER))
            after, height = (tip.base, tip.height) if round % 3 == 0 else (step(self.name, tip.base), tip.height + 1)
            vote = Vote(RUN, round, round % FRAGMENTS, roster.digest, merkle(parts), 10**6, tip.base, after, height, heavy)
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

    def return_part(self, meeting: Meeting, sender: Peer) -> None:
        """two parts: one half of the members gets another result than the other. no parts: they get none."""
        assert meeting.mine is not None
        place = meeting.members.index(sender.name)
        if "no parts" in self.traits and place % 2:
            return
        part = meeting.parts[meeting.mine]
        if "two parts" in self.traits and place % 2:
            part = part_of(meeting, meeting.mine, set(meeting.members), "another")
        self.world.send(self, sender, sender.part_came, meeting.digest, meeting.mine, part)

    # Settling.

    def push(self, name: str, vote: Vote, parts: tuple[Part, ...], tries: int) -> None:
        """false: votes for what nobody has, and for two such things. mirror: has no opinion of its own (`heard_vote`)."""
        if "mirror" in self.traits:
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
