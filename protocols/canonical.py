"""Canonical JSON: one byte string for one value, so that hashes and signatures agree between implementations.

UTF-8, keys sorted by code point, no white space, no escapes but those JSON requires. Only objects, arrays,
strings, booleans and integers of at most 2^53: a float has no spelling that every language prints alike, so decimals
travel as strings ("0.5") and times as integer milliseconds; there is no null.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from protocols import TREATY, limits
from protocols.refusal import Reason, Refused

Json = dict[str, Any]

Sign = Callable[[bytes], bytes]
"""message -> 64-byte Ed25519 signature (RFC 8032) by this node's identity."""

Verify = Callable[[str, bytes, bytes], bool]
"""(peer id, message, signature) -> whether that peer signed it. Never raises."""


def dumps(value: object) -> bytes:
    """The canonical bytes of `value`. Raises Refused(WRONG_TYPE) for floats, None and anything else JSON lacks here."""
    _check(value, limits.JSON_DEPTH)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Refused(Reason.MALFORMED, "text with half a surrogate pair") from None


def loads(data: bytes, bound: int) -> Json:
    """Parse an object of at most `bound` bytes, which must be canonical: `dumps(loads(x)) == x`."""
    if len(data) > bound:
        raise Refused(Reason.TOO_LARGE, f"{len(data)} bytes where at most {bound} are allowed")
    if _depth(data) > limits.JSON_DEPTH:
        raise Refused(Reason.MALFORMED, f"nested deeper than {limits.JSON_DEPTH}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(Reason.WRONG_TYPE, "not an object")
    if dumps(value) != data:
        raise Refused(Reason.MALFORMED, "not in canonical form")
    return value


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def take(body: Mapping[str, Any], shape: Mapping[str, type]) -> None:
    """Check that `body` has exactly the keys of `shape`, each of that type (bool is not an int here)."""
    for key in body:
        if key not in shape:
            raise Refused(Reason.UNKNOWN_FIELD, f"field {key[:40]!r}")
    for key, kind in shape.items():
        if key not in body:
            raise Refused(Reason.MALFORMED, f"field {key!r} is missing")
        if type(body[key]) is not kind:
            raise Refused(Reason.WRONG_TYPE, f"field {key!r} is not {kind.__name__}")


def is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def is_signature(text: str) -> bool:
    """bytes.fromhex would also take blanks, without end."""
    return re.fullmatch("[0-9a-f]{128}", text) is not None


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement by one node: `kind` separates domains, so that a vote can never be read as a roster."""

    kind: str
    body: Json
    peer: str
    signature: str

    @staticmethod
    def message(kind: str, body: Json) -> bytes:
        return f"tapestry/{TREATY}/{kind}\n".encode() + dumps(body)

    @classmethod
    def make(cls, kind: str, body: Json, peer: str, sign: Sign) -> "Signed":
        return cls(kind, body, peer, sign(cls.message(kind, body)).hex())

    def to_json(self) -> Json:
        return {"kind": self.kind, "body": self.body, "peer": self.peer, "signature": self.signature}

    @classmethod
    def from_json(cls, value: object, kind: str, verify: Verify) -> "Signed":
        """Parse and verify. Raises Refused for a wrong shape, another kind or a signature that is not that peer's."""
        if not isinstance(value, dict):
            raise Refused(Reason.WRONG_TYPE, "a signed statement is an object")
        take(value, {"kind": str, "body": dict, "peer": str, "signature": str})
        if value["kind"] != kind:
            raise Refused(Reason.MALFORMED, f"a {value['kind'][:20]!r} where a {kind!r} belongs")
        signed = cls(kind, value["body"], value["peer"], value["signature"])
        if not is_signature(signed.signature):
            raise Refused(Reason.MALFORMED, "a signature is 128 lower-case hexadecimal digits")
        if not verify(signed.peer, cls.message(kind, signed.body), bytes.fromhex(signed.signature)):
            raise Refused(Reason.BAD_SIGNATURE, f"{kind} not signed by {signed.peer[:60]}")
        return signed


def _check(value: object, depth: int) -> None:
    if isinstance(value, dict | list) and depth == 0:
        raise Refused(Reason.MALFORMED, f"nested deeper than {limits.JSON_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Refused(Reason.WRONG_TYPE, "a key is not a string")
            _check(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)
    elif not isinstance(value, str | int):
        raise Refused(Reason.WRONG_TYPE, f"a {type(value).__name__} has no canonical form")
    elif isinstance(value, int) and abs(value) > limits.INTEGER:
        raise Refused(Reason.OUT_OF_RANGE, "an integer beyond 2^53")


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""A string, closed or not, without ever going back: linear in hostile bytes too."""


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _depth(data: bytes) -> int:
    """Deepest nesting outside strings, without recursion: what the parser would recurse into."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
