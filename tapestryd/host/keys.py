"""This node's Ed25519 identity: made on first start, 0400, never leaves; and the check of others' signatures."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.identity import identity_file, peer_id, public_key, seed_of
from protocols.refusal import Refused
from tapestryd.errors import StateFault
from tapestryd.host.store import saying_disk_full


class Identity:
    """`sign` is RFC 8032 Ed25519 over the whole message; `path` is the file that p2pd reads, so that both are one identity."""

    def __init__(self, key: Ed25519PrivateKey, path: Path) -> None:
        self._key = key
        self.path = path
        self.peer_id = peer_id(key.public_key().public_bytes_raw())

    @classmethod
    def load_or_make(cls, path: Path) -> "Identity":
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            temporary = path.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            with saying_disk_full(path):
                with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
                    file.write(identity_file(key.private_bytes_raw(), key.public_key().public_bytes_raw()))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(path)
        try:
            data = path.read_bytes()
            return cls(Ed25519PrivateKey.from_private_bytes(seed_of(data)), path)
        except OSError as error:
            raise StateFault(f"{path}: cannot read this node's identity: {error.strerror}; make it readable by the daemon's user") from None
        except Refused as refused:
            raise StateFault(f"{path}: {refused.detail}; restore it from a backup, or move it away to become a new node") from None

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def verify(peer: str, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `message`. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key(peer)).verify(signature, message)
    except (InvalidSignature, Refused, ValueError):
        return False
    return True
