"""What arrives from other peers, as bytes of a record, a frame, a file that they serve, or a line that somebody sends.

Signatures always hold here: whoever sends something can sign it with a key of its own.
"""

import asyncio
import io
import json
import struct
from dataclasses import replace
from functools import cache
from itertools import pairwise

import msgpack
import torch
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.serializer import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from protocols import accounts, limits
from protocols.canonical import Json, Signed, digest, dumps, loads
from protocols.grouping import BITMAP_BYTES, Claim, Roster, accept, bitmap, in_bitmap
from protocols.identity import peer_id, public_key
from protocols.lineage import _HEAD, MAGIC, Entry, Snapshot, base_digest, piece_count
from protocols.membership import Delegation, from_file, owner, to_file
from protocols.records import Presence, is_address
from protocols.refusal import Reason, Refused
from protocols.rules import Invite, RunRules
from protocols.settling import Vote, made_by, merkle, part_body
from tapestryd.swarm.dht import OwnRecords, items
from tapestryd.swarm.line import OPEN_LINE
from tapestryd.swarm.meter import Meter
from tapestryd.swarm.streams import Gone, Stream
from tapestryd.training.codec import decode, encode, encoded_bytes
from tests.fuzz.target import Target
from tests.lineages import Line, noise
from tests.people import BLANK, CAST, MEMBERS, RULES, RUN, certified, delegations, in_roster_mode, roster, vote
from tests.training import tiny

PEOPLE = list(CAST.values())
ADA, BO = PEOPLE[:2]
NOW_MS = 1_700_000_125_000
ELEMENTS = 131
ROSTER_RUN = in_roster_mode(RULES).run_id
PARTS = [b"one part", b"", b"and a third"]


def yes(peer: str, message: bytes, signature: bytes) -> bool:
    return True


@cache
def line() -> Line:
    """A lineage of two rounds."""
    made = Line.begin()
    made.grow()
    made.grow(PEOPLE[:4])
    return made


def _canonical(data: bytes) -> None:
    value = loads(data, limits.FRAME_BYTES)
    assert dumps(value) == data
    assert json.loads(data) == value


def _signed(data: bytes) -> None:
    assert dumps(Signed.from_json(loads(data, limits.FRAME_BYTES), "vote", yes).to_json()) == data


def _presence(data: bytes) -> None:
    found = Presence.parse(data, run=RUN, peer=ADA.peer, now_ms=NOW_MS, verify=yes)
    signature = bytes.fromhex(loads(data, limits.RECORD_BYTES)["signature"])
    assert found.to_bytes(lambda _: signature) == data
    for address in found.addrs:
        _dial(address)
    invite = Invite(RUN, tuple(f"{address}/p2p/{ADA.peer}" for address in found.addrs))
    assert Invite.parse(str(invite)) == invite


def _presences() -> list[bytes]:
    addrs = ("/ip4/192.0.2.1/tcp/31700", "/dns4/aspen.example/tcp/31700")
    plain = Presence(RUN, ADA.peer, "aspen", "training", 40, 120, "cd" * 32, addrs, "0.1.0", None, NOW_MS)
    speaking = replace(plain, delegation=delegations(MEMBERS[0], [ADA, BO])[0], addrs=(), base="", height=0, weight=0)
    return [made.to_bytes(ADA.sign) for made in (plain, speaking)]


def _stored(data: bytes) -> None:
    """As a DHT node is asked to store it: never raises, and what it takes is dated."""
    size, rest = data[:1], data[1:]
    subkey, value = rest[: size[0] if size else 0], rest[size[0] if size else 0 :]
    record = DHTRecord(b"key", subkey, value, get_dht_time() + limits.PRESENCE_MS / 1000)
    taken = OwnRecords(yes, b"key").validate(record)
    assert type(taken) is bool
    if not taken:
        raise Refused(Reason.MALFORMED, "not stored")


def _records() -> list[bytes]:
    subkey = MSGPackSerializer.dumps(ADA.peer)
    body = loads(_presences()[0], limits.RECORD_BYTES)["body"] | {"made_ms": int(get_dht_time() * 1000)}
    value = MSGPackSerializer.dumps(dumps(Signed.make("presence", body, ADA.peer, ADA.sign).to_json()))
    return [bytes([len(subkey)]) + subkey + value, b"\x00" + value]


def _items(data: bytes) -> None:
    """What passes, the DHT's own reader takes, for the same records."""
    found = items(data)
    value = MSGPackSerializer.loads(data)
    assert isinstance(value, DictionaryDHTValue)
    assert all(type(item.value) is bytes and type(item.expiration_time) is float for item in value.data.values())
    assert {subkey for subkey, _, _ in found} >= set(value.data)


