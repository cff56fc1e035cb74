"""A daemon's control API on a real socket, with a scripted Operator behind it, for the tests of the API and of the CLI."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

from protocols.control import (
    Averaging,
    Ban,
    Certificate,
    Contribution,
    Heldout,
    Isolation,
    Known,
    Netcheck,
    Network,
    Peer,
    Reloaded,
    Run,
    Self,
    Setting,
    Status,
    Story,
    Traffic,
    Trainer,
)
from protocols.egress import Balance, Egress, Gap, Moved, Reconciliation
from tapestryd.config import Dashboard as Choices
from tapestryd.errors import LocalFault
from tapestryd.host.answers import Answers
from tapestryd.host.api import Api
from tapestryd.host.clock import now_ms
from tapestryd.host.dashboard import Dashboard
from tapestryd.host.inbox import Inbox
from tapestryd.host.logs import Logs
from tapestryd.host.watch import Watch
from tapestryd.netcheck import judge

PEER = "12D3KooWAfPDpPRRRBrmqy9is2zjU5srQ4hKuZitiGmh4NTTpS2d"
OTHERS = [PEER[:-4] + end for end in ("nQ8b", "wZZa")]
"""Of the two peers in STATUS: ids by their form, if of nobody's key."""
BANS = (Ban(OTHERS[1], "configuration", "trust.deny", None), Ban(PEER[:-4] + "mQ8b", "faults", "bad_digest ×5, stalled ×1", 1 << 52))
INVITE = f"tapestry:{'ab' * 32}?peer=/ip4/192.0.2.7/tcp/31700/p2p/{PEER}"
RUN = Run("ab" * 32, "tapestry-1b", "", 41, 40, "cd" * 32, 12.3, INVITE, 1_000_000, 4, 2)
STORY = Story(40, 0, "committed", "", (PEER, "12D3other"), 1.0, 40, "cd" * 32, 3_000_000, 3_100_000, 9_400, 128, 262_144, 2.914)
CERTIFICATE = Certificate(
    40, 118, 1.0, "ab" * 32, STORY.members, STORY.members, ("cd" * 32,), (9,), "ef" * 32, "01" * 32, "cd" * 32, (PEER,)
)
STATUS = Status(
    version="0.1.0",
    self=Self(PEER, "aspen", ("/ip4/192.0.2.7/tcp/31700",), 4711),
    uptime_s=273_600.0,
    state="training",
    reasons=(),
    health=(),
    run=RUN,
    trainer=Trainer(
        "training", "cuda:0", "bf16", "adamw8bit", 5120, 10_485_760, 21_300.0, 2.914, 20 << 30, 0, Heldout(1, 3.402, 40, 2.871, 8192)
    ),
    network=Network(2, "yes", 12),
    averaging=Averaging(STORY, 60, 58),
    traffic=Traffic(120_000_000, 124_000_000, {}),
    refusals={},
    isolation=Isolation(True, "namespaces", {"data.sockets": "held"}),
    contribution=Contribution(58, 7_400, 15_200_000),
    peers=(
        Peer(OTHERS[0], "ornl", "", "training", 40, "cd" * 32, True, ("/ip4/192.0.2.8/tcp/31700",), 31.2, 4, 1.5, "0.1.0", 0.0),
        Peer(OTHERS[1], "森の計算機\x1b[31m", OTHERS[0], "syncing", 38, "ef" * 32, False, (), None, None, 4.0, "0.1.0", -7.4),
    ),
)
EGRESS = Egress(
    since_ms=0,
    until_ms=90_000,
    sum=Moved(1000, 2000),
    by_kind={"delta": Moved(1000, 0), "mean": Moved(0, 2000)},
    by_peer={OTHERS[0]: {"delta": Moved(1000, 0), "mean": Moved(0, 2000)}},
    api={"socket": Moved(5, 0)},
    gaps=(Gap(30_000, 40_000),),
    reconciliation=Reconciliation(
        40_000,
        Balance(900, 50, 0, 66, 4, 1020),
        Balance(1900, 60, 0, 132, 0, 2092),
        {OTHERS[0]: {"payload": Moved(900, 1900), "tcp": Moved(950, 1960)}},
        ("eth0",),
        1,
        0,
    ),
    unreconciled="",
)
IDLE = replace(
    STATUS,
    state="idle",
    run=None,
    trainer=Trainer("off"),
    network=Network(0, "unknown", None),
    averaging=Averaging(None, 0, 0),
    traffic=Traffic(0, 0, {}),
    contribution=Contribution(),
    peers=(),
)


CHOICES = Choices(listen="127.0.0.1:0")


