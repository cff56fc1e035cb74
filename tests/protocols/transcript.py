"""Transcripts of a Member: protocols/vectors/rounds/*.txt, one event a line, with the state and the effects it led to.

    # what happens here, for people
    schedule origin=0 train=1000 average=600 min_peers=2
    <time>  <event>  → <state>  <effects, comma separated, or -> ; <reasons, if any>

A tip is written as its height; two heights h and h' are two tips of one lineage, "4x" is the other branch's tip of height
4, with a lower digest. A peer is written name@tip, with "-" behind it if it takes part in nothing, name@? if it has no base.
`write` makes the right half from the left one: run `python -m tests.protocols.transcript FILE…` after a change of the law,
and read the difference.
"""

import re
import sys
from pathlib import Path

from protocols.grouping import Roster
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
    Haste,
    Held,
    Hindered,
    LeaveAsked,
    Member,
    PeersSeen,
    Reduce,
    Reduced,
    Rest,
    Rostered,
    Seen,
    Settle,
    Settled,
    Stop,
    Tick,
    Train,
    Trained,
    TrainerDown,
    TrainerUp,
)
from protocols.schedule import Schedule
from tests.people import BLANK

_HEAD = re.compile(r"schedule origin=(\d+) train=(\d+) average=(\d+) min_peers=(\d+)")
_LINE = re.compile(r" *(-?\d+)  (.+?) *→ (.*)")


def tip(text: str) -> Tip:
    height = int(text.removesuffix("x"))
    return Tip(height, 2 * height, ("e" if text.endswith("x") else "f") * 62 + f"{height:02d}")


def say_tip(of: Tip) -> str:
    return f"{of.height}{'x' if of.base[0] == 'e' else ''}"


def roster(round: int) -> Roster:
    return Roster("00" * 32, round, 0, "f" * 64, ("me", "ann"), (BLANK, BLANK))


def read_event(text: str) -> Event:
    """An event from its words. Raises ValueError for anything else."""
    match text.split():
        case ["Tick" | "TrainerUp" | "TrainerDown" | "LeaveAsked" as kind]:
            kinds = (Tick, TrainerUp, TrainerDown, LeaveAsked)
            return {made.__name__: made for made in kinds}[kind]()
        case ["PeersSeen", *peers]:
            return PeersSeen(tuple(_peer(peer) for peer in peers))
        case ["BaseLoaded", at]:
            return BaseLoaded(tip(at))
        case ["CatchUpFailed", reason]:
            return CatchUpFailed(reason)
        case ["Hindered", *reasons]:
            return Hindered(tuple(reasons))
        case ["Rostered", round]:
            return Rostered(roster(int(round)))
        case ["Trained" | "Reduced" | "Settled" as kind, round]:
            return {"Trained": Trained, "Reduced": Reduced, "Settled": Settled}[kind](int(round))
        case ["Committed", round, at]:
            return Committed(int(round), tip(at))
        case ["Failed", round, reason]:
            return Failed(int(round), reason)
        case ["Held", *reasons]:
            return Held(tuple(reasons[1:]), Haste(reasons[0])) if reasons else Held(())
    raise ValueError(f"no event: {text}")


def _peer(text: str) -> Seen:
    name, _, at = text.partition("@")
    found = at.removesuffix("-")
    return Seen(name, None if found == "?" else tip(found), not at.endswith("-"))


def say(effect: Effect) -> str:
    match effect:
        case Train(round) | Stop(round) | Gather(round) | Settle(round) | Commit(round):
            return f"{type(effect).__name__} {round}"
        case Reduce(of):
            return f"Reduce {of.round}"
        case Discard(round, reason):
            return f"Discard {round} {reason}"
        case CatchUp(at, donors):
            return f"CatchUp {say_tip(at)} from {' '.join(donors)}"
        case Rest() | Announce():
            return type(effect).__name__


def write(text: str) -> str:
    """The transcript with its right halves as the Member has them."""
    lines: list[str] = []
    member: Member | None = None
    for line in text.splitlines():
        head = _HEAD.fullmatch(line)
        if head:
            origin, train, average, least = map(int, head.groups())
            member = Member(Schedule(origin, train, average), least)
        moved = _LINE.fullmatch(line)
        if not moved:
            if line and not line.startswith("#") and not head:
                raise ValueError(f"no line of a transcript: {line}")
            lines.append(line)
            continue
        assert member is not None, "no schedule above the first event"
        now, words = int(moved[1]), moved[2]
        effects = ", ".join(map(say, member.handle(read_event(words), now))) or "-"
        reasons = f" ; {' '.join(member.reasons)}" if member.reasons else ""
        lines.append(f"{now:>6}  {words:<28} → {member.state.value:<10}  {effects}{reasons}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(write(path.read_text()))
