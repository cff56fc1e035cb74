"""One peer's part in the rounds: events in, effects out. Owns no clock, no socket, no tensor and no task.

`Member.handle(event, now_ms)` returns the effects to perform; `MOVES` says which events each state answers, and is
the law: whatever is not in it is late news and is dropped. The daemon performs effects and feeds back what came of
them. Only a Commit changes the base; every discard carries a reason. The states and moves are drawn in rounds.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from protocols.grouping import Roster
from protocols.lineage import Tip
from protocols.schedule import Schedule


class State(Enum):
    JOINING = "joining"
    """Not training: no base, no trainer, or not enough peers. `Member.reasons` says which."""
    SYNCING = "syncing"
    """Fetching what is missing of a better lineage. Local steps, once begun, go on."""
    TRAINING = "training"
    STOPPING = "stopping"
    """The boundary has come; the trainer ends its step and writes the delta."""
    GATHERING = "gathering"
    REDUCING = "reducing"
    SETTLING = "settling"
    COMMITTING = "committing"
    """Writing entry and base. Not interrupted by anything: a pause or a leave takes effect behind it."""
    PAUSED = "paused"
    LEFT = "left"


IN_ROUND = (State.STOPPING, State.GATHERING, State.REDUCING, State.SETTLING, State.COMMITTING)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a live presence record of another peer says. `tip`: only one that is proven (lineage.md); else None."""

    peer: str
    tip: Tip | None
    active: bool


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Tick:
    """The time may have come for something; `Member.wake_ms` says when to send one."""


@dataclass(frozen=True, slots=True)
class PeersSeen:
    """All other peers with a live presence, each time anew."""

    peers: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class BaseLoaded:
    """A base is in memory: from disk at start, or a catch-up got this far."""

    tip: Tip


@dataclass(frozen=True, slots=True)
class CatchUpFailed:
    reason: str


@dataclass(frozen=True, slots=True)
class TrainerUp:
    """The trainer holds the base and waits for orders."""


@dataclass(frozen=True, slots=True)
class TrainerDown:
    pass


@dataclass(frozen=True, slots=True)
class Hindered:
    """What on this machine forbids averaging now (clock, not_delegated, twin), each time anew; empty: nothing."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """The delta of `round` is in memory."""

    round: int


@dataclass(frozen=True, slots=True)
class Rostered:
    roster: Roster


@dataclass(frozen=True, slots=True)
class Reduced:
    """Parts have been exchanged; those that are missing can still be fetched while settling."""

    round: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A quorum voted for the result that we hold."""

    round: int


@dataclass(frozen=True, slots=True)
class Committed:
    round: int
    tip: Tip


@dataclass(frozen=True, slots=True)
class Failed:
    """A stage of `round` came to nothing."""

    round: int
    reason: str


class Haste(Enum):
    """What of the work in hand still goes on when something holds us."""

    NOW = "now"
    """Nothing: the round in hand is dropped."""
    STEPS = "steps"
    """Local steps end; a round that is being averaged, which takes no more of them, goes on to its end."""
    ROUND = "round"
    """The round in hand, local steps and all."""


@dataclass(frozen=True, slots=True)
class Held:
    """Why not to train, as the operator and this machine's policy have it, each time anew; empty: train."""

    reasons: tuple[str, ...]
    haste: Haste = Haste.NOW


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    pass


Event = (
    Tick | PeersSeen | BaseLoaded | CatchUpFailed | TrainerUp | TrainerDown | Hindered | Trained | Rostered | Reduced | Settled | Committed
    | Failed | Held | LeaveAsked
)  # fmt: skip

# Effects: what to do.


@dataclass(frozen=True, slots=True)
class Train:
    """Take local steps for `round` until Stop. Sent again with a later round, it goes on."""

    round: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End local steps and write the delta; answered by Trained."""

    round: int


@dataclass(frozen=True, slots=True)
class Rest:
    """No local steps until Train; no delta is wanted."""


@dataclass(frozen=True, slots=True)
class Gather:
    round: int


@dataclass(frozen=True, slots=True)
class Reduce:
    roster: Roster


@dataclass(frozen=True, slots=True)
class Settle:
    round: int


@dataclass(frozen=True, slots=True)
class Commit:
    round: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop all work of `round`; the base stays, the delta is carried into the fragment's next turn."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Bring the base to `tip`, from any of `donors`."""

    tip: Tip
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announce:
    """State or base changed: publish a presence now."""


Effect = Train | Stop | Rest | Gather | Reduce | Settle | Commit | Discard | CatchUp | Announce


