"""The data side's policy at work: on trees of files, in the packets that leave; and from a real steward to the daemon's end."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from protocols.control import Gpu
from protocols.trainer import ABI, SIZE, UNKNOWN, Around, Hold, Holding, Holds, Quit, Sight, Watch, pack, unpack
from protocols.trainer import Gpu as Seen
from tapestryd.config import Compute, CpuLimits, GpuLimits, Schedule, TrainerConfig
from tapestryd.host import dataside, policy
from tapestryd.host.dataside import DataSide
from tapestryd.host.lookout import Lookout, _packed, opened, policy_of
from tapestryd.host.sensors.machine import lent
from tests.host.home import Home, stewarded
from tests.host.test_sensors import BATTERY, CARD, RADEON, grow, stat
from tests.swarm import rooms

NOW_S = 1_795_780_800.0  # a Friday, 12:00 UTC


def lookout(root: Path, **schedule: Any) -> Lookout:
    return Lookout(TrainerConfig(schedule=Schedule(**{"on_battery": "run", **schedule})), {}, root)


def look(at: Lookout, later_s: float = 0.0, *, training: bool = True) -> list[Sight]:
    news = at.look(NOW_S + later_s, 100.0 + later_s, [], training=training)
    assert [unpack(pack(sight)) for sight in news] == news
    return news


def test_the_policy_is_that_of_the_file() -> None:
    config = TrainerConfig(
        schedule=Schedule(("08:00-09:00",), "pause-gpu", 60.0, "run", 0.4, "run", 0.2, ("a-name-of-twenty-byt",), 5.0),
        gpu=GpuLimits(90.0, 80.0), cpu=CpuLimits(0.3),
    )  # fmt: skip
    assert policy_of(config) == policy.Policy(
        hours=(policy.Window(frozenset(range(7)), 480, 540),), when_user_active="pause-gpu", idle_after_s=60.0, on_battery="run",
        battery_min=0.4, other_gpu_process="run", other_gpu_util=0.2, max_temperature_c=90.0, resume_temperature_c=80.0, max_load=0.3,
        yield_to=frozenset({"a-name-of-twent"}), resume_delay_s=5.0,
    )  # fmt: skip


def test_all_at_first_and_then_what_is_new(tmp_path: Path) -> None:
    grow(tmp_path, RADEON | {f"sys/class/power_supply/BAT0/{name}": content for name, content in BATTERY.items()})
    at = lookout(tmp_path, on_battery="pause", hours=("13:00-14:00",), other_gpu_process="run")
    schedule = Hold(Holding.SCHEDULE, False, round(1000 * (NOW_S + 3600)), UNKNOWN, UNKNOWN)
    battery = Hold(Holding.BATTERY, False, 0, 0.63, UNKNOWN)
    radeon = Seen(0, 1, 78.0, 0.93, 287.0, 19327352832, 25753026560, 2, 0.93)
    assert look(at) == [schedule, battery, Holds(0b100001, schedule.until_ms), radeon]
    assert look(at, 5.0) == []
    grow(tmp_path, {f"{CARD}/gpu_busy_percent": "90", "sys/class/power_supply/BAT0/capacity": "62"})
    assert look(at, 10.0) == [
        schedule, replace(battery, measured=0.62), Holds(0b100001, schedule.until_ms), replace(radeon, util=0.9, others_util=0.9)
    ]  # fmt: skip
    grow(tmp_path, {"sys/class/power_supply/BAT0/status": "Charging"})
    over = Hold(Holding.BATTERY, True, round(1000 * (NOW_S + 15 + 120)), UNKNOWN, UNKNOWN)
    assert look(at, 15.0) == [schedule, over, Holds(0b100001, over.until_ms)]
    assert look(at, 135.0) == [schedule, Holds(1, schedule.until_ms)]
    at.forget()
    assert [type(sight) for sight in look(at, 140.0)] == [Hold, Holds, Seen]
    assert look(at, 3600.0) == [Holds(0, round(1000 * (NOW_S + 7200)))]


def test_what_the_network_side_says_of_this_machine(tmp_path: Path) -> None:
    config = TrainerConfig(schedule=Schedule(when_user_active="pause", on_battery="run"), cpu=CpuLimits(0.4))
    at = Lookout(config, {}, stat(tmp_path))
    assert look(at) == [Holds(0, 0)]
    at.heard(Around(round(1000 * (NOW_S - 60)), 4000))
    stat(tmp_path, user=1000, idle=1000)
    assert look(at, 20.0) == [  # 10 s of 20 are busy, and 4 of them are ours
        Hold(Holding.USER_ACTIVE, False, round(1000 * (NOW_S + 120)), UNKNOWN, UNKNOWN), Holds(0b10, round(1000 * (NOW_S + 120)))
    ]  # fmt: skip


def test_on_the_cpu_no_gpu_matters(tmp_path: Path) -> None:
    at = Lookout(TrainerConfig(compute=Compute(device="cpu")), {}, grow(tmp_path, RADEON))
    assert look(at) == [Holds(0, 0)]


@given(
    st.builds(
        policy.Hold, st.sampled_from([policy.Reason[holding.name] for holding in Holding]), st.none() | st.integers(1, 10**10).map(float),
        st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.booleans(),
    )
)  # fmt: skip
def test_a_hold_arrives_as_it_was(hold: policy.Hold) -> None:
    packed = unpack(pack(_packed(hold)))
    assert isinstance(packed, Hold)
    assert opened(packed) == hold


CARDS = tuple(policy.Gpu(id=f"GPU-{letter * 8}") for letter in "abc")


@pytest.mark.parametrize(
    ("device", "environ", "places"),
    [
        ("auto", {}, "abc"),
        ("cuda:1", {}, "abc"),
        ("cuda:1", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "b"),
        ("auto", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "a"),
        ("cuda:9", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ""),
        ("cuda:1", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,0"}, "a"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2,0"}, "abc"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-cccc,GPU-aaaaaaaa"}, "c"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-cccc,GPU-aaaaaaaa"}, "a"),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_the_gpu_that_is_lent(device: str, environ: dict[str, str], places: str) -> None:
    assert lent(CARDS, device, environ) == tuple(card for card in CARDS if card.id[4] in places)


def test_the_only_gpu_is_known_by_any_order() -> None:
    assert lent(CARDS[:1], "auto", {}) == CARDS[:1]
    assert lent((), "auto", {}) == ()


# From one side to the other.


class Watcher:
    """The daemon's end, and how often it said that something changed."""

    def __init__(self, where: Path, around: Callable[[], Around] = lambda: Around(0, 0)) -> None:
        self.changes = 0
        self.side = DataSide(where, around, self._changed)
        self._task = asyncio.create_task(self.side.run())

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, *reasons: str) -> None:
        async def said() -> bool:
            return self.changes > 0 and [hold.reason.value for hold in self.side.holds] == list(reasons)

        await rooms.until(said, 60)

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_from_a_real_steward(tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once when we come, what changes while we stay, and again when we come back."""
    monkeypatch.setattr(dataside, "AROUND_S", 0.2)
    home = Home(tmp_path)
    home.write('[schedule]\nwhen_user_active = "pause"\nidle_after = "1h"\non_battery = "run"\n')
    input_ms = [0]

    async def work() -> None:
        watcher = Watcher(home.socket, lambda: Around(input_ms[0], 0))
        await watcher.until()
        input_ms[0] = rooms.now_ms() - 60_000
        await watcher.until("user_active")
        until_s = watcher.side.holds[0].until_s
        assert until_s is not None
        assert until_s == watcher.side.changes_s == pytest.approx(input_ms[0] / 1000 + 3600, abs=1)
        await watcher.stop()
        again = Watcher(home.socket, lambda: Around(input_ms[0], 0))
        await again.until("user_active")
        await again.stop()

    with stewarded(home, LOOK_S=0.5):
        (uvloop.run if loop == "uvloop" else asyncio.run)(asyncio.wait_for(work(), 120))


def test_whoever_says_what_is_not_of_the_channel_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asked again; what was said before counts meanwhile."""
    hold = Hold(Holding.BATTERY, False, 0, 0.3, UNKNOWN)
    nonsense = [pack(Holds(0b11, 0)), pack(Quit()), b"", b"\xff" * SIZE, pack(hold)[:-1], pack(Watch(ABI))]

    async def work(listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        watcher = Watcher(Path(listening.getsockname()))
        for number, packet in enumerate(nonsense):
            monkeypatch.setattr(dataside, "_AGAIN_MAX_S", 0.05)
            channel, _ = await loop.sock_accept(listening)
            with channel:
                assert unpack(await loop.sock_recv(channel, SIZE + 1)) == Watch(ABI)
                assert unpack(await loop.sock_recv(channel, SIZE + 1)) == Around(0, 0)
                if not number:
                    for good in (hold, Holds(1 << Holding.BATTERY, 0), Seen(1, 2, 70.0, UNKNOWN, UNKNOWN, 0, 0, -1, UNKNOWN)):
                        channel.send(pack(good))
                    await watcher.until("battery")
                if packet:
                    channel.send(packet)
                    while rest := await loop.sock_recv(channel, SIZE + 1):
                        assert unpack(rest) == Around(0, 0)
        await watcher.until("battery")
        assert watcher.side.gpus == (Gpu(temperature_c=70.0),)
        assert watcher.changes == 1
        await watcher.stop()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "trainer.sock"))
        listening.listen()
        listening.setblocking(False)
        asyncio.run(asyncio.wait_for(work(listening), 120))
