"""What the operator wants of particular peers: to look for the run at them, to dial them, to measure the way there and back.

Peers to begin with come from the configuration, from the operator, and from the invite, which also remembers who was seen last.
Implements host.peering.Contacts.
"""

import asyncio
import time
from collections.abc import Callable

from protocols import limits
from protocols.control import Known, Netcheck
from protocols.refusal import Refused
from protocols.rules import Invite
from tapestryd.config import Network
from tapestryd.errors import LocalFault
from tapestryd.host.state import StateDir
from tapestryd.netcheck import judge
from tapestryd.session import Session
from tapestryd.swarm.streams import Gone

_ASK_AGAIN_S = 20.0
"""Peers dial back for us that often, and no more."""


class Contacts:
    """`session()`: of the joined run, if there is one. `network()`: of the configuration in force."""

    def __init__(self, state: StateDir, network: Callable[[], Network], session: Callable[[], Session | None]) -> None:
        self._state, self._network, self._session = state, network, session
        self._asking = asyncio.Lock()

    def of(self, invite: Invite, own: str) -> list[str]:
        """Where to look for the run; `own`: our peer id."""
        addresses = dict.fromkeys([*invite.peers, *self._network().bootstrap, *self._state.bootstrap])
        return [address for address in addresses if not address.endswith(f"/p2p/{own}")]

    def bootstrap(self) -> list[Known]:
        configured, ours = self._network().bootstrap, self._state.bootstrap
        session = self._session()
        known = session.node.acquainted() if session else set()
        invite = self._remembered().peers if self._state.current else ()
        by = dict.fromkeys(invite, "invite") | dict.fromkeys(ours, "operator") | dict.fromkeys(configured, "configuration")
        return [Known(address, origin, _peer(address) in known) for address, origin in sorted(by.items(), key=lambda item: item[1])]

    async def add(self, address: str) -> str:
        ours = self._state.bootstrap
        if len(ours) >= limits.ADDRESSES and address not in ours:
            raise LocalFault(f"{limits.ADDRESSES} peers are named already; remove one with `tapestry bootstrap rm`")
        self._state.bootstrap = list(dict.fromkeys([*ours, address]))
        self.seek()
        return f"The run is looked for at {address}, too."

    async def remove(self, peer: str) -> str:
        if any(_peer(address) == peer for address in self._network().bootstrap):
            raise LocalFault(f"{peer} is named by network.bootstrap of the configuration; take it out there, and `tapestry reload`")
        ours, invite = self._state.bootstrap, self._remembered()
        if not any(_peer(address) == peer for address in (*ours, *invite.peers)):
            raise LocalFault(f"{peer} is no peer to begin with; `tapestry bootstrap list` shows those that are")
        self._state.bootstrap = [address for address in ours if _peer(address) != peer]
        if self._state.current:
            self._state.current = str(Invite(invite.run_id, tuple(address for address in invite.peers if _peer(address) != peer)))
        self.seek()
        return f"The run is no longer looked for at {peer}, unless it is seen again."

    async def reset(self) -> str:
        self._state.bootstrap = []
        if self._state.current:
            self._state.current = str(Invite(self._remembered().run_id, ()))
        self.seek()
        count = len(self._network().bootstrap)
        return f"Forgotten all but what the configuration names ({count}); peers that are seen are remembered again."

    async def connect(self, address: str) -> str:
        session = self._joined()
        if session.node.door.shut(_peer(address)):
            raise LocalFault(f"{_peer(address)} is banned here; `tapestry peers unban` ends that")
        try:
            await session.node.greet(address)
        except Gone as gone:
            raise LocalFault(f"{address} does not answer: {gone}") from None
        return f"Connected to {_peer(address)}."

    async def ping(self, peer: str) -> tuple[float, int]:
        try:
            return await self._joined().neighbours.ping(peer)
        except (Gone, Refused) as error:
            raise LocalFault(f"{peer} does not answer: {error}") from None

    async def netcheck(self) -> Netcheck:
        session, network = self._session(), self._network()
        if session is None:
            return judge(network.listen, network.announce, {}, (), None, None)
        reach = session.reach
        async with self._asking:
            if time.monotonic() - reach.asked_s > _ASK_AGAIN_S:
                session.addresses = await session.node.addresses()
                await reach.ask(session.neighbours.some(), session.addresses)
        asked_s = time.monotonic() - reach.asked_s
        seen = tuple(dict.fromkeys(filter(None, reach.seen.values())))
        present = session.neighbours.count()
        return judge(network.listen, network.announce, reach.reached, seen, present, round(asked_s, 1) if asked_s < 1e9 else None)

    def seek(self) -> None:
        """Look at whom they now name."""
        session = self._session()
        if session is not None:
            session.node.seek(self.of(self._remembered(), session.node.peer_id))

    def _remembered(self) -> Invite:
        try:
            return Invite.parse(self._state.current)
        except Refused:
            return Invite("", ())

    def _joined(self) -> Session:
        session = self._session()
        if session is None:
            raise LocalFault("No run is joined, so there are no peers; `tapestry run join INVITE` joins one.")
        return session


def _peer(address: str) -> str:
    return address.rpartition("/p2p/")[2]
