"""Stories of real rounds and catch-ups: who was silent, what was lost, and in which words."""

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.control import Contribution, Story
from protocols.lineage import Tip
from protocols.rounds import Event, Failed, Reduced, Rostered, Settled, State
from protocols.trainer import Delta
from tapestryd.history import History
from tapestryd.host.store import RunStore
from tapestryd.story import certificate
from tapestryd.swarm.meter import Meter
from tests.lineages import Line
from tests.people import RUN, verify
from tests.swarm.rooms import Peer, at_boundary, go, others, peers
from tests.swarm.test_round import by_lead, cut_off


async def lived(peer: Peer, seen: list[str]) -> Story:
    """A whole round, told as the session has it told."""
    history = History(peer.keeper.store, peer.node.peer_id, peer.node.meter, peer.node.refusals, lambda _: None)
    averaging, event = peer.averaging, None
    history.enter(State.STOPPING)
    peer.begin(seen)
    stages: list[tuple[State, Any]] = [
        (State.GATHERING, lambda: averaging.gather(peer.rate, None)),
        (State.REDUCING, lambda: averaging.reduce(event.roster)),  # type: ignore[union-attr]
        (State.SETTLING, averaging.settle),
        (State.COMMITTING, averaging.commit),
    ]
    for state, stage in stages:
        history.enter(state)
        event: Event | Any = await averaging.run(stage(), 0)  # type: ignore[no-redef]
        if isinstance(event, Failed):
            history.enter(State.TRAINING)
            break
        assert isinstance(event, Rostered | Reduced | Settled) or state is State.COMMITTING
    reason = event.reason if isinstance(event, Failed) else ""
    history.end(0, 0, peer.keeper.base.tip, reason=reason, round=averaging.round, trained=None)
    averaging.drop()
    assert history.of(0) == history.rounds == peer.keeper.store.stories()
    return history.stories[-1]


def test_a_silent_leader_and_a_lost_offer_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tapestryd.history")

    async def work() -> None:
        async with peers(tmp_path, 4, average_ms=9000) as found:
            dead, leader, cut, third = by_lead(found)
            name = {peer.node.peer_id: peer for peer in found}
            await dead.node.stop()
            at_boundary(found)
            cut_off(cut, "reduce", toward=leader.node.peer_id)  # its offer to this reducer is lost, and so is the part to it
            here = [leader, cut, third]
            stories = dict(zip(here, await asyncio.gather(*(lived(peer, others(peer, found)) for peer in here)), strict=True))
            for peer, told in stories.items():
                assert (told.result, told.leader, told.height) == ("committed", leader.node.peer_id, 1)
                assert [silent.peer for silent in told.silent] == [dead.node.peer_id]
                assert told.members == tuple(each.node.peer_id for each in here)
                assert set(told.present) == set(name) - {peer.node.peer_id}
                assert sum(told.shares.values()) == peer.keeper.base.layout.size(0)
                assert set(told.shares) == set(told.members)
                assert list(told.times_ms) == ["stopping", "gathering", "reducing", "settling", "committing"]
                assert 0 <= told.took_ms - sum(told.times_ms.values()) < 50
                assert 0 < told.coverage < 1
                entry = peer.keeper.store.entry_head(1, verify)
                assert entry is not None
                assert (told.root, told.base_digest) == (entry.vote.root, entry.vote.after)
                assert set(certificate(entry).signed_by) <= set(told.votes) | set(told.members)
                without = {(missing.peer, missing.stage): missing.why for missing in told.missing if missing.stage in ("roster", "mean")}
                assert set(without) == {(dead.node.peer_id, "roster"), (cut.node.peer_id, "mean")}
            mean = {peer: next(m.why for m in told.missing if m.stage == "mean") for peer, told in stories.items()}
            assert mean[leader] == "in 2 of 3 parts; it offered us nothing"
            assert mean[cut] == mean[third] == "in 2 of 3 parts"
            roster = {peer: next(m.why for m in told.missing if m.stage == "roster") for peer, told in stories.items()}
            assert roster[leader] == "did not call us, the leader"
            assert roster[third] == "is not in the leader's roster"
            lost = [missing for missing in stories[cut].missing if missing.stage == "part"]
            assert [(missing.peer, missing.why) for missing in lost] == [
                (leader.node.peer_id, f"part 0: reduce to {leader.node.peer_id[-6:]}: cut off")
            ]
            assert [repaired.part for repaired in stories[cut].repaired] == [0]
            assert stories[cut].repaired[0].peer in (leader.node.peer_id, third.node.peer_id)
            assert f"without={cut.node.peer_id[-6:]} stage=mean: in 2 of 3 parts; it offered us nothing" in caplog.text

    go(work)