def _dictionaries() -> list[bytes]:
    made = []
    for people in (PEOPLE[:1], PEOPLE[:3]):
        value = DictionaryDHTValue()
        for person, record in zip(people, _records(), strict=False):
            value.store(person.peer, record, NOW_MS / 1000)
        made.append(MSGPackSerializer.dumps(value))
    return made


def _roster(data: bytes) -> None:
    value = loads(data, limits.FRAME_BYTES)
    signed = Signed.from_json(value, "roster", yes)
    found = Roster.from_body(signed.body, yes)
    assert found.to_body() == signed.body
    assert found.parts[-1][1] == 64
    slices = found.slices(ELEMENTS, 64)
    assert (slices[0][0], slices[-1][1], len(slices)) == (0, ELEMENTS, len(found.reducers))
    accept(
        value, run=RUN, round=7, fragment=1, before="b0" * 32, me=ADA.peer, claim=BLANK, leader=signed.peer, min_peers=2, verify=yes
    )  # fmt: skip


def _rosters() -> list[bytes]:
    shown = delegations(MEMBERS[0], PEOPLE[:2])
    found = [roster(PEOPLE[:1]), roster(PEOPLE[:3]), roster(PEOPLE, reducers=2), roster(PEOPLE[:3], delegated=shown)]
    return [dumps(Signed.make("roster", made.to_body(), made.members[0], CAST[made.members[0]].sign).to_json()) for made in found]


def _ordered(data: bytes) -> bytes:
    """A roster's members, whatever they are, in the order that is asked for."""
    value = _object(data)
    try:
        body = value["body"]
        members = sorted(set(body["members"]), key=lambda peer: (_hash(f"{body['run']}/{body['round']}/{peer}"), peer))
        return dumps({**value, "body": {**body, "members": members, "claims": (body["claims"] * 2)[: len(members)]}})
    except (Refused, KeyError, TypeError, ValueError, RecursionError):
        return data


def _hash(text: str) -> bytes:
    return bytes.fromhex(digest(text.encode()))


def _speaking() -> Claim:
    return replace(BLANK, delegation=delegations(MEMBERS[0], [ADA])[0])


def _claim(data: bytes) -> None:
    body = loads(data, limits.FRAME_BYTES)
    found = Claim.from_body(body, yes)
    assert found.to_body() == body
    assert found.norm >= 0


def _vote(data: bytes) -> None:
    body = loads(data, limits.FRAME_BYTES)
    assert Vote.from_body(body).to_body() == body


def _part(data: bytes) -> None:
    of = roster(PEOPLE[:3])
    assert dumps(made_by(loads(data, limits.FRAME_BYTES), of, 0, yes).to_json()) == data


def _parts() -> list[bytes]:
    of = roster(PEOPLE[:3])
    reducer = CAST[of.reducers[0]]
    return [dumps(Signed.make("part", part_body(of, 0, digest(PARTS[0])), reducer.peer, reducer.sign).to_json())]


def _entry(data: bytes) -> None:
    rules = in_roster_mode(RULES) if ROSTER_RUN.encode() in data else line().rules
    entry, parts = Entry.split(data, rules, yes)
    assert entry.head() + b"".join(parts) == data
    assert entry.tip.weight >= entry.tip.height > 0


def _entries() -> list[bytes]:
    """Of an open run, and one on which a Member's two nodes and another's one agreed."""
    shown = [*delegations(MEMBERS[0], PEOPLE[:2], run=ROSTER_RUN), *delegations(MEMBERS[1], PEOPLE[2:3], run=ROSTER_RUN)]
    of = roster(PEOPLE[:3], run=ROSTER_RUN, delegated=shown)
    return [entry.head() + b"".join(parts) for entry, parts in [*line().entries, (certified(of, PARTS, PEOPLE[:3]), PARTS)]]


def _sealed_entry(data: bytes) -> bytes:
    """Length, sizes, digests, root and roster as whoever makes one up would have them."""
    at = _HEAD.size
    end = data.rfind(b"}") + 1
    try:
        body = loads(data[at:end], limits.FRAME_BYTES)
        if len(body["sizes"]) == len(body["parts"]) < 1000 and sum(body["sizes"]) == len(data) - end:
            edges = [sum(body["sizes"][:part]) + end for part in range(len(body["sizes"]) + 1)]
            body["parts"] = [digest(data[a:b]) for a, b in pairwise(edges)]
        body["vote"] = {**body["vote"], "root": merkle(body["parts"]), "roster": digest(dumps(body["roster"]))}
        head = dumps(body)
        return MAGIC + struct.pack("<I", len(head)) + head + data[end:]
    except (Refused, KeyError, TypeError, ValueError, RecursionError):
        return data


