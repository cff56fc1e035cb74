"""Our place among the peers: libp2p, the DHT, and one record in it.

Runs hivemind's DHT node in our own event loop (no second Python process). Knows nothing of rounds: it publishes
bytes, finds others' bytes, opens streams, and serves verbs.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.utils.multiaddr import Multiaddr

from protocols import limits
from protocols.canonical import Json, Verify, loads
from protocols.records import is_address
from protocols.refusal import Declined, Reason, Refused
from tapestryd.swarm.dht import Guard, dht_node, lives_until, search
from tapestryd.swarm.libp2p import Libp2p
from tapestryd.swarm.line import OPEN_LINE, Line
from tapestryd.swarm.meter import Meter
from tapestryd.swarm.streams import Body, Busy, Gone, Stalled, Stream

log = logging.getLogger(__name__)

Handler = Callable[[Stream], Awaitable[None]]

_STREAMS_A_PEER = 32
"""Streams that one peer may have open to us at once; an honest one needs a few a round and a few to catch up."""

_ASK_AGAIN_S = 10.0
_GREET_S = 3.0

_DHT_S = 15.0
_CONNECTIONS_S = 1.0
_AT_ONCE_S = 1.0
_AGAIN_S = 0.2
_STOP_S = 1.0

_LOST = (P2PDaemonError, OSError, EOFError, TimeoutError)
"""What hivemind raises when p2pd or the other side is gone."""


class Door(Protocol):
    """Who may come in. Asked before anything of a peer is read, told of every fault that is shown to be its own."""

    def shut(self, peer: str) -> bool:
        """Banned: neither served nor asked nor dialled."""

    def wary(self, peer: str) -> bool:
        """On the way there: not asked for what others have, too."""

    def fault(self, peer: str, reason: Reason) -> bool:
        """True: drop its connection."""


class _OpenDoor:
    def shut(self, peer: str) -> bool:
        return False

    def wary(self, peer: str) -> bool:
        return False

    def fault(self, peer: str, reason: Reason) -> bool:
        return False


OPEN: Door = _OpenDoor()
"""Everybody may come in, whatever they do."""


class Node:
    """`prefix` names the run in DHT keys and protocol ids. `refusals` counts what we refused, `declined` what others
    refused of ours, both by reason."""

    def __init__(self, libp2p: Libp2p, dht: DHTNode, guard: Guard, prefix: str, bootstrap: Sequence[str], door: Door) -> None:
        self.door = door
        self._libp2p = libp2p
        self._dht = dht
        self._guard = guard
        self._prefix = prefix
        self._bootstrap = {_peer_of(address): address for address in bootstrap}
        self._present: set[str] = set()
        self.own: bytes | None = None
        self._hints: dict[str, list[str]] = {}
        self._open: Counter[str] = Counter()
        self._asked: dict[str, float] = {}
        self._partings: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self.peer_id: str = libp2p.p2p.peer_id.to_base58()
        self.meter = libp2p.meter
        self.refusals: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()

    @classmethod
    async def start(
        cls, prefix: str, identity: Path, listen: Sequence[str], announce: Sequence[str], bootstrap: Sequence[str], verify: Verify,
        door: Door = OPEN, meter: Meter | None = None, line: Line = OPEN_LINE,
    ) -> "Node":  # fmt: skip
        """Comes up with or without a bootstrap peer in reach; `look` goes on asking them."""
        libp2p = await Libp2p.start(identity, listen, announce, meter or Meter(), line, door.shut)
        try:
            dht, guard = await dht_node(libp2p.p2p, f"{prefix}/presence", verify)
        except BaseException:
            await libp2p.stop()
            raise
        return cls(libp2p, dht, guard, prefix, bootstrap, door)

    async def stop(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(_STOP_S):  # with p2pd dead, hivemind would wait for it for ever
                await self._dht.shutdown()
        await self._libp2p.stop()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def alive(self) -> bool:
        return self._libp2p.process.returncode is None

    @property
    def p2pd(self) -> int:
        """Its process id."""
        return self._libp2p.process.pid

    async def connections(self) -> dict[tuple[str, int], str]:
        """IP address and TCP port of the other end → peer, of the connections that are open."""
        with suppress(*_LOST):
            async with asyncio.timeout(_CONNECTIONS_S):
                return await self._libp2p.connections()
        return {}

    @property
    def bootstrap(self) -> list[str]:
        """The peers that we were given to begin with, by id."""
        return [peer for peer in self._bootstrap if peer != self.peer_id]

    async def addresses(self) -> list[str]:
        return [address for address in await self._libp2p.addresses() if is_address(address)][: limits.ADDRESSES]

    async def publish(self, record: bytes) -> None:
        """Store our presence record under our own subkey, for as long as it may live: nobody can store it again for longer, and so keep
        the next one out. Raises Gone if nobody took it."""
        expiration = lives_until(loads(record, limits.RECORD_BYTES)["body"]["made_ms"])
        try:
            async with asyncio.timeout(_DHT_S):
                stored = await self._dht.store(f"{self._prefix}/presence", record, expiration, subkey=self.peer_id)
        except _LOST as error:
            raise Gone(f"the DHT takes no record: {error}") from None
        if not stored:
            raise Gone("the DHT takes no record: refused")

    def keep(self, admit: Callable[[object, object], bool]) -> None:
        """Of others' records keep those that `admit(peer, record)` allows, once it is known who may come."""
        self._guard.admit = admit

    async def look(self) -> dict[str, bytes]:
        """All records under the run's key, by peer id; at most RECORDS. Asks bootstrap peers that are not yet known. Ours is no part of
        it: it is `own`, until the next look."""
        await self._meet()
        if self._libp2p.line.spare_near:
            self._libp2p.line.meet(await self.connections())
        try:
            async with asyncio.timeout(_DHT_S):
                found = await search(self._dht, self._guard.key, self.door.shut)
        except _LOST as error:
            raise Gone(f"the DHT does not answer: {error}") from None
        self.own = found.pop(self.peer_id, None)
        self._present = set(sorted(found, key=lambda peer: peer not in self._present)[: limits.RECORDS])  # who was there stays
        return {peer: found[peer] for peer in self._present}

    def acquainted(self) -> set[str]:
        """Whom our DHT node knows."""
        return {peer.to_base58() for peer in self._dht.protocol.routing_table.peer_id_to_uid}

    def seek(self, bootstrap: Sequence[str]) -> None:
        """Look for the run at these peers from now on."""
        self._bootstrap = {_peer_of(address): address for address in bootstrap}

    async def _meet(self) -> None:
        known, now = self.acquainted(), time.monotonic()
        due = [
            peer
            for peer in self._bootstrap
            if peer not in known
            and peer != self.peer_id
            and not self.door.shut(peer)
            and now - self._asked.get(peer, -_ASK_AGAIN_S) >= _ASK_AGAIN_S
        ]
        self._asked.update(dict.fromkeys(due, now))
        await asyncio.gather(*(self._greet(self._bootstrap[peer]) for peer in due))

    async def _greet(self, address: str) -> None:
        try:
            await self.greet(address)
        except Gone as gone:
            log.info("bootstrap peer %s does not answer: %s", address, gone)

    async def greet(self, address: str) -> None:
        """Dial a peer and make our DHT nodes known to one another. Raises Gone."""
        peer = _peer_of(address)
        self._hints.setdefault(peer, [address.rpartition("/p2p/")[0]])
        try:
            async with asyncio.timeout(_GREET_S):
                await self._connect(peer)
                await self._dht.protocol.call_ping(PeerID.from_base58(peer), strict=False)
        except TimeoutError:
            raise Gone(f"no answer in {_GREET_S:.0f} s") from None

    def hint(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Where each peer says it can be dialled; replaces what was said before."""
        bootstrap = {peer: hints for peer, hints in self._hints.items() if peer in self._bootstrap}
        self._hints = bootstrap | {peer: list(found) for peer, found in addresses.items() if found}

    async def _connect(self, peer: str) -> None:
        addresses = []
        for address in self._hints.get(peer, []):
            with suppress(ValueError):
                addresses.append(Multiaddr(address))
        try:
            await self._libp2p.p2p._client.connect(PeerID.from_base58(peer), addresses)
        except _LOST as error:
            raise Gone(f"cannot dial {peer[-6:]}: {' '.join(str(error).split())}") from None  # p2pd has a line for each address

    async def open(self, peer: str, verb: str) -> Stream:
        """A stream to `peer`'s handler of `verb`. Raises Gone if it cannot be had within IO_S, or `peer` is banned here."""
        if self.door.shut(peer):
            raise Gone(f"{verb}: {peer[-6:]} is banned here")
        try:
            async with asyncio.timeout(limits.IO_S):
                try:
                    _, reader, writer = await self._stream(peer, verb)
                except ControlFailure:
                    await self._connect(peer)
                    _, reader, writer = await self._stream(peer, verb)
        except _LOST as error:
            raise Gone(f"{verb}: cannot open a stream to {peer[-6:]}: {error}") from None
        return Stream(peer, verb, reader, writer, self.meter, self._libp2p.line, asks=True)

    async def _stream(self, peer: str, verb: str) -> tuple[object, asyncio.StreamReader, asyncio.StreamWriter]:
        found: tuple[object, asyncio.StreamReader, asyncio.StreamWriter] = await self._libp2p.p2p.call_binary_stream_handler(
            PeerID.from_base58(peer), f"/{self._prefix}/{verb}"
        )
        return found

    async def ask(
        self, peer: str, verb: str, head: Json, body: Body = b"", *, body_bytes: int = 0, timeout: float = limits.IO_S,
        moved: Callable[[int], None] | None = None, head_bytes: int = limits.HEAD_BYTES,
    ) -> tuple[Json, bytearray]:  # fmt: skip
        """One question, one answer of at most `head_bytes` and `body_bytes`; `timeout` and `moved` as in Stream.receive. Raises Gone,
        Busy, or Declined with the peer's reason."""
        stream = await self.open(peer, verb)
        try:
            await stream.send(head, body)
            return await stream.answer(body_bytes, timeout, moved, head_bytes=head_bytes)
        finally:
            stream.close()

    async def begin(self, peer: str, verb: str, head: Json, timeout: float) -> Stream:
        """A stream whose other end has answered `head`, within `timeout` seconds, and waits for more. Where it is Gone at once, it
        is opened once more: two peers that dial each other may lose both connections by it."""
        now = asyncio.get_running_loop().time
        began = now()
        try:
            return await self._begin(peer, verb, head, timeout)
        except Gone:
            if now() - began > _AT_ONCE_S:
                raise
        await asyncio.sleep(_AGAIN_S)
        return await self._begin(peer, verb, head, timeout)

    async def _begin(self, peer: str, verb: str, head: Json, timeout: float) -> Stream:
        stream = await self.open(peer, verb)
        try:
            await stream.send(head)
            await stream.answer(timeout=timeout)
        except BaseException:
            stream.close()
            raise
        return stream

    async def serve(self, verb: str, handler: Handler) -> None:
        """Answer `verb`. Whatever a peer sends, the worst that comes of it is a counted refusal."""

        async def handle(info: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = info.peer_id.to_base58()  # type: ignore[attr-defined]
            stream = Stream(peer, verb, reader, writer, self.meter, self._libp2p.line, asks=False)
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            self._open[peer] += 1
            try:
                if self._open[peer] > _STREAMS_A_PEER:
                    self.refused(Refused(Reason.TOO_MANY_STREAMS, f"{self._open[peer]} at once"), verb, peer)
                    return
                if self.door.shut(peer):
                    self.refusals[Reason.BANNED.value] += 1
                    await stream.skip()
                    await stream.refuse(Refused(Reason.BANNED, ""))
                else:
                    await self._handle(handler, stream)
                await stream.was_read()
            except Stalled as stalled:
                self.refused(Refused(Reason.STALLED, str(stalled)), verb, peer)
                stream.abort()
            except Gone as gone:
                log.debug("%s", gone)
            except asyncio.CancelledError:
                # We stop, or others need the room; passed on, asyncio's streams would log it as an error, with a traceback.
                log.debug("%s to %s: cut off", verb, peer[-6:])
                stream.abort()
            except Exception:
                log.exception("serving %s to %s", verb, peer)
            finally:
                self._serving.discard(task)
                self._open[peer] -= 1
                self._open += Counter()  # forgets zeros
                stream.close()

        await self._libp2p.p2p.add_binary_stream_handler(f"/{self._prefix}/{verb}", handle)

    async def _handle(self, handler: Handler, stream: Stream) -> None:
        """Answer it: as `handler` does or, where that raises Refused or Busy, with the reason."""
        try:
            await handler(stream)
        except Refused as refused:
            self.refused(refused, stream.verb, stream.peer)
            await stream.refuse(refused)
        except Busy as busy:
            await stream.busy(busy.retry_s)

    def refused(self, refused: Refused, verb: str, peer: str, *, proven: bool = True) -> None:
        """Count it. It is `peer`'s own fault only if its stream or its signature carried it (`proven`), and not if it
        declined something of ours."""
        if isinstance(refused, Declined):
            self.declined[refused.reason.value] += 1
            log.info("%s declined by %s", verb, refused.detail)
            return
        self.refusals[refused.reason.value] += 1
        log.info("refused %s from %s: %s", verb, peer[-6:], refused)
        if proven and peer != self.peer_id and self.door.fault(peer, refused.reason):
            parting = asyncio.create_task(self.disconnect(peer))
            self._partings.add(parting)
            parting.add_done_callback(self._partings.discard)

    async def disconnect(self, peer: str) -> None:
        """End the connection and with it all streams, ours and its. It may come again, and meets the door then."""
        with suppress(*_LOST):
            async with asyncio.timeout(_STOP_S):
                await self._libp2p.p2p._client.disconnect(PeerID.from_base58(peer))


def _peer_of(address: str) -> str:
    return address.rpartition("/p2p/")[2]
