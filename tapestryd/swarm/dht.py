"""hivemind's DHT node as we run it: for the records of one key, each of its own peer, and for no other.

hivemind checks little of what its RPCs bring, keeps whatever fits its types for as long as it says, and cannot send an
answer beyond 4 MiB. So what arrives is bounded here, before it is read, and what it says is verified.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P
from hivemind.proto import dht_pb2
from hivemind.utils.auth import AuthorizerBase
from hivemind.utils.timed_storage import ValueWithExpiration, get_dht_time

from protocols import limits
from protocols.canonical import Signed, Verify, loads

_KEYS = 8
"""Keys in one call; an honest node asks for one, or looks for neighbours of a few."""

_NEAREST = 20
"""Nodes that a search asks of those it knows, and again of those they name; hivemind's own bucket holds as many."""

_DICTIONARY = 0x50
"""hivemind's code for a value with subkeys, in msgpack."""

_VALUE_BYTES = limits.RECORD_BYTES + 5
"""A record as msgpack has it."""


async def dht_node(p2p: P2P, key: str, verify: Verify) -> tuple[DHTNode, "Guard"]:
    """A node that stores under `key` only, and what guards it. Nothing is cached, and nothing fetched anew because of that: a presence
    lives for seconds."""
    guard = Guard(DHTID.generate(source=key))
    node = await DHTNode.create(
        p2p=p2p, record_validator=OwnRecords(verify, guard.key.to_bytes()), authorizer=guard,
        cache_locally=False, cache_on_store=False, cache_nearest=0, cache_refresh_before_expiry=0,
    )  # fmt: skip
    node.protocol.storage = guard.storage
    return node, guard


def lives_until(made_ms: int) -> float:
    """When the last nodes forget a presence that was made at `made_ms`, in seconds."""
    return (made_ms + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS) / 1000


async def search(node: DHTNode, key: DHTID, shut: Callable[[str], bool]) -> dict[str, bytes]:
    """What we, the nearest nodes that we know, and the nearest that these name have under `key`: peer → its record, of several the one
    that lives longest. Who is `shut` is not asked.

    hivemind's own search is ended by one odd answer, and merges what others say into what is stored here. Two steps reach whoever
    stores a record, in a run of as many peers as there may be records.
    """
    protocol = node.protocol
    held = protocol.storage.get(key)
    found: dict[str, Any] = dict(held.value.items()) if held else {}
    near = dict(protocol.routing_table.get_nearest_neighbors(key, _NEAREST, exclude=node.node_id))
    asked, named = {node.peer_id}, Counter(list(near))
    for _ in range(2):
        first = sorted(near, key=lambda id: (-named[id], key.xor_distance(id)))  # whom many name before whom one may have made up
        due = list(dict.fromkeys(near[id] for id in first if near[id] not in asked and not shut(near[id].to_base58())))[:_NEAREST]
        asked.update(due)
        answers = await asyncio.gather(*(protocol.call_find(peer, [key]) for peer in due))
        near, named = {}, Counter()
        for value, others in (answer[key] for answer in answers if answer):
            near |= others
            named.update(list(others))
            for peer, item in value.value.items() if value else ():
                if peer not in found or item.expiration_time > found[peer].expiration_time:
                    found[peer] = item
    return {peer: msgpack.unpackb(item.value) for peer, item in found.items()}


def items(value: bytes) -> list[tuple[str, bytes, float]]:
    """What a value with subkeys holds, as hivemind packs it: subkey, value, expiry; at most RECORDS. Raises ValueError, or one of msgpack's
    errors, for anything else, before much of it is made: a few bytes of msgpack can be a large object."""
    lists = 0

    def shape(found: list[Any]) -> Any:
        nonlocal lists
        lists += 1
        match found:
            case [str(), bytes(), float()] if len(found[1]) <= _VALUE_BYTES:
                return tuple(found)
            case [float(), float(), list()]:
                return found
            case _ if lists <= limits.RECORDS + 1 and all(type(one) is tuple for one in found):
                return found
        raise ValueError("no list of records")

    outer = msgpack.unpackb(value, max_array_len=0, max_map_len=0)
    if type(outer) is not msgpack.ExtType or outer.code != _DICTIONARY:
        raise ValueError("no value with subkeys")
    most, _, rows = msgpack.unpackb(outer.data, list_hook=shape, max_array_len=limits.RECORDS, max_map_len=0, max_ext_len=0)
    if most != math.inf:
        raise ValueError("a bound of its own")
    return list(rows)


