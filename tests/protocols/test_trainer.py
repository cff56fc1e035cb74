"""The trainer channel's packets against protocols/vectors/trainer.json, and under fuzzing."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import trainer
from protocols.refusal import Refused

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "trainer.json").read_text())


@pytest.mark.parametrize("case", VECTORS["packets"], ids=lambda case: case["kind"])
def test_packets_read_and_write_as_in_the_vectors(case: dict[str, object]) -> None:
    fields = {name: bytes.fromhex(value) if isinstance(value, str) else value for name, value in case["fields"].items()}
    message = getattr(trainer, case["kind"])(**fields)
    assert trainer.pack(message).hex() == case["packet"]
    assert trainer.unpack(bytes.fromhex(case["packet"])) == message


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_what_is_no_packet_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        trainer.unpack(bytes.fromhex(case["packet"]))
    assert refused.value.reason.value == case["reason"]


def test_every_kind_has_a_vector_and_fits() -> None:
    assert {case["kind"] for case in VECTORS["packets"]} == {kind.__name__ for kind in trainer._KINDS}


@given(st.binary(max_size=1) | st.binary(min_size=96, max_size=96).map(lambda data: bytes([data[0] % 21]) + data[1:60] + bytes(36)))
def test_any_bytes_are_a_packet_or_refused(data: bytes) -> None:
    try:
        message = trainer.unpack(data)
    except Refused:
        return
    assert trainer.pack(message) == data
    assert all(value == value for value in asdict(message).values())
