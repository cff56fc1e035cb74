"""The daemon: one state directory, one identity, one API, and at most one joined run.

Starts in an order in which every fault is found before anything is promised (lock, identity, API, swarm, trainer) and
ends within 30 s of SIGTERM or SIGINT, whatever the others do.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from socket import socket

from protocols import limits
from protocols.control import Ban, Certificate, Reloaded, Setting, Status, Story
from protocols.egress import Egress
from protocols.refusal import Refused
from protocols.rounds import IN_ROUND, Held, State
from protocols.rules import Invite, prefix_of
from protocols.trainer import Around
from tapestryd import __version__
from tapestryd.beside import Beside
from tapestryd.bookkeeper import Bookkeeper
from tapestryd.config import DaemonConfig
from tapestryd.contacts import Contacts
from tapestryd.doorkeeper import Doorkeeper
from tapestryd.errors import DiskFull, LocalFault, StateFault, Unavailable
from tapestryd.export import exported
from tapestryd.founding import adopt
from tapestryd.host.answers import Answers
from tapestryd.host.api import Api
from tapestryd.host.box import interpreter
from tapestryd.host.clock import now_ms
from tapestryd.host.dashboard import Dashboard
from tapestryd.host.dataside import DataSide
from tapestryd.host.fields import FOUNDED
from tapestryd.host.inbox import Inbox
from tapestryd.host.keys import Identity, verify
from tapestryd.host.logs import Logs
from tapestryd.host.metrics import scraped
from tapestryd.host.probes import EVERY_S
from tapestryd.host.sensors.load import cpu_s
from tapestryd.host.state import StateDir
from tapestryd.host.systemd import Notifier
from tapestryd.host.watch import Watch
from tapestryd.host.web import Web
from tapestryd.host.will import Mode
from tapestryd.isolation import Isolation
from tapestryd.layers import Loaded
from tapestryd.pauses import Pauses
from tapestryd.picture import picture
from tapestryd.reloading import Choices
from tapestryd.session import Session
from tapestryd.story import certificate
from tapestryd.swarm.line import Line
from tapestryd.swarm.meter import Meter
from tapestryd.swarm.node import Node

log = logging.getLogger(__name__)

_STOP_S = 20.0
"""For leaving the run; ending p2pd and the API behind it takes a few seconds more, and systemd is promised 30 in all."""


class Daemon:
    """Implements host.operator.Operator. `run` returns after a clean stop and raises LocalFault otherwise."""

    def __init__(self, load: Callable[[], Loaded[DaemonConfig]], notifier: Notifier, method: str, api: socket | None) -> None:
        """`load`: reads the configuration as it is now, or raises LocalFault. `method`: who boxed us; `api`: a socket listening at
        api.socket that somebody else has made, and will remove."""
        self._choices = Choices(load)
        self.logs = Logs()
        config = self.config
        named = [Path(name).parent for name in (config.run.join, config.run.delegation) if name]
        needed = (*interpreter(os.environ), config.node.state_dir, *config.sandbox.read, *named)
        self.isolation = Isolation(method, config.trainer.config, needed, required=config.sandbox.require)
        self._api = api
        self.session: Session | None = None
        self._notifier = notifier
        self._began = time.monotonic()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._beside = Beside(self._fail)
        self._changing = asyncio.Lock()
        self._line = Line(
            lambda: self.config.network.max_upload_bytes, lambda: self.config.network.max_download_bytes,
            spare_near=config.network.lan_exempt,
        )  # fmt: skip
        self.contacts: Contacts
        self._state: StateDir
        self._identity: Identity
        self._door: Doorkeeper
        self._pauses: Pauses
        self._watch: Watch
        self._dashboard: Web
        self._scraped: Web
        self._books: Bookkeeper
        self._data_side: DataSide | None = None
        self._seeing: asyncio.Task[None] | None = None

    @property
    def config(self) -> DaemonConfig:
        return self._choices.config

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._state = StateDir(self.config.node.state_dir)
        try:
            self._identity = Identity.load_or_make(self._state.path / "identity.key")
            self._door = Doorkeeper(self.config.trust, self._state, now_ms)
            self._books = Bookkeeper(self._state.path / "egress", now_ms)
            self.contacts = Contacts(self._state, lambda: self.config.network, lambda: self.session)
            self._pauses = Pauses(self.config, self._state, lambda: now_ms() / 1000, self._busy, lambda: self._books.month, self._hold)
            self._watch = Watch(self.status, now_ms, per_peer=self.config.metrics.per_peer)
            self._inbox = Inbox(self._state.path / "founded", lambda: self.config.storage.min_free_bytes)
            answers = Answers(self, self._watch, self._inbox)
            dashboard = Dashboard(self.config.dashboard, answers.page)
            self._dashboard, self._scraped = dashboard.web, scraped(self.config.metrics, answers.metrics)
            api = Api((*answers.routes, dashboard.link), self.config.api.socket, self._api)
            self._books.serves({"socket": api, "dashboard": self._dashboard, "metrics": self._scraped})
            self.isolation.look()
            await api.start()
            await self._dashboard.start()
            await self._scraped.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.set)
            loop.add_signal_handler(signal.SIGUSR1, self.logs.toggle_debug)
            loop.add_signal_handler(signal.SIGHUP, lambda: self._beside.run(self._heard_hup()))
            says = self._beside.run(self._say())
            counts = self._beside.run(self._books.run())
            self._pauses.look()
            pauses = self._beside.run(self._pauses.run())
            try:
                await self._resume_run()
                self._notifier.ready()
                log.info("tapestryd %s peer=%s api=%s", __version__, self._identity.peer_id, self.config.api.socket)
                await self._stopping.wait()
            finally:
                self._stopping.set()
                self._notifier.stopping()
                log.info("stopping")
                await self._end_session()
                await self._door.close()
                says.cancel()
                pauses.cancel()
                self._watch.events.close()
                await self._scraped.stop()
                await self._dashboard.stop()
                await api.stop()
                await self._books.close()
                await counts
        finally:
            self._state.close()
        if self._failure is not None:
            if isinstance(self._failure, LocalFault):
                raise self._failure
            raise Unavailable(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    async def _say(self) -> None:
        """Tell systemd how we are, and that the loop turns."""
        watchdog = asyncio.create_task(self._notifier.watchdog())
        looked = time.monotonic()
        try:
            while True:
                if time.monotonic() - looked > EVERY_S:
                    looked = time.monotonic()
                    try:
                        self.isolation.look()
                    except LocalFault as fault:
                        self._fail(fault)
                status = self._watch.look()
                run = f" run {status.run.name} height {status.run.height}" if status.run else ""
                self._notifier.status(f"{status.state}{run}" + (f" ({', '.join(status.reasons)})" if status.reasons else ""))
                await asyncio.sleep(2)
        finally:
            watchdog.cancel()

    async def _resume_run(self) -> None:
        """The run of the configuration, else the one that we were in."""
        target = self.config.run.join or self._state.current
        if target:
            await self._open(target)

    # Runs.

    async def _open(self, target: str) -> str:
        """Join an invite or a founder's run.toml. Raises LocalFault with nothing changed."""
        if target.startswith("tapestry:"):
            try:
                invite = Invite.parse(target)
            except Refused as refused:
                raise StateFault(refused.detail) from None
        else:
            rules = await asyncio.to_thread(adopt, Path(target), self._state)
            invite = Invite(rules.run_id, ())
        with suppress(Refused):
            known = Invite.parse(self._state.current)
            if known.run_id == invite.run_id:
                invite = Invite(invite.run_id, tuple(dict.fromkeys([*invite.peers, *known.peers]))[: limits.ADDRESSES])
        network = self.config.network
        bootstrap = self.contacts.of(invite, self._identity.peer_id)
        await self._books.joining()
        node = await Node.start(
            prefix_of(invite.run_id), self._identity.path, network.listen, network.announce, bootstrap, verify, self._door,
            line=self._line,
            meter=Meter(self._books.count),
        )  # fmt: skip
        try:
            if node.peer_id != self._identity.peer_id:
                raise StateFault(f"{self._identity.path}: p2pd reads another identity in it; restore it from a backup")
            self._state.current = str(invite)
            store = self._state.run(invite.run_id)
            session = Session(self.config, self._identity, store, node, self.isolation, self._watch, self._keep_peers, self._fail)
        except BaseException:
            await node.stop()
            raise
        self._books.joined(node.p2pd, node.connections)
        self.session = session
        self.session.hold(self._pauses.held)
        if self.config.trainer.enabled:
            self._data_side = DataSide(self.config.trainer.socket, self._around, self._seen)
            self._seeing = self._beside.run(self._data_side.run())
        await self.session.start()
        return invite.run_id

    def _keep_peers(self, addresses: Sequence[str]) -> None:
        """Where the run can be found again, should the first addresses be gone by then."""
        known = Invite.parse(self._state.current)
        peers = tuple(dict.fromkeys([*addresses, *known.peers]))[: limits.ADDRESSES]
        try:
            self._state.current = str(Invite(known.run_id, peers))
        except DiskFull as full:  # the older addresses stay
            log.error("%s", full)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            if not isinstance(error, LocalFault):
                log.error("the session cannot go on", exc_info=error)
            self._failure = error
        self._stopping.set()

    def _around(self) -> Around:
        """What the data side cannot see of this machine."""
        pids = [os.getpid(), *([self.session.node.p2pd] if self.session else [])]
        return Around(round(1000 * (self._pauses.input_s or 0)), round(1000 * cpu_s(Path("/"), pids)))

    def _seen(self) -> None:
        if self._data_side is not None:
            self._pauses.seen(self._data_side.holds, self._data_side.changes_s)

    async def _end_session(self) -> None:
        session, self.session = self.session, None
        if self._seeing is not None:
            self._seeing.cancel()
            self._seeing = self._data_side = None
            self._pauses.seen((), None)
        if session is not None:
            await self._books.left()
            await session.stop(_STOP_S)

    # What the operator may ask.

    def status(self) -> Status:
        webs, peer_id, policy = (self._dashboard, self._scraped), self._identity.peer_id, self._pauses.status()
        trouble, stopping = self._choices.trouble, self._stopping.is_set()
        gpus = self._data_side.gpus if self._data_side else ()
        return picture(self.config, self.session, self._door, self.isolation, policy, gpus, webs, peer_id, self._began, trouble, stopping)

    def rounds(self, limit: int) -> list[Story]:
        return list(self.session.history.stories)[-limit:] if self.session else []

    async def round(self, number: int) -> tuple[list[Story], Certificate | None]:
        session = self.session
        if session is None:
            return [], None
        stories = session.history.of(number)
        height = next((told.height for told in stories if told.result in ("committed", "replayed")), None)
        entry = await asyncio.to_thread(session.store.entry_head, height, verify) if height is not None else None
        return stories, certificate(entry) if entry and entry.vote.round == number else None

    def rules_toml(self) -> str | None:
        return self.session.rules.to_toml() if self.session and self.session.rules else None

    async def egress(self, since_ms: int) -> Egress:
        return await self._books.show(since_ms)

    def bans(self) -> tuple[Ban, ...]:
        return self._door.bans()

    async def ban(self, peer: str, for_s: float | None, reason: str) -> str:
        if peer == self._identity.peer_id:
            raise LocalFault(f"{peer} is this node itself")
        try:
            return await self._door.ban(peer, for_s, reason)
        finally:  # in force, whatever the disk says
            if self.session is not None:
                await self.session.node.disconnect(peer)

    async def unban(self, peer: str) -> str:
        return await self._door.unban(peer)

    async def pause(self, for_s: float | None) -> str:
        return await self._pauses.pause(for_s)

    async def finish(self) -> str:
        return await self._pauses.finish()

    async def resume(self) -> str:
        return await self._pauses.resume()

    async def choose(self, mode: Mode, for_s: float | None) -> str:
        return await self._pauses.choose(mode, for_s)

    async def active(self, idle_s: float | None, metered: bool | None) -> str:
        self._pauses.active(idle_s, metered)
        return "Noted."

    def _busy(self) -> bool:
        member = self.session.member if self.session else None
        return member is not None and member.state in (State.TRAINING, *IN_ROUND)

    def _hold(self, held: Held) -> None:
        if self.session is not None:
            self.session.hold(held)
        self._watch.look()

    def _member(self) -> Session:
        if self.session is None:
            raise LocalFault("No run is joined; `tapestry run join INVITE` joins one.")
        if self.session.member is None:
            raise LocalFault("The run's rules have not been fetched yet; try again when `tapestry status` shows a base.")
        return self.session

    async def join(self, target: str) -> str:
        async with self._changing:
            if self.session is not None:
                raise LocalFault(f"This daemon is in run {self.session.store.run_id[:12]} already; `tapestry run leave` first.")
            try:
                run_id = await self._open(str(self._inbox.folder / "run.toml") if target == FOUNDED else target)
            finally:
                self._inbox.clear()
        return f"Joining run {run_id[:12]}.{self._next_start()}"

    async def leave(self) -> str:
        async with self._changing:
            if self.session is None:
                raise LocalFault("No run is joined.")
            run_id = self.session.store.run_id
            await self._end_session()
            self._state.current = ""
        return f"Left run {run_id[:12]}; its files stay in {self._state.path / 'runs' / run_id}.{self._next_start()}"

    def _next_start(self) -> str:
        return " At the next start run.join of the configuration has the last word." if self.config.run.join else ""

    def files(self) -> tuple[Path, ...]:
        return self._choices.files

    def settings(self) -> list[Setting]:
        return self._choices.settings()

    async def reload(self) -> Reloaded:
        try:
            reloaded = await self._choices.reload()
            await self._heed(self.config)
            return reloaded
        finally:
            self._watch.look()

    async def _heed(self, config: DaemonConfig) -> None:
        """Tell those who do not ask each time."""
        self.logs.set(config.log.level)
        self._line.spare_near = config.network.lan_exempt
        self._door.amend(config.trust)
        self._pauses.amend(config)
        if self.session is not None:
            self.session.config = config
            self.contacts.seek()
            for peer in config.trust.deny:
                await self.session.node.disconnect(peer)

    async def _heard_hup(self) -> None:
        self._notifier.reloading()
        try:
            log.info("%s", (await self.reload()).said)
        except LocalFault as fault:
            log.error("%s", fault)
        self._notifier.ready()

    async def shutdown(self) -> str:
        asyncio.get_running_loop().call_later(0.2, self._stopping.set)
        return "Stopping."

    async def export(self) -> Path:
        return await exported(self._member(), self._state.path / "export", self._identity.peer_id)


def main(load: Callable[[], Loaded[DaemonConfig]], method: str, api: socket | None) -> None:
    """Run until stopped. The parameters are Daemon's. Raises LocalFault."""
    import sys

    import uvloop

    async def run() -> None:
        daemon = Daemon(load, Notifier.of(os.environ, os.getpid()), method, api)
        daemon.logs.start(daemon.config.log.level, daemon.config.log.format, os.environ, sys.stderr)
        await daemon.run()

    uvloop.run(run())