class Storage(DHTLocalStorage):  # type: ignore[misc]
    """The records of one key, of each peer the one that lives longest. No call takes one away, and what is handed out is a copy.

    hivemind's own forgets a record when the same is stored again for a shorter time, and fills itself with the answers to its searches.
    """

    def __init__(self, key: DHTID) -> None:
        super().__init__()
        self._key = key
        self._held: dict[str, ValueWithExpiration[bytes]] = {}

    @property
    def peers(self) -> set[str]:
        now = get_dht_time()
        for peer in [peer for peer, held in self._held.items() if held.expiration_time < now]:
            del self._held[peer]
        return set(self._held)

    def store(self, key: DHTID, value: bytes, expiration_time: float, subkey: str | None = None) -> bool:
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        held = self._held.get(subkey)
        if key != self._key or expiration_time < get_dht_time():
            return False
        if held and held.expiration_time >= expiration_time:
            return bool(held.value == value)  # said twice in one millisecond
        self._held[subkey] = ValueWithExpiration(value, expiration_time)
        return True

    def get(self, key: DHTID) -> ValueWithExpiration[DictionaryDHTValue] | None:
        if key != self._key or not self.peers:
            return None
        copy = DictionaryDHTValue()
        for peer, held in self._held.items():
            copy.store(peer, held.value, held.expiration_time)
        return ValueWithExpiration(copy, copy.latest_expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration[DictionaryDHTValue]]]:
        found = self.get(self._key)
        return iter([(self._key, found)] if found else [])


class Guard(AuthorizerBase):  # type: ignore[misc]
    """Which calls a DHT node answers: well-formed ones, that do not fill its memory or ask for more than one answer can hold.

    Without it, a node id of another size ends in a traceback, a thousand times the same key in as many copies of all
    records, and a few thousand records of peers that do not exist in no answer at all, for anybody.

    `admit(peer, record)`: whether the record is worth a place here; each is, until somebody who knows the run says otherwise.
    """

    def __init__(self, key: DHTID) -> None:
        self.key = key
        self.storage = Storage(key)
        self.admit: Callable[[object, object], bool] = lambda peer, record: True

    async def sign_request(self, request: Any, service_public_key: object) -> None: ...

    async def sign_response(self, response: Any, request: Any) -> None: ...

    async def validate_response(self, response: Any, request: Any) -> bool:
        return len(response.peer.node_id) in (0, DHTID.HASH_NBYTES) and all(map(_sound, getattr(response, "results", ())))

    async def validate_request(self, request: Any) -> bool:
        keys = getattr(request, "keys", ())
        return (
            len(request.peer.node_id) in (0, DHTID.HASH_NBYTES)
            and len(set(keys)) == len(keys) <= _KEYS
            and all(len(key) == DHTID.HASH_NBYTES for key in keys)
            and (not hasattr(request, "in_cache") or (list(keys) == [self.key.to_bytes()] and self._room(request)))
        )

    def _room(self, store: Any) -> bool:
        """Whether no more than RECORDS would be kept. Whoever is there already stays: its own new record takes the old one's place."""
        if any(store.in_cache) or not len(store.subkeys) == len(store.values) == 1:
            return False
        try:
            if store.subkeys[0] and len(store.values[0]) <= _VALUE_BYTES:
                more = {msgpack.unpackb(store.subkeys[0]): msgpack.unpackb(store.values[0])}
            else:
                more = {peer: msgpack.unpackb(value) for peer, value, _ in items(store.values[0])}
        except Exception:  # msgpack has many, and the DHT must not see any
            return False
        return len(self.storage.peers | more.keys()) <= limits.RECORDS and all(self.admit(peer, record) for peer, record in more.items())


def _sound(result: Any) -> bool:
    """Whether that answer to a search can be unpacked: it has no value, or one with subkeys, and names no more nodes than it may."""
    if len(result.nearest_node_ids) > _NEAREST or any(len(id) != DHTID.HASH_NBYTES for id in result.nearest_node_ids):
        return False
    if result.type == dht_pb2.NOT_FOUND:
        return not result.value
    try:
        return result.type == dht_pb2.FOUND_DICTIONARY and bool(items(result.value))
    except Exception:  # msgpack has many
        return False


class OwnRecords(RecordValidatorBase):  # type: ignore[misc]
    """What DHT nodes store and believe: presences under the run's key and the subkey of the peer that signed them, for as
    long as they live.

    Without it, whoever stores bytes that are no msgpack stops `look` everywhere, a plain value drops all subkeys, and a
    forged record that expires later keeps the true one out. So would a peer's own, made while its clock was ahead.
    """

    def __init__(self, verify: Verify, key: bytes) -> None:
        self._verify = verify
        self._key = key
        self._said = lru_cache(2 * limits.RECORDS)(self._read)  # every neighbour tells of the same ones

    def validate(self, record: DHTRecord) -> bool:
        if record.key != self._key or len(record.value) > _VALUE_BYTES:
            return False
        made_ms = self._said(record.subkey, record.value)
        if made_ms is None or made_ms > get_dht_time() * 1000 + limits.PRESENCE_MS:
            return False
        return bool(record.expiration_time <= lives_until(made_ms))

    def _read(self, subkey: bytes, value: bytes) -> int | None:
        """When it was made, if it is a presence that the peer signed whose subkey it has."""
        try:
            data = msgpack.unpackb(value)
            if not isinstance(data, bytes):
                return None
            signed = Signed.from_json(loads(data, limits.RECORD_BYTES), "presence", self._verify)
            made_ms = signed.body.get("made_ms")
            return made_ms if type(made_ms) is int and signed.peer == msgpack.unpackb(subkey) else None
        except Exception:  # msgpack has many, and the DHT must not see any
            return None
