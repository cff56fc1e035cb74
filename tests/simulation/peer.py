"""One honest peer: the production Member and the treaty's pure functions, in rooms that follow those of `tapestryd/`.

What a room decides by a function of `protocols/` is decided by that function here; what it does with streams, disk and
time is modelled: gather.py, reduce.py, settle.py, keeper.py and neighbours.py, method by method. Bytes are not: a part
is named by the digest of what it was made from, so "the same bits" is "the same name".
"""

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from hashlib import sha256
from statistics import median
from typing import Any

from protocols import lineage, settling
from protocols.canonical import Json, digest
from protocols.grouping import ATTEMPTS, Candidate, Claim, Roster, accept, leaders, order, seated
from protocols.limits import CLOCK_SKEW_MS, IO_S, PRESENCE_MS, ROSTER_MEMBERS
from protocols.lineage import Entry, Tip
from protocols.membership import Delegation
from protocols.refusal import Reason, Refused
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
    Member,
    PeersSeen,
    Reduce,
    Reduced,
    Rest,
    Rostered,
    Seen,
    Settle,
    Settled,
    State,
    Stop,
    Tick,
    Train,
    Trained,
    TrainerUp,
)
from protocols.settling import Vote, coverage_ppm, merkle
from tapestryd.swarm.draw import SLOW_S
from tapestryd.swarm.silence import Silence
from tests.simulation.ledger import better, goes_on
from tests.simulation.run import (
    AVERAGING,
    COVERAGE_PPM,
    FRAGMENTS,
    GENESIS,
    LOOK_MS,
    MIN_PEERS,
    RUN,
    SCHEDULE,
    claim,
    digest_of,
    signed,
    verify,
)
from tests.simulation.world import Crash, Record, World

Part = tuple[str, tuple[int, ...]]
"""(digest of the part, the places of those who are in it)."""

Question = tuple[str, str, Any]
"""(donor, verb, what is asked for); answered by the value, or None: the donor is gone, refuses, or does not have it."""

RATE = 1 << 20
"""All are as fast; 0 of those that cannot be dialled."""

ACK_MS = 1500
EARLY_MS = 15_000
DOUBT_MS = 10_000
DOUBT_MS_MAX = 600_000
PROOFS, PROOFS_A_TIP, PROVEN = 8, 2, 16
FOLLOWING = (State.JOINING, State.SYNCING, State.TRAINING)
SILENT_MS = int(IO_S * 1000)
SLOW_MS = int(SLOW_S * 1000)
BRANCH = 8
SNAPSHOT_EVERY = 4
MEETINGS = 3
PARKED = 4


class Disk:
    """What a crash leaves: entries behind a first tip (genesis or a snapshot, with the entry that proves it)."""

    def __init__(self, first: Tip | None, proof: Entry | None = None) -> None:
        self.first = first
        self.proof = proof
        self.entries: list[Entry] = []

    @property
    def tip(self) -> Tip | None:
        return self.entries[-1].tip if self.entries else self.first

    @property
    def last_round(self) -> int:
        """Of the entry that led to the tip; -1 if there is none."""
        last = self.entries[-1] if self.entries else self.proof
        return last.vote.round if last else -1

    def entry(self, height: int) -> Entry | None:
        if self.first is None:
            return None
        if height == self.first.height:
            return self.proof
        place = height - self.first.height - 1
        return self.entries[place] if 0 <= place < len(self.entries) else None

    def tip_at(self, height: int) -> Tip | None:
        entry = self.entry(height)
        return entry.tip if entry else self.first if self.first and self.first.height == height else None

    def go_back(self, height: int) -> None:
        """Nothing beyond `height` any more."""
        assert self.first is not None
        del self.entries[height - self.first.height :]

    def snapshot(self) -> Tip | None:
        """The newest that is kept."""
        for entry in reversed(self.entries):
            if entry.vote.height % SNAPSHOT_EVERY == 0:
                return entry.tip
        return self.first


class Meeting:
    """As swarm/meeting.py has it."""

    def __init__(self, roster: Roster, me: str) -> None:
        self.roster = roster
        self.digest: str = digest_of(roster)
        self.members = roster.members
        self.reducers = roster.reducers
        self.mine = self.reducers.index(me) if me in self.reducers else None
        self.offers: set[str] = {me}
        self.waiting: list[Peer] = []
        self.parts: dict[int, Part] = {}
        self.repaired: set[int] = set()
        self.ballots: dict[str, tuple[Vote, tuple[Part, ...]]] = {}
        self.won: Vote | None = None
        self.listening: list[Peer] = []
        """Who asked for the votes of what wins here."""


class Work:
    """The round at hand; a discarded one is never `peer.work` again, so what it still waits for finds nobody."""

    def __init__(self, number: int, before: Tip, others: dict[str, Candidate], started_ms: int) -> None:
        self.number = number
        self.before = before
        self.others = others
        self.started_ms = started_ms
        self.attempt = -1
        self.leaders: list[str] = []
        self.claim = claim(0, None)
        """What the leader that is being called was told."""
        self.meeting: Meeting | None = None
        self.settling = False
        self.asked: set[str] = set()
        self.vote: Vote | None = None
        self.certificate: list[str] = []
        self.asking = False
        self.computing = False

    @property
    def present(self) -> int:
        return 1 + len(self.others)


