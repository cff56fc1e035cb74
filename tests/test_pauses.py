"""What the operator asked for and what the policy says, as the Member hears it; and over a restart."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protocols.rounds import Haste, Held
from tapestryd.config import DaemonConfig, Network, Node, Storage
from tapestryd.errors import StateFault
from tapestryd.host.policy import Hold, Moved, Reason
from tapestryd.host.state import StateDir
from tapestryd.host.will import Mode, Will
from tapestryd.pauses import Pauses

FREE = Held(())
NOW, STEPS, ROUND = (Held(("user",), haste) for haste in (Haste.NOW, Haste.STEPS, Haste.ROUND))


class Desk:
    """Pauses on a state directory of their own, with a clock and a Member that do as they are told."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_795_780_800.0
        self.busy = False
        self.moved: Moved | None = None
        self.told: list[Held] = []
        self.config = replace(DaemonConfig(), node=Node(state_dir=folder), storage=Storage(min_free_bytes=0))
        self.state = StateDir(folder)
        self.pauses = self.begin()

    def begin(self) -> Pauses:
        return Pauses(self.config, self.state, lambda: self.now_s, lambda: self.busy, lambda: self.moved, self.told.append)

    def restart(self) -> None:
        self.told.clear()
        self.pauses = self.begin()
        self.pauses.look()

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self.pauses.look()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.state.close()


def test_a_pause_ends_by_itself(desk: Desk) -> None:
    assert asyncio.run(desk.pauses.pause(7200.0)) == "Paused for 2h."
    desk.later(7199)
    assert desk.told == [NOW]
    status = desk.pauses.status()
    assert (status.holds[0].reason, status.holds[0].left_s, status.changes_in_s) == ("user", 1.0, 1.0)
    desk.later(1)
    assert desk.told == [NOW, FREE]
    assert desk.pauses.status().holds == ()


def test_a_pause_without_an_end_outlives_a_restart(desk: Desk) -> None:
    assert asyncio.run(desk.pauses.pause(None)) == "Paused until `tapestry resume`."
    desk.restart()
    desk.later(1e6)
    assert desk.told == [NOW]
    assert asyncio.run(desk.pauses.resume()) == "Resumed."
    assert desk.told == [NOW, FREE]
    desk.restart()
    assert desk.told == []


def test_finish_waits_for_the_round(desk: Desk) -> None:
    desk.busy = True
    assert asyncio.run(desk.pauses.finish()) == "Pausing behind the round at hand, until `tapestry resume`."
    desk.later(100)
    assert desk.told == [ROUND]
    assert desk.pauses.status().finishing
    desk.busy = False
    desk.later(2)
    assert desk.told == [ROUND, NOW]
    assert not desk.pauses.status().finishing


def test_finish_without_a_round_is_a_pause_and_so_is_one_that_a_crash_cut_short(desk: Desk) -> None:
    assert asyncio.run(desk.pauses.finish()) == "Paused until `tapestry resume`."
    assert desk.told == [NOW]
    asyncio.run(desk.pauses.resume())
    desk.busy = True
    asyncio.run(desk.pauses.finish())
    desk.busy = False
    desk.restart()
    assert desk.told == [NOW]


def test_modes(desk: Desk) -> None:
    said = asyncio.run(desk.pauses.choose(Mode.NEVER, 3600.0))
    assert said == "Mode never for 1h, then auto: nothing is trained."
    assert desk.told == [STEPS]
    asyncio.run(desk.pauses.pause(60.0))
    desk.later(60)
    assert desk.told == [STEPS, NOW, STEPS]
    desk.restart()
    assert desk.pauses.status().mode == "never"
    desk.later(3600)
    assert desk.told == [STEPS, FREE]
    assert asyncio.run(desk.pauses.choose(Mode.AUTO, 5.0)) == "Mode auto: as the configuration has it."


def test_little_disk_holds_in_every_mode_and_is_waited_out(desk: Desk) -> None:
    desk.config = replace(desk.config, storage=Storage(min_free_bytes=1 << 60))
    desk.pauses = desk.begin()
    low = Held(("disk_low",), Haste.STEPS)
    desk.pauses.look()
    asyncio.run(desk.pauses.choose(Mode.ALWAYS, None))
    assert desk.told == [low]
    assert asyncio.run(desk.pauses.pause(None)) == "Paused until `tapestry resume`."
    assert "storage.min_free" in asyncio.run(desk.pauses.resume())
    assert desk.told == [low, Held(("user", "disk_low"), Haste.NOW), low]
    desk.pauses._policy = replace(desk.pauses._policy, min_free_bytes=0)
    desk.later(0)
    desk.later(119)
    assert desk.told[-1] == low
    assert "until a moment ago" in desk.pauses.status().holds[0].says
    desk.later(1)
    assert desk.told[-1] == FREE


