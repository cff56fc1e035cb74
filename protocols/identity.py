"""Peer ids: a node's libp2p identity is an Ed25519 key, so its peer id *is* its public key.

Source: libp2p specs, peer-ids: an identity multihash (0x00, length) of the PublicKey protobuf
{type = 1 (Ed25519), data = 32 bytes}, written in base58btc. All such ids begin with "12D3Koo".
"""

from protocols.refusal import Reason, Refused

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
_ID_CHARS_MAX = 60


def base58(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def unbase58(text: str) -> bytes:
    number = 0
    for char in text:
        digit = _ALPHABET.find(char)
        if digit < 0:
            raise Refused(Reason.MALFORMED, f"{char!r} is not a base58 character")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id(public_key: bytes) -> str:
    """The peer id of a 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    return base58(_PREFIX + public_key)


def public_key(peer: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises Refused for anything else, RSA ids included."""
    if len(peer) > _ID_CHARS_MAX:
        raise Refused(Reason.TOO_LARGE, f"a peer id of {len(peer)} characters")
    data = unbase58(peer)
    if len(data) != 38 or not data.startswith(_PREFIX):
        raise Refused(Reason.MALFORMED, f"{peer!r} is not the id of an Ed25519 key")
    return data[6:]


def identity_file(seed: bytes, public: bytes) -> bytes:
    """libp2p's PrivateKey protobuf {type = 1, data = seed(32) + public(32)}: the identity file that p2pd reads."""
    assert len(seed) == 32
    assert len(public) == 32
    return bytes([0x08, 0x01, 0x12, 0x40]) + seed + public


def seed_of(data: bytes) -> bytes:
    """The 32-byte seed in an identity file. Raises Refused if it is no Ed25519 identity."""
    if len(data) != 68 or data[:4] != bytes([0x08, 0x01, 0x12, 0x40]):
        raise Refused(Reason.MALFORMED, "not an Ed25519 libp2p identity file (68 bytes beginning 08 01 12 40)")
    return data[4:36]
