"""Bytes made wrong in the ways that parsers get wrong: at random, but from a source of chance that the caller gives.

Two levels. Of bytes: flipped, cut, doubled, spliced. Of JSON: a value anywhere in the tree is replaced by one of another
type or far out of range, keys are dropped, added and renamed, containers nest; and then the whole is canonical again, so
that it gets past the first check. Knows nothing of any format but JSON.
"""

import json
from random import Random
from typing import Any

from protocols.canonical import dumps
from protocols.refusal import Refused

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 255, 256, 2**31, 2**32, 2**53, -(2**53), 2**53 - 1, 2**53 + 1, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308,
    "", "0", "\x00", "\n", "\x1b[31m", "\u2028", "\u202e", "é", "e\u0301", "織", "\U0001f9f5", "\ud800", "x" * 65, "0" * 64, "0" * 4301,
    "NaN", "1e99", "٣", "/", "..", "%", "\u0130", [], {}, [[]], [{}], [[], {}], {"": {}}, ["x"] * 300, [0] * 300,
)  # fmt: skip
"""What a value is replaced by. Not all of it has a canonical form: that is refused too, or must be."""

_BAIT = (
    b"[" * 64,
    b"[" * 1200,
    b"{" * 64,
    b'{"a":' * 1200,
    b"\\",
    b'"',
    b"\xff",
    b"\x00",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"1e999",
    b"-",
    b"/p2p/",
    b"=",
    b"\n",
)


def mutated(data: bytes, chance: Random, most_bytes: int) -> bytes:
    """Something like `data`, of at most `most_bytes`."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        level = chance.random()
        data = (_tree(data, chance) if level < 0.7 else None) or _bytes(data, chance)
    return data[:most_bytes]


def _bytes(data: bytes, chance: Random) -> bytes:
    at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    match chance.randrange(7):
        case 0:
            return data[:at] + data[to:]
        case 1:
            return data[:to] + data[at:]
        case 2:
            return data[:at] + chance.choice(_BAIT) + data[at:]
        case 3:
            return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
        case 4 if data:
            at = chance.randrange(len(data))
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case 5 if data:
            at = chance.randrange(len(data))
            return data[:at] + bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C))]) + data[at + 1 :]
    return data[:at]


def _tree(data: bytes, chance: Random) -> bytes | None:
    """`data`, its JSON object altered and spelled canonically where that can be; None if it holds none, or one so deep
    that Python gives up. Bytes before and behind stay."""
    first, last = data.find(b"{"), data.rfind(b"}") + 1
    try:
        body = altered(json.loads(data[first:last]), chance)
        try:
            text = dumps(body)
        except Refused:
            text = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    except (ValueError, RecursionError):
        return None
    return data[:first] + text + data[last:]


def altered(value: Any, chance: Random) -> Any:
    """The same tree, but for one place."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        rest = {name: item for name, item in value.items() if name != key}
        match chance.randrange(12):
            case 0:
                return rest
            case 1:
                return {**value, chance.choice(("", "extra", key + "\x00", key.upper(), "织", "\ud800")): _strange(value[key], chance)}
            case 2:
                return {**rest, chance.choice(("", "__class__", key + " ")): value[key]}
        return {**rest, key: altered(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[:at], value[at], *value[at:]]
            case 2:
                return value[::-1]
            case 3:
                return value * chance.choice((2, 20))
        return [*value[:at], altered(value[at], chance), *value[at + 1 :]]
    return _strange(value, chance)


def _strange(value: Any, chance: Random) -> Any:
    match chance.randrange(6):
        case 0 if isinstance(value, str) and value:
            at = chance.randrange(len(value))
            return value[:at] + chance.choice(("", "0", "z", " ", "\n", "\ud800", "é", value)) + value[at + 1 :]
        case 1 if type(value) is int:
            return value + chance.choice((-1, 1, 1 << 32))
        case 2:
            for _ in range(chance.choice((1, 3, 20, 300))):
                value = [value] if chance.random() < 0.5 else {"a": value}
            return value
    return chance.choice(STRANGE)