def _account(data: bytes) -> None:
    rules, found = accounts.read(io.BytesIO(data).read, "", yes)
    assert found.run == rules.run_id
    rounds = found.last - found.first + 1
    assert all(1 <= share.rounds <= min(rounds, share.steps) for share in found.shares)
    assert sum(share.weight_ppm for share in found.shares) <= sum(share.rounds for share in found.shares) * accounts.WHOLE
    assert all(share.weight_ppm > 0 for share in found.shares)


def _evidence() -> list[bytes]:
    heads = [entry.head() for entry, _ in line().entries]
    return [accounts.opening(line().rules) + b"".join(some) for some in (heads, heads[1:])]


def _sealed_evidence(data: bytes) -> bytes:
    first, *heads = data.split(MAGIC)
    return first + b"".join(_sealed_entry(MAGIC + head) for head in heads)


def _snapshot(data: bytes) -> None:
    made = line()
    layout = made.base.layout
    found = Snapshot.parse(data, run=made.rules.run_id, elements=layout.elements, fragments=layout.fragments)
    assert found.to_bytes() == data
    assert len(found.pieces) == piece_count(found.size)
    hash(found)


def _sealed_snapshot(data: bytes) -> bytes:
    value = _object(data)
    try:
        return dumps({**value, "base": base_digest(value["fragments"])})
    except (Refused, KeyError, TypeError, RecursionError):
        return data


def _rules(data: bytes) -> None:
    found = RunRules.from_canonical(data, digest(data))
    assert found.canonical() == data
    assert found.layout().elements > 0
    assert RunRules.from_toml(found.to_toml()) == found
    for text in (found.inner.lr, found.outer.lr, found.outer.momentum, found.averaging.coverage):
        assert 0 <= float(text) <= 10


def _invite(data: bytes) -> None:
    found = Invite.parse(data.decode("utf-8", "surrogateescape"))
    assert Invite.parse(str(found)) == found
    assert str(found).isprintable()
    for address in found.peers:
        assert peer_id(public_key(address.rpartition("/p2p/")[2])) in address
        _dial(address)


def _invites() -> list[bytes]:
    addresses = (f"/ip4/192.0.2.1/tcp/31700/p2p/{ADA.peer}", f"/dns4/bo.example/tcp/31700/p2p/{BO.peer}")
    return [str(Invite(RUN, addresses[:count])).encode() for count in range(3)]


