"""A liar in the DHT, by hivemind's own calls with any bytes in them, under as many keys as it likes; and one that lies about the time."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PHandlerError
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time

from protocols import limits
from protocols.canonical import loads
from protocols.membership import Delegation, owner
from protocols.records import Presence
from tapestryd.neighbours import Neighbours
from tapestryd.swarm.lineage import Fetcher
from tests.hostile.liar import Liar, framed, read
from tests.hostile.world import quiet
from tests.lineages import PEOPLE
from tests.people import MEMBERS, RUN, Person, delegations, verify
from tests.swarm.rooms import address, go, nodes, now_ms, until

PREFIX = f"tapestry/1/{RUN}"


class Watcher:
    """An honest peer that publishes and looks, as every session does."""

    def __init__(self, node: object, person: Person) -> None:
        self.node = node
        self.person = person
        fetcher = Fetcher(node, RUN, verify)
        self.neighbours = Neighbours(node, RUN, verify, fetcher, lambda: None)

    async def look(self) -> list[str]:
        await self.node.publish(presence(self.person, await self.node.addresses()))
        await self.neighbours.refresh()
        return [seen.peer for seen in self.neighbours.seen()]


def presence(person: Person, addrs: Sequence[str] = (), *, name: str = "x", run: str = RUN, delegation: Delegation | None = None) -> bytes:
    return Presence(run, person.peer, name, "training", 0, 0, "", tuple(addrs), "0", delegation, now_ms()).to_bytes(person.sign)


@asynccontextmanager
async def watching(folder: Path, count: int) -> AsyncIterator[tuple[list[Watcher], Liar]]:
    """`count` honest peers that see one another, and a liar that all of them answer."""
    with quiet():
        async with nodes(folder, count, PREFIX) as started:
            first = await address(started[0])
            for node in started[1:]:
                node._bootstrap[started[0].peer_id] = first
            here = [Watcher(node, person) for node, person in zip(started, PEOPLE, strict=False)]
            for watcher in here:
                await watcher.neighbours.serve()
            liar = await Liar.start(PEOPLE[-1], folder, PREFIX)
            try:
                await liar.meet({node.peer_id: await node.addresses() for node in started})
                await until(lambda: all_see(here, count - 1))
                yield here, liar
            finally:
                await liar.stop()


async def all_see(here: Sequence[Watcher], count: int) -> bool:
    return all([len(await watcher.look()) == count for watcher in here])


def test_garbage_in_every_call_of_the_dht(tmp_path: Path) -> None:
    """No protobuf, no DHTID, no msgpack, lists of unequal length, and a dictionary of dictionaries: nobody logs more than a line."""

    async def work() -> None:
        async with watching(tmp_path, 2) as (here, liar):
            rng = random.Random(5)
            key = DHTID.generate(source=f"{PREFIX}/presence").to_bytes()
            garbage = [b"", b"\xff" * 100, rng.randbytes(1000), rng.randbytes(100_000)]
            odd = dht_pb2.NodeInfo(node_id=b"\xff" * 1000)
            calls = [
                *(("rpc_ping", data) for data in garbage),
                *(("rpc_store", data) for data in garbage),
                *(("rpc_find", data) for data in garbage),
                ("rpc_ping", dht_pb2.PingRequest(peer=odd, validate=True).SerializeToString()),
                ("rpc_find", dht_pb2.FindRequest(keys=[b"\xff" * 1000], peer=odd).SerializeToString()),
                ("rpc_find", dht_pb2.FindRequest(keys=[key] * 1000).SerializeToString()),
                ("rpc_store", dht_pb2.StoreRequest(keys=[key] * 3, values=[b"x"], peer=odd).SerializeToString()),
                *(
                    ("rpc_store", dht_pb2.StoreRequest(
                        keys=[key], subkeys=[subkey], values=[data], expiration_time=[get_dht_time() + 10], in_cache=[cache]
                    ).SerializeToString())
                    for subkey in (b"", b"\xc0", b"\xc1", rng.randbytes(50))
                    for data in garbage
                    for cache in (False, True)
                ),
            ]  # fmt: skip
            for name, data in calls:
                with suppress(P2PHandlerError):
                    await liar.rpc(here[0].node.peer_id, name, data)
            await until(lambda: all_see(here, 1))

    go(work, timeout_s=100)


def test_thousands_of_records_hide_nobody(tmp_path: Path) -> None:
    """True records of peers that do not exist, each as long as one may be: those who are there go on seeing one another."""

    async def work() -> None:
        async with watching(tmp_path, 2) as (here, liar):
            one, two = here
            crowd = [Person(f"nobody {number}") for number in range(1500)]
            addrs = [f"/dns4/{'x' * 180}/tcp/{port}" for port in range(1, 9)]
            kept = 0
            for number, person in enumerate(crowd):
                if number % 100 == 0:
                    for watcher in here:
                        await watcher.look()  # as every session does all the time: who is not heard of is forgotten
                record, ends = presence(person, addrs), get_dht_time() + 15
                for watcher in here:
                    try:
                        kept += sum(await liar.store(watcher.node.peer_id, [(person.peer, record, ends)]))
                    except P2PHandlerError:  # it takes no more
                        continue
            assert kept > limits.RECORDS, "the liar is too slow to be one"
            for _ in range(3):
                assert two.node.peer_id in await one.look()
                assert one.node.peer_id in await two.look()
                assert one.neighbours.count() <= limits.RECORDS

    go(work, timeout_s=100)


def test_strangers_find_no_place_in_a_run_of_members(tmp_path: Path) -> None:
    """Nor does who shows what a Member signed for somebody else; a Member's node does, and is seen."""
    members = tuple(member.peer for member in MEMBERS)
    node = Person("a node of the north")
    [shown] = delegations(MEMBERS[0], [node])

    def admit(peer: str, delegation: Delegation | None, at_ms: int) -> str:
        return owner(delegation, run=RUN, members=members, node=peer, at_ms=at_ms)

    async def work() -> None:
        async with watching(tmp_path, 1) as ((watcher,), liar):
            watcher.neighbours.admit = admit
            for person, delegation in ((liar.person, None), (liar.person, shown)):
                with pytest.raises(P2PHandlerError):
                    await keep(watcher, liar, person, delegation)
            assert await keep(watcher, liar, node, shown) == [True]
            await watcher.neighbours.refresh()
            assert [seen.peer for seen in watcher.neighbours.seen()] == [node.peer]

    async def keep(watcher: Watcher, liar: Liar, person: Person, delegation: Delegation | None) -> list[bool]:
        record = (person.peer, presence(person, delegation=delegation), get_dht_time() + 15)
        return await liar.store(watcher.node.peer_id, [record])

    go(work)


