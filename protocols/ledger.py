"""The ledger's lines: what the data side writes down of everything that leaves it, one signed and chained entry a line.

    line     canonical JSON: entry, prev, time_ms, kind, the kind's own fields, signature
    prev     SHA-256 of the line before, START in the first: nothing can be altered, left out or moved without its showing
    key      in the first entry, and in every one of a start; all entries are signed by it

A chain tells nothing of what was cut from its end: for that the other side of the channel remembers where it was (`Heads`).
Specified in ledger.md. Knows nothing of files, and takes the signature's arithmetic as a parameter.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, get_type_hints

from protocols.canonical import Json, Sign, Verify, digest, dumps, is_digest, is_signature, loads, take
from protocols.identity import public_key
from protocols.refusal import Reason, Refused
from protocols.trainer import Withhold

START = "0" * 64
"""`prev` of the first entry."""

LINE_BYTES = 2048
"""One line at most; the longest there is takes about 900."""

HEADS = 64
"""Positions that the other side remembers, the latest last."""

HEADS_BYTES = 8192

_DOMAIN = b"tapestry/ledger/1\n"
_COMMON = {"entry": int, "prev": str, "time_ms": int, "kind": str, "signature": str}


@dataclass(frozen=True, slots=True)
class Opened:
    """A trainer began to write here. `key`: peer id of the Ed25519 key that signs. The rest: the release rules from now on."""

    KIND: ClassVar[str] = "opened"
    key: str
    min_steps: int
    min_examples: int
    clip_norm: float
    noise_std: float
    max_per_hour: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """A crash left a line that was not whole, which was dropped: so many bytes, of this digest. Its vector had not left."""

    KIND: ClassVar[str] = "recovered"
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Released:
    """A vector was about to be handed over. `steps`, `tokens`, `examples`: behind it, as in trainer.md; `batches`: drawn by then
    since the first start; `bytes`, `sha256`, `norm`: of the float32 vector, little-endian, as it left. `clip`: what it was
    multiplied by, 1 if by nothing; `noise_std`: of the noise that was added; `epsilon`: privacy spent by then, 0 without."""

    KIND: ClassVar[str] = "released"
    run: str
    round: int
    fragment: int
    steps: int
    tokens: int
    examples: int
    batches: int
    bytes: int
    sha256: str
    norm: float
    clip: float
    noise_std: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Withheld:
    """A vector was asked for and not handed over. `unwritten`: so many more since the entry before, which came too fast to be
    written down one by one."""

    KIND: ClassVar[str] = "withheld"
    run: str
    round: int
    fragment: int
    reason: str
    steps: int
    examples: int
    unwritten: int


What = Opened | Recovered | Released | Withheld

_KINDS: dict[str, type[What]] = {kind.KIND: kind for kind in (Opened, Recovered, Released, Withheld)}
_FIELDS = {kind: {name: hint for name, hint in get_type_hints(kind).items() if name != "KIND"} for kind in _KINDS.values()}
_REASONS = {reason.name.lower() for reason in Withhold}


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    prev: str
    time_ms: int
    what: What


def line(entry: Entry, sign: Sign) -> bytes:
    """The entry as it is written, without a newline. Raises Refused for a number that JSON does not hold."""
    told = {name: repr(value) if isinstance(value, float) else value for name, value in asdict(entry.what).items()}
    body: Json = {"entry": entry.number, "prev": entry.prev, "time_ms": entry.time_ms, "kind": entry.what.KIND, **told}
    return dumps({**body, "signature": sign(_DOMAIN + dumps(body)).hex()})


def parse(data: bytes) -> Entry:
    """A line's entry; that it is signed, and follows the one before, is for `Chain`. Raises Refused."""
    body = loads(data, LINE_BYTES)
    kind = _KINDS.get(str(body.get("kind")))
    if kind is None:
        raise Refused(Reason.MALFORMED, f"an entry of kind {str(body.get('kind'))[:20]!r}")
    fields = _FIELDS[kind]
    take(body, _COMMON | {name: str if hint is float else hint for name, hint in fields.items()})
    if any(type(value) is int and value < 0 for value in body.values()) or body["entry"] == 0:
        raise Refused(Reason.OUT_OF_RANGE, "a count below 0")
    told: dict[str, Any] = {name: _decimal(body[name]) if hint is float else body[name] for name, hint in fields.items()}
    what = kind(**told)
    if not all(is_digest(body[name]) for name in ("prev", "run", "sha256") if name in body):
        raise Refused(Reason.MALFORMED, "a digest is 64 lower-case hexadecimal digits")
    if not is_signature(body["signature"]):
        raise Refused(Reason.MALFORMED, "a signature is 128 lower-case hexadecimal digits")
    if isinstance(what, Withheld) and what.reason not in _REASONS:
        raise Refused(Reason.MALFORMED, f"withheld for {what.reason[:20]!r}")
    if isinstance(what, Opened):
        public_key(what.key)
    return Entry(body["entry"], body["prev"], body["time_ms"], what)


