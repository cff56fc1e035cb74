"""Ed25519 keys in files: this node's identity, made on first start, 0400, never leaves; a Member's, on its owner's word.
And the check of others' signatures."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.identity import identity_file, peer_id, public_key, seed_of
from protocols.refusal import Refused
from tapestryd.errors import StateFault
from tapestryd.host.files import write

_KEY_BYTES = 68


class Identity:
    """`sign` is RFC 8032 Ed25519 over the whole message; `path` is the file that p2pd reads, so that both are one identity."""

    def __init__(self, key: Ed25519PrivateKey, path: Path) -> None:
        self._key = key
        self.path = path
        self.peer_id = peer_id(key.public_key().public_bytes_raw())

    @classmethod
    def load_or_make(cls, path: Path) -> "Identity":
        if not path.exists():
            make_key(path, 0o400)
        try:
            return cls(read_key(path), path)
        except OSError as error:
            raise StateFault(f"{path}: cannot read this node's identity: {error.strerror}; make it readable by the daemon's user") from None
        except Refused as refused:
            raise StateFault(f"{path}: {refused.detail}; restore it from a backup, or move it away to become a new node") from None

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def make_key(path: Path, mode: int) -> None:
    """Write a new key, whole or not at all, in libp2p's format. The caller sees to it that no other is there. Raises DiskFull, OSError."""
    key = Ed25519PrivateKey.generate()
    write(path, identity_file(key.private_bytes_raw(), key.public_key().public_bytes_raw()), mode=mode)


def read_key(path: Path) -> Ed25519PrivateKey:
    """Raises OSError, or Refused for a file that is no key."""
    with path.open("rb") as file:
        return Ed25519PrivateKey.from_private_bytes(seed_of(file.read(_KEY_BYTES + 1)))


def verify(peer: str, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `message`. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key(peer)).verify(signature, message)
    except (InvalidSignature, Refused, ValueError):
        return False
    return True
