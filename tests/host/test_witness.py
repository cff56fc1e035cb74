"""What the network side remembers of a ledger that it may not read."""

import errno
import logging
import os
from pathlib import Path

import pytest

from protocols.canonical import digest
from protocols.ledger import HEADS, Heads
from tapestryd.host.witness import Witness


def chain(number: int) -> bytes:
    return bytes.fromhex(digest(b"%d" % number))


def test_what_was_seen_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "witness.json"
    for start in (2, 50):
        witness = Witness(path)
        for number in range(start, start + 40, 2):
            witness.saw(number, chain(number))
            witness.keep()
        assert witness.trouble == ""
    assert Heads.parse(path.read_bytes()) == Heads(tuple((number, chain(number).hex()) for number in [*range(2, 42, 2), *range(50, 90, 2)]))


def test_a_ledger_that_goes_back_is_noticed_and_both_are_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "witness.json"
    witness = Witness(path)
    witness.saw(640, chain(1))
    witness.keep()
    witness = Witness(path)
    witness.saw(640, chain(2))
    assert "the trainer's ledger was at entry 640 and is at 640: it was cut, or begun anew" in witness.trouble
    witness.saw(2, chain(3))
    assert "was at entry 640 and is at 2" in witness.trouble
    witness.keep()
    assert [number for number, _ in Heads.parse(path.read_bytes()).heads] == [640, 640, 2]
    assert len(caplog.records) == 2


def test_it_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "witness.json"
    witness = Witness(path)
    for number in range(1, 1000):
        witness.saw(number, chain(number))
    witness.keep()
    assert len(Heads.parse(path.read_bytes()).heads) == HEADS


def test_one_that_is_damaged_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "witness.json"
    path.write_bytes(b"\0" * 20_000)
    witness = Witness(path)
    assert "set aside as witness.json.damaged" in caplog.text
    witness.saw(7, chain(7))
    witness.keep()
    assert Heads.parse(path.read_bytes()).heads == ((7, chain(7).hex()),)


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "witness.json"
    witness = Witness(path)
    witness.saw(1, chain(1))
    witness.keep()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    witness.saw(2, chain(2))
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(os, "fsync", full)
        witness.keep()
    assert "where the ledger is, is not kept" in caplog.text
    assert Heads.parse(path.read_bytes()).heads == ((1, chain(1).hex()),)
    witness.keep()
    assert [number for number, _ in Heads.parse(path.read_bytes()).heads] == [1, 2]
