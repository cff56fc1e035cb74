"""The daemon's handle on real trainer processes: a whole round, and every way a trainer can end."""

import asyncio
import gc
import math
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import uvloop

from protocols.trainer import (
    ALL_FRAGMENTS,
    SIZE,
    Base,
    Beat,
    Checks,
    Code,
    Delta,
    Evaluated,
    Fault,
    Hello,
    Ready,
    Report,
    Stop,
    Train,
    pack,
    unpack,
)
from tapestryd.host.steward import environment_of
from tapestryd.host.trainer import Trainer, Work
from tapestryd.training.outer import outer_step
from tests.host.home import Home, stewarded
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
        with asyncio.Runner(loop_factory=factory) as runner:  # what libuv opens at its first use stays as long as the process
            runner.run(asyncio.sleep(0.001))
        gc.collect()  # what others left to it
        before = len(os.listdir("/proc/self/fd"))
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work, 240))
        assert len(os.listdir("/proc/self/fd")) == before

    return inside


class Handle:
    """A trainer of a real steward's, with its reports in a queue; `ended` is its exit status. `steward`: its process id."""

    def __init__(self, home: Home, steward: int) -> None:
        self.home, self.steward = home, steward
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def start(self) -> "Handle":
        work = Work(self.home.layout, self.home.rules.canonical(), self.home.tokenizer)
        self.trainer = Trainer.start(work, self.home.socket, on_report=self.reports.put_nowait, on_exit=self.ended.set_result)
        return self

    async def pid(self) -> int:
        """The trainer's process id, once it has said anything."""
        await following(self, Checks)
        return int(Path(f"/proc/{self.steward}/task/{self.steward}/children").read_text())


@pytest.fixture
def steward(home: Home) -> Iterator[int]:
    with stewarded(home) as child:
        yield child


