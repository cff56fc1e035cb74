"""What this machine hands to itself: the trainer channel, the control API, files that people write and files that rot."""

import asyncio
import atexit
import gzip
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import zstandard

from protocols import limits
from protocols.control import Ban
from protocols.identity import identity_file, public_key, seed_of
from protocols.membership import Epochs
from protocols.refusal import Reason, Refused
from protocols.rules import Invite, RunRules
from protocols.trainer import (
    SIZE,
    Base,
    Beat,
    Checks,
    Delta,
    Ended,
    Evaluated,
    Fault,
    Hello,
    Quit,
    Ready,
    Rest,
    Stop,
    Train,
    Withheld,
    pack,
    unpack,
)
from tapestryd import screen
from tapestryd.errors import ConfigFault, DataFault, StateFault
from tapestryd.host.answers import Answers
from tapestryd.host.api import Api
from tapestryd.host.checkpoint import Checkpoint
from tapestryd.host.datasets import RECORD, record
from tapestryd.host.inbox import Inbox
from tapestryd.host.manifest import Manifest, parse, written
from tapestryd.host.route import finite
from tapestryd.host.state import StateDir
from tapestryd.host.store import RunStore
from tapestryd.layers import files_at, load_daemon, load_trainer
from tapestryd.training.exclusion import Exclusion
from tapestryd.training.model import bytes_tokenizer, end_of, read_config
from tapestryd.training.text import END, Bytes, FromJson, tokens_of
from tapestryd.training.tokens import _indexed
from tests.fuzz.target import Target
from tests.fuzz.wire import ADA, BO, line
from tests.people import MEMBERS, RULES, RUN, in_roster_mode
from tests.scripted import PEER, STORY, Scripted
from tests.training import tiny

DEPLOY = Path(__file__).parents[2] / "deploy"


@cache
def _folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _packet(data: bytes) -> None:
    assert pack(unpack(data)) == data


def _packets() -> list[bytes]:
    return [
        pack(message)
        for message in (
            Hello(2, 4, 1 << 30, bytes(range(32))), Base(7, 0xFFFF, True), Train(8, 7), Stop(8, 0), Quit(), Ready(2, 1 << 30, 1, 1, 0),
            Beat(5120, 1 << 22, 3.25, 900.5, 1 << 33, 2.5, 3), Delta(8, 0, 500, 1 << 16, 2000, 3.0, 0.125, 9, bytes(range(32))),
            Evaluated(7, 3.5, 8192), Fault(8), Withheld(8, 0, 1), Checks(0b1011, 0b100), Rest(), Ended(-9),
        )
    ]  # fmt: skip


@cache
def _served() -> asyncio.AbstractEventLoop:
    """The loop in which an Api serves; it runs while it is asked."""
    exports = _folder() / "exports"
    exports.mkdir()
    loop = asyncio.new_event_loop()
    operator = Scripted(exports)
    api = Api(Answers(operator, operator.watch, Inbox(_folder() / "founded", lambda: 0)).routes, _socket())
    loop.run_until_complete(api.start())
    atexit.register(lambda: (loop.run_until_complete(api.stop()), loop.run_until_complete(loop.shutdown_default_executor()), loop.close()))
    return loop


def _socket() -> Path:
    return _folder() / "run" / "t.sock"


_ASKED = (
    ("PUT", "/v1/run"), ("DELETE", "/v1/run"), ("PUT", f"/v1/bans/{PEER}"), ("DELETE", f"/v1/bans/{PEER}"), ("POST", "/v1/pause"),
    ("POST", "/v1/resume"), ("POST", "/v1/shutdown"),
)  # fmt: skip


def _body(data: bytes) -> None:
    """A real request on the real socket; the first byte says which. A bug is answered by 500."""
    method, target = _ASKED[data[0] % len(_ASKED)] if data else _ASKED[0]
    body = data[1:]
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    status, answer = _asked(head.encode() + body)
    assert status < 500, (status, answer)
    if status != 200:
        raise Refused(Reason.MALFORMED, str(status))


def _request(data: bytes) -> None:
    """Any bytes in the place of a path and its query."""
    line = b"GET " + data.translate(None, b"\r\n") + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    status, answer = _asked(line)
    assert status < 500, (status, answer)
    if status != 200:
        raise Refused(Reason.MALFORMED, str(status))


