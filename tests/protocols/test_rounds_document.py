"""protocols/rounds.md holds the machine's table and drawing; here both are held against MOVES.

What MOVES cannot say, where a move leads, is found by trying: every move in every situation that its state can be in.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from protocols.grouping import Roster
from protocols.lineage import Tip
from protocols.rounds import (
    IN_ROUND,
    MOVES,
    BaseLoaded,
    CatchUpFailed,
    Committed,
    Event,
    Failed,
    Haste,
    Held,
    Hindered,
    LeaveAsked,
    Member,
    PeersSeen,
    Reduced,
    Rostered,
    Seen,
    Settled,
    State,
    Tick,
    Trained,
    TrainerDown,
    TrainerUp,
)  # fmt: skip
from protocols.schedule import Schedule
from tests.people import BLANK

DOCUMENT = (Path(__file__).parents[2] / "protocols" / "rounds.md").read_text()

SCHEDULE = Schedule(0, 1000, 600)
ROUND = 5
HERE = Tip(3, 6, "8" * 64)
PEERS = ((), (Seen("one", HERE, True),), (Seen("one", Tip(4, 8, "9" * 64), True),))
TIMES = (SCHEDULE.start(ROUND) + 1, SCHEDULE.boundary(ROUND) + 1, SCHEDULE.deadline(ROUND) + 1)
ROSTER = Roster("a" * 64, ROUND, 1, HERE.base, ("one", "two"), (BLANK, BLANK))
EVENTS: tuple[Event, ...] = (
    Tick(), *map(PeersSeen, PEERS), BaseLoaded(HERE), CatchUpFailed("no_donor"), TrainerUp(), TrainerDown(), Hindered(()),
    Hindered(("clock",)), Trained(ROUND), Rostered(ROSTER), Reduced(ROUND), Settled(ROUND), Committed(ROUND, replace(HERE, height=4)),
    Failed(ROUND, "no_roster"), Held(()), *(Held(("battery",), haste) for haste in Haste), LeaveAsked(),
)  # fmt: skip
BETWEEN = {State.JOINING, State.SYNCING, State.TRAINING, State.PAUSED, State.LEFT}


def members(state: State) -> Iterator[Member]:
    """A Member in every situation of `state` that its moves can bring it into."""
    based = (True, False) if state in (State.JOINING, State.SYNCING, State.PAUSED) else (True,)
    asked: tuple[tuple[bool, tuple[str, ...]], ...] = ((False, ()),)
    if state in (State.TRAINING, *IN_ROUND):
        asked = ((False, ()), (False, ("user",)))
    if state is State.COMMITTING:
        asked += ((True, ()),)
    if state is State.PAUSED:
        asked = ((False, ("user",)),)
    for base, trainer, hindrances, peers, (leaving, held) in product(based, (True, False), ((), ("clock",)), PEERS, asked):
        member = Member(SCHEDULE, 2)
        member.state, member.round, member.tip, member.trainer = state, ROUND, HERE if base else None, trainer
        member.peers, member.hindrances, member.leaving, member.held = peers, hindrances, leaving, held
        yield member


def reached(state: State, kind: type[object]) -> set[State]:
    """Every state that an event of `kind` can lead to from `state`, itself excepted."""
    found = set()
    for event, now_ms in product((event for event in EVENTS if type(event) is kind), TIMES):
        for member in members(state):
            member.handle(event, now_ms)
            found.add(member.state)
    return found - {state}


def diagram() -> str:
    """The drawing: a move that ends a round, or a rest, leads to `between`, which chooses. What every state answers alike, being
    held and leaving, is left to the text."""
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (state, event), _ in sorted(MOVES.items(), key=lambda item: (list(State).index(item[0][0]), item[0][1].__name__)):
        to = set() if event is LeaveAsked or (event is Held and state is not State.PAUSED) else reached(state, event)
        resting = to & BETWEEN
        targets = [one.value for one in State if one in to - BETWEEN]
        targets += [one.value for one in resting] if len(resting) == 1 else ["between"] if resting else []
        for target in targets:
            edges[state.value, target].append(event.__name__)
    lines = ["stateDiagram-v2", "    state between <<choice>>", "    [*] --> joining"]
    lines += [f"    {start} --> {stop}: {', '.join(events)}" for (start, stop), events in edges.items()]
    lines += [f"    between --> {state.value}" for state in State if state in BETWEEN]
    return "\n".join([*lines, "    left --> [*]"])


def table() -> str:
    """One line an event and move: which states answer it so."""
    rows: dict[tuple[str, str], list[State]] = defaultdict(list)
    for (state, event), move in MOVES.items():
        rows[event.__name__, move.__name__.removeprefix("_")].append(state)
    lines = ["| event | move | answered in |", "|---|---|---|"]
    for (name, does), states in sorted(rows.items()):
        lines.append(f"| {name} | {does} | {', '.join(state.value for state in State if state in states)} |")
    return "\n".join(lines)


def test_the_table_is_moves() -> None:
    found = set()
    written = DOCUMENT.partition("| event | move | answered in |")[2].partition("\n\n")[0]
    for event, move, states in re.findall(r"^\| (\w+) \| (\w+) \| ([a-z, ]+) \|$", written, re.MULTILINE):
        found |= {(state, event, move) for state in states.split(", ")}
    assert found == {(state.value, event.__name__, move.__name__.removeprefix("_")) for (state, event), move in MOVES.items()}
    assert table() in DOCUMENT


def test_the_drawing_is_moves() -> None:
    assert re.findall(r"```mermaid\n(.*?)\n```", DOCUMENT, re.DOTALL) == [diagram()]


def test_every_move_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert explained == {move.__name__.removeprefix("_") for move in MOVES.values()}


def test_every_state_is_reached_and_left_is_final() -> None:
    everywhere = set[State]().union(*(reached(state, event) for state, event in MOVES))
    assert everywhere == set(State)
    assert not any(state is State.LEFT for state, _ in MOVES)
    assert set(IN_ROUND) < set(State)