class Scripted:
    """An Operator that does as it is told and remembers what it was asked. `fault`: raised by every change."""

    def __init__(self, exports: Path) -> None:
        self.now = STATUS
        self.banned = BANS
        self.asked: list[object] = []
        self.heard = threading.Event()
        self.fault: Exception | None = None
        self.named: tuple[Path, ...] = ()
        self.logs = Logs()
        self.contacts = Acquainted(self)
        self.exports = exports
        self.watch = Watch(self.status, now_ms)
        self.stories = [replace(STORY, round=number) for number in range(30, 41)]

    def status(self) -> Status:
        return self.now

    def rounds(self, limit: int) -> list[Story]:
        return self.stories[-limit:]

    async def round(self, number: int) -> tuple[list[Story], Certificate | None]:
        return [story for story in self.stories if story.round == number], CERTIFICATE if number == 40 else None

    async def egress(self, since_ms: int) -> Egress:
        return replace(EGRESS, since_ms=since_ms)

    def rules_toml(self) -> str | None:
        return 'name = "tapestry-1b"\n' if self.now.run else None

    def bans(self) -> tuple[Ban, ...]:
        return self.banned

    async def ban(self, peer: str, for_s: float | None, reason: str) -> str:
        return self._did(("ban", peer, for_s, reason), f"Banned {peer}.")

    async def unban(self, peer: str) -> str:
        return self._did(("unban", peer), f"Unbanned {peer}.")

    async def pause(self, for_s: float | None) -> str:
        return self._did(("pause", for_s), "Paused.")

    async def finish(self) -> str:
        return self._did("finish", "Finishing.")

    async def choose(self, mode: str, for_s: float | None) -> str:
        return self._did(("mode", mode, for_s), f"Mode {mode}.")

    async def active(self, idle_s: float | None, metered: bool | None) -> str:
        return self._did(("active", idle_s, metered), "Noted.")

    async def resume(self) -> str:
        return self._did("resume", "Training goes on.")

    async def join(self, target: str) -> str:
        return self._did(("join", target), "Joining.")

    async def leave(self) -> str:
        return self._did("leave", "Left the run.")

    def files(self) -> tuple[Path, ...]:
        return self.named

    def settings(self) -> list[Setting]:
        return [
            Setting("node.name", "aspen", "/etc/tapestry/tapestryd.toml", True),
            Setting("storage.keep_snapshots", 2, "built-in", False),
            Setting("trust.deny", [], "environment TAPESTRY_TRUST__DENY", True),
        ]

    async def reload(self) -> Reloaded:
        return Reloaded(self._did("reload", "Taken up: node.name."), ("node.name",), ())

    async def shutdown(self) -> str:
        return self._did("shutdown", "Stopping.")

    async def export(self) -> Path:
        self._did("export", "")
        return self.exports

    def _did(self, what: object, said: str) -> str:
        if self.fault is not None:
            raise self.fault
        self.asked.append(what)
        self.heard.set()
        return said


class Acquainted:
    """Contacts of a Scripted operator, who remembers what was asked."""

    def __init__(self, operator: Scripted) -> None:
        self._operator = operator
        self.checked = judge(("/ip4/0.0.0.0/tcp/31700",), (), {"/ip4/192.168.1.5/tcp/31700": False}, ("/ip4/203.0.113.9/tcp/7",), 2, 3.0)

    def bootstrap(self) -> list[Known]:
        return [Known(f"/ip4/192.0.2.8/tcp/31700/p2p/{OTHERS[0]}", "configuration", True)]

    async def add(self, address: str) -> str:
        return self._operator._did(("add", address), "Added.")

    async def remove(self, peer: str) -> str:
        return self._operator._did(("remove", peer), "Removed.")

    async def reset(self) -> str:
        return self._operator._did("reset", "Forgotten.")

    async def connect(self, address: str) -> str:
        return self._operator._did(("connect", address), "Connected.")

    async def ping(self, peer: str) -> tuple[float, int]:
        self._operator._did(("ping", peer), "")
        return 31.25, -4

    async def netcheck(self) -> Netcheck:
        return self.checked


class Served:
    """An Api and a Dashboard in a thread with an event loop of its own, until closed. `moved`: what the Api counted."""

    def __init__(self, operator: Scripted, socket: Path, loop: asyncio.AbstractEventLoop, choices: Choices = CHOICES) -> None:
        self.operator = operator
        self.socket = socket
        self.inbox = Inbox(socket.with_name("founded"), lambda: 0)
        answers = Answers(operator, operator.watch, self.inbox)
        self.dashboard = Dashboard(choices, answers.page)
        self.routes = (*answers.routes, self.dashboard.link)
        self.moved: list[tuple[int, int]] = []
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()
        self.api = self.run(self._made())
        try:
            self.run(self.api.start())
            self.run(self.dashboard.web.start())
        except LocalFault:
            self.close()
            raise

    async def _made(self) -> Api:
        api = Api(self.routes, self.socket)
        api.count = lambda *moved: self.moved.append(moved)
        return api

    def run(self, job):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.operator.watch.events.close)  # as the daemon does
        self.run(self.dashboard.web.stop())
        self.run(self.api.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
