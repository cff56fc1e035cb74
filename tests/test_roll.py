"""Whom a node admits and what it is itself: files of delegations that come, go and are replaced; epochs that outlive a restart."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import limits
from protocols.membership import Delegation, Epochs, to_file
from protocols.records import Presence
from protocols.refusal import Reason, Refused
from tapestryd.errors import DiskFull
from tapestryd.host.files import write
from tapestryd.host.store import RunStore
from tapestryd.neighbours import Neighbours
from tapestryd.roll import Roll
from tapestryd.swarm.lineage import Fetcher
from tests.people import CAST, MEMBERS, RULES, Person, delegations, in_roster_mode, roster, verify
from tests.swarm.rooms import address, go, now_ms, start, until

ADA, BO, CYD, DEE, *_ = CAST.values()
NORTH, SOUTH, EAST = MEMBERS
ROSTER = in_roster_mode(RULES)
RUN = ROSTER.run_id
NOW = 1_700_000_000_000


def given(member: Person, *people: Person, **changed: int) -> list[Delegation]:
    return delegations(member, people, run=RUN, **changed)


def roll(folder: Path, file: str = "", rules: object = ROSTER) -> Roll:
    return Roll(rules, RunStore(folder / "run", RUN), ADA.peer, file, verify)  # type: ignore[arg-type]


def test_in_an_open_run_everybody_is_their_own(tmp_path: Path) -> None:
    open_ = roll(tmp_path, str(tmp_path / "absent"), RULES)
    open_.look(NOW)
    assert (open_.own, open_.trouble) == (None, "")
    assert open_.admit(BO.peer, None, NOW) == BO.peer
    with pytest.raises(Refused):
        open_.admit(BO.peer, given(NORTH, BO)[0], NOW)


def test_our_own_delegation_is_read_again_and_again(tmp_path: Path) -> None:
    """Absent, then there, then renewed, replaced by another's, damaged, and ended: each is said, with what to do."""
    path = tmp_path / "delegation.json"
    here = roll(tmp_path, str(path))

    def look(*, at_ms: int = NOW) -> str:
        here.look(at_ms)
        assert (here.own is None) == bool(here.trouble)
        if here.trouble:
            assert f"--run {RUN} --node {ADA.peer} " in here.trouble
        return here.trouble

    assert "No such file" in look()
    first = given(NORTH, BO, ADA, epoch=1, not_after_ms=NOW)
    path.write_bytes(to_file(first))
    assert look() == ""
    assert here.own == first[1]
    assert "ended 1 ms before" in look(at_ms=NOW + 1)
    second = given(NORTH, ADA, epoch=1, not_after_ms=NOW + 1)
    path.write_bytes(to_file(second))
    assert look(at_ms=NOW + 1) == ""
    assert here.own == second[0]
    for data, said in (
        (to_file(given(NORTH, BO)), "nothing in it is for this node"),
        (to_file(delegations(NORTH, [ADA], run="00" * 32)), "nothing in it is for this node"),
        (to_file(given(DEE, ADA)), "no Member of this run"),
        (to_file([replace(second[0], epoch=9)]), "not signed"),
        (b"{", "not JSON"),
        (b"x" * (limits.DELEGATIONS_BYTES + 1), "at most 65536 are allowed"),
        (b"", "not JSON"),
    ):
        path.write_bytes(data)
        assert said in look()
    path.unlink()
    path.mkdir()
    assert "Is a directory" in look()
    here = roll(tmp_path)
    assert "names no file" in look()


def test_a_greater_epoch_voids_and_is_remembered(tmp_path: Path) -> None:
    here = roll(tmp_path)
    old, new = given(NORTH, BO, epoch=1)[0], given(NORTH, CYD, epoch=2)[0]
    assert here.admit(BO.peer, old, NOW) == NORTH.peer
    assert here.admit(CYD.peer, new, NOW) == NORTH.peer
    assert here.admit(DEE.peer, given(SOUTH, DEE, epoch=0)[0], NOW) == SOUTH.peer
    here.look(NOW)
    for again in (here, roll(tmp_path)):
        with pytest.raises(Refused) as refused:
            again.admit(BO.peer, old, NOW)
        assert refused.value.reason is Reason.REVOKED
        assert again.admit(CYD.peer, new, NOW) == NORTH.peer


def test_our_own_is_void_like_any(tmp_path: Path) -> None:
    path = tmp_path / "delegation.json"
    path.write_bytes(to_file(given(NORTH, ADA, epoch=1)))
    here = roll(tmp_path, str(path))
    here.look(NOW)
    assert here.own
    here.admit(BO.peer, given(NORTH, BO, epoch=2)[0], NOW)
    here.look(NOW)
    assert here.own is None
    assert "its Member has gone on to 2" in here.trouble


@pytest.mark.parametrize("forged", [given(DEE, BO, epoch=9), given(NORTH, CYD, epoch=9), delegations(NORTH, [BO], run="00" * 32, epoch=9)])
def test_what_does_not_hold_teaches_no_epoch(tmp_path: Path, forged: list[Delegation]) -> None:
    here = roll(tmp_path)
    with pytest.raises(Refused):
        here.admit(BO.peer, forged[0], NOW)
    assert here.epochs == Epochs()


def test_damaged_epochs_are_set_aside(tmp_path: Path) -> None:
    here = roll(tmp_path)
    here.admit(BO.peer, given(NORTH, BO, epoch=7)[0], NOW)
    here.look(NOW)
    path = tmp_path / "run" / "epochs.json"
    assert Epochs.parse(path.read_bytes()) == Epochs({NORTH.peer: 7})
    path.write_bytes(b"{")
    assert roll(tmp_path).epochs == Epochs()
    assert (tmp_path / "run" / "epochs.json.damaged").exists()


