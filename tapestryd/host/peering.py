"""What the control API answers about particular peers, and about how to be found by them. On its socket alone.

Asks Contacts and words the answer. Knows nothing of runs, nor of who asks.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol

from protocols.control import Known, Netcheck
from tapestryd.host.fields import Address, Doc, PeerId
from tapestryd.host.route import SAID, Route


class Contacts(Protocol):
    """Sentences say what changed; a LocalFault says why nothing did."""

    def bootstrap(self) -> Sequence[Known]: ...

    async def add(self, address: str) -> str: ...

    async def remove(self, peer: str) -> str: ...

    async def reset(self) -> str:
        """All but the configuration's."""

    async def connect(self, address: str) -> str: ...

    async def ping(self, peer: str) -> tuple[float, int]:
        """Round trip and clock difference, in ms."""

    async def netcheck(self) -> Netcheck:
        """Has peers try, if that is not just done."""


class Peering:
    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts
        peer, address = {"peer_id": PeerId()}, {"address": Address()}
        self.routes = (
            Route("GET", "/v1/netcheck", "Whether others can dial this node, and what to do if not.", self._netcheck, Netcheck),
            Route("GET", "/v1/bootstrap", "Peers to look for the run at.", self._bootstrap, {"peers": list[Known]}),
            Route("PUT", "/v1/bootstrap", "Look for the run at one more peer.", self._add, SAID, body=address),
            Route("DELETE", "/v1/bootstrap", "Forget all of them but the configuration's.", self._reset, SAID),
            Route("DELETE", "/v1/bootstrap/{peer_id}", "Forget one of them.", self._remove, SAID, peer),
            Route("POST", "/v1/peers/connect", "Dial a peer.", self._connect, SAID, body=address),
            Route("POST", "/v1/peers/{peer_id}/ping", "Go to a peer and back.", self._ping, {"rtt_ms": float, "skew_ms": int}, peer),
        )

    async def _netcheck(self) -> Doc:
        return asdict(await self._contacts.netcheck())

    async def _bootstrap(self) -> Doc:
        return {"peers": [asdict(known) for known in self._contacts.bootstrap()]}

    async def _add(self, address: str) -> Doc:
        return {"said": await self._contacts.add(address)}

    async def _reset(self) -> Doc:
        return {"said": await self._contacts.reset()}

    async def _remove(self, peer_id: str) -> Doc:
        return {"said": await self._contacts.remove(peer_id)}

    async def _connect(self, address: str) -> Doc:
        return {"said": await self._contacts.connect(address)}

    async def _ping(self, peer_id: str) -> Doc:
        rtt_ms, skew_ms = await self._contacts.ping(peer_id)
        return {"rtt_ms": round(rtt_ms, 2), "skew_ms": skew_ms}
