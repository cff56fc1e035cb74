"""hivemind's DHT as we run it, among nodes that answer anything."""

import asyncio
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import ValueWithExpiration, get_dht_time

from protocols import limits
from tapestryd.swarm import libp2p
from tapestryd.swarm.dht import Storage, items, search
from tapestryd.swarm.libp2p import Callers
from tapestryd.swarm.node import Node
from tests.lineages import PEOPLE
from tests.people import Person
from tests.swarm.rooms import go, nodes, record, until

KEY = DHTID.generate(source="here")
VALUE = msgpack.packb(b"a record")


def dictionary(*rows: Any, most: Any = math.inf, latest: Any = 0.0) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([most, latest, list(rows)])))
    return packed


def test_what_hivemind_packs_is_read() -> None:
    packed = DictionaryDHTValue()
    later = get_dht_time() + 20
    for number in range(limits.RECORDS):
        packed.store(f"peer {number}", VALUE, later)
    assert items(MSGPackSerializer.dumps(packed)) == [(f"peer {number}", VALUE, later) for number in range(limits.RECORDS)]


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\xc0", msgpack.packb([math.inf, 0.0, []]), msgpack.packb(msgpack.ExtType(0x40, b"")), dictionary({}), dictionary([]),
        dictionary([[]]), dictionary(1.0, 2.0), dictionary(most="x"), dictionary(most=3), dictionary(latest="x"),
        dictionary(["peer", VALUE]), dictionary(["peer", VALUE, 1]), dictionary(["peer", "text", 1.0]), dictionary([b"peer", VALUE, 1.0]),
        dictionary(["peer", b"x" * 5000, 1.0]), dictionary([["peer", VALUE, 1.0]] * 2),
        dictionary(*[["peer", VALUE, 1.0]] * (limits.RECORDS + 1)),
    ],
)  # fmt: skip
def test_what_is_no_list_of_records_is_not(value: bytes) -> None:
    with pytest.raises((ValueError, msgpack.UnpackException)):
        items(value)


def test_what_is_small_on_the_wire_becomes_no_large_object() -> None:
    """Each list of lists is refused when it ends, so no more than one is ever made."""
    bomb = b"\xdc\x03\xc0" + b"\x90" * 960
    with pytest.raises(ValueError, match="no list of records"):
        items(msgpack.packb(msgpack.ExtType(0x50, b"\xdc\x03\xc0" + bomb * 960)))


def test_storage_keeps_the_one_that_lives_longest() -> None:
    storage, now = Storage(KEY), get_dht_time()
    assert storage.store_subkey(KEY, "ann", b"new", now + 20)
    for shorter in (now - 1, now + 0.05, now + 20):
        assert not storage.store_subkey(KEY, "ann", b"old", shorter)
    assert not storage.store(KEY, b"no subkey", now + 20)
    assert not storage.store_subkey(DHTID.generate(), "ann", b"elsewhere", now + 20)
    assert storage.store_subkey(KEY, "ann", b"newer", now + 21)
    given = storage.get(KEY)
    assert given is not None
    given.value.store("bo", b"made up", now + 20)
    assert storage.peers == {"ann"}
    assert [(key, dict(found.value.items())) for key, found in storage.items()] == [(KEY, {"ann": ValueWithExpiration(b"newer", now + 21)})]
    assert storage.get(DHTID.generate()) is None


def test_callers_are_answered_so_often_and_so_much() -> None:
    now = [0.0]
    callers = Callers({"banned"}.__contains__, lambda: now[0])

    def answered(peer: str) -> bool:
        try:
            with callers.one(peer):
                return True
        except PermissionError:
            return False

    assert (answered("banned"), answered("ann")) == (False, True)
    held = [callers.one("ann") for _ in range(libp2p._CALLS_A_PEER)]
    for call in held:
        call.__enter__()
    assert (answered("ann"), answered("bo")) == (False, True)
    for call in held:
        call.__exit__(None, None, None)
    callers.told("ann", libp2p._TOLD_BYTES)
    assert (answered("ann"), answered("bo")) == (False, True)
    now[0] = 1.0
    assert answered("ann")
    assert not callers._calls