def _asked(request: bytes) -> tuple[int, bytes]:
    """(status, body)."""

    async def ask() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(_socket()))
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    head, _, body = _served().run_until_complete(ask()).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def _bodies() -> list[bytes]:
    ban = json.dumps({"for_s": 60, "reason": "spam"}).encode()
    join = json.dumps({"target": str(Invite(RUN, (f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",)))}).encode()
    return [b"\x00" + join, b"\x01", b"\x02" + ban, b"\x03{}", b'\x04{"for_s":7200}', b"\x05", b"\x06{}"]


def _requests() -> list[bytes]:
    return [b"/v1/rounds?limit=3", b"/v1/rounds/40", b"/v1/export/a?id=b", b"/readyz?verbose", b"/v1/status"]


def _toml(data: bytes) -> None:
    found = RunRules.from_toml(data.decode("utf-8", "replace"))
    assert RunRules.from_toml(found.to_toml()) == found


def _daemon_config(data: bytes) -> None:
    load_daemon(files_at(_file("tapestryd.toml", data)), {}, {})


def _trainer_config(data: bytes) -> None:
    load_trainer(files_at(_file("trainer.toml", data)), {}, {})


def _flag(data: bytes) -> None:
    """KEY=VALUE, as on a command line and, in capitals, in the environment."""
    key, _, value = data.decode("utf-8", "surrogateescape").replace("\0", "").partition("=")
    load_daemon((), {"TAPESTRY_" + key.upper().replace(".", "__"): value}, {key: value})


def _examples(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for name in names for path in sorted(DEPLOY.rglob(name))]


def _schema(data: bytes) -> None:
    state = _file("state/schema", data).parent
    StateDir(state).close()


def _current(data: bytes) -> None:
    _file("state/schema", b"1")
    _file("state/current", data)
    state = StateDir(_folder() / "state")
    try:
        Invite.parse(state.current)
    finally:
        state.close()


def _bans(data: bytes) -> None:
    _file("state/schema", b"1")
    _file("state/bans.json", data)
    state = StateDir(_folder() / "state")
    try:
        found = state.bans()
        assert all(isinstance(ban.peer_id, str) and isinstance(ban.until_ms, int) for ban in found)
        state.keep_bans(found)
        assert state.bans() == found
    finally:
        state.close()


def _stories(data: bytes) -> None:
    """What was lived through before is shown by the API and on screens."""
    store = _store()
    _file("store/rounds.jsonl", data)
    docs = [json.loads(json.dumps(finite(asdict(story)), ensure_ascii=False).encode()) for story in store.stories()]
    screen.rounds(docs, width=80)
    for doc in docs:
        screen.one_round({"round": doc["round"], "stories": [doc], "certificate": None}, width=80)


def _epochs(data: bytes) -> None:
    assert Epochs.parse(data).to_bytes() == data
    _file("store/epochs.json", data)
    assert _store().load_epochs() == Epochs.parse(data)


def _manifest(data: bytes) -> None:
    """A folder of snapshots in which one manifest is damaged."""
    store = _store()
    _file("store/rules.json", line().rules.canonical())
    size = 8 * line().base.layout.elements
    with _file("store/snapshots/0000000002.base", b"").open("wb") as file:
        file.truncate(size)
    _file("store/snapshots/0000000002.json", data)
    assert all(store.snapshot_file(found).suffix == ".base" and found.size == size for found in store.snapshots())


def _store() -> RunStore:
    return RunStore(_folder() / "store", line().rules.run_id)


def _checkpoint(data: bytes) -> None:
    kept: list[object] = []
    _file(f"checkpoints/{RUN}/local.pt", data)
    checkpoint = Checkpoint(_folder() / "checkpoints", RUN, waiting=lambda: None)
    try:
        if not checkpoint.load(kept.append):
            raise Refused(Reason.MALFORMED, "set aside")
    finally:
        checkpoint.close()


def _checkpoints() -> list[bytes]:
    checkpoint = Checkpoint(_folder() / "checkpoints", RUN, waiting=lambda: None)
    checkpoint.save({"model": torch.arange(6.0), "steps": 3, "names": ["a"]})
    checkpoint.close()
    return [(_folder() / "checkpoints" / RUN / "local.pt").read_bytes()]


def _summed(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def _identity(data: bytes) -> None:
    assert len(seed_of(data)) == 32


def _tokenizer(data: bytes) -> None:
    found = FromJson(data, 256)
    ids = found.encode("A plain sentence, 织物 \ud800\n\x00 of 12 words.")
    assert 0 <= found.end < found.size
    assert all(0 <= token < found.size for token in ids)


def _model(data: bytes) -> None:
    text = read_config(_file("config.json", data))
    assert isinstance(json.loads(text)["model_type"], str)
    assert type(end_of(text)) in (int, type(None))


def _text(name: str) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        for ids in tokens_of(_file(name, data), "text", Bytes(), Exclusion(())):
            assert ids.size == 0 or int(ids.max()) <= END

    return check


def _data_manifest(data: bytes) -> None:
    assert parse(written(found := parse(data))) == found


def _record(data: bytes) -> None:
    record(_file(RECORD, data).parent)


def _exclusion(data: bytes) -> None:
    Exclusion.load(_file("list", data))


def _index(data: bytes) -> None:
    expected: dict[str, object] = {"tokenizer": "bytes", "end": 256, "format": 1}
    _indexed(_file("index.json", data), expected)


INVITE = str(Invite(RUN, (f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",)))
BANS = (Ban(ADA.peer, "faults", "norm ×5", 1 << 52), Ban(BO.peer, "operator", "", 5))
FLAGS = [b"storage.min_free=5 GiB", b"trust.ban_time=1h30m", b"network.listen=/ip4/0.0.0.0/tcp/1"]
RUNS = (RULES, in_roster_mode(RULES))
TOML_BYTES = 8 * limits.MIB
MANIFEST = written(Manifest("sovereign", artifact_id="a", tier=2, epsilon=3.5, lineage=("b",), use_constraints=("attribution",)))
ROWS = b'{"text":"one row"}\n{"text":"and another"}\n{"id":3}\n'

MACHINE = {
    "packet": Target(_packet, _packets, SIZE + 1),
    "request_body": Target(_body, _bodies, limits.CONTROL_BYTES + 64),
    "request": Target(_request, _requests, 1 << 12),
    "run_toml": Target(_toml, lambda: [made.to_toml().encode() for made in RUNS], limits.RULES_BYTES, heap_bytes=TOML_BYTES),
    "daemon_toml": Target(_daemon_config, _examples("tapestryd*.toml"), 1 << 20, (ConfigFault,), heap_bytes=TOML_BYTES),
    "trainer_toml": Target(_trainer_config, _examples("trainer*.toml"), 1 << 20, (ConfigFault,), heap_bytes=TOML_BYTES),
    "flag": Target(_flag, lambda: FLAGS, 1 << 12, (ConfigFault,)),
    "schema": Target(_schema, lambda: [b"1", b"2\n"], 1 << 10, (StateFault,)),
    "current": Target(_current, lambda: [INVITE.encode()], 1 << 12),
    "bans": Target(_bans, lambda: [json.dumps(list(map(asdict, BANS))).encode()], 1 << 16),
    "stories": Target(_stories, lambda: [(json.dumps(asdict(STORY)) + "\n").encode()], 1 << 16),
    "epochs": Target(_epochs, lambda: [Epochs({member.peer: 3 for member in MEMBERS}).to_bytes()], limits.EPOCHS_BYTES),
    "manifest": Target(_manifest, lambda: [line().snapshot()[0].to_bytes()], 1 << 16),
    "checkpoint": Target(_checkpoint, _checkpoints, 1 << 16, seal=_summed, heap_bytes=1 << 22),
    "identity": Target(_identity, lambda: [identity_file(ADA.seed, public_key(ADA.peer))], 1 << 10),
    "tokenizer": Target(_tokenizer, lambda: [bytes_tokenizer().to_str().encode()], 1 << 16, (DataFault,)),
    "model_config": Target(_model, lambda: [json.dumps(config).encode() for config in tiny.CONFIGS.values()], 1 << 16, (ConfigFault,)),
    "rows": Target(_text("a.jsonl"), lambda: [ROWS], 1 << 16, (DataFault,)),
    "text_gz": Target(_text("a.txt.gz"), lambda: [gzip.compress(b"some text\n" * 9, mtime=0)], 1 << 12, (DataFault,), heap_bytes=1 << 24),
    "rows_zst": Target(_text("a.jsonl.zst"), lambda: [zstandard.compress(ROWS)], 1 << 12, (DataFault,), heap_bytes=1 << 24),
    "data_manifest": Target(_data_manifest, lambda: [MANIFEST], 1 << 16, (ConfigFault,), heap_bytes=TOML_BYTES),
    "data_record": Target(_record, lambda: [b"0" * 64 + b"  a/b.txt\n" + b"f" * 64 + b" *c.md\n"], 1 << 12, (DataFault,)),
    "exclusion": Target(_exclusion, lambda: [b"0" * 64 + b"  # a poem\n\n"], 1 << 12, (ConfigFault,)),
    "token_index": Target(_index, lambda: [b'{"tokenizer":"bytes","end":256,"format":1,"tokens":12}'], 1 << 12),
}  # fmt: skip
"""name → target."""
