"""Who may come in: the standing of the others, with this machine's clock, its log, and a file that keeps bans over a restart.

One for the daemon's life, whatever run it is in: a ban is of an identity. Implements swarm.node.Door.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from protocols.control import Ban
from protocols.refusal import Reason
from tapestryd.config import Trust
from tapestryd.errors import DiskFull, LocalFault, StateFault
from tapestryd.host.files import unwritten
from tapestryd.host.state import StateDir
from tapestryd.standing import Standing, Trusted

log = logging.getLogger(__name__)


class Doorkeeper:
    """`now_ms`: the wall clock, because bans outlive the process."""

    def __init__(self, terms: Trust, state: StateDir, now_ms: Callable[[], int]) -> None:
        self._state = state
        self._now_ms = now_ms
        self._written = state.bans()
        self._standing = Standing(terms, self._written)
        self._writing = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def amend(self, terms: Trust) -> None:
        """Other terms from now on."""
        self._standing.amend(terms)

    @property
    def _now_s(self) -> float:
        return self._now_ms() / 1000

    def shut(self, peer: str) -> bool:
        self._sweep()
        return self._standing.trusted(peer, self._now_s) is Trusted.NO

    def wary(self, peer: str) -> bool:
        return self._standing.trusted(peer, self._now_s) is not Trusted.YES

    def score(self, peer: str) -> float:
        return round(self._standing.score(peer, self._now_s), 1)

    def fault(self, peer: str, reason: Reason) -> bool:
        """Whether it has just become one whose connection is to be dropped."""
        match self._standing.fault(peer, reason, self._now_s):
            case Trusted.NO:
                log.warning("peer=…%s banned %s", peer[-6:], _until(self._ban_of(peer)))
                self._write_later()
                return True
            case Trusted.WARILY:
                log.warning("peer=…%s disconnected, no donor for now (%s)", peer[-6:], self._standing.why(peer))
                return True
        return False

    def bans(self) -> tuple[Ban, ...]:
        self._sweep()
        return self._standing.bans(self._now_s)

    async def ban(self, peer: str, for_s: float | None, reason: str) -> str:
        """The sentence for the operator. Raises LocalFault if it is in force, but would not survive a restart."""
        ban = self._standing.ban(peer, for_s, reason, self._now_s)
        log.warning("peer=…%s banned by the operator %s", peer[-6:], _until(ban))
        await self._write()
        return f"Banned {peer} {_until(ban)}."

    async def unban(self, peer: str) -> str:
        if self._standing.denied(peer):
            raise LocalFault(f"{peer} is denied by trust.deny of the configuration; take it out there, and `tapestry reload`")
        if not self._standing.unban(peer):
            raise LocalFault(f"{peer} is not banned; `tapestry peers bans` lists those that are")
        log.warning("peer=…%s unbanned by the operator", peer[-6:])
        await self._write()
        return f"Unbanned {peer}; its faults are forgotten."

    async def close(self) -> None:
        if self._later is not None:
            await self._later

    def _ban_of(self, peer: str) -> Ban:
        return next(ban for ban in self._standing.bans(self._now_s) if ban.peer_id == peer)

    def _sweep(self) -> None:
        ended = self._standing.ended(self._now_s)
        for ban in ended:
            log.warning("peer=…%s no longer banned: the time is over", ban.peer_id[-6:])
        if ended:
            self._write_later()

    def _write_later(self) -> None:
        """Bans made by the misdeeds of others: nobody waits for the disk, and a burst of them is one or two files."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._write_all())

    async def _write_all(self) -> None:
        try:
            await self._write()
        except LocalFault as fault:
            log.error("bans are in force, but would not survive a restart: %s", fault)

    async def _write(self) -> None:
        """Until the file holds what is in force."""
        async with self._writing:
            while (now := tuple(ban for ban in self._standing.bans(self._now_s) if ban.until_ms is not None)) != self._written:
                try:
                    await asyncio.to_thread(self._state.keep_bans, now)
                except (DiskFull, OSError) as error:
                    raise StateFault(f"the bans in force cannot be written to {self._state.path}: {unwritten(error)}") from None
                self._written = now


def _until(ban: Ban) -> str:
    """ "until 2026-07-01T18:00:00Z (bad_digest ×5)" """
    until = f"until {datetime.fromtimestamp(ban.until_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if ban.until_ms is not None else "for good"
    return until + (f" ({ban.reason})" if ban.reason else "")
