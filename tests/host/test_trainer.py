"""The daemon's handle on real trainer processes: a whole round, and every way a trainer can end."""

import asyncio
import math
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import uvloop

from protocols.trainer import ALL_FRAGMENTS, Base, Beat, Code, Delta, Evaluated, Fault, Ready, Report, Stop, Train
from tapestryd.host.trainer import Trainer, environment_of
from tapestryd.training.outer import outer_step
from tests.host.home import Home
from tests.training.tiny import genesis

R = TypeVar("R", bound=Report)

Loop = Callable[[Coroutine[None, None, None]], None]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    """Run a coroutine to its end on either loop; no descriptor may be left."""

    def inside(work: Coroutine[None, None, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        before = len(os.listdir("/proc/self/fd"))
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work, 240))
        assert len(os.listdir("/proc/self/fd")) == before

    return inside


class Handle:
    """A started trainer with its reports in a queue; `ended` is its exit status."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def start(self) -> "Handle":
        self.trainer = await Trainer.start(
            self.home.layout,
            config=self.home.config,
            run_dir=self.home.run,
            on_report=self.reports.put_nowait,
            on_exit=self.ended.set_result,
            environment=os.environ | {"AWS_SECRET_ACCESS_KEY": "x", "OMP_NUM_THREADS": "1"},
        )
        return self


async def started(home: Home) -> Handle:
    return await Handle(home).start()


async def following(handle: Handle, kind: type[R]) -> R:
    """The next report of this kind, others passed over."""
    while not isinstance(report := await handle.reports.get(), kind):
        assert not isinstance(report, Fault), report
    return report


async def training(handle: Handle) -> None:
    """READY, genesis as the base, and under way."""
    await following(handle, Ready)
    handle.trainer.params[:] = genesis().numpy()
    handle.trainer.send(Base(0, ALL_FRAGMENTS, True))
    handle.trainer.send(Train(0, 0))
    await following(handle, Beat)


def test_rounds_make_the_base_better_and_quit_keeps_progress(home: Home) -> None:
    async def work() -> None:
        handle = await started(home)
        trainer = handle.trainer
        environment = Path(f"/proc/{trainer.pid}/environ").read_bytes()
        await training(handle)
        theta, velocity, losses = genesis(), torch.zeros(home.layout.elements), []
        for round in range(2):
            trainer.send(Stop(round, ALL_FRAGMENTS))
            delta = await following(handle, Delta)
            ours = torch.from_numpy(np.array(trainer.delta))
            assert delta.norm == pytest.approx(ours.norm().item(), rel=1e-4)
            theta, velocity = outer_step(theta, velocity, ours, lr=1.0, momentum=0.5)
            trainer.params[:] = theta.numpy()
            trainer.send(Base(round + 1, ALL_FRAGMENTS, False))
            evaluated = await following(handle, Evaluated)
            losses.append(evaluated.loss)
            trainer.send(Train(round + 1, round + 1))
        assert losses[-1] < math.log(257)  # better than knowing nothing, however few steps this machine had time for
        assert b"AWS_SECRET" not in environment
        await trainer.stop(20)
        assert handle.ended.result() == 0
        assert home.saved.exists()
        await trainer.stop(20)
        trainer.send(Train(9, 9))

    uvloop.run(asyncio.wait_for(work(), 240))


@pytest.mark.parametrize(("number", "status", "kept"), [(signal.SIGTERM, 0, True), (signal.SIGKILL, -9, False)])
def test_a_trainer_that_is_ended_is_reported(number: int, status: int, kept: bool, home: Home) -> None:
    async def work() -> None:
        ours = socket.socket()
        os.set_inheritable(ours.fileno(), True)  # must not reach the data side all the same
        handle = await started(home)
        await training(handle)
        open_there = Path(f"/proc/{handle.trainer.pid}/fd").iterdir()
        assert sum(os.readlink(link).startswith("socket:") for link in open_there) == 1
        ours.close()
        os.kill(handle.trainer.pid, signal.SIGINT)  # Ctrl-C is the daemon's to interpret
        await following(handle, Beat)
        os.kill(handle.trainer.pid, number)
        assert await handle.ended == status
        assert home.saved.exists() == kept
        handle.trainer.send(Stop(0, 0))
        await handle.trainer.stop(1)

    uvloop.run(asyncio.wait_for(work(), 240))


def test_a_fault_arrives_before_the_exit(home: Home) -> None:
    async def work() -> None:
        (home.data / "topics.txt").unlink()
        handle = await started(home)
        assert await handle.ended == 78
        assert handle.reports.get_nowait() == Fault(Code.DATA_EMPTY)
        assert handle.reports.empty()

    asyncio.run(asyncio.wait_for(work(), 240))


@pytest.mark.parametrize("packet", [b"no packet", bytes(95) + b"\x01", bytes(96)], ids=["short", "no kind", "an order"])
def test_a_trainer_that_sends_no_report_is_killed(packet: bytes, home: Home, tmp_path: Path, run: Loop) -> None:
    """A program in the trainer's place, by way of the search path, that speaks first and would then live for ever."""
    folder = tmp_path / "impostor" / "tapestryd" / "host"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    source = f"import socket, sys, time\nours = socket.socket(fileno=int(sys.argv[-1]))\nours.send({packet!r})\ntime.sleep(60)\n"
    (folder / "trainer_main.py").write_text(source)

    async def work() -> None:
        handle = Handle(home)
        trainer = await Trainer.start(
            home.layout, config=home.config, run_dir=home.run, on_report=handle.reports.put_nowait, on_exit=handle.ended.set_result,
            environment=os.environ | {"PYTHONPATH": str(tmp_path / "impostor")},
        )  # fmt: skip
        assert await handle.ended == -9
        assert handle.reports.empty()
        await trainer.stop(1)

    run(work())


def test_a_trainer_that_does_not_read_is_killed_and_never_blocks(home: Home, tmp_path: Path, run: Loop) -> None:
    folder = tmp_path / "impostor" / "tapestryd" / "host"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    (folder / "trainer_main.py").write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "impostor")}

    async def work() -> None:
        for stop in (False, True):
            handle = Handle(home)
            trainer = await Trainer.start(
                home.layout, config=home.config, run_dir=home.run, on_report=handle.reports.put_nowait, on_exit=handle.ended.set_result,
                environment=environment,
            )  # fmt: skip
            if stop:
                await trainer.stop(0.3)
            for number in range(0 if stop else 5000):
                trainer.send(Train(number, 0))
            assert await handle.ended == -9

    run(work())


def test_a_start_that_fails_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch, run: Loop) -> None:
    async def work() -> None:
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(OSError, match="No such file"):
            await started(home)

    run(work())


def test_only_what_a_trainer_needs_is_inherited() -> None:
    given = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "TAPESTRY_TRAINER_DATA__SEED": "3", "PYTHONPATH": "/x"}
    secret = {"AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/s", "TAPESTRY_NODE__NAME": "n", "NOTIFY_SOCKET": "/n", "HTTPS_PROXY": "p"}
    assert environment_of(given | secret) == given