@pytest.fixture
def impostor(home: Home) -> Iterator[socket.socket]:
    """Whatever listens in the data side's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(home.socket))
        listening.listen()
        yield listening


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


def test_rounds_make_the_base_better_and_quit_keeps_progress(home: Home, steward: int) -> None:
    async def work() -> None:
        handle = Handle(home, steward).start()
        trainer = handle.trainer
        environment = Path(f"/proc/{await handle.pid()}/environ").read_bytes()
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


def test_one_after_the_other_and_each_with_nothing_but_its_channel(home: Home, steward: int) -> None:
    """SIGTERM lets it keep its progress; the steward tells how it ended, starts the next one, and goes with one that failed."""

    async def work() -> None:
        for number, status, kept in ((signal.SIGTERM, 0, True), (signal.SIGKILL, -9, True)):
            handle = Handle(home, steward).start()
            pid = await handle.pid()
            await training(handle)
            open_there = Path(f"/proc/{pid}/fd").iterdir()
            assert sum(os.readlink(link).startswith("socket:") for link in open_there) == 1
            os.kill(pid, signal.SIGINT)  # Ctrl-C is the daemon's to interpret
            await following(handle, Beat)
            os.kill(pid, number)
            assert await handle.ended == status
            assert home.saved.exists() == kept
            handle.trainer.send(Stop(0, 0))
            await handle.trainer.stop(1)

    uvloop.run(asyncio.wait_for(work(), 240))


def test_a_fault_arrives_before_the_exit(home: Home, steward: int) -> None:
    async def work() -> None:
        (home.data / "topics.txt").unlink()
        handle = Handle(home, steward).start()
        assert await handle.ended == 78
        assert isinstance(handle.reports.get_nowait(), Checks)
        assert handle.reports.get_nowait() == Fault(Code.DATA_EMPTY)
        assert handle.reports.empty()

    asyncio.run(asyncio.wait_for(work(), 240))


def test_a_trainer_whose_daemon_has_gone_is_ended_even_if_it_is_stuck(home: Home) -> None:
    """Stopped, it cannot hear that its daemon is gone, nor SIGTERM; SIGKILL ends it."""

    async def work(steward: int) -> None:
        handle = Handle(home, steward).start()
        pid = await handle.pid()
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGSTOP)
        handle.trainer.close()
        assert await handle.ended is None
        ready, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], 120)
        assert ready
        os.close(pidfd)

    with stewarded(home, GRACE_S=2.0) as steward:
        asyncio.run(asyncio.wait_for(work(steward), 240))


@pytest.mark.parametrize("packet", [b"no packet", bytes(95) + b"\x01", bytes(96)], ids=["short", "no kind", "an order"])
def test_what_is_no_report_closes_the_channel(packet: bytes, home: Home, impostor: socket.socket, run: Loop) -> None:
    async def work() -> None:
        handle = Handle(home, 0).start()
        with impostor.accept()[0] as theirs:
            theirs.send(packet)
            assert await handle.ended is None
            assert handle.reports.empty()
            await handle.trainer.stop(1)

    run(work())


def test_who_does_not_read_is_given_up_and_never_blocks(home: Home, impostor: socket.socket, run: Loop) -> None:
    async def work() -> None:
        for stop in (False, True):
            handle = Handle(home, 0).start()
            with impostor.accept()[0]:
                if stop:
                    await handle.trainer.stop(0.3)
                for number in range(0 if stop else 5000):
                    handle.trainer.send(Train(number, 0))
                assert await handle.ended is None

    run(work())


def test_the_end_of_one_that_left_orders_unread_and_much_to_read(home: Home, impostor: socket.socket, run: Loop) -> None:
    """More than is read in one turn, and an error on the socket, which uvloop reports once."""

    async def work() -> None:
        handle = Handle(home, 0).start()
        channel, _ = impostor.accept()
        handle.trainer.send(Train(0, 0))
        with channel:
            for _ in range(150):
                channel.send(pack(Beat(1, 1, 1.0, 1.0, 1, 0.0, 0)))
        assert await asyncio.wait_for(handle.ended, 20) is None
        assert handle.reports.qsize() == 150

    run(work())


def test_what_is_shared_is_sealed(home: Home, impostor: socket.socket, run: Loop) -> None:
    """Nobody can shrink or grow a vector; params cannot be mapped for writing, and rules cannot be changed, at the other end."""

    async def work() -> None:
        handle = Handle(home, 0).start()
        theirs, _ = impostor.accept()
        with theirs:
            packet, (params, delta, rules, tokenizer), _, _ = socket.recv_fds(theirs, SIZE, 4)
            assert isinstance(unpack(packet), Hello)
            assert os.pread(rules, 1 << 20, 0) == home.rules.canonical()
            for descriptor, writable in ((params, False), (delta, True), (rules, False), (tokenizer, False)):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, 1 << 20)
                if descriptor != tokenizer:  # an empty one cannot be mapped
                    for protection in (mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
                        try:
                            mmap.mmap(descriptor, 64, prot=protection).close()
                            assert writable
                        except PermissionError:
                            assert not writable
                if not writable:
                    with pytest.raises(PermissionError):
                        os.pwrite(descriptor, b"x", 0)
                os.close(descriptor)
        handle.trainer.params[0] = 7  # we had it mapped before
        assert await handle.ended is None

    run(work())


def test_a_start_that_fails_leaves_nothing(home: Home, run: Loop) -> None:
    async def work() -> None:
        with pytest.raises(FileNotFoundError):
            Handle(home, 0).start()

    run(work())


def test_the_steward_is_not_for_people(home: Home) -> None:
    command = [sys.executable, "-m", "tapestryd.host.steward", "--config", str(home.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78
    assert "there is no socket to listen at" in done.stderr


def test_only_what_a_trainer_needs_is_inherited() -> None:
    given = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "TAPESTRY_TRAINER_DATA__SEED": "3", "PYTHONPATH": "/x"}
    secret = {"AWS_SECRET_ACCESS_KEY": "x", "SSH_AUTH_SOCK": "/s", "TAPESTRY_NODE__NAME": "n", "NOTIFY_SOCKET": "/n", "HTTPS_PROXY": "p"}
    assert environment_of(given | secret) == given