def _address(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    if not is_address(text):
        raise Refused(Reason.MALFORMED, "no address")
    _dial(text)


def _dial(address: str) -> None:
    """As a node does that is about to dial it: what is no multiaddr after all is passed over."""
    try:
        parsed = Multiaddr(address)
        [protocol.name for protocol in parsed.protocols()]
    except ValueError:
        return


def _peer(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    assert peer_id(public_key(text)) == text


def _delegation(data: bytes) -> None:
    found = Delegation.parse(loads(data, limits.FRAME_BYTES), yes)
    assert dumps(found.to_json()) == data
    members = in_roster_mode(RULES).members
    assert owner(found, run=RUN, members=members, node=ADA.peer, at_ms=NOW_MS) in members


def _delegations(data: bytes) -> None:
    assert to_file(from_file(data, yes)) == data.rstrip(b"\n") + b"\n"


def _received(data: bytes, *, answer: bool) -> tuple[Json, bytearray]:
    """The next message on a stream on which nothing but `data` comes."""

    async def read() -> tuple[Json, bytearray]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        stream = Stream(ADA.peer, "verb", reader, None, Meter(), OPEN_LINE, asks=answer)  # type: ignore[arg-type]  # it only reads
        return await (stream.answer(1 << 16) if answer else stream.receive(1 << 16))

    return asyncio.run(read())


def _frame(data: bytes) -> None:
    head, body = _received(data, answer=False)
    assert data.startswith(_framed(head, bytes(body)))


def _answer(data: bytes) -> None:
    head, _ = _received(data, answer=True)
    assert "refused" not in head


def _framed(head: Json, body: bytes = b"") -> bytes:
    raw = dumps(head)
    return struct.pack("<IQ", len(raw), len(body)) + raw + body


def _sealed_frame(data: bytes) -> bytes:
    """Lengths that are true."""
    end = data.rfind(b"}") + 1
    return struct.pack("<IQ", max(0, end - 12), len(data) - max(end, 12)) + data[12:] if len(data) >= 12 else data


def _decoding(bits: int) -> Target:
    def check(data: bytes) -> None:
        found = decode(data, ELEMENTS, bits, 64)
        assert found.shape == (ELEMENTS,)
        assert bool(torch.isfinite(found).all())
        if bits == 32:
            assert encode(found, bits, 64) == data
        else:
            again = decode(encode(found, bits, 64), ELEMENTS, bits, 64)
            assert bool((again.sub(found).abs() <= found.abs().max() / (14 if bits == 4 else 254) * 1.01 + 2e-36).all())

    def seeds() -> list[bytes]:
        return [encode(noise(ELEMENTS, seed, scale), bits, 64) for seed, scale in ((1, 1.0), (2, 1e30), (3, 1e-37), (4, 0.0))]

    return Target(check, seeds, encoded_bytes(ELEMENTS, bits, 64) + 8)


def _bits(data: bytes) -> None:
    """How a part begins, of a roster of 200."""
    assert bitmap(in_bitmap(data[:BITMAP_BYTES], 200)) == data[:BITMAP_BYTES].ljust(BITMAP_BYTES, b"\0")


def _object(data: bytes) -> Json:
    try:
        return loads(data, FRAME)
    except Refused:
        return {}


FRAME = limits.FRAME_BYTES

WIRE = {
    "canonical": Target(_canonical, lambda: [*_rosters(), dumps({"a": [1, True, "织"], "b": {}})], FRAME),
    "signed": Target(_signed, lambda: [dumps(line().entries[0][0].votes[0].to_json())], FRAME),
    "presence": Target(_presence, _presences, limits.RECORD_BYTES),
    "record": Target(_stored, _records, 2 * limits.RECORD_BYTES),
    "items": Target(_items, _dictionaries, FRAME, (ValueError, TypeError, msgpack.UnpackException)),
    "roster": Target(_roster, _rosters, FRAME, seal=_ordered),
    "claim": Target(_claim, lambda: [dumps(claim.to_body()) for claim in (*line().entries[0][0].roster.claims, _speaking())], FRAME),
    "vote": Target(_vote, lambda: [dumps(vote(roster(PEOPLE[:3]), PARTS).to_body())], FRAME),
    "part": Target(_part, _parts, FRAME),
    "entry": Target(_entry, _entries, FRAME, seal=_sealed_entry),
    "account": Target(_account, _evidence, limits.RULES_BYTES + 2 * FRAME, seal=_sealed_evidence),
    "snapshot": Target(_snapshot, lambda: [line().snapshot()[0].to_bytes()], FRAME, seal=_sealed_snapshot),
    "rules": Target(
        _rules, lambda: [made.canonical() for made in (RULES, in_roster_mode(RULES), tiny.rules())], limits.RULES_BYTES, heap_bytes=1 << 22
    ),
    "invite": Target(_invite, _invites, limits.CONTROL_BYTES),
    "address": Target(
        _address, lambda: [b"/ip4/192.0.2.1/tcp/31700", b"/dns4/a.example/udp/1/quic-v1", b"/ip6/::1/tcp/1/p2p-circuit"], 256
    ),
    "peer": Target(_peer, lambda: [person.peer.encode() for person in PEOPLE], limits.FRAME_BYTES),
    "delegation": Target(_delegation, lambda: [dumps(delegations(MEMBERS[0], [ADA])[0].to_json())], FRAME),
    "delegations": Target(_delegations, lambda: [to_file(delegations(MEMBERS[0], PEOPLE))], limits.DELEGATIONS_BYTES),
    "frame": Target(
        _frame, lambda: [_framed({}), _framed({"height": 3, "offset": 0, "bytes": 9}, b"body")], FRAME, (Refused, Gone), _sealed_frame
    ),
    "answer": Target(
        _answer,
        lambda: [_framed({"size": 9}, b"x"), _framed({"refused": "stale", "detail": "gone"})],
        FRAME,
        (Refused, Gone),
        _sealed_frame,
    ),
    "codec4": _decoding(4),
    "codec8": _decoding(8),
    "codec32": _decoding(32),
    "bitmap": Target(_bits, lambda: [bitmap([0]), bitmap(range(200)), bitmap([3, 199])], BITMAP_BYTES + 1),
}
"""name → target."""
