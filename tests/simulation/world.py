"""A swarm in virtual time: production Members, a modelled network and disk, faults from one seed.

What is modelled: presence records that take a while, calls that do not arrive, two leaders of one round, slow steps, parts that
are lost, votes that are late or lost, full disks, crashes between any two events, pauses, catch-ups that fail. What is not: the
bytes. A result is named by a hash of what it was made from, so "the same bits" is "the same name".
Everything that happens is in `told`, so a failing seed can be read.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from protocols.grouping import Roster, order
from protocols.lineage import Tip
from protocols.rounds import (
    Announce,
    BaseLoaded,
    CatchUp,
    CatchUpFailed,
    Commit,
    Committed,
    Discard,
    Effect,
    Event,
    Failed,
    Gather,
    Hindered,
    LeaveAsked,
    Member,
    PauseAsked,
    PeersSeen,
    Reduce,
    Reduced,
    Rest,
    ResumeAsked,
    Rostered,
    Seen,
    Settle,
    Settled,
    State,
    Stop,
    Tick,
    Train,
    Trained,
    TrainerDown,
    TrainerUp,
)
from protocols.schedule import Schedule
from protocols.settling import Vote, winner
from tests.people import BLANK

RUN = "ab" * 32
SCHEDULE = Schedule(0, 4000, 2000)
GENESIS = Tip(0, 0, "00" * 32)
LOOK_MS = 1500
LIFE_MS = 20_000


@dataclass
class Claim:
    """A presence as others have it: `tip` and `active` until a newer one arrives or it dies."""

    tip: Tip | None
    active: bool
    made_ms: int


@dataclass
class Node:
    name: str
    member: Member
    log: list[Tip] = field(default_factory=lambda: [GENESIS])
    """On disk: every tip from genesis to ours. A crash loses all but this."""
    seen: dict[str, Claim] = field(default_factory=dict)
    life: int = 0
    """Counts restarts: what was under way in an earlier life does not arrive."""
    stage: int = 0
    """Counts discards: a cancelled stage's event does not arrive."""
    up: bool = True
    crowd: int = 1
    complete: bool = False
    """`crowd` is how many it saw on its base at the boundary; `complete`: that was everybody who could take part."""
    roster: Roster | None = None
    own: Vote | None = None
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    """By roster: one of each member whose vote has come."""
    alarm: int = 0
    """Counts timers: only the latest one rings."""
    asleep_ms: int = 0
    """Until then this machine is suspended: everything waits."""


@dataclass(frozen=True)
class Result:
    """A commit: by whom, of what. `complete`: it saw, at the boundary, everybody who was there on its base."""

    node: str
    round: int
    before: str
    after: str
    complete: bool


