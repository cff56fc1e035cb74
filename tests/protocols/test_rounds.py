"""The machine: transcripts, every (state, event) cell decided, and invariants under any sequence of events."""

from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols.lineage import Tip
from protocols.rounds import (
    IN_ROUND,
    MOVES,
    Announce,
    BaseLoaded,
    CatchUp,
    CatchUpFailed,
    Commit,
    Committed,
    Discard,
    Event,
    Failed,
    Gather,
    Haste,
    Held,
    Hindered,
    LeaveAsked,
    Member,
    PeersSeen,
    Reduce,
    Reduced,
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
from tests.protocols.transcript import read_event, roster, tip, write

TRANSCRIPTS = sorted((Path(protocols.__file__).parent / "vectors" / "rounds").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    assert write(text) == text


def test_there_is_a_transcript_of_each_story() -> None:
    assert {path.stem for path in TRANSCRIPTS} >= {
        "normal_round", "no_peers", "slow_step", "failed_gather", "discard_then_catch_up", "pause", "pause_while_committing", "leave",
        "trainer_lost", "hindered", "held", "finish", "late_wake_up", "before_the_origin", "clock_set_back",
    }  # fmt: skip
    reached = {
        word for path in TRANSCRIPTS for line in path.read_text().splitlines() if "→" in line for word in line.split("→")[1].split()[:1]
    }
    assert reached == {state.value for state in State}


# Every cell.

EVENTS: dict[type, list[Event]] = {
    Tick: [Tick()], PeersSeen: [PeersSeen(()), PeersSeen((Seen("ann", tip("9"), True),))], BaseLoaded: [BaseLoaded(tip("9"))],
    CatchUpFailed: [CatchUpFailed("no_donor")], TrainerUp: [TrainerUp()], TrainerDown: [TrainerDown()],
    Hindered: [Hindered(("clock",)), Hindered(())], Trained: [Trained(0), Trained(1)], Rostered: [Rostered(roster(0)), Rostered(roster(1))],
    Reduced: [Reduced(0), Reduced(1)], Settled: [Settled(0), Settled(1)], Committed: [Committed(0, tip("9"))],
    Failed: [Failed(0, "x"), Failed(1, "x")], Held: [Held(()), *(Held(("battery",), haste) for haste in Haste)],
    LeaveAsked: [LeaveAsked()],
}  # fmt: skip

WAYS = {
    State.JOINING: [], State.SYNCING: ["PeersSeen ann@4"], State.TRAINING: ["BaseLoaded 3", "TrainerUp", "PeersSeen ann@3"],
    State.PAUSED: ["Held now user"], State.LEFT: ["LeaveAsked"],
}  # fmt: skip
_ROUND = ["Tick", "Trained 0", "Rostered 0", "Reduced 0", "Settled 0"]
WAYS.update({state: WAYS[State.TRAINING] + _ROUND[: at + 1] for at, state in enumerate(IN_ROUND)})

KEPT: dict[type, set[str]] = {
    TrainerUp: {"trainer", "stepping"}, TrainerDown: {"trainer", "stepping"}, PeersSeen: {"peers"}, Hindered: {"hindrances"},
    BaseLoaded: {"fetching"}, CatchUpFailed: {"fetching"}, Held: {"held"},
}  # fmt: skip
"""What an event leaves behind in states that do not answer it."""


def member_in(state: State) -> Member:
    member = Member(Schedule(0, 1000, 600), 2)
    for words in WAYS[state]:
        member.handle(read_event(words), 1000 if words in _ROUND else 0)
    assert member.state is state
    return member


def test_the_events_are_all_there_are() -> None:
    assert set(EVENTS) == set(Event.__args__)  # type: ignore[attr-defined]
    assert {kind for _, kind in MOVES} <= set(EVENTS)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("now_ms", [0, 1000, 1599, 1600, 10**9])
def test_every_cell_is_decided(state: State, kind: type, now_ms: int) -> None:
    for event in EVENTS[kind]:
        member = member_in(state)
        before = deepcopy(vars(member))
        effects = member.handle(event, now_ms)
        changed = {name for name, value in vars(member).items() if value != before[name]}
        if (state, kind) not in MOVES:
            assert effects == []
            assert changed <= KEPT.get(kind, set())
        if "state" in changed or "tip" in changed:
            assert effects[-1] == Announce()
        else:
            assert Announce() not in effects


def test_left_is_the_end() -> None:
    assert not [state for state, _ in MOVES if state is State.LEFT]


# Any sequence.

ROUNDS = st.sampled_from(["this", "this", "this", "next", "last"])
STAGES = st.sampled_from([Trained, Rostered, Reduced, Settled, Failed])
TIPS = st.builds(lambda height, other: tip(f"{height}{'x' * other}"), st.integers(0, 6), st.booleans())
PEERS = st.lists(st.builds(Seen, st.sampled_from(["ann", "bo", "cyd"]), st.none() | TIPS, st.booleans()), max_size=3).map(tuple)
SAID: st.SearchStrategy[object] = st.one_of(
    st.just(Tick()), st.just(Tick()), st.builds(PeersSeen, PEERS), st.just(PeersSeen((Seen("ann", None, True),))),
    st.builds(BaseLoaded, TIPS), st.just(CatchUpFailed("no_donor")), st.just(TrainerUp()), st.just(TrainerUp()), st.just(TrainerDown()),
    st.builds(Hindered, st.sampled_from([(), (), ("clock",)])), st.tuples(STAGES, ROUNDS), st.tuples(STAGES, ROUNDS),
    st.tuples(st.just(Committed), ROUNDS),
    st.just(Held(())), st.builds(Held, st.sampled_from([(), (), ("user",), ("battery", "schedule")]), st.sampled_from(Haste)),
)  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from([0, 1, 50, 300, 600, 1000, 1700, 10_000, -2000]), SAID), max_size=60)
START: list[tuple[int, object]] = [(0, BaseLoaded(tip("3"))), (0, TrainerUp()), (0, PeersSeen((Seen("ann", tip("3"), True),)))]