def test_a_round_without_a_roster_names_all_who_were_silent(tmp_path: Path) -> None:
    async def work() -> None:
        async with peers(tmp_path, 3, average_ms=4000) as found:
            one, two, alone = by_lead(found)
            for dead in (one, two):
                await dead.node.stop()
            told = await lived(alone, others(alone, found))
            assert (told.result, told.reason, told.leader, told.members) == ("discarded", "no_roster", "", ())
            assert [silent.peer for silent in told.silent] == [one.node.peer_id, two.node.peer_id]
            assert all(silent.why for silent in told.silent)
            assert list(told.times_ms) == ["stopping", "gathering"]

    go(work)


def test_no_round_is_held_twice_on_one_lineage(tmp_path: Path) -> None:
    """As after a clock was set back: an entry out of order would be one that nobody can replay."""

    async def work() -> None:
        async with peers(tmp_path, 2, average_ms=60_000) as found:
            first = await asyncio.gather(*(lived(peer, others(peer, found)) for peer in found))
            assert [told.result for told in first] == ["committed"] * 2
            again = await found[0].round(others(found[0], found))
            assert again == Failed(0, "other_round")
            assert found[0].keeper.base.tip == found[1].keeper.base.tip
            assert found[0].keeper.base.tip.height == 1  # type: ignore[union-attr]

    go(work)


def history(path: Path, refusals: Counter[str] | None = None, meter: Meter | None = None) -> History:
    return History(RunStore(path, RUN), "me", meter or Meter(), Counter() if refusals is None else refusals, lambda _: None)


def test_refusals_and_bytes_are_those_of_the_round(tmp_path: Path) -> None:
    refusals, meter = Counter(stale=2), Meter()
    kept = history(tmp_path, refusals, meter)
    meter.sent["vote"] = 100
    kept.enter(State.STOPPING)
    refusals.update(stale=1, norm=3)
    meter.sent["vote"] = 150
    kept.enter(State.TRAINING)
    kept.end(7, 1, None, reason="trainer", round=None, trained=None)
    told = kept.stories[-1]
    assert (told.refusals, told.sent_bytes, list(told.times_ms)) == ({"stale": 1, "norm": 3}, 50, ["stopping"])
    kept.end(8, 0, None, reason="late", round=None, trained=None)  # over before its boundary
    assert (kept.stories[-1].refusals, kept.stories[-1].took_ms) == ({}, 0)


def test_what_this_node_contributed_is_what_was_committed(tmp_path: Path) -> None:
    kept, tip = history(tmp_path), Tip(1, 2, "ab" * 32)
    trained = Delta(0, 0, 12, 3072, 12, 2.5, 0.5, 1, bytes(32))
    for number, reason in ((0, ""), (1, "coverage"), (2, "")):
        kept.enter(State.STOPPING)
        kept.end(number, 0, tip, reason=reason, round=None, trained=trained)
    kept.replayed(Line.begin().grow())
    assert kept.contribution == Contribution(rounds=2, steps=24, tokens=6144)


def test_catching_up_is_told_but_is_no_round(tmp_path: Path) -> None:
    line = Line.begin()
    entry = line.grow()
    kept, zero = history(tmp_path), Tip(0, 0, line.rules.model.genesis)
    began = kept.mark()
    kept.replayed(entry)
    kept.caught_up(3, zero, entry.tip, entry.tip, ["a", "b"], "", began)
    replayed, caught = kept.stories
    assert (replayed.result, replayed.votes, replayed.root) == ("replayed", tuple(vote.peer for vote in entry.votes), entry.vote.root)
    assert (caught.result, caught.round, caught.from_height, caught.to_height, caught.height) == ("caught_up", 3, 0, 1, 1)
    assert (caught.donors, caught.base_digest) == (("a", "b"), entry.vote.after)
    assert kept.rounds == [replayed]
    assert RunStore(tmp_path, RUN).stories() == [replayed, caught]


def test_a_catch_up_that_fails_again_and_again_is_told_once(tmp_path: Path) -> None:
    line = Line.begin()
    tips = [line.grow().tip for _ in range(3)]
    kept = history(tmp_path)
    for why in ("no_donor: nobody to ask", "no_donor: stale: we do not keep entry 3"):
        kept.caught_up(3, tips[0], tips[0], tips[2], ["a"], why, kept.mark())
    assert [told.reason for told in kept.stories] == ["no_donor: nobody to ask"]
    kept.caught_up(4, tips[0], tips[1], tips[2], ["a"], "no_donor: went away", kept.mark())  # it got somewhere this time
    kept.caught_up(5, tips[1], tips[1], replace(tips[2], height=4), ["a"], "no_donor: nobody to ask", kept.mark())
    assert [(told.from_height, told.height, told.to_height) for told in kept.stories] == [(1, 1, 3), (1, 2, 3), (2, 2, 4)]
