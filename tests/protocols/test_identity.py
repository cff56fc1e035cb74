"""Peer ids against libp2p's own published example, round trips, and hostile text."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.identity import base58, identity_file, peer_id, public_key, seed_of, unbase58
from protocols.refusal import Reason, Refused
from tests.people import CAST


@given(st.binary(max_size=50))
def test_base58_comes_back(data: bytes) -> None:
    assert unbase58(base58(data)) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"Hello World!", "2NEpo7TZRRrLZSi2U"), (b"\0\0\x28\x7f\xb4\xcd", "11233QC4"), (b"", ""), (b"\0", "1")],
)
def test_base58_as_the_draft_has_it(data: bytes, text: str) -> None:
    """Source: draft-msporny-base58, test vectors."""
    assert (base58(data), unbase58(text)) == (text, data)


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_is_its_key(key: bytes) -> None:
    peer = peer_id(key)
    assert peer.startswith("12D3Koo")
    assert len(peer) == 52
    assert public_key(peer) == key


@pytest.mark.parametrize(
    "peer",
    [
        "", "1", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", base58(bytes([0, 0x24, 8, 0, 0x12, 0x20]) + b"x" * 32),
        "1" + peer_id(b"x" * 32), peer_id(b"x" * 32) + "1", peer_id(b"x" * 32)[:-1], "0" * 52, "٣" * 52, "1" * 100_000,
    ],
)  # fmt: skip
def test_other_ids_are_refused(peer: str) -> None:
    with pytest.raises(Refused) as refused:
        public_key(peer)
    assert refused.value.reason in (Reason.MALFORMED, Reason.TOO_LARGE)


@given(st.text(max_size=70))
def test_any_text_is_a_peer_id_or_refused(text: str) -> None:
    with suppress(Refused):
        assert peer_id(public_key(text)) == text


def test_the_identity_file_holds_the_seed() -> None:
    ada = next(iter(CAST.values()))
    data = identity_file(ada.seed, public_key(ada.peer))
    assert len(data) == 68
    assert seed_of(data) == ada.seed
    for bad in (b"", data[:-1], data + b"\0", b"\x08\x00" + data[2:]):
        with pytest.raises(Refused):
            seed_of(bad)
