"""A peer that keeps to no rule: a p2pd of its own, driven by hivemind's P2P alone, and messages made by hand.

Of ours it uses the treaty and the arithmetic of an offer, so as to know exactly what it breaks; no room of
tapestryd.swarm, no Node, no Stream: nothing stands between it and the wire.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.serializer import MSGPackSerializer

from protocols.canonical import Json, Signed, digest, dumps, loads
from protocols.grouping import Claim, Roster, order
from protocols.rules import RunRules
from protocols.settling import Vote, merkle, part_body
from tapestryd.exchange import Exchange, Offer
from tests.people import RATE, Person, verify
from tests.swarm.rooms import identity

LENGTHS = struct.Struct("<IQ")

Answer = Callable[[str, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""(who asks, reader, writer): what the liar does when somebody opens a stream to it. It is closed afterwards."""


def framed(head: Json | bytes, body: bytes = b"") -> bytes:
    raw = head if isinstance(head, bytes) else dumps(head)
    return LENGTHS.pack(len(raw), len(body)) + raw + body


async def read(reader: asyncio.StreamReader, timeout_s: float = 30) -> tuple[bytes, bytes]:
    """The next message. Raises EOFError if the other closes instead."""
    async with asyncio.timeout(timeout_s):
        head, body = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
        return await reader.readexactly(head), await reader.readexactly(body)


