"""Bans over restarts, on full disks and by the clock; one line for each thing that happens to a peer."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from protocols.refusal import Reason
from tapestryd.config import Trust
from tapestryd.doorkeeper import Doorkeeper
from tapestryd.errors import LocalFault
from tapestryd.host.state import StateDir
from tests.host.test_store import file_size_limit
from tests.people import CAST
from tests.swarm.rooms import go

EVE, BO, *_ = CAST
NOON_MS = 1_782_907_200_000  # 2026-07-01T12:00:00Z


class Clock:
    def __init__(self) -> None:
        self.ms = NOON_MS

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir(tmp_path)
    yield state
    state.close()


def test_bans_outlive_the_daemon_and_end(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tapestryd.doorkeeper")

    async def work() -> None:
        clock = Clock()
        door = Doorkeeper(Trust(), state, clock)
        assert [door.fault(EVE, Reason.BAD_SIGNATURE) for _ in range(7)] == [False, True, False, False, True, False, False]
        assert door.shut(EVE)
        await door.ban(BO, 60, "spam")
        await door.close()
        again = Doorkeeper(Trust(), state, clock)
        assert (again.shut(EVE), again.shut(BO), again.score(EVE)) == (True, True, 0)
        assert again.bans() == door.bans()
        clock.ms += 61_000
        assert (again.shut(EVE), again.shut(BO)) == (True, False)
        clock.ms += 43_200_000
        assert again.bans() == ()
        await again.close()
        assert state.bans() == ()

    go(work)
    end = EVE[-6:]
    assert [record.message for record in caplog.records] == [
        f"peer=…{end} disconnected, no donor for now (bad_signature ×2)",
        f"peer=…{end} banned until 2026-07-02T00:00:00Z (bad_signature ×5)",
        f"peer=…{BO[-6:]} banned by the operator until 2026-07-01T12:01:00Z (spam)",
        f"peer=…{BO[-6:]} no longer banned: the time is over",
        f"peer=…{end} no longer banned: the time is over",
    ]


def test_unbanning(state: StateDir) -> None:
    async def work() -> None:
        door = Doorkeeper(Trust(deny=(BO,)), state, Clock())
        door.fault(EVE, Reason.EQUIVOCATION)
        assert await door.unban(EVE) == f"Unbanned {EVE}; its faults are forgotten."
        assert not door.shut(EVE)
        assert not door.wary(EVE)
        with pytest.raises(LocalFault, match="is not banned"):
            await door.unban(EVE)
        with pytest.raises(LocalFault, match=r"denied by trust\.deny"):
            await door.unban(BO)
        assert door.shut(BO)
        await door.close()
        assert state.bans() == ()

    go(work)


@contextmanager
def full_disk() -> Iterator[None]:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tapestryd.host.files.os.fsync", full)
        yield


@pytest.mark.parametrize("broken", [lambda: file_size_limit(10), full_disk], ids=["limit", "full"])
def test_a_disk_that_takes_nothing_is_told_and_the_ban_holds(
    state: StateDir, caplog: pytest.LogCaptureFixture, broken: Callable[[], AbstractContextManager[None]]
) -> None:
    async def work() -> None:
        door = Doorkeeper(Trust(), state, Clock())
        with broken():
            door.fault(EVE, Reason.EQUIVOCATION)
            await door.close()
            with pytest.raises(LocalFault, match="cannot be written"):
                await door.ban(BO, None, "")
            assert door.shut(EVE)
            assert door.shut(BO)
        assert state.bans() == ()
        await door.unban(BO)
        assert [ban.peer_id for ban in state.bans()] == [EVE]

    go(work)
    assert "would not survive a restart" in caplog.text


def test_a_burst_of_bans_is_few_files(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    keep = state.keep_bans

    def counted(bans: object) -> None:
        written.append(len(bans))  # type: ignore[arg-type]
        keep(bans)  # type: ignore[arg-type]

    monkeypatch.setattr(state, "keep_bans", counted)

    async def work() -> None:
        door = Doorkeeper(Trust(), state, Clock())
        for number in range(300):
            door.fault(f"peer {number}", Reason.EQUIVOCATION)
            if number == 150:
                await asyncio.sleep(0)
        await door.close()
        assert len(state.bans()) == 300

    go(work)
    assert len(written) <= 3
