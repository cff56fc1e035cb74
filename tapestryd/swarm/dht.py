"""hivemind's DHT node as we run it: for the records of one key, each of its own peer, and for no other.

hivemind checks little of what its RPCs bring, keeps whatever fits its types for as long as it says, and cannot send an
answer beyond 4 MiB. So what arrives is bounded here, before it is read, and what it says is verified.
"""

from collections.abc import Callable
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P
from hivemind.utils.auth import AuthorizerBase
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from protocols import limits
from protocols.canonical import Signed, Verify, loads

_KEYS = 8
"""Keys in one call; an honest node asks for one, or looks for neighbours of a few."""


async def dht_node(p2p: P2P, key: str, verify: Verify) -> tuple[DHTNode, "Guard"]:
    """A node that stores under `key` only, and what guards it. Nothing is cached, and nothing fetched anew because of that: a presence
    lives for seconds."""
    guard = Guard(DHTID.generate(source=key))
    node = await DHTNode.create(
        p2p=p2p, record_validator=OwnRecords(verify, guard.key), authorizer=guard,
        cache_locally=False, cache_nearest=0, cache_refresh_before_expiry=0,
    )  # fmt: skip
    guard.storage = node.protocol.storage
    return node, guard


class Guard(AuthorizerBase):  # type: ignore[misc]
    """Which calls a DHT node answers: well-formed ones, that do not fill its memory or ask for more than one answer can hold.

    Without it, a node id of another size ends in a traceback, a thousand times the same key in as many copies of all
    records, and a few thousand records of peers that do not exist in no answer at all, for anybody.

    `admit(peer, record)`: whether the record is worth a place here; each is, until somebody who knows the run says otherwise.
    """

    def __init__(self, key: DHTID) -> None:
        self.key = key.to_bytes()
        self.storage: Any = None
        self.admit: Callable[[object, object], bool] = lambda peer, record: True

    async def sign_request(self, request: Any, service_public_key: object) -> None: ...

    async def sign_response(self, response: Any, request: Any) -> None: ...

    async def validate_response(self, response: Any, request: Any) -> bool:
        return len(response.peer.node_id) in (0, DHTID.HASH_NBYTES)

    async def validate_request(self, request: Any) -> bool:
        keys = getattr(request, "keys", ())
        return (
            len(request.peer.node_id) in (0, DHTID.HASH_NBYTES)
            and len(set(keys)) == len(keys) <= _KEYS
            and all(len(key) == DHTID.HASH_NBYTES for key in keys)
            and (not hasattr(request, "in_cache") or (list(keys) == [self.key] and self._room(request)))
        )

    def _room(self, store: Any) -> bool:
        """Whether no more than RECORDS would be kept. Whoever is there already stays: its own new record takes the old one's place."""
        if any(store.in_cache) or not len(store.subkeys) == len(store.values) == 1:
            return False
        held = self.storage.get(DHTID.from_bytes(self.key))
        there = {subkey for subkey, _ in held.value.items()} if held and isinstance(held.value, DictionaryDHTValue) else set()
        try:
            value = MSGPackSerializer.loads(store.values[0])
            if store.subkeys[0]:
                more = {MSGPackSerializer.loads(store.subkeys[0]): value}
            else:
                more = {peer: MSGPackSerializer.loads(item.value) for peer, item in value.data.items()}
        except Exception:  # msgpack has many, and the DHT must not see any
            return False
        return len(there | more.keys()) <= limits.RECORDS and all(self.admit(peer, record) for peer, record in more.items())


class OwnRecords(RecordValidatorBase):  # type: ignore[misc]
    """What DHT nodes store and believe: presences under the run's key and the subkey of the peer that signed them, for as
    long as they live.

    Without it, whoever stores bytes that are no msgpack stops `look` everywhere, a plain value drops all subkeys, and a
    forged record that expires later keeps the true one out. So would a peer's own, made while its clock was ahead.
    """

    def __init__(self, verify: Verify, key: bytes) -> None:
        self._verify = verify
        self._key = key

    def validate(self, record: DHTRecord) -> bool:
        if record.key != self._key:
            return False
        try:
            peer, value = MSGPackSerializer.loads(record.subkey), MSGPackSerializer.loads(record.value)
            if not isinstance(value, bytes):
                return False
            signed = Signed.from_json(loads(value, limits.RECORD_BYTES), "presence", self._verify)
            made_ms = signed.body.get("made_ms")
        except Exception:  # msgpack has many, and the DHT must not see any
            return False
        if signed.peer != peer or type(made_ms) is not int or made_ms > get_dht_time() * 1000 + limits.PRESENCE_MS:
            return False
        return bool(record.expiration_time * 1000 <= made_ms + limits.PRESENCE_MS + limits.CLOCK_SKEW_MS)