class Liar:
    def __init__(self, p2p: P2P, person: Person, prefix: str) -> None:
        self.p2p = p2p
        self.person = person
        self.peer = person.peer
        self.prefix = prefix
        self._answers: dict[str, Answer] = {}
        self._changed = asyncio.Event()
        self._serving: set[asyncio.Task[Any]] = set()

    @classmethod
    async def start(cls, person: Person, folder: Path, prefix: str) -> "Liar":
        p2p = await P2P.create(
            identity_path=str(identity(person, folder)), host_maddrs=["/ip4/127.0.0.1/tcp/0"], nat_port_map=False, use_relay=False
        )
        assert p2p.peer_id.to_base58() == person.peer
        return cls(p2p, person, prefix)

    async def stop(self) -> None:
        self.fall_silent()
        if self._serving:
            await asyncio.wait(self._serving)
        await self.p2p.shutdown()

    async def addresses(self) -> list[str]:
        _, found = await self.p2p._client.identify()
        return [str(address) for address in found]

    async def meet(self, peers: Mapping[str, Sequence[str]]) -> None:
        for peer, addresses in peers.items():
            await self.p2p._client.connect(PeerID.from_base58(peer), list(map(Multiaddr, addresses)))

    async def serve(self, *verbs: str) -> None:
        for verb in verbs:
            await self.p2p.add_binary_stream_handler(f"/{self.prefix}/{verb}", self._served(verb))

    def answer(self, verb: str, answer: Answer) -> None:
        """To whoever asks from now on, or has been waiting."""
        self._answers[verb] = answer
        self._changed.set()
        self._changed = asyncio.Event()

    def fall_silent(self) -> None:
        """Whoever waits for something of us waits no longer."""
        self._answers.clear()
        for task in self._serving:
            task.cancel()

    def _served(self, verb: str) -> Callable[..., Awaitable[None]]:
        async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                async with asyncio.timeout(15):
                    while verb not in self._answers:
                        await self._changed.wait()
                await self._answers[verb](info.peer_id.to_base58(), reader, writer)
            except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
                pass  # the other is gone, or this liar is
            finally:
                self._serving.discard(task)
                writer.close()

        return handle

    async def open(self, peer: str, verb: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        _, reader, writer = await self.p2p.call_binary_stream_handler(PeerID.from_base58(peer), f"/{self.prefix}/{verb}")
        return reader, writer

    async def say(self, peer: str, verb: str, data: bytes) -> bytes:
        """Write these bytes, and no more; the head of what comes back, empty if the other closes or resets it instead."""
        reader, writer = await self.open(peer, verb)
        try:
            writer.write(data)
            return (await read(reader))[0]
        except (EOFError, OSError):
            return b""
        finally:
            writer.close()

    async def ask(self, peer: str, verb: str, head: Json | bytes, body: bytes = b"") -> tuple[bytes, bytes]:
        reader, writer = await self.open(peer, verb)
        try:
            writer.write(framed(head, body))
            return await read(reader)
        finally:
            writer.close()

    # A member by the book, in pieces.

    def signed(self, kind: str, body: Json) -> Json:
        return Signed.make(kind, body, self.peer, self.person.sign).to_json()

    async def call(self, leader: str, number: int, before: str, claim: Claim) -> bytes:
        """What comes of calling the leader: the head with its roster, or with its refusal."""
        reader, writer = await self.open(leader, "call")
        try:
            writer.write(framed({"round": number, "before": before, "claim": claim.to_body()}))
            head, _ = await read(reader)
            return (await read(reader))[0] if head == dumps({"accepted": True}) else head
        finally:
            writer.close()

    async def offer(self, reducer: str, roster: str, data: bytes) -> tuple[bytes, bytes]:
        """Send `data` as our offer; the reducer's answer."""
        reader, writer = await self.open(reducer, "reduce")
        try:
            writer.write(framed({"roster": roster}))
            head, body = await read(reader)
            if head == dumps({"go": True}):
                writer.write(framed({}, data))
                await writer.drain()
                head, body = await read(reader)
            return head, body
        finally:
            writer.close()

    def vote(self, roster: Roster, parts: Sequence[str], **said: object) -> Json:
        """A vote on a base that nobody else has. `said`: fields in place of those."""
        vote = Vote(
            run=roster.run, round=roster.round, fragment=roster.fragment, roster=roster.digest, root=merkle(parts),
            coverage_ppm=1_000_000, before=roster.before, after="ee" * 32, height=1, weight=len(roster.members),
        )  # fmt: skip
        return {"vote": self.signed("vote", vote.to_body() | said), "parts": list(parts)}

    def echoing(self, members: Callable[[str], Iterable[str]]) -> Answer:
        """Whatever somebody votes for has our vote, too, at `members(voter)`."""

        async def echo(voter: str, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            head = loads((await read(reader))[0], 1 << 20)
            vote = self.signed("vote", head["vote"]["body"])
            for member in members(voter):
                if member != self.peer:
                    await self.ask(member, "vote", {"vote": vote, "parts": head["parts"]})

        return echo

    def leading(self, roster_for: Callable[[str, dict[str, Claim]], Json | None], callers: int) -> Answer:
        """Lead: take calls, and when there are `callers`, answer each with `roster_for(caller, claims)`, or not at all."""
        claims: dict[str, Claim] = {}
        everybody = asyncio.Event()

        async def called(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head, _ = await read(reader)
            claims[peer] = Claim.from_body(loads(head, 1 << 20)["claim"], verify)
            writer.write(framed({"accepted": True}))
            if len(claims) == callers:
                everybody.set()
            await asyncio.wait_for(everybody.wait(), 30)
            said = roster_for(peer, dict(claims))
            if said is None:
                await reader.read()
            else:
                writer.write(framed(said))
                await writer.drain()

        return called

    def reducing(self, rules: RunRules, roster: Roster, offer: Offer, lie: Callable[[str, bytes], bytes | None]) -> Answer:
        """Reduce our part by the book when all offers are here, then answer each member with `lie(member, part)`; None: never."""
        part = roster.reducers.index(self.peer)
        exchange = Exchange(rules, roster, self.peer, offer)
        start, stop = exchange.slices[part]
        offers: dict[int, bytes] = {roster.members.index(self.peer): offer.part(start, stop)}
        everybody = asyncio.Event()

        async def offered(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read(reader)
            writer.write(framed({"go": True}))
            _, offers[roster.members.index(peer)] = await read(reader)
            if len(offers) == len(roster.members):
                everybody.set()
            await asyncio.wait_for(everybody.wait(), 30)
            told = lie(peer, exchange.reduce(part, offers)[0])
            if told is None:
                await reader.read()
                return
            made = self.signed("part", part_body(roster, part, digest(told)))
            writer.write(framed({"made": made}, told))
            await writer.drain()

        return offered

    def roster(self, rules: RunRules, number: int, before: str, claims: Mapping[str, Claim]) -> Roster:
        members = order(rules.run_id, number, claims)
        fragment = number % rules.averaging.fragments
        return Roster(rules.run_id, number, fragment, before, tuple(members), tuple(claims[peer] for peer in members))

    def claim(self, offer: Offer, *, rate: int = 0) -> Claim:
        return replace(offer.claim(10, RATE), rate=rate)

    # The DHT.

    async def rpc(self, peer: str, name: str, data: bytes) -> bytes:
        """One call of hivemind's own protocol, `data` as it is."""
        answer: bytes = await self.p2p._client.call_unary_handler(PeerID.from_base58(peer), f"DHTProtocol.{name}", data)
        return answer

    async def store(self, peer: str, items: Sequence[tuple[str, bytes, float]], *, key: str = "") -> list[bool]:
        """(subkey, record, expiry) under the run's key, or another, at that peer's DHT node; what it says of each."""
        source = DHTID.generate(source=key or f"{self.prefix}/presence").to_bytes()
        request = dht_pb2.StoreRequest(
            keys=[source] * len(items), subkeys=[MSGPackSerializer.dumps(subkey) for subkey, _, _ in items],
            values=[MSGPackSerializer.dumps(value) for _, value, _ in items], expiration_time=[ends for _, _, ends in items],
            in_cache=[False] * len(items), peer=dht_pb2.NodeInfo(),
        )  # fmt: skip
        return list(dht_pb2.StoreResponse.FromString(await self.rpc(peer, "rpc_store", request.SerializeToString())).store_ok)

    async def look(self, peer: str) -> list[Json]:
        """The bodies of all presences that this peer's DHT node knows."""
        source = DHTID.generate(source=f"{self.prefix}/presence").to_bytes()
        request = dht_pb2.FindRequest(keys=[source], peer=dht_pb2.NodeInfo())
        result = dht_pb2.FindResponse.FromString(await self.rpc(peer, "rpc_find", request.SerializeToString())).results[0]
        if result.type != dht_pb2.FOUND_DICTIONARY:
            return []
        records = [MSGPackSerializer.loads(entry.value) for _, entry in MSGPackSerializer.loads(result.value).items()]
        return [Signed.from_json(loads(record, 1 << 20), "presence", verify).body for record in records]
