"""A trainer that is wanted, and not, and wanted again: a real one, at a real steward's."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from protocols.lineage import Tip
from protocols.trainer import ABI, ALL_FRAGMENTS, SIZE, Base, Delta, Ready, Report, Stop, Train, Withheld, pack, unpack
from tapestryd.base import SharedBase
from tapestryd.host.trainer import Trainer, Work
from tapestryd.supervisor import Supervisor
from tests.host.home import Home, stewarded
from tests.host.test_lookout import Watcher
from tests.swarm import rooms
from tests.training.tiny import genesis, rules


class Watched:
    """A Supervisor, and what it said. `steward`: of the trainers' parent, the process id."""

    def __init__(self, home: Home, steward: int) -> None:
        self.ready, self.down, self._steward = asyncio.Event(), asyncio.Event(), steward
        self.failures: list[BaseException] = []
        work = Work(home.layout, home.rules.canonical(), home.tokenizer)
        self.supervisor = Supervisor(
            work, home.socket, home.data.parent / "witness.json", lambda _: None, self.ready.set, lambda _: None, self.down.set,
            self.failures.append,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The trainer's; 0 without one."""
        return int(Path(f"/proc/{self._steward}/task/{self._steward}/children").read_text() or "0")

    async def trains(self) -> None:
        await self.ready.wait()
        trainer = self.supervisor.trainer
        assert trainer is not None
        trainer.params[:] = genesis().numpy()
        trainer.send(Base(0, ALL_FRAGMENTS, True))
        trainer.send(Train(0, 0))
        before = self.supervisor.beat
        await until(lambda: self.supervisor.beat is not before)

    @property
    def state(self) -> str:
        return self.supervisor.status(training=True).state


async def until(good: Callable[[], object]) -> None:
    async def looked() -> object:
        return good()

    await rooms.until(looked, 120)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = rules()
    return Home(tmp_path, replace(made, inner=replace(made.inner, optimizer="adamw")))  # bitsandbytes takes each trainer 2 s to import


def test_let_go_while_it_starts_it_never_gets_ready(home: Home) -> None:
    async def work(steward: int) -> None:
        watched = Watched(home, steward)
        watched.supervisor.start()
        await until(lambda: watched.pid)
        watched.supervisor.want(False)
        await watched.down.wait()
        await until(lambda: not watched.pid)
        assert not watched.ready.is_set()
        assert (watched.state, watched.supervisor.health) == ("released", [])
        watched.supervisor.want(True)
        await watched.trains()
        await watched.supervisor.stop(30)

    with stewarded(home) as steward:
        uvloop.run(work(steward))


def test_let_go_it_keeps_its_progress_and_its_memory_is_free(home: Home) -> None:
    async def work(steward: int) -> None:
        watched = Watched(home, steward)
        watched.supervisor.start()
        await watched.trains()
        pid, steps = watched.pid, watched.supervisor.status(training=True).steps
        watched.supervisor.want(False)
        await watched.down.wait()
        await until(lambda: not watched.pid)
        assert (watched.state, watched.supervisor.health) == ("released", [])
        assert home.saved.exists()
        await asyncio.sleep(1.5)  # as long as one that had failed would wait
        assert watched.state == "released"
        watched.ready.clear()
        watched.supervisor.want(True)
        assert watched.state == "starting"
        await watched.trains()
        assert watched.pid != pid
        assert watched.supervisor.status(training=True).steps > steps
        assert watched.supervisor.restarts == 0
        await watched.supervisor.stop(20)

    with stewarded(home) as steward:
        uvloop.run(asyncio.wait_for(work(steward), 240))


def test_when_no_trainer_is_kept_running_any_more_that_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise ValueError("no room for its memory")

    async def work() -> None:
        watched = Watched(home, 0)
        watched.supervisor.start()
        await until(lambda: watched.failures)
        assert str(watched.failures) == "[ValueError('no room for its memory')]"

    monkeypatch.setattr(Trainer, "start", start)
    uvloop.run(work())


def test_wanted_again_before_it_has_ended_and_not_wanted_from_the_start(home: Home) -> None:
    async def work(steward: int) -> None:
        watched = Watched(home, steward)
        watched.supervisor.want(False)
        watched.supervisor.start()
        await asyncio.sleep(0.2)
        assert (watched.pid, watched.state) == (0, "released")
        watched.supervisor.want(True)
        await watched.trains()
        pid = watched.pid
        watched.ready.clear()
        for wanted in (False, True, False, True):
            watched.supervisor.want(wanted)
        await watched.trains()
        assert watched.pid != pid
        assert (watched.supervisor.restarts, watched.supervisor.health) == (0, [])
        await watched.supervisor.stop(20)

    with stewarded(home) as steward:
        uvloop.run(asyncio.wait_for(work(steward), 240))


def test_one_that_is_stuck_is_let_go_of(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapestryd.supervisor._LET_GO_S", 0.5)

    async def work(steward: int) -> None:
        watched = Watched(home, steward)
        watched.supervisor.start()
        await watched.trains()
        pid = watched.pid
        os.kill(pid, signal.SIGSTOP)
        watched.supervisor.want(False)
        await watched.down.wait()
        assert watched.state == "released"
        await watched.supervisor.stop(20)
        os.kill(pid, signal.SIGKILL)  # which its steward would do, too, half a minute later

    with stewarded(home) as steward:
        uvloop.run(asyncio.wait_for(work(steward), 240))


ANSWER = Delta(1, 0, 9, 9, 9, 1.0, 1.0, 1, bytes(32))


@pytest.mark.parametrize(
    ("stops", "said", "believed"),
    [
        ([1], [ANSWER], True),
        ([1, 2], [ANSWER, Withheld(2, 0, 1)], True),
        ([], [ANSWER], False),
        ([1], [ANSWER, ANSWER], False),
        ([2], [ANSWER], False),
        ([1], [replace(ANSWER, fragment=1)], False),
        ([], [Withheld(1, 0, 1)], False),
        ([], [None], False),
    ],
)  # fmt: skip
def test_what_was_not_asked_for_is_not_believed(stops: list[int], said: list[Report | None], believed: bool, home: Home) -> None:
    """A flood of answers would be copied, written to disk and fed to the round, each of them. None: READY once more."""

    async def work(listening: socket.socket) -> None:
        loop, heard = asyncio.get_running_loop(), list[Delta | Withheld]()
        watched = Watched(home, 0)
        watched.supervisor._on_stopped = heard.append  # type: ignore[method-assign]
        watched.supervisor.start()
        channel, _ = await loop.sock_accept(listening)
        ready = Ready(ABI, home.layout.elements, 0, 0, 0)
        with channel:
            channel.send(pack(ready))
            await watched.ready.wait()
            for round in stops:
                watched.supervisor.send(Stop(round, 0))
            for report in said:
                channel.send(pack(report or ready))
            await (until(lambda: len(heard) == len(said)) if believed else watched.down.wait())
        assert (not watched.supervisor.fault) == believed
        assert len(heard) == (len(said) if believed else len(said) - 1)
        await watched.supervisor.stop(1)

    with channel_of(home) as listening:
        asyncio.run(asyncio.wait_for(work(listening), 60))


def channel_of(home: Home) -> socket.socket:
    """Where a data side listens, to be played by hand."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(home.socket))
    listening.listen()
    listening.setblocking(False)
    return listening


class SlowCopy:
    """In place of copying a base: it waits. `began`: the copy has begun; `go_on`: it may be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on, self._copyto = threading.Event(), threading.Event(), np.copyto
        monkeypatch.setattr("tapestryd.supervisor.np.copyto", self._copy)

    def _copy(self, *given: Any) -> None:
        self.began.set()
        assert self.go_on.wait(60)
        self._copyto(*given)


def based(home: Home) -> SharedBase:
    base = SharedBase(home.rules, home.layout)
    base.theta.copy_(genesis())
    base.tip = Tip(0, 0, "ab" * 32)
    return base


@pytest.mark.parametrize("next_one", [False, True])
def test_a_trainer_that_ends_while_it_is_handed_a_base_was_handed_none(home: Home, next_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor was the next one, which may be there by then, with vectors of its own."""

    async def work(listening: socket.socket) -> None:
        loop, ready = asyncio.get_running_loop(), pack(Ready(ABI, home.layout.elements, 0, 0, 0))
        watched, base = Watched(home, 0), based(home)
        supervisor = watched.supervisor
        supervisor.start()
        first, _ = await loop.sock_accept(listening)
        with first:
            first.send(ready)
            await watched.ready.wait()
            copy = SlowCopy(monkeypatch)
            handed = asyncio.create_task(supervisor.hand(base))
            assert await asyncio.to_thread(copy.began.wait, 60)
        await watched.down.wait()
        if next_one:
            watched.ready.clear()
            second, _ = await loop.sock_accept(listening)
            second.send(ready)
            await watched.ready.wait()
        copy.go_on.set()
        assert not await handed
        if next_one:
            await supervisor.committed(base, 1)  # the first that it gets is the whole
            assert await supervisor.hand(base)
            heard = [unpack(second.recv(SIZE + 1)) for _ in range(3)]
            assert heard[1:] == [Base(0, ALL_FRAGMENTS, True), Base(0, 1, False)]
            second.close()
        await supervisor.stop(1)

    with channel_of(home) as listening:
        asyncio.run(asyncio.wait_for(work(listening), 60))


def test_the_base_is_handed_over_by_one_at_a_time(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer is back, a catch-up ends and a round is committed, all while the base is being copied."""

    async def work(listening: socket.socket) -> None:
        watched, base = Watched(home, 0), based(home)
        supervisor = watched.supervisor
        await supervisor.committed(base, 1)
        supervisor.start()
        channel, _ = await asyncio.get_running_loop().sock_accept(listening)
        with channel:
            channel.send(pack(Ready(ABI, home.layout.elements, 0, 0, 0)))
            await watched.ready.wait()
            copy = SlowCopy(monkeypatch)
            returned = asyncio.create_task(supervisor.hand(base))
            assert await asyncio.to_thread(copy.began.wait, 60)
            caught_up, committed = asyncio.create_task(supervisor.hand(base)), asyncio.create_task(supervisor.committed(base, 0))
            await asyncio.sleep(0)
            copy.go_on.set()
            assert await returned
            assert await caught_up
            await committed
            heard = [unpack(channel.recv(SIZE + 1)) for _ in range(5)]
            whole = Base(0, ALL_FRAGMENTS, True)
            assert heard[1:] == [whole, Base(0, 1, False), whole, Base(0, 0, False)]
            await supervisor.stop(1)

    with channel_of(home) as listening:
        asyncio.run(asyncio.wait_for(work(listening), 60))


def test_its_steward_is_watched_before_it_comes_while_it_is_there_and_when_it_has_gone(home: Home) -> None:
    async def work(steward: int) -> None:
        watched, before = Watched(home, steward), Watcher(home.socket)
        await before.until()
        watched.supervisor.start()
        await watched.trains()
        while_there = Watcher(home.socket)  # takes the place of the other, which asks again
        await while_there.until()
        watched.supervisor.want(False)
        await watched.down.wait()
        await before.stop()
        await while_there.stop()
        after = Watcher(home.socket)
        await after.until()
        await after.stop()
        await watched.supervisor.stop(20)

    with stewarded(home) as steward:
        uvloop.run(asyncio.wait_for(work(steward), 240))