def test_nobody_makes_a_record_outlive_the_next_one(tmp_path: Path) -> None:
    """Whoever has seen it stores it again, for as long as it may live; the newer one, made at once behind it, still takes its place."""

    async def work() -> None:
        async with watching(tmp_path, 2) as (here, liar):
            one = here[0]
            for number in range(3):
                old, new = presence(one.person, name=f"old {number}"), presence(one.person, name=f"new {number}")
                while loads(new, 9999)["body"]["made_ms"] == (made_ms := loads(old, 9999)["body"]["made_ms"]):
                    new = presence(one.person, name=f"new {number}")
                await one.node.publish(old)
                longest = (made_ms + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS) / 1000
                for watcher in here:
                    await liar.store(watcher.node.peer_id, [(one.person.peer, old, longest)])
                await one.node.publish(new)
                await one.node.publish(new)
                for watcher in here:
                    held = watcher.node._guard.storage._held[one.person.peer].value
                    assert msgpack.unpackb(held) == new

    go(work)


def test_records_under_other_keys_are_not_kept(tmp_path: Path) -> None:
    """A node's memory is for this run's records: nobody fills it under keys of its own."""

    async def work() -> None:
        async with watching(tmp_path, 1) as ((watcher,), liar):
            ends = get_dht_time() + 15
            before = dict(watcher.node._guard.storage._held)
            for number in range(100):
                with pytest.raises(P2PHandlerError):
                    await liar.store(watcher.node.peer_id, [(liar.peer, presence(liar.person), ends)], key=f"somewhere {number}")
            assert watcher.node._guard.storage._held == before
            assert await liar.store(watcher.node.peer_id, [(liar.peer, presence(liar.person), ends)]) == [True]

    go(work)


@pytest.mark.parametrize("count", [2, 3])
def test_one_liar_does_not_set_the_clock(tmp_path: Path, count: int) -> None:
    """It is an hour ahead, says so, and is heard."""

    async def work() -> None:
        async with watching(tmp_path, count) as (here, liar):

            async def lies(peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await read(reader)  # what is left unread resets the stream, and the answer is lost with it
                writer.write(framed({"now_ms": now_ms() + 3_600_000}))
                await writer.drain()

            await liar.serve("hello")
            liar.answer("hello", lies)
            record = presence(liar.person, [found for found in await liar.addresses() if "127.0.0.1" in found])
            for watcher in here:
                await liar.store(watcher.node.peer_id, [(liar.peer, record, get_dht_time() + 15)])

            async def heard() -> bool:
                await all_see(here, count)
                known = [one for watcher in here for one in watcher.neighbours._known.values()]
                return len(known) == count * count and all(one.skew_ms is not None for one in known)

            await until(heard)
            for watcher in here:
                good, offset = watcher.neighbours.clock()
                assert good, offset

    go(work)