class Watch:
    """A Member, and what must be true of it whatever happens."""

    def __init__(self) -> None:
        self.schedule = Schedule(1000, 1000, 600)
        self.member = Member(self.schedule, 2)
        self.now = 0
        self.flight: int | None = None
        self.stage: type = Discard
        self.settled: int | None = None
        self.held: Held = Held(())
        self.left = False
        self.unanswered = False

    def say(self, said: object) -> Event:
        if not isinstance(said, tuple):
            return said  # type: ignore[return-value]
        kind, which = said
        round = max(0, self.member.round) + {"this": 0, "next": 1, "last": -1}[which]
        height = self.member.tip.height + 1 if self.member.tip else 1
        more = {Rostered: (roster(round),), Failed: (round, "x"), Committed: (round, tip(str(height)))}
        return kind(*more.get(kind, (round,)))  # type: ignore[no-any-return]

    def step(self, said: object) -> None:
        member, event = self.member, self.say(said)
        was, tip_was = member.state, member.tip
        if isinstance(event, BaseLoaded | CatchUpFailed):
            self.unanswered = False
        if isinstance(event, Held):
            self.held = event
        if isinstance(event, LeaveAsked):
            self.left = True
        if isinstance(event, Settled) and was is State.SETTLING and event.round == member.round:
            self.settled = event.round
        effects = member.handle(event, self.now)
        if was is State.COMMITTING and isinstance(event, Committed):
            self.flight = None
        for effect in effects:
            self.judge(effect)
        assert (member.tip == tip_was) or isinstance(event, BaseLoaded | Committed)
        assert (self.flight is not None) == (member.state in IN_ROUND)
        assert (Announce() in effects) == ((member.state, member.tip) != (was, tip_was))
        assert not (was is State.COMMITTING and member.state is not was) or isinstance(event, Committed | Failed)
        if self.held.reasons:
            spared = {Haste.NOW: (State.COMMITTING,), Haste.STEPS: IN_ROUND, Haste.ROUND: (State.TRAINING, *IN_ROUND)}[self.held.haste]
            assert member.state in (*spared, State.PAUSED, State.LEFT)
            assert not member.stepping or member.state is State.TRAINING
        else:
            assert member.state is not State.PAUSED
        if self.left and member.state is not State.COMMITTING:
            assert member.state is State.LEFT
        if member.state is State.TRAINING:
            assert member.tip is not None
            assert member.trainer
            assert member.wake_ms == self.schedule.boundary(member.round)
        if member.state in IN_ROUND[:-1]:
            assert member.wake_ms == self.schedule.deadline(member.round)
        assert isinstance(member.reasons, tuple)

    def judge(self, effect: object) -> None:
        member = self.member
        match effect:
            case Train(round):
                assert (self.left, self.held.reasons, self.unanswered) == (False, (), False)
                assert self.flight is None
                assert round >= 0
                assert self.now < self.schedule.boundary(round)
            case Stop(round):
                assert self.flight is None
                self.flight, self.stage, self.settled = round, Stop, None
            case Gather(round) | Settle(round) | Commit(round):
                assert self.flight == round
                assert self.stage is {Gather: Stop, Settle: Reduce, Commit: Settle}[type(effect)]
                if isinstance(effect, Commit):
                    assert self.settled == round
                self.stage = type(effect)
            case Reduce(of):
                assert self.flight == of.round
                assert self.stage is Gather
                self.stage = Reduce
            case Discard(round, reason):
                assert reason
                assert self.flight in (round, None)
                self.flight = None
            case CatchUp(to, donors):
                assert not self.unanswered
                assert donors
                assert member.tip is None or to.better_than(member.tip)
                assert {peer.tip for peer in member.peers if peer.peer in donors} >= {to}
                self.unanswered = True