def test_epochs_are_written_once_a_look_however_many_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is synced, and nothing else is done meanwhile."""
    here, kept = roll(tmp_path), list[Epochs]()
    monkeypatch.setattr(here._store, "keep_epochs", kept.append)
    for epoch in range(1, 50):
        here.admit(BO.peer, given(NORTH, BO, epoch=epoch)[0], NOW)
    here.look(NOW)
    here.look(NOW)
    assert kept == [Epochs({NORTH.peer: 49})]


def test_a_full_disk_forgets_nothing_while_we_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = roll(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        write(tmp_path / "x", b"x")
    here.admit(BO.peer, given(NORTH, BO, epoch=7)[0], NOW)
    here.look(NOW)
    assert here.epochs == Epochs({NORTH.peer: 7})
    assert roll(tmp_path).epochs == Epochs()
    monkeypatch.undo()
    here.look(NOW)
    assert roll(tmp_path).epochs == Epochs({NORTH.peer: 7})


def admits(here: Roll, round: int, member: Person, epoch: int) -> bool:
    """A roster in which ada is of that epoch of her Member."""
    try:
        here.admit_roster(roster([ADA, CYD], round=round, run=RUN, delegated=[*given(member, ADA, epoch=epoch), *given(EAST, CYD)]))
    except Refused as refused:
        return refused.reason is not Reason.REVOKED
    return True


def test_what_a_leader_has_not_seen_yet_spoils_no_roster_for_a_while(tmp_path: Path) -> None:
    """Else a Member stops all rounds that shows a greater epoch each time, to all but whoever leads. For twice as long each time, so
    that some such Members together cannot either; a caller that we know to be revoked we let in ourselves at no time."""
    here, round = roll(tmp_path), 100
    for epoch, rounds in enumerate((8, 16, 32, 64, 128, 256, 512, 512), start=2):
        at_ms = ROSTER.schedule.boundary(round)
        here.admit(BO.peer, given(NORTH, BO, epoch=epoch)[0], at_ms)
        with pytest.raises(Refused):
            here.admit(ADA.peer, given(NORTH, ADA, epoch=epoch - 1)[0], at_ms)
        assert [admits(here, round + after, NORTH, epoch - 1) for after in (0, rounds - 1, rounds)] == [True, True, False]
        assert admits(here, round + rounds, NORTH, epoch)
        round += rounds


def test_neighbours_are_those_whom_a_member_sent(tmp_path: Path) -> None:
    """Real records in a real DHT: undelegated, expired, another's, and revoked ones are counted, dropped, and forgotten."""

    async def work() -> None:
        one = await start(ADA, tmp_path)
        rest = [await start(person, tmp_path, bootstrap=[await address(one)]) for person in (BO, CYD, DEE)]
        here_of = {node.peer_id: node for node in rest}
        try:
            for node in rest:
                await node.look()
            here = roll(tmp_path)
            known = Neighbours(one, RUN, verify, Fetcher(one, RUN, verify), lambda: None)
            known.admit = here.admit

            async def present(person: Person, delegation: Delegation | None) -> None:
                record = Presence(RUN, person.peer, person.name, "training", 0, 0, "", (), "0", delegation, now_ms())
                await here_of[person.peer].publish(record.to_bytes(person.sign))

            async def look(expected: set[str], *reasons: str) -> None:
                async def seen() -> bool:
                    await known.refresh()
                    return {seen.peer for seen in known.seen()} == expected and set(reasons) <= set(one.refusals)

                await until(seen)

            shared = given(NORTH, BO, CYD, epoch=1)
            await present(BO, shared[0])
            await present(CYD, shared[1])
            await present(DEE, None)
            await look({BO.peer, CYD.peer}, "not_delegated")
            one.refusals.clear()
            await present(DEE, given(SOUTH, DEE, not_after_ms=NOW)[0])
            await look({BO.peer, CYD.peer}, "expired")
            await present(DEE, shared[1])
            await look({BO.peer, CYD.peer}, "not_delegated")
            await present(CYD, given(NORTH, CYD, epoch=2)[0])
            await look({CYD.peer}, "revoked")
            await present(BO, given(NORTH, BO, epoch=2)[0])
            await look({CYD.peer, BO.peer})
        finally:
            for node in (one, *rest):
                await node.stop()

    go(work)


def test_a_roster_is_admitted_whole_or_not_at_all(tmp_path: Path) -> None:
    """Epochs that were seen elsewhere count, and it teaches those that it shows; a log entry is believed as it is."""
    here = roll(tmp_path)
    good = roster([ADA, BO, CYD], run=RUN, delegated=[*given(NORTH, ADA, BO, epoch=3), *given(EAST, CYD)])
    here.admit_roster(good)
    assert here.epochs == Epochs({NORTH.peer: 3, EAST.peer: 1})
    assert not admits(here, good.round + 8, NORTH, epoch=2)
    with pytest.raises(Refused) as refused:
        here.admit_roster(roster([ADA, CYD], run=RUN, delegated=given(NORTH, ADA, epoch=4)))
    assert refused.value.reason is Reason.NOT_DELEGATED
    assert here.epochs == Epochs({NORTH.peer: 3, EAST.peer: 1})
    here.heard(roster([ADA, CYD], run=RUN, delegated=[*given(NORTH, ADA, epoch=2), *given(EAST, CYD, epoch=9)]))
    assert here.epochs == Epochs({NORTH.peer: 3, EAST.peer: 9})