class Parked:
    def __init__(self) -> None:
        self.callers: dict[str, tuple[Peer, Work, int]] = {}
        self.led = False


class Peer:
    """`cut`: whom it cannot dial or tell anything. `fuse`: effects until the power goes. `honest`: what invariants speak of."""

    honest = True

    def __init__(self, world: World, name: str, label: str, disk: Disk) -> None:
        self.world, self.name, self.label, self.disk = world, name, label, disk
        self.life = 0
        self.up = False
        self.asleep_ms = 0
        self.cut: set[str] = set()
        self.nat = False
        self.skew_ms = 0
        self.stuck: type[Stop | Gather] | None = None
        """An effect that it performs no more, so it ends no step, or calls nobody; everything else goes on as if."""
        self.delegation: Delegation | None = None
        self.fuse: int | None = None
        self.disk_full = False
        self.step_ms = 300
        self.compute_ms = 50
        self.write_ms = 30
        self.fetch_ms = 200
        self.wrong = 0.0
        """How often its arithmetic goes wrong."""
        self.hindered = False
        self.tips: list[Tip] = []
        """Every tip that it has ever held, since its disk was last set back."""
        self.gave_up_for: Tip | None = None
        self._reset()

    def _reset(self) -> None:
        self.member = Member(SCHEDULE, MIN_PEERS)
        self.tip: Tip | None = None
        self.known: dict[str, tuple[Record, int]] = {}
        self.seen_now: tuple[Seen, ...] = ()
        self.doubts: dict[str, tuple[int, int]] = {}
        """Who could not show what it announced: how often, and until when its tips are passed over."""
        self.proven: dict[Tip, None] = {GENESIS: None}
        self.proving: dict[str, Tip] = {}
        self.work: Work | None = None
        self.parked: dict[tuple[int, str], Parked] = {}
        self.meetings: dict[str, Meeting] = {}
        self.silence = Silence(SCHEDULE.round_at(self.clock()))
        self.early: dict[str, list[tuple[int, Callable[..., None], tuple[Any, ...]]]] = {}
        self.alarm = 0
        self.published_ms = -PRESENCE_MS

    @property
    def owner(self) -> str:
        return self.delegation.member if self.delegation else self.name

    @property
    def can(self) -> Claim:
        return claim(0 if self.nat else RATE, self.delegation)

    # Life.

    def clock(self) -> int:
        return self.world.now + self.skew_ms

    def boot(self) -> None:
        """From what the disk holds, as Keeper.open does."""
        if self.up:
            return
        self.up = True
        self.life += 1
        self._reset()
        self.world.tell(f"{self.label} boots at height {self.disk.tip.height if self.disk.tip else '-'}")
        try:
            if self.disk.tip:
                self.moved(self.disk.tip)
                self.feed(BaseLoaded(self.disk.tip))
            self.later(200 + int(self.world.random() * 2000), self.feed, TrainerUp())
            self.look()
        except Crash:
            self.crash()

    def crash(self) -> None:
        self.world.tell(f"{self.label} crashes in {self.member.state.value}")
        self.world.ledger.counts["crashes"] += 1
        self.up = False
        self.life += 1
        self.fuse = None

    def spark(self) -> None:
        """Between any two things that we do, the power may go."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Crash

    def later(self, wait_ms: int, do: Callable[..., None], *args: Any) -> None:
        self.world.of(self, self.world.now + wait_ms, do, *args)

    def when(self, swarm_ms: int, do: Callable[..., None], *args: Any) -> None:
        """When our own clock shows `swarm_ms`."""
        self.world.of(self, swarm_ms - self.skew_ms, do, *args)

    def moved(self, tip: Tip) -> None:
        """The base in memory is this from now on. Invariant: whatever we held before was no better than this or than what it
        is given up for, which was certified."""
        held = self.tips[-1] if self.tips else None
        self.world.tell(f"{self.label} at height {tip.height}, weight {tip.weight}, {tip.base[:6]}")
        if held is not None and better(held, tip):
            if self.gave_up_for is None or better(held, self.gave_up_for):
                self.world.ledger.broken("rolled back", f"{self.label} from {short(held)} to {short(tip)}")
            self.world.ledger.counts["given up"] += 1
            self.tips.clear()
        self.tip = tip
        self.tips.append(tip)

    # Neighbours.

    def look(self) -> None:
        """Session._watch."""
        now = self.clock()
        if self.world.now - self.published_ms > PRESENCE_MS // 3:
            self.publish()
        self.refresh(now)
        hindered = self.disk_full or self.hindered or not self.clock_will_do()
        self.feed(Hindered(("clock",) if hindered else ()))
        self.feed(PeersSeen(self.seen()))
        self.scout()
        self.later(LOOK_MS, self.look)

    def refresh(self, now: int) -> None:
        known, world_now, me = self.known, self.world.now, self.name
        for author, records in self.world.board.items():
            if author == me or (self.world.rules.members and author not in self.world.owners):
                continue
            for record in records:
                if record.ready_ms <= world_now and (record.hidden is None or me not in record.hidden):
                    held = known.get(author)
                    if held is not None and held[0].made_ms >= record.made_ms:
                        break
                    if not now - PRESENCE_MS - CLOCK_SKEW_MS <= record.made_ms <= now + PRESENCE_MS:
                        break
                    if record.left:
                        known.pop(author, None)
                    elif held is not None or now - record.made_ms <= PRESENCE_MS:
                        known[author] = (record, world_now)
                    break
        for author in [author for author, (_, since) in known.items() if world_now - since > PRESENCE_MS]:
            del known[author]

    def seen(self) -> tuple[Seen, ...]:
        """Only a tip whose certificate has been seen is passed on."""
        proven, own = self.proven, self.tip
        return tuple(
            [
                record.seen if (record.tip == own or record.tip in proven) and not self.doubted(peer) else record.untold
                for peer, record in ((peer, self.known[peer][0]) for peer in sorted(self.known, key=self.trust))
            ]
        )

    def scout(self) -> None:
        """Ask those who announce a better lineage for its certificate."""
        best = self.tip
        if self.member.state not in FOLLOWING:
            return
        told = {record.tip for record, _ in self.known.values()} - {None, best, *self.proven}
        if not any(tip and (best is None or tip.better_than(best)) for tip in told):
            return
        for seen in self.seen():
            if seen.tip and (best is None or seen.tip.better_than(best)):
                best = seen.tip
        for peer in sorted(self.known, key=self.trust):
            tip = self.known[peer][0].tip
            if len(self.proving) >= PROOFS:
                return
            if tip is None or peer in self.proving or tip in self.proven or self.doubted(peer):
                continue
            if (best is None or tip.better_than(best)) and list(self.proving.values()).count(tip) < PROOFS_A_TIP:
                self.proving[peer] = tip
                self.resume(self.prove(peer, tip), None)

    def trust(self, peer: str) -> tuple[int, bool]:
        """Who never failed us comes first, and of these who has a round trip, as only they have who can be reached."""
        there = self.world.peers.get(peer)
        return self.doubts.get(peer, (0, 0))[0], there is None or (there.nat and self.nat)

    def prove(self, peer: str, tip: Tip) -> Generator[Question, Any, None]:
        data = yield peer, "proof", tip.height
        entry = self.parsed(data)
        del self.proving[peer]
        if entry is not None and entry.tip == tip:
            self.proven[tip] = None
            if len(self.proven) > PROVEN:
                del self.proven[next(iter(self.proven))]
            self.feed(PeersSeen(self.seen()))
        else:
            self.doubt(peer)
        self.scout()

    def doubt(self, peer: str) -> None:
        times = self.doubts.get(peer, (0, 0))[0]
        self.doubts[peer] = (times + 1, self.world.now + min(DOUBT_MS << times, DOUBT_MS_MAX))

    def doubted(self, peer: str) -> bool:
        return peer in self.doubts and self.world.now < self.doubts[peer][1]

    def on_base(self, tip: Tip) -> dict[str, Candidate]:
        """Ghosts say that they can be dialled."""
        owners, peers = self.world.owners, self.world.peers
        there = [peer for peer, (record, _) in self.known.items() if record.active and record.tip == tip]
        return {peer: Candidate(owners.get(peer, peer), peer not in peers or not peers[peer].nat) for peer in there}

    def clock_will_do(self) -> bool:
        if not self.world.skewed:
            return True
        peers = self.world.peers
        skews = [peers[name].skew_ms - self.skew_ms for name in self.known if name in peers and peers[name].up and name not in self.cut]
        return not skews or abs(median(skews)) <= CLOCK_SKEW_MS

    def claim(self) -> tuple[Tip | None, bool, bool]:
        """(tip, active, left) of our presence."""
        member = self.member
        resting = member.state in (State.PAUSED, State.LEFT, State.SYNCING)
        active = not resting and member.counts and (member.state is not State.JOINING or set(member.reasons) <= {"no_peers"})
        return self.tip, active, member.state is State.LEFT

    def publish(self) -> None:
        tip, active, left = self.claim()
        self.published_ms = self.world.now
        self.world.publish(self, Record(self.name, tip, active, left, self.clock(), 0, None))

    # Events in, effects out.

    def feed(self, event: Event) -> None:
        self.spark()
        member, was = self.member, self.member.state
        effects = member.handle(event, self.clock())
        if member.state is not was and self.world.telling:
            said = ", ".join(type(effect).__name__ for effect in effects)
            why = f" ({event.reason})" if isinstance(event, Failed | CatchUpFailed) else ""
            self.world.tell(f"{self.label} round={member.round} {type(event).__name__}{why}: {was.value}→{member.state.value} [{said}]")
        for effect in effects:
            self.spark()
            self.perform(effect)
        self.alarm += 1
        wake = member.wake_ms
        if wake is not None:
            self.when(max(wake, self.clock() + 1), self.ring, self.alarm)

    def ring(self, alarm: int) -> None:
        if alarm == self.alarm:
            self.feed(Tick())

    def perform(self, effect: Effect) -> None:
        if type(effect) is self.stuck:
            return
        match effect:
            case Stop(round):
                self.later(1 + int(self.world.random() * self.step_ms), self.trained, round)
            case Gather():
                self.gather()
            case Reduce(roster):
                self.reduce(roster)
            case Settle():
                self.settle()
            case Commit():
                self.commit()
            case Discard(round, reason):
                self.world.ledger.discarded[reason] += 1
                self.work = None
            case CatchUp(tip, donors):
                self.world.tell(f"{self.label} catches up to {short(tip)} by {len(donors)}")
                self.resume(self.caught_up(tip, donors), None)
            case Announce():
                self.publish()
            case Train() | Rest():
                pass

    def trained(self, round: int) -> None:
        if self.member.state is State.STOPPING and self.member.round == round and self.tip is not None:
            self.work = Work(round, self.tip, self.on_base(self.tip), self.clock())
            self.feed(Trained(round))

    def stage_ends(self, work: Work, event: Event) -> None:
        if self.work is work:
            if isinstance(event, Committed | Failed):
                self.work = None
            self.feed(event)

    # Gathering: swarm/gather.py.

    def gather(self) -> None:
        work = self.work
        assert work is not None
        if not self.may_gather(work):
            self.stage_ends(work, Failed(work.number, "other_round"))
            return
        self.world.ledger.gathered(self, work.number, work.before.base)
        work.leaders = leaders(RUN, work.number, {**work.others, self.name: Candidate(self.owner, not self.nat)})
        self.attempt(work, 0)

    def may_gather(self, work: Work) -> bool:
        return work.number > self.disk.last_round

    def windows(self, work: Work) -> tuple[list[int], int]:
        """(when leader i closes, by our clock, from our delta on; the margin that a caller leaves it)."""
        whole = SCHEDULE.gather_by(work.number) - work.started_ms
        return [work.started_ms + whole * (i + 1) // ATTEMPTS for i in range(ATTEMPTS)], whole // ATTEMPTS // 2

    def attempt(self, work: Work, number: int) -> None:
        if self.work is not work or work.meeting is not None or work.attempt >= number:
            return
        work.attempt = number
        if number >= len(work.leaders):
            self.close((work.number, work.before.base), None)
            self.stage_ends(work, Failed(work.number, "no_roster"))
            return
        windows, margin = self.windows(work)
        leader = work.leaders[number]
        if leader == self.name:
            self.lead(work, windows[number])
        else:
            work.claim = self.can
            self.when(windows[number] + margin, self.attempt, work, number + 1)
            self.call(work, leader, number)

    def call(self, work: Work, leader: str, number: int) -> None:
        self.spark()
        target = self.world.open(self, leader)
        if target is None:
            self.later(self.world.gone_ms(), self.attempt, work, number + 1)
            return
        acked: list[bool] = []
        self.world.send(self, target, target.called, self, work, number, acked)
        self.later(ACK_MS, lambda: None if acked else self.attempt(work, number + 1))

    def called(self, caller: "Peer", work: Work, number: int, acked: list[bool]) -> None:
        """Parked until our own gathering of that round on that base answers it."""
        self.spark()
        key = (work.number, work.before.base)
        if abs(work.number - SCHEDULE.round_at(self.clock())) > 1:
            self.world.send(self, caller, caller.answered, work, number, self.name, None)
            return
        try:
            self.silence.check(caller.name, work.claim, work.number)
        except Refused:
            self.world.send(self, caller, caller.silenced, work, number, self.name, acked)
            return
        for other in list(self.parked):
            parked = self.parked[other]
            if parked.callers.pop(caller.name, None) and not parked.callers and not parked.led:
                del self.parked[other]
        if key not in self.parked:
            if len(self.parked) >= PARKED:
                ours = SCHEDULE.round_at(self.clock()), self.tip.base if self.tip else ""
                idle = [other for other, parked in self.parked.items() if not parked.led and other != ours]
                self.close(min(idle, key=lambda other: (len(self.parked[other].callers), -other[0])), None)
            self.parked[key] = Parked()
        parked = self.parked[key]
        claims = {name: its.claim for name, (_, its, _) in parked.callers.items()}
        if len(claims) >= ROSTER_MEMBERS - 1 or caller.name not in self.seated({**claims, caller.name: work.claim}):
            self.world.send(self, caller, caller.answered, work, number, self.name, None)
            return
        parked.callers[caller.name] = (caller, work, number)
        self.world.send(self, caller, acked.append, True)
        if parked.led and self.work is not None and set(self.work.others) <= set(parked.callers):
            self.roster_closes(self.work)

    def seated(self, claims: dict[str, Claim]) -> list[str]:
        return seated(list(claims), list(claims.values()), len(self.world.rules.members))

    def silenced(self, work: Work, number: int, leader: str, acked: list[bool]) -> None:
        """The leader that we called would have us reduce nothing."""
        acked.append(True)
        if self.work is work and work.attempt == number and work.meeting is None:
            if work.claim.rate and self.silence.ours(work.number):
                work.claim = claim(0, self.delegation)
                self.call(work, leader, number)
            else:
                self.attempt(work, number + 1)

    def answered(self, work: Work, number: int, leader: str, roster: Json | None) -> None:
        """By the leader that we called, if we still listen to it."""
        if self.work is not work or work.attempt != number or work.meeting is not None:
            return
        try:
            if roster is None:
                raise Refused(Reason.OTHER_ROUND, "no roster here")
            made = accept(
                roster, run=RUN, round=work.number, fragment=work.number % FRAGMENTS, before=work.before.base, me=self.name,
                claim=work.claim, leader=leader, min_peers=MIN_PEERS, verify=verify,
            )  # fmt: skip
            made.check(self.world.rules)
        except Refused as refused:
            self.world.ledger.refused[refused.reason.value] += 1
            self.attempt(work, number + 1)
        else:
            self.rostered(work, made)

    def lead(self, work: Work, closes_ms: int) -> None:
        parked = self.parked.setdefault((work.number, work.before.base), Parked())
        parked.led = True
        if set(work.others) <= set(parked.callers):
            self.roster_closes(work)
        else:
            self.when(closes_ms, self.roster_closes, work)

    def roster_closes(self, work: Work) -> None:
        key = (work.number, work.before.base)
        if self.work is not work or work.meeting is not None or key not in self.parked:
            return
        claims = {self.name: self.can, **{name: its.claim for name, (_, its, _) in self.parked[key].callers.items()}}
        members = order(RUN, work.number, self.seated(claims))
        if len(members) < MIN_PEERS or not any(claims[name].rate for name in members):
            self.close(key, None)
            self.attempt(work, work.attempt + 1)
            return
        roster = roster_of(work.number, work.before.base, members, [claims[name] for name in members])
        self.close(key, signed("roster", roster.to_body(), self.name).to_json())
        self.rostered(work, roster)

    def close(self, key: tuple[int, str], answer: Json | None) -> None:
        """Tell everybody who waits here."""
        parked = self.parked.pop(key, None)
        if parked:
            for caller, work, number in parked.callers.values():
                self.spark()
                self.world.send(self, caller, caller.answered, work, number, self.name, answer)

    def rostered(self, work: Work, roster: Roster) -> None:
        work.meeting = Meeting(roster, self.name)
        self.close((work.number, work.before.base), None)
        self.stage_ends(work, Rostered(roster))

    # Reducing: swarm/reduce.py.

    def reduce(self, roster: Roster) -> None:
        work = self.work
        assert work is not None
        assert work.meeting is not None
        meeting = work.meeting
        while len(self.meetings) >= MEETINGS:
            del self.meetings[next(iter(self.meetings))]
        self.meetings[meeting.digest] = meeting
        for until, do, args in self.early.pop(meeting.digest, ()):
            if self.world.now <= until:
                do(*args)
        for part, reducer in enumerate(meeting.reducers):
            if part != meeting.mine:
                self.offer(meeting, part, reducer)
        closes, ends = SCHEDULE.reduce_by(work.number), SCHEDULE.deadline(work.number)
        if meeting.mine is not None:
            self.when(closes, self.part_closes, meeting)
            if len(meeting.offers) == len(meeting.members):
                self.part_closes(meeting)
        self.when((closes + ends) // 2, self.give_up, work)
        self.reduced_if_whole(work)

    def offer(self, meeting: Meeting, part: int, reducer: str) -> None:
        self.spark()
        target = self.world.open(self, reducer)
        if target is not None:
            self.later(self.world.delay_ms(), self.world.send, self, target, target.offered, meeting.digest, self)

    def offered(self, roster: str, sender: "Peer") -> None:
        meeting = self.meeting(roster, self.offered, roster, sender)
        if meeting is None or meeting.mine is None or sender.name not in meeting.members or sender.name in meeting.offers:
            return
        if meeting.mine in meeting.parts:
            self.return_part(meeting, sender)
            return
        meeting.offers.add(sender.name)
        meeting.waiting.append(sender)
        if len(meeting.offers) == len(meeting.members):
            self.part_closes(meeting)

    def meeting(self, roster: str, do: Callable[..., None], *args: Any) -> Meeting | None:
        """The meeting of that roster; if it is not here yet, `do` is done again when it comes."""
        found = self.meetings.get(roster)
        if found is None:
            self.early.setdefault(roster, []).append((self.world.now + EARLY_MS, do, args))
        return found

    def part_closes(self, meeting: Meeting) -> None:
        """Our part is made of what has come."""
        work = self.work
        assert meeting.mine is not None
        if meeting.mine in meeting.parts or work is None or work.meeting is not meeting:
            return
        self.spark()
        meeting.parts[meeting.mine] = part_of(meeting, meeting.mine, meeting.offers)
        for sender in meeting.waiting:
            self.return_part(meeting, sender)
        self.note(meeting)

    def return_part(self, meeting: Meeting, sender: "Peer") -> None:
        assert meeting.mine is not None
        self.spark()
        self.world.send(self, sender, sender.part_came, meeting.digest, meeting.mine, meeting.parts[meeting.mine])

    def part_came(self, roster: str, place: int, part: Part) -> None:
        meeting = self.meetings.get(roster)
        if meeting is not None and place not in meeting.parts:
            meeting.parts[place] = part
            self.note(meeting)

    def note(self, meeting: Meeting) -> None:
        """A part has come."""
        work = self.work
        if work is not None and work.meeting is meeting:
            self.reduced_if_whole(work)
            if work.settling:
                self.compute_if_whole(work)

    def reduced_if_whole(self, work: Work) -> None:
        assert work.meeting is not None
        if self.member.state is State.REDUCING and len(work.meeting.parts) == len(work.meeting.reducers):
            self.stage_ends(work, Reduced(work.number))

    def give_up(self, work: Work) -> None:
        if self.work is work and self.member.state is State.REDUCING:
            self.stage_ends(work, Reduced(work.number))

    # Settling: swarm/settle.py.

    def settle(self) -> None:
        work = self.work
        assert work is not None
        work.settling = True
        self.when(SCHEDULE.deadline(work.number) - 50, self.settling_ends, work)
        self.compute_if_whole(work)
        self.repair(work)

    def settling_ends(self, work: Work) -> None:
        if self.work is work and self.member.state is State.SETTLING:
            self.unsettled(work, "no_majority" if work.computing else "missing_part")

    def unsettled(self, work: Work, reason: str) -> None:
        meeting = work.meeting
        assert meeting is not None
        ballots = {peer: vote for peer, (vote, _) in meeting.ballots.items()}
        failed = set(range(len(meeting.reducers))) - (meeting.parts.keys() - meeting.repaired)
        if settling.decided(ballots, meeting.roster, self.world.rules.members, work.present):
            failed = set()  # lost to us alone
        if reason == "coverage":
            failed |= {place for place, (_, places) in meeting.parts.items() if covered(meeting, [1], [places]) < COVERAGE_PPM}
        self.silence.lost(meeting.roster, [meeting.reducers[place] for place in failed], self.name)
        self.stage_ends(work, Failed(work.number, reason))

    def repair(self, work: Work) -> None:
        """Fetch what is missing from a voter that agrees with what is here, first from those who voted as most did."""
        meeting = work.meeting
        if meeting is None or not work.settling or self.work is not work or len(meeting.parts) == len(meeting.reducers) or work.asking:
            return
        named = Counter(parts for _, parts in meeting.ballots.values())
        for peer, (_, parts) in sorted(meeting.ballots.items(), key=lambda ballot: -named[ballot[1][1]]):
            agrees = all(parts[place] == part for place, part in meeting.parts.items())
            if peer not in work.asked and agrees:
                work.asked.add(peer)
                work.asking = True
                self.resume(self.fetch_parts(work, meeting, peer, parts), None)
                return

    def fetch_parts(self, work: Work, meeting: Meeting, peer: str, named: tuple[Part, ...]) -> Generator[Question, Any, None]:
        for place in range(len(named)):
            if place not in meeting.parts:
                part = yield peer, "part", (meeting.digest, place)
                if part != named[place]:
                    break
                meeting.parts[place] = part
                meeting.repaired.add(place)
        work.asking = False
        self.note(meeting)
        self.repair(work)

    def compute_if_whole(self, work: Work) -> None:
        assert work.meeting is not None
        if len(work.meeting.parts) == len(work.meeting.reducers) and not work.computing:
            work.computing = True
            self.later(int(self.world.random() * self.compute_ms), self.vote, work)

    def vote(self, work: Work) -> None:
        if self.work is not work:
            return
        meeting, before = work.meeting, work.before
        assert meeting is not None
        parts = tuple(meeting.parts[place] for place in range(len(meeting.reducers)))
        coverage = covered(meeting, [last - first for first, last in meeting.roster.parts], [places for _, places in parts])
        if coverage < COVERAGE_PPM:
            self.unsettled(work, "coverage")
            return
        root = root_of(parts)
        after = root if not self.wrong or self.world.random() >= self.wrong else self.name
        work.vote = Vote(
            RUN, work.number, work.number % FRAGMENTS, meeting.digest, root, coverage, before.base, step(before.base, after),
            before.height + 1, before.weight + len(meeting.members),
        )  # fmt: skip
        self.world.ledger.voted(self, work.vote)
        meeting.ballots[self.name] = (work.vote, parts)
        for name in meeting.members:
            if name != self.name:
                self.spark()
                self.push(name, work.vote, parts, 2)
        for reducer in meeting.reducers[:3] if meeting.mine is None else ():
            target = self.world.open(self, reducer)
            if target is not None:
                self.later(self.world.delay_ms(), self.world.send, self, target, target.told, meeting.digest, self)
        self.count(work)

    def push(self, name: str, vote: Vote, parts: tuple[Part, ...], tries: int) -> None:
        target = self.world.open(self, name)
        if target is not None:
            self.world.send(self, target, target.heard_vote, self.name, vote, parts)
        elif tries > 1:
            self.later(self.world.gone_ms(), self.push, name, vote, parts, tries - 1)

    def told(self, roster: str, asker: "Peer") -> None:
        """Whose votes have won, or will have: that is what `asker` would hear, for not all others can dial it."""
        meeting = self.meeting(roster, self.told, roster, asker)
        if meeting is None or asker.name not in meeting.members:
            return
        if meeting.won is None:
            meeting.listening.append(asker)
            return
        for voter, (vote, parts) in list(meeting.ballots.items()):
            if vote == meeting.won:
                self.world.send(self, asker, asker.heard_vote, voter, vote, parts)

    def heard_vote(self, voter: str, vote: Vote, parts: tuple[Part, ...]) -> None:
        meeting = self.meeting(vote.roster, self.heard_vote, voter, vote, parts)
        if meeting is None or voter not in meeting.members or not self.world.ledger.sound(vote):
            return
        if len(parts) != len(meeting.reducers) or root_of(parts) != vote.root:
            return
        self.spark()
        held = meeting.ballots.setdefault(voter, (vote, parts))
        if held[0] != vote:
            self.world.ledger.refused["two_votes"] += 1
        work = self.work
        if work is not None and work.meeting is meeting and work.settling:
            self.repair(work)
            self.count(work)

    def count(self, work: Work) -> None:
        meeting = work.meeting
        if self.work is not work or work.vote is None or meeting is None or self.member.state is not State.SETTLING:
            return
        ballots = {name: vote for name, (vote, _) in meeting.ballots.items()}
        if not self.world.rules.members and len(ballots) <= len(meeting.members) // 3:
            return
        won = settling.decided(ballots, meeting.roster, self.world.rules.members, work.present)
        if won is None and len(ballots) < len(meeting.members):
            return
        meeting.won, listening, meeting.listening = won, meeting.listening, []
        for asker in listening:
            self.told(meeting.digest, asker)
        if won != work.vote:
            self.unsettled(work, "outvoted" if won else "no_majority")
            return
        work.certificate = [name for name, (vote, _) in meeting.ballots.items() if vote == won]
        self.stage_ends(work, Settled(work.number))

    # Committing: Averaging.commit and Keeper.commit.

    def commit(self) -> None:
        work = self.work
        assert work is not None
        self.later(int(self.world.random() * self.write_ms), self.write, work)

    def write(self, work: Work) -> None:
        meeting, vote = work.meeting, work.vote
        assert meeting is not None
        assert vote is not None
        if self.disk_full:
            self.stage_ends(work, Failed(work.number, "disk_full"))
            return
        parts, body = meeting.ballots[self.name][1], vote.to_body()
        votes = tuple(signed("vote", body, name) for name in work.certificate)
        entry = Entry(vote, meeting.roster, tuple(made for made, _ in parts), (1,) * len(parts), votes)
        self.keep(entry, own=True)
        self.world.ledger.committed(self, work, entry, computed(entry))
        self.spark()
        self.later(int(self.world.random() * self.write_ms), self.put, work, entry.tip)

    def put(self, work: Work, tip: Tip) -> None:
        self.moved(tip)
        self.stage_ends(work, Committed(work.number, tip))

    def keep(self, entry: Entry, *, own: bool = False) -> None:
        """The entry is on disk: from here on no crash undoes it. `own`: it is what we computed ourselves, rightly or not."""
        self.world.ledger.adopted(self, entry)
        if self.disk.tip is None or not goes_on(entry, self.disk.tip, self.disk.last_round) or not (own or computed(entry)):
            self.world.ledger.broken(
                "log torn", f"{self.label} writes an entry that does not follow {self.disk.tip and short(self.disk.tip)}"
            )
        self.disk.entries.append(entry)

    # Catching up: Session._catch_up and Keeper.catch_up.

    def resume(self, work: Generator[Question, Any, None], answer: Any) -> None:
        """Go on with `work` until it asks a donor, and come back with what the donor says."""
        try:
            question = work.send(answer)
        except StopIteration:
            return
        self.spark()
        donor, verb, what = question
        target = self.world.open(self, donor)
        if target is None:
            self.later(patience_ms(verb, self.world.gone_ms()), self.resume, work, None)
        else:
            self.later(self.world.delay_ms(), self.reached, work, target, target.life, verb, what)

    def reached(self, work: Generator[Question, Any, None], donor: "Peer", life: int, verb: str, what: Any) -> None:
        """Our question is at the donor. The answer takes its time, and the donor may die over it."""
        wait_ms, answer = donor.serve(verb, what) if self.world.whole(self, donor) and donor.life == life else (SILENT_MS, None)
        if answer is None:
            wait_ms = patience_ms(verb, wait_ms)
        if verb in ("entry", "snapshot"):
            wait_ms += int(self.fetch_ms * (0.5 + self.world.random()))
        wait_ms += self.world.delay_ms()
        self.later(wait_ms, self.drawn, work, donor, life, answer)

    def drawn(self, work: Generator[Question, Any, None], donor: "Peer", life: int, answer: Any) -> None:
        self.resume(work, answer if self.world.whole(self, donor) and donor.life == life else None)

    def serve(self, verb: str, what: Any) -> tuple[int, Any]:
        """(ms until it is said, what we answer); None: we do not have it."""
        if verb == "part":
            roster, place = what
            meeting = self.meetings.get(roster)
            return 0, meeting.parts.get(place) if meeting else None
        if verb in ("entry", "proof"):
            entry = self.disk.entry(what)
            return 0, self.world.ledger.bytes_of(entry) if entry else None
        assert verb == "snapshot"
        tip = self.disk.snapshot()
        proof = self.disk.entry(tip.height) if tip else None
        return 0, (tip, self.world.ledger.bytes_of(proof) if proof else b"") if tip else None

    def parsed(self, data: bytes | None) -> Entry | None:
        """A certified entry, not of a round that is yet to come: such a one could never be followed."""
        entry = self.world.ledger.parsed(data) if data else None
        return entry if entry is not None and entry.vote.round <= SCHEDULE.round_at(self.clock()) + 1 else None

    def caught_up(self, target: Tip, donors: tuple[str, ...]) -> Generator[Question, Any, None]:
        before = self.tip
        good = yield from self.catch_up(target, donors)
        for peer in donors:
            if good:
                self.doubts.pop(peer, None)
            else:
                self.doubt(peer)
        if self.tip is None or (not good and self.tip == before):
            self.feed(CatchUpFailed("no_donor"))
            self.feed(PeersSeen(self.seen()))
        else:
            self.feed(BaseLoaded(self.tip))

    def catch_up(self, target: Tip, donors: tuple[str, ...]) -> Generator[Question, Any, bool]:
        beyond: Tip | None = None
        there = yield from self.replay(target, donors)
        if there is None:  # nobody had an entry
            there, beyond = False, self.tip
        if there or (self.tip is not None and not target.better_than(self.tip)):
            return True
        if beyond is None and (yield from self.change_branch(target, donors)):
            return True
        if not (yield from self.fetch_snapshot(target, donors, beyond)):
            return False
        return bool((yield from self.replay(target, donors)))

    def entry(self, able: list[str], height: int, target: Tip) -> Generator[Question, Any, tuple[str, Entry] | None]:
        """(who has it, what it is). As in a Draw, who fails is out: taken from `able`."""
        while able:
            data = yield able[0], "entry", height
            entry = self.parsed(data)
            if entry is not None and entry.vote.height == height and (height < target.height or entry.tip == target):
                return able[0], entry
            del able[0]
        return None

    def replay(self, target: Tip, donors: Sequence[str]) -> Generator[Question, Any, bool | None]:
        """None: nobody had an entry that goes on from our base, or from another one. False: somebody's log is of another branch."""
        able, parted = list(donors), False
        while self.tip is not None and self.tip.height < target.height:
            found = yield from self.entry(able, self.tip.height + 1, target)
            if found is None:
                return False if parted else None
            donor, entry = found
            if not follows(entry, self.tip, self.disk.last_round):
                parted |= entry.vote.before != self.tip.base
                able.remove(donor)
                continue
            self.keep(entry)
            self.spark()
            self.moved(entry.tip)
        return self.tip == target

    def change_branch(self, target: Tip, donors: tuple[str, ...]) -> Generator[Question, Any, bool]:
        """Theirs from where both parted, aside; ours is given up once all of theirs is here."""
        if self.tip is None or target.height - self.tip.height > BRANCH:
            return False
        aside: Tip | None = None
        able, last_round, taken = list(donors), -1, list[Entry]()
        for height in range(max(1, self.tip.height - BRANCH), target.height + 1):
            found = yield from self.entry(able, height, target)
            if found is None:
                return False
            _, entry = found
            if aside is None:
                own = self.disk.entry(height)
                if own is not None and own.tip == entry.tip:
                    last_round = own.vote.round
                    continue
                aside = self.disk.tip_at(height - 1)
            if aside is None or not follows(entry, aside, last_round):
                return False
            aside, last_round = entry.tip, entry.vote.round
            taken.append(entry)
        if aside != target or not target.better_than(self.tip):
            return False
        self.gives_up(target)
        self.disk.go_back(taken[0].vote.height - 1)
        for entry in taken:
            self.spark()
            self.keep(entry)
        self.spark()
        self.moved(target)
        return True

    def gives_up(self, target: Tip) -> None:
        """Our own branch, for a better one whose certificate we have seen."""
        if target in self.proven:
            self.gave_up_for = target

    def fetch_snapshot(self, target: Tip, donors: tuple[str, ...], beyond: Tip | None) -> Generator[Question, Any, bool]:
        for donor in donors:
            found = yield donor, "snapshot", None
            if found is None:
                continue
            tip, data = found
            proof = self.parsed(data)
            if (tip != GENESIS) if tip.height == 0 else (proof is None or proof.tip != tip):
                continue
            if beyond is not None and not tip.better_than(beyond):
                continue
            if (yield donor, "snapshot", None) is None:  # the pieces
                continue
            self.spark()
            self.gives_up(target)
            if proof is not None:
                self.world.ledger.adopted(self, proof)
            self.disk = Disk(tip, proof)
            self.spark()
            self.moved(tip)
            return True
        return False


