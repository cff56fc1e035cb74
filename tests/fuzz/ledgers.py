"""The ledger of what left the data side, as its two readers meet it: a trainer that goes on behind it, and whoever audits it."""

import atexit
import json
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from protocols.canonical import digest, dumps
from protocols.identity import identity_file, peer_id, public_key
from protocols.ledger import HEADS_BYTES, LINE_BYTES, START, Entry, Heads, Opened, Recovered, Released, Withheld, line, parse
from protocols.refusal import Refused
from tapestryd import auditing, statement
from tapestryd.config import Release
from tapestryd.errors import LocalFault
from tapestryd.host.ledger import Ledger, segments
from tests.fuzz.target import Target
from tests.people import RUN, Person

KEY = Person("data side")
FILE_BYTES = 1 << 16


@cache
def _folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _lines() -> list[bytes]:
    found: list[bytes] = []
    for what in (
        Opened(KEY.peer, 32, 256, 0.5, 0.001, 60),
        Released(RUN, 7, 3, 128, 1 << 17, 900, 128, 4096, digest(b"vector"), 12.625, 0.25, 0.0005, 2.5),
        Withheld(RUN, 8, 0, "few_steps", 5, 37, 2),
        Recovered(17, digest(b"torn")),
    ):
        found.append(line(Entry(len(found) + 1, digest(found[-1]) if found else START, 1_700_000_000_000, what), KEY.sign))
    return found


def _line(data: bytes) -> None:
    entry = parse(data)
    signature = bytes.fromhex(json.loads(data)["signature"])
    assert line(entry, lambda message: signature) == data


def _signed(data: bytes) -> bytes:
    """Every line that is JSON follows the one before it and is signed, as by somebody who has the key."""
    made: list[bytes] = []
    for one in data.split(b"\n"):
        with suppress(ValueError, RecursionError, Refused):
            body: Any = json.loads(one)
            if isinstance(body, dict):
                body.update(prev=digest(made[-1]) if made else START)
                body.pop("signature", None)
                one = dumps({**body, "signature": KEY.sign(b"tapestry/ledger/1\n" + dumps(body)).hex()})
        made.append(one)
    return b"\n".join(made)


def _ledger(data: bytes) -> None:
    """What an auditor proves, a trainer goes on behind; and what it wrote then is proved, too. Never the other way round, but for a last
    line that is torn."""
    folder = _folder() / "ledger"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "key").write_bytes(identity_file(KEY.seed, public_key(KEY.peer)))
    (folder / "000000000001.ledger").write_bytes(data)
    try:
        before = _proved(folder)
    except LocalFault:
        before = None
    try:
        Ledger(folder, Release(), now_ms=lambda: 0, waiting=lambda: None).close()
    except LocalFault:
        assert before is None
        raise
    after = _proved(folder)
    assert before is None or after.last >= before.last + 1
    assert after.key == peer_id(KEY.key.public_key().public_bytes_raw())


def _proved(folder: Path) -> auditing.Account:
    found = auditing.Account(0, ())
    auditing.reckon(folder, found, check=True)
    statement.shown(auditing.document(found, folder, "", ""), now_ms=0, width=80)
    assert segments(folder)
    return found


def _witness(data: bytes) -> None:
    assert Heads.parse(data).to_bytes() == data


LEDGERS = {
    "ledger_line": Target(_line, _lines, LINE_BYTES + 1, seal=_signed),
    "ledger": Target(_ledger, lambda: [b"".join(one + b"\n" for one in _lines())], FILE_BYTES, (LocalFault,), seal=_signed),
    "witness": Target(_witness, lambda: [Heads().with_(7, digest(b"a")).with_(9, digest(b"b")).to_bytes()], HEADS_BYTES + 1),
}
