"""The story of a round, a replay or a catch-up, from what each left behind. Pure; when and where it is told: history.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from protocols.control import Certificate, Missing, Repaired, Silent, Story
from protocols.grouping import BITMAP_BYTES, Roster, in_bitmap
from protocols.lineage import Entry, Tip
from protocols.refusal import Refused
from protocols.trainer import Delta
from tapestryd.averaging import Round
from tapestryd.swarm.meeting import Meeting


@dataclass(frozen=True, slots=True)
class Spent:
    """What something took."""

    sent_bytes: int = 0
    received_bytes: int = 0
    took_ms: int = 0
    times_ms: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)


def lived(
    me: str, number: int, fragment: int, tip: Tip | None, reason: str, round: Round | None, trained: Delta | None, spent: Spent
) -> Story:
    """A round that is over: committed, or discarded for `reason`. `tip`: our base now. `round` None: it was never gathered."""
    roster = round.gathered.roster if round and round.gathered else None
    meeting = round.meeting if round else None
    own = meeting.ballots.get(me) if meeting else None
    return Story(
        round=number,
        fragment=fragment,
        result="discarded" if reason else "committed",
        reason=reason,
        members=roster.members if roster else (),
        coverage=round.vote.coverage_ppm / 1e6 if round and round.vote else 0.0,
        height=tip.height if tip else 0,
        base_digest=tip.base if tip else "",
        sent_bytes=spent.sent_bytes,
        received_bytes=spent.received_bytes,
        took_ms=spent.took_ms,
        steps=trained.steps if trained else 0,
        tokens=trained.tokens if trained else 0,
        loss=(trained.loss or None) if trained else None,
        leader=round.gathered.leader if round and round.gathered else "",
        silent=tuple(Silent(peer, why) for peer, why in round.passed_over) if round else (),
        present=tuple(round.others) if round else (),
        missing=tuple(_missing(me, round)) if round else (),
        shares={peer: stop - start for peer, (start, stop) in zip(roster.reducers, meeting.slices, strict=True)}
        if roster and meeting
        else {},
        repaired=tuple(Repaired(part, peer) for part, peer in sorted(meeting.repaired.items())) if meeting else (),
        times_ms=spent.times_ms,
        refusals=spent.refusals,
        votes=tuple(peer for peer in meeting.roster.members if _agrees(meeting, me, peer)) if meeting else (),
        root=own[1].root if own else "",
    )


def replayed(entry: Entry) -> Story:
    """A round that others committed, and that we followed from their log."""
    vote = entry.vote
    return Story(
        vote.round, vote.fragment, "replayed", "", entry.roster.members, vote.coverage_ppm / 1e6, vote.height, vote.after,
        0, sum(entry.sizes), 0, 0, 0, None, votes=tuple(signed.peer for signed in entry.votes), root=vote.root,
    )  # fmt: skip


def caught_up(
    number: int, before: Tip | None, reached: Tip | None, target: Tip, donors: tuple[str, ...], reason: str, spent: Spent
) -> Story:
    """An attempt to follow others to `target`, which took us from `before` to `reached`. `reason`: why it ended early; "": it did not."""
    return Story(
        number, 0, "behind" if reason else "caught_up", reason, (), 0.0, reached.height if reached else 0, reached.base if reached else "",
        spent.sent_bytes, spent.received_bytes, spent.took_ms, 0, 0, None, refusals=spent.refusals,
        from_height=before.height if before else 0, to_height=target.height, donors=donors,
    )  # fmt: skip


def certificate(entry: Entry) -> Certificate:
    vote, roster = entry.vote, entry.roster
    return Certificate(
        vote.height, vote.weight, vote.coverage_ppm / 1e6, vote.roster, roster.members, roster.reducers, entry.parts, entry.sizes,
        vote.root, vote.before, vote.after, tuple(signed.peer for signed in entry.votes),
    )  # fmt: skip


def _missing(me: str, round: Round) -> Iterator[Missing]:
    """Whom the round went without, stage by stage, as far as it came."""
    if round.gathered is None:
        return
    meeting, roster = round.meeting, round.gathered.roster
    for peer in round.others:
        if peer not in roster.members:
            yield Missing(peer, "roster", "did not call us, the leader" if round.gathered.leader == me else "is not in the leader's roster")
    if meeting is None:
        return
    for part, peer in enumerate(roster.reducers):
        if part in meeting.lost or part in meeting.repaired or part not in meeting.blobs:
            yield Missing(peer, "part", f"part {part}: {meeting.lost.get(part, 'it did not come in time')}")
    yield from _not_in_mean(me, roster, meeting)
    if me in meeting.ballots:
        for peer in roster.members:
            if not _agrees(meeting, me, peer):
                yield Missing(peer, "vote", "voted for another result" if peer in meeting.ballots else "sent no vote")


def _not_in_mean(me: str, roster: Roster, meeting: Meeting) -> Iterator[Missing]:
    held: dict[int, set[int]] = {}
    for part, blob in meeting.blobs.items():
        try:
            held[part] = set(in_bitmap(blob[:BITMAP_BYTES], len(roster.members)))
        except Refused:
            continue
    for place, peer in enumerate(roster.members):
        without = [part for part, places in held.items() if place not in places]
        if not without:
            continue
        why = f"in {len(held) - len(without)} of {len(held)} parts"
        if any(roster.reducers[part] == me for part in without):
            begun = "its offer to us did not come whole" if meeting.begun[peer] else "it offered us nothing"
            why += f"; {meeting.refused.get(peer, begun)}"
        yield Missing(peer, "mean", why)


def _agrees(meeting: Meeting, me: str, peer: str) -> bool:
    ballots = meeting.ballots
    return me in ballots and peer in ballots and ballots[peer][1] == ballots[me][1]