def patience_ms(verb: str, silent_ms: int) -> int:
    """How long a donor that says nothing holds up a catch-up: of entries, an idle donor is asked as well when one is slow (Draw)."""
    return min(silent_ms, SLOW_MS) if verb == "entry" else silent_ms


def short(tip: Tip) -> str:
    return f"{tip.height}/{tip.weight}/{tip.base[:6]}"


@lru_cache(4096)
def root_of(parts: tuple[Part, ...]) -> str:
    return merkle([made for made, _ in parts])


def step(before: str, root: str) -> str:
    """The base that a root leads to: the same for all who compute rightly."""
    return sha256(f"{before} {root}".encode()).hexdigest()


def part_of(meeting: Meeting, place: int, offers: set[str], salt: str = "") -> Part:
    inside = tuple(at for at, name in enumerate(meeting.members) if name in offers)
    return digest(f"{meeting.digest} {place} {inside} {salt}".encode()), inside


def covered(meeting: Meeting, sizes: Sequence[int], contributors: Sequence[Sequence[int]]) -> int:
    return coverage_ppm(sizes, contributors, meeting.roster.owners)


def roster_of(round: int, before: str, members: list[str], claims: list[Claim]) -> Roster:
    return Roster(RUN, round, round % FRAGMENTS, before, tuple(members), tuple(claims))


def follows(entry: Entry, tip: Tip, last_round: int) -> bool:
    """What Keeper asks of an entry that others made before it takes it: by the production function, and by its arithmetic."""
    try:
        lineage.follow(tip, entry, AVERAGING, last_round=last_round)
    except Refused:
        return False
    return computed(entry)


def computed(entry: Entry) -> bool:
    """The arithmetic: these parts lead from the base before to the base after."""
    return entry.vote.after == step(entry.vote.before, merkle(entry.parts))