def test_a_metered_network_as_long_as_somebody_says_so(desk: Desk) -> None:
    metered = Held(("metered",), Haste.STEPS)
    desk.pauses.active(None, True)
    assert desk.told == [metered]
    desk.pauses.active(None, False)
    desk.later(119)
    assert desk.told == [metered]
    desk.later(1)
    assert desk.told == [metered, FREE]
    desk.pauses.active(3.0, True)
    desk.later(899)
    assert desk.told == [metered, FREE, metered]
    desk.later(1)
    desk.later(120)
    assert desk.told == [metered, FREE, metered, FREE]
    desk.pauses.amend(replace(desk.config, network=replace(desk.config.network, metered="run")))
    desk.pauses.active(None, True)
    assert desk.told[-1] == FREE


def test_what_holds_the_data_side_holds_us_but_for_courtesies_in_mode_always(desk: Desk) -> None:
    ends_s = desk.now_s + 600
    there = (Hold(Reason.SCHEDULE, ends_s), Hold(Reason.GPU_TEMPERATURE, None, 84.0, 75.0))
    desk.pauses.seen(there, ends_s)
    desk.pauses.active(None, True)
    everything = Held(("schedule", "metered", "gpu_temperature"), Haste.STEPS)
    assert desk.told[-1] == everything
    status = desk.pauses.status()
    assert (status.changes_in_s, [hold.left_s for hold in status.holds]) == (600.0, [600.0, None, None])
    assert status.holds[2].says == "the GPU is hot: 84 °C, and goes on at 75 °C"
    asyncio.run(desk.pauses.choose(Mode.ALWAYS, None))
    assert desk.told[-1] == Held(("metered", "gpu_temperature"), Haste.STEPS)
    asyncio.run(desk.pauses.choose(Mode.AUTO, None))
    desk.busy = True
    asyncio.run(desk.pauses.finish())
    assert desk.told[-1] == Held(("user", *everything.reasons), Haste.STEPS)
    desk.pauses.seen((), None)
    desk.pauses.active(None, False)
    desk.later(120)
    assert desk.told[-1] == ROUND


def test_of_several_desktops_the_latest_input_counts(desk: Desk) -> None:
    assert desk.pauses.input_s is None
    desk.pauses.active(60.0, None)
    desk.pauses.active(300.0, None)
    desk.pauses.active(None, None)
    assert desk.pauses.input_s == desk.now_s - 60
    desk.now_s += 100
    desk.pauses.active(1.0, None)
    assert desk.pauses.input_s == desk.now_s - 1


def test_the_months_bytes_hold_until_the_next_month_or_a_larger_cap(desk: Desk) -> None:
    desk.config = replace(desk.config, network=Network(transfer_cap_bytes=100))
    desk.pauses = desk.begin()
    for bytes in (None, 99, 100):
        desk.moved = None if bytes is None else Moved("2026-11", bytes)
        desk.pauses.look()
    capped = Held(("transfer_cap",), Haste.STEPS)
    assert desk.told == [capped]
    asyncio.run(desk.pauses.choose(Mode.ALWAYS, None))
    month_s = datetime(2026, 12, 1, tzinfo=UTC).timestamp() - desk.now_s
    assert desk.pauses.status().holds[0].left_s == desk.pauses.status().changes_in_s == month_s
    desk.pauses.amend(replace(desk.config, network=Network(transfer_cap_bytes=101)))
    desk.pauses.look()
    assert desk.told == [capped, FREE]
    desk.pauses.amend(desk.config)
    desk.later(month_s)
    assert desk.told == [capped, FREE]


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("where", "why"), [("os.fsync", "the disk is full"), ("write", "No space left on device")])
def test_what_cannot_be_written_is_in_force_and_said(desk: Desk, monkeypatch: pytest.MonkeyPatch, where: str, why: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"tapestryd.host.{'files.os.fsync' if where == 'os.fsync' else 'state.write'}", full)
        with pytest.raises(StateFault, match=rf"done, but it cannot be written to .*: {why}"):
            asyncio.run(desk.pauses.pause(None))
    assert desk.told == [NOW]
    asyncio.run(desk.pauses._keep())
    assert desk.state.will() == Will(paused=True)


def test_a_full_disk_ends_no_looking_and_is_logged_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        again, looks = asyncio.Event(), iter(range(4))
        await desk.pauses.pause(60.0)
        desk.now_s += 60
        with monkeypatch.context() as patch:
            patch.setattr("tapestryd.host.files.os.fsync", full)
            patch.setattr("tapestryd.pauses.LOOK_S", 0.0)
            patch.setattr(desk.pauses, "look", lambda: (look(), next(looks, None) == 3 and again.set()))
            running = asyncio.create_task(desk.pauses.run())
            async with asyncio.timeout(20):
                await again.wait()
            running.cancel()
        await desk.pauses._keep()

    look = desk.pauses.look
    asyncio.run(work())
    assert desk.state.will() == Will()
    assert desk.told == [NOW, FREE]
    assert sum("cannot be written" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"mode": "auto"}', "[" * 100_000])
def test_a_damaged_file_asks_for_nothing(desk: Desk, damage: str) -> None:
    (desk.state.path / "will.json").write_text(damage)
    desk.restart()
    assert desk.told == []
    assert list(desk.state.path.glob("will.json*.damaged"))
