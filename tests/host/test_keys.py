"""This node's identity: made once, private, one with p2pd's; and the check of others' signatures, which never raises."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.identity import peer_id, public_key
from tapestryd.errors import DiskFull, StateFault
from tapestryd.host.keys import Identity, verify
from tests.people import CAST

ADA, BO = list(CAST.values())[:2]


def test_it_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    made = Identity.load_or_make(path)
    assert path.stat().st_mode & 0o777 == 0o400
    assert list(tmp_path.iterdir()) == [path]
    again = Identity.load_or_make(path)
    assert again.peer_id == made.peer_id
    assert again.sign(b"x") == made.sign(b"x")
    assert verify(made.peer_id, b"x", made.sign(b"x"))


def test_a_crash_while_making_it_is_survived(tmp_path: Path) -> None:
    (tmp_path / "identity.key.new").write_bytes(b"half")
    (tmp_path / "identity.new").write_bytes(b"somebody's")
    made = Identity.load_or_make(tmp_path / "identity.key")
    assert {path.name for path in tmp_path.iterdir()} == {"identity.key", "identity.new"}
    assert made.path.stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("data", [b"", b"x" * 68, bytes(67), b"\x08\x00\x12\x40" + bytes(64)])
def test_a_damaged_one_is_not_replaced_in_silence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(data)
    with pytest.raises(StateFault, match="restore it"):
        Identity.load_or_make(path)
    assert path.read_bytes() == data


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "identity.key").mkdir()
    with pytest.raises(StateFault, match="cannot read"):
        Identity.load_or_make(tmp_path / "identity.key")


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        Identity.load_or_make(tmp_path / "identity.key")
    assert not (tmp_path / "identity.key").exists()


def test_signatures_as_rfc_8032_has_them() -> None:
    """Source: RFC 8032, §7.1, tests 1 and 2."""
    for key, message, signature in (
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ):  # fmt: skip
        peer = peer_id(bytes.fromhex(key))
        assert verify(peer, bytes.fromhex(message), bytes.fromhex(signature))
        assert not verify(peer, bytes.fromhex(message) + b"\0", bytes.fromhex(signature))


def test_a_signature_has_one_form() -> None:
    """S + L is the same number on the curve; who took it would let two certificates differ in nothing but bytes."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = ADA.sign(b"x")
    other = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert verify(ADA.peer, b"x", signature)
    assert not verify(ADA.peer, b"x", other)


@given(st.sampled_from([ADA.peer, BO.peer, "", "x", "1" * 99]) | st.text(max_size=60), st.binary(max_size=9), st.binary(max_size=70))
def test_it_never_raises(peer: str, message: bytes, signature: bytes) -> None:
    assert not verify(peer, message, signature)


def test_a_key_that_is_no_point_is_refused() -> None:
    peer = peer_id(b"\xff" * 32)
    assert public_key(peer) == b"\xff" * 32
    assert not verify(peer, b"x", bytes(64))