class Chain:
    """Follows a ledger line by line. `number`, `head`: of the latest entry; `key`: who signs, "" until an entry says so."""

    def __init__(self, verify: Verify, *, number: int = 0, head: str = START, key: str = "") -> None:
        self.number = number
        self.head = head
        self.key = key
        self._verify = verify

    def follow(self, data: bytes) -> Entry:
        """The next entry. Raises Refused, and stays where it was, if it is not the next one of this chain."""
        entry = parse(data)
        if entry.number != self.number + 1:
            raise Refused(Reason.STALE, f"entry {entry.number} stands where {self.number + 1} belongs")
        if entry.prev != self.head:
            raise Refused(Reason.BAD_DIGEST, f"entry {entry.number} does not follow the line before it, which is not what it was")
        key = self.key or (entry.what.key if isinstance(entry.what, Opened) else "")
        if not key:
            raise Refused(Reason.MALFORMED, "the first entry names no key")
        if isinstance(entry.what, Opened) and entry.what.key != key:
            raise Refused(Reason.BAD_SIGNATURE, f"entry {entry.number} names another key than the first one")
        body = loads(data, LINE_BYTES)
        signature = bytes.fromhex(body.pop("signature"))
        if not self._verify(key, _DOMAIN + dumps(body), signature):
            raise Refused(Reason.BAD_SIGNATURE, f"entry {entry.number} is not signed by the ledger's key")
        self.number, self.head, self.key = entry.number, digest(data), key
        return entry


@dataclass(frozen=True, slots=True)
class Heads:
    """What the network side remembers: (entry, digest of its line) of the latest vectors that it was given, in that order."""

    heads: tuple[tuple[int, str], ...] = ()

    def with_(self, number: int, head: str) -> "Heads":
        return Heads((*self.heads, (number, head))[-HEADS:])

    def lost(self, digests: Mapping[int, str]) -> int | None:
        """The least entry that we remember and a ledger does not hold, or holds another of; `digests`: of its lines, by entry."""
        return min((number for number, head in self.heads if digests.get(number) != head), default=None)

    def to_bytes(self) -> bytes:
        return dumps({"heads": [[number, head] for number, head in self.heads]})

    @classmethod
    def parse(cls, data: bytes) -> "Heads":
        """Raises Refused."""
        body = loads(data, HEADS_BYTES)
        take(body, {"heads": list})
        if len(body["heads"]) > HEADS:
            raise Refused(Reason.TOO_LARGE, f"{len(body['heads'])} heads where at most {HEADS} are kept")
        return cls(tuple(map(_head, body["heads"])))


def _head(pair: object) -> tuple[int, str]:
    if not (isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and pair[0] > 0 and is_digest(pair[1])):
        raise Refused(Reason.MALFORMED, "a head is an entry's number and a digest")
    return pair[0], pair[1]


def _decimal(text: str) -> float:
    """A float as `repr` writes it; nothing else, so that an entry has one spelling."""
    try:
        value = float(text) if len(text) <= 32 else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and repr(value) == text):
        raise Refused(Reason.MALFORMED, f"{text[:40]!r} is no decimal as the ledger writes them")
    return value