@settings(max_examples=400)
@given(STEPS, st.booleans())
def test_invariants_hold_for_any_sequence(steps: list[tuple[int, object]], leaves: bool) -> None:
    watch = Watch()
    for wait, said in [*START, *steps]:
        watch.now += wait
        watch.step(said)
    if leaves:
        watch.step(LeaveAsked())
        if watch.member.state is State.COMMITTING:
            watch.step((Committed, "this"))
        assert watch.member.state is State.LEFT
        for _, said in steps:
            watch.step(said)


@settings(max_examples=200)
@given(st.lists(SAID, max_size=20), st.integers(0, 10_000))
def test_whatever_happened_it_comes_back_to_training(steps: list[object], now_ms: int) -> None:
    """Once faults stop: trainer up, company on our base, nothing hinders, no pause."""
    watch = Watch()
    watch.now = now_ms
    for said in steps:
        watch.step(said)
    if watch.member.state is State.COMMITTING:
        watch.step((Failed, "this"))
    watch.now += 1_000_000
    for said in (
        PeersSeen(()),
        BaseLoaded(tip("9")),
        TrainerUp(),
        Hindered(()),
        Held(()),
        PeersSeen((Seen("ann", tip("9"), True),)),
        Tick(),
    ):
        watch.step(said)
    if watch.member.state is State.SYNCING:
        watch.step(BaseLoaded(tip("9")))
    watch.step(Tick())
    assert watch.member.state is State.TRAINING, watch.member.reasons


def test_between_two_rosters_of_one_round_the_first_counts() -> None:
    member = member_in(State.GATHERING)
    assert isinstance(member.handle(Rostered(roster(0)), 1100)[0], Reduce)
    assert member.handle(Rostered(roster(0)), 1110) == []


def test_the_best_lineage_and_all_who_have_it() -> None:
    member = member_in(State.JOINING)
    peers = tuple(Seen(name, at, True) for name, at in (("a", tip("4")), ("b", tip("5x")), ("c", tip("5")), ("d", None), ("e", tip("5x"))))
    assert CatchUp(tip("5x"), ("b", "e")) in member.handle(PeersSeen(peers), 0)
    heavier = Tip(2, 100, "ff" * 32)
    assert CatchUp(heavier, ("f",)) in member_in(State.TRAINING).handle(PeersSeen((*peers, Seen("f", heavier, False))), 0)


def test_whoever_has_no_delta_in_time_again_and_again_is_not_counted_on() -> None:
    """Its step did not end, or what it made may not leave. One that has is at once."""
    member = member_in(State.STOPPING)
    counted = []
    for round, (said, at_ms) in enumerate([(Tick(), 1600), (Failed(1, "withheld"), 2700), (Tick(), 4800), (Trained(3), 5900)]):
        assert member.state is State.STOPPING
        member.handle(said, at_ms)
        counted.append(member.counts)
        member.handle(Tick(), member.schedule.boundary(round + 1))
    assert counted == [True, False, False, True]


@pytest.mark.parametrize("event", [PeersSeen(()), Held(("battery",))])
def test_whoever_rests_is_counted_on_when_it_comes_back(event: Event) -> None:
    """Else two that were slow for a while would wait for one another, and neither have company."""
    member = member_in(State.STOPPING)
    member.handle(Tick(), 1600)
    member.handle(Tick(), 2600)
    member.handle(Tick(), 3200)
    assert (member.state, member.counts) == (State.TRAINING, False)
    member.handle(event, 3300)
    member.handle(Tick(), 4200)
    assert member.state in (State.JOINING, State.PAUSED)
    assert member.counts