class Member:
    """The machine. Invariant: `round` is the round that local steps count for; outside IN_ROUND its boundary is ahead
    or has just passed; `tip` changes only by BaseLoaded and Committed."""

    def __init__(self, schedule: Schedule, min_peers: int) -> None:
        self.schedule = schedule
        self.min_peers = min_peers
        self.state = State.JOINING
        self.round = -1
        self.begun = -1
        """The latest round that we may have voted in. Never again, even if the clock is set back: nobody votes twice in a round."""
        self.tip: Tip | None = None
        self.peers: tuple[Seen, ...] = ()
        self.trainer = False
        self.stepping = False
        self.hindrances: tuple[str, ...] = ()
        self.held: tuple[str, ...] = ()
        self.leaving = False
        self.fetching = False
        """A CatchUp has not been answered yet: until then the base may move under our feet, so nothing is trained on it."""
        self.trouble = ""
        """Why the last catch-up failed, while that matters."""
        self.empty_handed = 0
        """Rounds in a row that we had no delta for in time: our steps take too long, or what they made may not leave."""

    @property
    def counts(self) -> bool:
        """Whether others are to count on us, and so need our vote for a quorum of those at hand. Behind one slow step still: who comes back
        uncounted may be of a second crowd. Behind two not: a third of the peers, too slow, would keep all from committing."""
        return self.empty_handed < 2

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that keeps us from training now, as the words of the control API."""
        if self.state is State.LEFT:
            return ("user",)
        if self.state is State.PAUSED:
            return self.held
        if self.state not in (State.JOINING, State.SYNCING):
            return ()
        found = []
        if self.tip is None:
            found.append("no_base")
        if not self._company():
            found.append("no_peers")
        if self.tip is not None and not self.trainer:
            found.append("trainer")
        if self.state is State.SYNCING:
            found.append("behind")
        found += self.hindrances
        if self.trouble:
            found.append(self.trouble)
        return tuple(found)

    @property
    def wake_ms(self) -> int | None:
        """When the next Tick is due; None: only events move us."""
        if self.state is State.TRAINING:
            return self.schedule.boundary(self.round)
        if self.state is State.STOPPING or self.state in (State.GATHERING, State.REDUCING, State.SETTLING):
            return self.schedule.deadline(self.round)
        return None

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """The effects of `event` at swarm time `now_ms`, in order. News that the state does not answer changes nothing."""
        before = (self.state, self.tip)
        if isinstance(event, TrainerUp | TrainerDown):
            self.trainer = isinstance(event, TrainerUp)
            self.stepping = False
        if isinstance(event, BaseLoaded | CatchUpFailed):
            self.fetching = False
        if isinstance(event, PeersSeen):
            self.peers = event.peers
        if isinstance(event, Hindered):
            self.hindrances = event.reasons
        if isinstance(event, Held):
            self.held = event.reasons
        move = MOVES.get((self.state, type(event)))
        effects = move(self, event, now_ms) if move else []
        if (self.state, self.tip) != before:
            effects.append(Announce())
        return effects

    # Questions.

    def _company(self) -> bool:
        return 1 + sum(peer.active for peer in self.peers) >= self.min_peers

    def _better(self) -> CatchUp | None:
        """The best lineage that others have, if it is better than ours, and who has it."""
        tips = [peer.tip for peer in self.peers if peer.tip and (self.tip is None or peer.tip.better_than(self.tip))]
        if not tips:
            return None
        best = tips[0]
        for tip in tips:
            if tip.better_than(best):
                best = tip
        return CatchUp(best, tuple(peer.peer for peer in self.peers if peer.tip == best))

    # Moves. Each answers one event in some states; `_settle_down` chooses the state between rounds.

    def _settle_down(self, now_ms: int) -> list[Effect]:
        """Between rounds: leave, pause, catch up, train or wait, in this order of precedence."""
        if self.leaving:
            return self._to(State.LEFT)
        if self.held:
            return self._to(State.PAUSED)
        better = self._better()
        if self.fetching or better:
            self.state = State.SYNCING
            asked: list[Effect] = [better] if better and not self.fetching else []
            self.fetching = True
            return asked
        self.trouble = ""
        if self.tip is None or not self.trainer or self.hindrances or not self._company():
            return self._to(State.JOINING)
        round = self.schedule.round_at(now_ms)
        self.round = max(0, self.begun + 1, round if now_ms < self.schedule.boundary(round) else round + 1)
        self.state, self.stepping = State.TRAINING, True
        return [Train(self.round)]

    def _discard(self, reason: str, now_ms: int) -> list[Effect]:
        self.empty_handed += self.state is State.STOPPING
        return [Discard(self.round, reason), *self._settle_down(now_ms)]

    def _to(self, resting: State) -> list[Effect]:
        stepping, self.state, self.stepping, self.empty_handed = self.stepping, resting, False, 0
        return [Rest()] if stepping else []

    def _look(self, event: Event, now_ms: int) -> list[Effect]:
        """JOINING: something changed; see where that leaves us."""
        return self._settle_down(now_ms)

    def _loaded(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, BaseLoaded)
        self.tip = event.tip
        return self._settle_down(now_ms)

    def _not_caught_up(self, event: Event, now_ms: int) -> list[Effect]:
        """Wait in JOINING for the next PeersSeen, which names whoever is there to ask by then."""
        assert isinstance(event, CatchUpFailed)
        self.trouble = event.reason
        return self._to(State.JOINING)

    def _train_on(self, event: Event, now_ms: int) -> list[Effect]:
        """TRAINING: others may have got further than we, or have gone, or our clock was ahead and is right again."""
        if self._better() or not self.trainer or self.round > self.schedule.round_at(now_ms) + 1:
            return self._settle_down(now_ms)
        return []

    def _boundary(self, event: Event, now_ms: int) -> list[Effect]:
        if now_ms < self.schedule.boundary(self.round):
            return []
        if now_ms >= self.schedule.deadline(self.round):
            return self._discard("late", now_ms)
        if self.hindrances or not self._company():
            return self._discard(self.hindrances[0] if self.hindrances else "no_peers", now_ms)
        self.state, self.stepping = State.STOPPING, False
        return [Stop(self.round)]

    def _trained(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Trained)
        if event.round != self.round:
            return []
        self.state, self.empty_handed = State.GATHERING, 0
        return [Gather(self.round)]

    def _rostered(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Rostered)
        if event.roster.round != self.round:
            return []
        self.state = State.REDUCING
        return [Reduce(event.roster)]

    def _reduced(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Reduced)
        if event.round != self.round:
            return []
        self.state, self.begun = State.SETTLING, self.round
        return [Settle(self.round)]

    def _settled(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Settled)
        if event.round != self.round:
            return []
        self.state = State.COMMITTING
        return [Commit(self.round)]

    def _committed(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Committed)
        self.tip = event.tip
        return self._settle_down(now_ms)

    def _failed(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Failed)
        return self._discard(event.reason, now_ms) if event.round == self.round else []

    def _deadline(self, event: Event, now_ms: int) -> list[Effect]:
        if now_ms < self.schedule.deadline(self.round):
            return []
        reason = {State.STOPPING: "slow_step", State.GATHERING: "no_roster", State.REDUCING: "slow_reduce"}.get(self.state, "no_majority")
        return self._discard(reason, now_ms)

    def _trainer_lost(self, event: Event, now_ms: int) -> list[Effect]:
        """STOPPING: the delta will not come. Later stages hold it already and go on without the trainer."""
        return self._discard("trainer", now_ms)

    def _hold(self, event: Event, now_ms: int) -> list[Effect]:
        assert isinstance(event, Held)
        if not self.held:
            return self._settle_down(now_ms) if self.state is State.PAUSED else []
        spared = {Haste.NOW: (), Haste.STEPS: IN_ROUND, Haste.ROUND: (State.TRAINING, *IN_ROUND)}[event.haste]
        return [] if self.state in spared else self._interrupt("paused", now_ms)

    def _leave(self, event: Event, now_ms: int) -> list[Effect]:
        self.leaving = True
        return self._interrupt("leaving", now_ms)

    def _interrupt(self, reason: str, now_ms: int) -> list[Effect]:
        if self.state is State.COMMITTING:
            return []
        dropped: list[Effect] = [Discard(self.round, reason)] if self.state in IN_ROUND else []
        return [*dropped, *self._settle_down(now_ms)]


Move = Callable[[Member, Event, int], list[Effect]]

_HERE = tuple(state for state in State if state is not State.LEFT)

MOVES: dict[tuple[State, type[Any]], Move] = {
    (State.JOINING, Tick): Member._look,
    (State.JOINING, PeersSeen): Member._look,
    (State.JOINING, BaseLoaded): Member._loaded,
    (State.JOINING, TrainerUp): Member._look,
    (State.JOINING, Hindered): Member._look,
    (State.SYNCING, BaseLoaded): Member._loaded,
    (State.SYNCING, CatchUpFailed): Member._not_caught_up,
    (State.TRAINING, Tick): Member._boundary,
    (State.TRAINING, PeersSeen): Member._train_on,
    (State.TRAINING, TrainerDown): Member._train_on,
    (State.STOPPING, Tick): Member._deadline,
    (State.STOPPING, Trained): Member._trained,
    (State.STOPPING, TrainerDown): Member._trainer_lost,
    (State.GATHERING, Tick): Member._deadline,
    (State.GATHERING, Rostered): Member._rostered,
    (State.REDUCING, Tick): Member._deadline,
    (State.REDUCING, Reduced): Member._reduced,
    (State.SETTLING, Tick): Member._deadline,
    (State.SETTLING, Settled): Member._settled,
    (State.COMMITTING, Committed): Member._committed,
    (State.PAUSED, BaseLoaded): Member._loaded,
}
MOVES.update({(state, Failed): Member._failed for state in IN_ROUND})
MOVES.update({(state, Held): Member._hold for state in _HERE})
MOVES.update({(state, LeaveAsked): Member._leave for state in _HERE})