class World:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0
        self.count = 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.faults = True
        self.told: list[str] = []
        self.results: list[Result] = []
        self.calls: dict[tuple[int, str], list[str]] = {}
        names = [f"peer{number}" for number in range(self.rng.randint(3, 6))]
        self.harm = self.rng.choice([0.0, 0.02, 0.1, 0.25])
        self.nodes = {name: Node(name, Member(SCHEDULE, 2)) for name in names}
        for node in self.nodes.values():
            self.later(self.rng.randint(0, 3000), lambda node=node: self.boot(node))  # type: ignore[misc]
        for _ in range(self.rng.randint(0, 8)):
            self.later(self.rng.randint(0, 70_000), self.mishap)

    # Time.

    def later(self, wait_ms: int, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + max(0, wait_ms), self.count, do))

    def run(self, until_ms: int) -> None:
        while self.queue and self.queue[0][0] <= until_ms:
            self.now, _, do = heapq.heappop(self.queue)
            do()
        self.now = until_ms

    def chance(self, times: float = 1.0) -> bool:
        return self.faults and self.rng.random() < self.harm * times

    # A node's life.

    def boot(self, node: Node) -> None:
        node.up, node.member = True, Member(SCHEDULE, 2)
        node.seen, node.votes, node.roster, node.own = {}, {}, None, None
        node.life += 1
        self.feed(node, BaseLoaded(node.log[-1]))
        self.mine(node, self.rng.randint(100, 2500), TrainerUp())
        self.look(node)

    def crash(self, node: Node) -> None:
        self.told.append(f"{self.now} {node.name} crashes in {node.member.state.value}")
        node.up = False
        node.life += 1
        self.later(self.rng.randint(500, 30_000), lambda: self.boot(node))

    def look(self, node: Node) -> None:
        """Publish, look around, and again in a while: what Session._watch does."""
        life = node.life
        if not node.up:
            return
        self.publish(node)
        node.seen = {name: claim for name, claim in node.seen.items() if self.now - claim.made_ms < LIFE_MS}
        self.feed(node, PeersSeen(tuple(Seen(name, claim.tip, claim.active) for name, claim in node.seen.items())))
        self.later(LOOK_MS, lambda: self.look(node) if node.life == life else None)

    def publish(self, node: Node) -> None:
        member = node.member
        active = member.state not in (State.PAUSED, State.LEFT, State.SYNCING) and set(member.reasons) <= {"no_peers"}
        claim = Claim(node.log[-1], active, self.now)
        for other in self.nodes.values():
            if other is not node and not self.chance(0.5):
                self.later(self.rng.randint(20, 900), lambda other=other: self.hear(other, node.name, claim))  # type: ignore[misc]

    def hear(self, other: Node, name: str, claim: Claim) -> None:
        if other.up and (name not in other.seen or other.seen[name].made_ms <= claim.made_ms):
            other.seen[name] = claim

    def mishap(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        if not node.up or not self.faults:
            return
        kind = self.rng.randrange(6)
        if kind == 0:
            self.crash(node)
        elif kind == 1:
            self.feed(node, PauseAsked(self.rng.choice([0, self.now + self.rng.randint(1, 20_000)])))
            self.mine(node, self.rng.randint(1000, 25_000), ResumeAsked())
        elif kind == 2:
            self.feed(node, TrainerDown())
            self.mine(node, self.rng.randint(1000, 9000), TrainerUp())
        elif kind == 3:
            self.feed(node, Hindered(("clock",)))
            self.mine(node, self.rng.randint(1000, 9000), Hindered(()))
        elif kind == 4:
            self.feed(node, LeaveAsked())  # and comes back, as after an upgrade
            self.later(self.rng.randint(3000, 9000), lambda life=node.life: self.crash(node) if node.up and node.life == life else None)  # type: ignore[misc]
        else:
            node.asleep_ms = self.now + self.rng.randint(500, 15_000)
            self.told.append(f"{self.now} {node.name} sleeps until {node.asleep_ms}")

    def mine(self, node: Node, wait_ms: int, event: Event, *, of_stage: bool = False) -> None:
        """`event` comes to `node`, unless it has crashed by then or, `of_stage`, has discarded the round."""
        life, stage = node.life, node.stage

        def come() -> None:
            if node.up and node.life == life and (not of_stage or node.stage == stage):
                self.feed(node, event)

        self.later(wait_ms, come)

    def feed(self, node: Node, event: Event) -> None:
        if not node.up:
            return
        if self.now < node.asleep_ms:
            self.mine(node, node.asleep_ms - self.now, event)
            return
        if self.chance(0.02):
            self.crash(node)
            return
        was = node.member.state
        effects = node.member.handle(event, self.now)
        if node.member.state is not was:
            said = ", ".join(type(effect).__name__ for effect in effects)
            self.told.append(f"{self.now} {node.name} {type(event).__name__}: {was.value}→{node.member.state.value} [{said}]")
        for effect in effects:
            self.perform(node, effect)
        node.alarm += 1
        wake = node.member.wake_ms
        if wake is not None:
            self.later(wake - self.now, lambda life=node.life, alarm=node.alarm: self.ring(node, life, alarm))  # type: ignore[misc]

    def ring(self, node: Node, life: int, alarm: int) -> None:
        if (node.life, node.alarm) == (life, alarm):
            self.feed(node, Tick())

    # Effects.

    def perform(self, node: Node, effect: Effect) -> None:
        rng = self.rng
        match effect:
            case Stop(round):
                if not self.chance(0.3):
                    self.mine(node, rng.randint(1, 300) if not self.chance() else 2500, Trained(round))
            case Gather(round):
                node.crowd = 1 + sum(claim.active and claim.tip == node.log[-1] for claim in node.seen.values())
                node.complete = node.crowd >= self.crowd(node.log[-1].base)
                key = (round, node.log[-1].base)
                if key not in self.calls:
                    self.calls[key] = []
                    self.later(SCHEDULE.gather_by(round) - self.now, lambda: self.close(key))
                self.calls[key].append(node.name)
                self.mine(node, SCHEDULE.gather_by(round) - self.now + 400, Failed(round, "no_roster"), of_stage=True)
            case Reduce(roster):
                node.stage += 1
                node.roster = roster
                if self.chance(0.5):
                    self.mine(node, rng.randint(1, 900), Failed(roster.round, "missing_part"), of_stage=True)
                else:
                    self.mine(node, rng.randint(20, 500), Reduced(roster.round), of_stage=True)
            case Settle(round):
                self.vote(node, round)
            case Commit(round):
                self.mine(node, rng.randint(1, 60), self.commit(node, round))
            case Discard():
                node.stage += 1
            case CatchUp(tip, donors):
                self.mine(node, rng.randint(50, 1500), self.caught_up(node, tip, donors))
            case Announce():
                self.publish(node)
            case Train() | Rest():
                pass

    def crowd(self, base: str) -> int:
        idle = (State.PAUSED, State.LEFT, State.SYNCING)
        return sum(node.up and node.log[-1].base == base and node.member.state not in idle for node in self.nodes.values())

    def close(self, key: tuple[int, str]) -> None:
        """Rosters of those who called: usually one; sometimes two leaders have each a part of them."""
        round, before = key
        here = order(RUN, round, [name for name in self.calls.pop(key) if self.nodes[name].up and not self.chance(0.5)])
        hands = [here]
        if len(here) > 1 and self.chance():
            cut = self.rng.randint(1, len(here) - 1)
            self.rng.shuffle(here)
            hands = [order(RUN, round, here[:cut]), order(RUN, round, here[cut:])]
        for hand in hands:
            if len(hand) >= 2:
                made = Roster(RUN, round, round % 2, before, tuple(hand), (BLANK,) * len(hand))
                for name in hand:
                    if not self.chance(0.5):
                        self.mine(self.nodes[name], self.rng.randint(1, 100), Rostered(made), of_stage=True)

    def vote(self, node: Node, round: int) -> None:
        """Compute, vote, and tell all others of the roster."""
        roster, tip = node.roster, node.log[-1]
        assert roster is not None
        assert (roster.round, roster.before) == (round, tip.base)
        after = f"{tip.base} {roster.digest}" if not self.chance(0.2) else f"{node.name} computes wrongly at {self.now}"
        mine = Vote(
            RUN, round, roster.fragment, roster.digest, "00" * 32, 1_000_000, tip.base, sha256(after.encode()).hexdigest(), tip.height + 1,
            tip.weight + len(roster.members),
        )  # fmt: skip
        node.own = mine
        for name in roster.members:
            if name == node.name or not self.chance(0.5):
                wait = 0 if name == node.name else self.rng.randint(5, 400)
                self.later(wait, lambda name=name: self.count_vote(self.nodes[name], mine))  # type: ignore[misc]

    def count_vote(self, node: Node, vote: Vote) -> None:
        if not node.up:
            return
        box = node.votes.setdefault(vote.roster, [])
        box.append(vote)
        own, roster = node.own, node.roster
        if own is None or roster is None or own.roster != vote.roster or node.member.state is not State.SETTLING:
            return
        won = winner(box, len(roster.members), node.crowd)
        if won == own:
            self.mine(node, 1, Settled(vote.round), of_stage=True)
        elif won is not None:
            self.mine(node, 1, Failed(vote.round, "outvoted"), of_stage=True)

    def commit(self, node: Node, round: int) -> Event:
        """Entry to disk; a crash may come before the base has moved, and the log says the same."""
        own = node.own
        assert own is not None
        assert (own.round, own.before) == (round, node.log[-1].base)
        if self.chance(0.2):
            return Failed(round, "disk_full")
        tip = Tip(own.height, own.weight, own.after)
        self.results.append(Result(node.name, round, own.before, own.after, node.complete))
        node.log.append(tip)
        return Committed(round, tip)

    def caught_up(self, node: Node, tip: Tip, donors: tuple[str, ...]) -> Event:
        for name in donors:
            donor = self.nodes[name]
            if donor.up and tip in donor.log and not self.chance():
                node.log = donor.log[: donor.log.index(tip) + 1]
                return BaseLoaded(tip)
        return CatchUpFailed("no_donor")
