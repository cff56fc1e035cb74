"""Whether others can dial us: ask them to try. As libp2p's AutoNAT, but by the addresses that we would announce.

An open libp2p connection proves nothing, since we may have dialled it ourselves; so whoever is asked opens a new TCP
connection and speaks the first words of multistream-select, which every libp2p listener answers alike.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as AddressError

from protocols import limits
from protocols.canonical import Json, take
from protocols.records import is_address
from protocols.refusal import Reason, Refused
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream

log = logging.getLogger(__name__)

_HELLO = b"\x13/multistream/1.0.0\n"
_TRY_S = 3.0
_ASKED_S = 20.0
"""We dial back for one peer at most so often: nobody's tool for knocking at other people's doors."""
_PEERS = 3


class Reach:
    """`reachable`: None until somebody has tried. `reached`: of the latest that were tried, which others get through to. `seen`: peer →
    where our connection to it comes from, as it sees it; behind a router that is the router. `asked_s`: monotonic, of the latest answer."""

    def __init__(self, node: Node) -> None:
        self.reachable: bool | None = None
        self.reached: dict[str, bool] = {}
        self.seen: dict[str, str] = {}
        self.asked_s = -math.inf
        self._node = node
        self._served: dict[str, float] = {}

    async def serve(self) -> None:
        await self._node.serve("dialback", self._asked)

    async def _asked(self, stream: Stream) -> None:
        head = await stream.question({"addrs": list})
        if len(head["addrs"]) > limits.ADDRESSES or not all(map(is_address, head["addrs"])):
            raise Refused(Reason.OUT_OF_RANGE, "addresses")
        now = asyncio.get_running_loop().time()
        self._served = {peer: at for peer, at in self._served.items() if now - at < _ASKED_S}
        if stream.peer in self._served:
            raise Refused(Reason.TOO_SOON, f"asked again within {_ASKED_S:.0f} s")
        self._served[stream.peer] = now
        tried = await asyncio.gather(*(_answers(address, partial(self._moved, stream.peer)) for address in head["addrs"]))
        come_from = [address for address, peer in (await self._node.connections()).items() if peer == stream.peer]
        await stream.send({"reached": list(tried), "seen": next(map(_written, come_from), "")})

    def _moved(self, peer: str, sent: int, received: int) -> None:
        """Our own sockets are no streams, but bytes they are."""
        self._node.meter.sends(sent, "dialback", peer, asks=False)
        self._node.meter.receives(received, "dialback", peer, asks=False)

    async def ask(self, peers: Sequence[str], addresses: Sequence[str]) -> None:
        """Find out by a few of `peers` whether we can be dialled at `addresses`: one that gets through is enough; with no answer at
        all we know what we knew."""
        for peer in peers[:_PEERS]:
            try:
                head, _ = await self._node.ask(peer, "dialback", {"addrs": list(addresses)})
                reached, seen = _parsed(head, len(addresses))
            except (Gone, Refused) as error:
                if isinstance(error, Refused):
                    self._node.refused(error, "dialback", peer)
                log.debug("dialback by %s: %s", peer[-6:], error)
                continue
            if self.reachable != any(reached):
                log.info("others can%s dial us, says %s", "" if any(reached) else "not", peer[-6:])
            self.reachable, self.reached = any(reached), dict(zip(addresses, reached, strict=True))
            self.seen[peer] = seen
            self.asked_s = time.monotonic()
            if self.reachable:
                return


def _parsed(head: Json, count: int) -> tuple[list[bool], str]:
    """Raises Refused."""
    take(head, {"reached": list, "seen": str})
    if len(head["reached"]) != count or not all(type(one) is bool for one in head["reached"]):
        raise Refused(Reason.OUT_OF_RANGE, "an answer for each address")
    if head["seen"] and not is_address(head["seen"]):
        raise Refused(Reason.OUT_OF_RANGE, "seen")
    return head["reached"], head["seen"]


def _written(end: tuple[str, int]) -> str:
    host, port = end
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"


async def _answers(address: str, moved: Callable[[int, int], None]) -> bool:
    """Whether a libp2p listener answers at `address`; `moved(sent, received)` is told what that took. Only IP and TCP: names could
    lead anywhere, relays prove nothing."""
    try:
        parsed = Multiaddr(address)
        if [protocol.name for protocol in parsed.protocols()] not in (["ip4", "tcp"], ["ip6", "tcp"]):
            return False
        (_, host), (_, port) = parsed.items()
        async with asyncio.timeout(_TRY_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(_HELLO)
                moved(len(_HELLO), 0)
                said = await reader.readexactly(len(_HELLO))
                moved(0, len(said))
                return said == _HELLO
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (AddressError, ValueError, OSError, EOFError, TimeoutError):
        return False