def test_two_steps_reach_whoever_stores_a_record() -> None:
    """In a run of as many peers as there may be records, of whom one in twenty names peers that are not there, nearer than any."""
    rng = random.Random(5)
    web: dict[PeerID, SimpleNamespace] = {}
    ids = {DHTID(rng.getrandbits(160)): PeerID(number.to_bytes(34, "big")) for number in range(limits.RECORDS)}
    closest = sorted(ids, key=KEY.xor_distance)

    def node(id: DHTID) -> SimpleNamespace:
        if ids[id] not in web:
            table = RoutingTable(id, 20, 5)
            for other in rng.sample(sorted(ids), len(ids)):
                if other != id:
                    table.add_or_update_node(other, ids[other])
            protocol = SimpleNamespace(routing_table=table, storage=Storage(KEY), call_find=find)
            web[ids[id]] = SimpleNamespace(node_id=id, peer_id=ids[id], protocol=protocol)
            if id in closest[:5]:
                protocol.storage.store_subkey(KEY, f"record {closest.index(id)}", VALUE, get_dht_time() + 20)
        return web[ids[id]]

    async def find(peer: PeerID, keys: list[DHTID]) -> dict[DHTID, Any]:
        found = by_peer.get(peer)
        if found is None:
            return {}
        if found not in closest[:5] and int(found) % 20 == 0:
            return {KEY: (None, {DHTID(int(KEY) ^ number): PeerID(rng.randbytes(34)) for number in range(20)})}
        here = node(found).protocol
        return {KEY: (here.storage.get(KEY), dict(here.routing_table.get_nearest_neighbors(KEY, 20)))}

    by_peer = {peer: id for id, peer in ids.items()}
    for id in rng.sample(sorted(ids), 3):
        found = asyncio.run(search(node(id), KEY, lambda peer: False))  # type: ignore[arg-type]
        assert found == {f"record {number}": b"a record" for number in range(5)}


class Odd(Storage):
    """What a liar says that it stores."""

    def __init__(self, key: DHTID, value: DictionaryDHTValue) -> None:
        super().__init__(key)
        self.value = value

    def get(self, key: DHTID) -> Any:
        return ValueWithExpiration(self.value, get_dht_time() + 20)


async def acquainted(one: Node, two: Node, evil: Node) -> bytes:
    """Two's record, when one sees it and knows evil."""
    for node in (two, evil):
        await node._connect(one.peer_id)
        await node._dht.protocol.call_ping(one._libp2p.p2p.peer_id)
    true = record(PEOPLE[1])
    await two.publish(true)

    async def seen() -> bool:
        return evil.peer_id in one.acquainted() and await one.look() == {two.peer_id: true}

    await until(seen)
    return true


def test_odd_answers_hide_nobody(tmp_path: Path) -> None:
    """Each of them ended hivemind's own search."""

    async def work() -> None:
        async with nodes(tmp_path, 3) as (one, two, evil):
            true = await acquainted(one, two, evil)
            for most, latest in (("x", 0.0), (0, 0.0), (math.inf, "x"), (math.inf, math.nan)):
                value = DictionaryDHTValue()
                value.maxsize, value.latest_expiration_time = most, latest
                evil._dht.protocol.storage = Odd(one._guard.key, value)
                async with asyncio.timeout(10):
                    assert await one.look() == {two.peer_id: true}
                await evil._dht.protocol.call_ping(one._libp2p.p2p.peer_id)  # known again

    go(work)


def test_answers_fill_nobodys_storage(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 3) as (one, two, evil):
            true = await acquainted(one, two, evil)
            value, stored = DictionaryDHTValue(), one._guard.storage.peers
            for person in (Person(f"nobody {number}") for number in range(50)):
                value.store(person.peer, msgpack.packb(record(person)), get_dht_time() + 15)
            evil._dht.protocol.storage = Odd(one._guard.key, value)
            found = await one.look()
            assert found[two.peer_id] == true
            assert len(found) == 51
            assert one._guard.storage.peers == stored

    go(work)


def test_a_record_that_is_stored_again_for_a_moment_stays(tmp_path: Path) -> None:
    """hivemind's own storage forgets it then: whoever had seen a record could take it away."""

    async def work() -> None:
        async with nodes(tmp_path, 3) as (one, two, evil):
            true = await acquainted(one, two, evil)
            until_s = get_dht_time() + 0.3
            for node in (one, two):
                there = node._libp2p.p2p.peer_id
                await evil._dht.protocol.call_store(there, [one._guard.key], [msgpack.packb(true)], [until_s], subkeys=[two.peer_id])
            await asyncio.sleep(0.5)
            assert await one.look() == {two.peer_id: true}
            assert two.peer_id in one._guard.storage.peers

    go(work)
