"""The control API over a real unix socket: what it answers, what it refuses, and who may change things."""

import asyncio
import grp
import hashlib
import http.client
import json
import math
import os
import pwd
import socket
import stat
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from protocols import limits
from tapestryd.errors import ConfigFault, DiskFull, LocalFault, Unavailable
from tapestryd.host import control_socket
from tests.scripted import EGRESS, IDLE, INVITE, PEER, STATUS, Scripted, Served

Headers = dict[str, str]


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


def ask(path: Path, method: str, target: str, body: object = None, headers: Headers | None = None) -> tuple[int, Any, Headers]:
    """(status, document or bytes, headers). `body`: bytes as they are, anything else as JSON."""
    connection = Connection(path)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    try:
        connection.request(method, target, data, headers or {})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    kind = response.headers.get_content_type()
    return response.status, json.loads(content) if kind.endswith("json") else content, dict(response.headers)


def test_reading(served: Served) -> None:
    def get(target: str) -> Any:
        status, body, _ = ask(served.socket, "GET", target)
        assert (status, body["schema"]) == (200, 1)
        return body

    assert get("/livez")["live"] is True
    assert get("/readyz")["ready"] is True
    assert get("/readyz?verbose")["checks"] == {"run": True, "state": True}
    assert get("/v1/status") == json.loads(json.dumps(STATUS.to_json()))
    assert [peer["name"] for peer in get("/v1/peers")["peers"]] == ["ornl", "森の計算機\x1b[31m"]
    assert [story["round"] for story in get("/v1/rounds?limit=3")["rounds"]] == [38, 39, 40]
    assert len(get("/v1/rounds")["rounds"]) == 11
    assert [(ban["by"], ban["until_ms"]) for ban in get("/v1/bans")["bans"]] == [("configuration", None), ("faults", 1 << 52)]
    assert [ban["left_s"] is None for ban in get("/v1/bans")["bans"]] == [True, False]
    assert [story["round"] for story in get("/v1/rounds/40")["stories"]] == [40]
    assert get("/v1/rounds/40")["certificate"]["signed_by"] == [PEER]
    assert get("/v1/rounds/39")["certificate"] is None
    assert get("/v1/egress") == {"schema": 1} | json.loads(json.dumps(asdict(EGRESS)))
    assert get("/v1/egress?since=60000")["since_ms"] == 60_000
    assert get("/v1/version") == {"schema": 1, "version": "0.1.0", "treaty": 1}
    assert get("/v1/run") == {"schema": 1, "id": "ab" * 32, "name": "tapestry-1b", "invite": INVITE, "rules_toml": 'name = "tapestry-1b"\n'}


def test_bytes_of_answers_and_bodies_are_counted(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "model.safetensors").write_bytes(b"x" * (3 << 20))
    served = Served(Scripted(tmp_path / "exports"), tmp_path / "t.sock", uvloop.new_event_loop())
    try:
        status = ask(served.socket, "GET", "/v1/status")[1]
        ask(served.socket, "POST", "/v1/export", {})
        ask(served.socket, "GET", "/v1/export/model.safetensors")
        ask(served.socket, "POST", "/v1/pause", b'{"for_s": 60}')
    finally:
        served.close()
    sent, received = zip(*served.moved, strict=True)
    assert len(json.dumps(status)) < sent[0] < len(json.dumps(status)) + 1000
    assert 3 << 20 <= sent[2] < (3 << 20) + 1000
    assert received == (0, 2, 0, 13)


def test_numbers_that_json_lacks_become_null(served: Served) -> None:
    served.operator.now = replace(STATUS, trainer=replace(STATUS.trainer, loss=math.nan, tokens_per_s=math.inf))
    trainer = ask(served.socket, "GET", "/v1/status")[1]["trainer"]
    assert (trainer["loss"], trainer["tokens_per_s"], trainer["steps"]) == (None, None, 5120)


@pytest.mark.parametrize("state", ["starting", "joining", "stopping", "idle"])
def test_not_ready(served: Served, state: str) -> None:
    served.operator.now = replace(IDLE if state == "idle" else STATUS, state=state, reasons=("no_peers",))
    status, body, headers = ask(served.socket, "GET", "/readyz?verbose")
    assert (status, body["status"], headers["Content-Type"].partition(";")[0]) == (503, 503, "application/problem+json")
    assert body["title"] == "Service Unavailable"
    assert body["detail"] == f"the daemon is {state}; no_peers"
    assert body["checks"] == {"run": state != "idle", "state": False}


def test_changes(served: Served) -> None:
    changes = [
        ("POST", "/v1/pause", {"for_s": 7200}, ("pause", 7200)),
        ("POST", "/v1/pause", {"for_s": None}, ("pause", None)),
        ("POST", "/v1/pause", None, ("pause", None)),
        ("POST", "/v1/resume", {}, "resume"),
        ("POST", "/v1/finish", None, "finish"),
        ("PUT", "/v1/activity", {"idle_s": 0, "metered": True}, ("active", 0.0, True)),
        ("PUT", "/v1/activity", {}, ("active", None, None)),
        ("POST", "/v1/mode", {"mode": "never"}, ("mode", "never", None)),
        ("POST", "/v1/mode", {"mode": "always", "for_s": 60}, ("mode", "always", 60)),
        ("PUT", f"/v1/bans/{PEER}", {"for_s": 60, "reason": "spam"}, ("ban", PEER, 60, "spam")),
        ("PUT", f"/v1/bans/{PEER}", {"for_s": None, "reason": None}, ("ban", PEER, None, "")),
        ("PUT", f"/v1/bans/{PEER}", None, ("ban", PEER, None, "")),
        ("DELETE", f"/v1/bans/{PEER}", None, ("unban", PEER)),
        ("PUT", "/v1/run", {"target": INVITE}, ("join", INVITE)),
        ("PUT", "/v1/run", {"target": "founded"}, ("join", "founded")),
        ("DELETE", "/v1/run", None, "leave"),
        ("POST", "/v1/shutdown", {}, "shutdown"),
    ]
    for method, target, body, asked in changes:
        status, answer, _ = ask(served.socket, method, target, body)
        assert (status, served.operator.asked[-1]) == (200, asked)
        assert answer["said"].endswith(".")
    assert len(served.operator.asked) == len(changes)


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "sentence"),
    [
        ("POST", "/v1/pause", b"{", 400, "the body is not JSON"),
        ("POST", "/v1/pause", b"[" * 60_000, 400, "the body is not JSON"),
        ("POST", "/v1/pause", b"\xff", 400, "the body is not JSON"),
        ("POST", "/v1/pause", b'{"for_s": ' + b"1" * 5_000 + b"}", 400, "the body is not JSON"),
        ("POST", "/v1/pause", b'{"for_s": NaN}', 400, "for_s = nan: must be a number of seconds"),
        ("POST", "/v1/pause", [], 400, "the body must be a JSON object"),
        ("POST", "/v1/pause", {"for_s": "2h"}, 400, "for_s = '2h': must be a number"),
        ("POST", "/v1/pause", {"for_s": True}, 400, "for_s = True: must be a number"),
        ("POST", "/v1/pause", {"for_s": 0}, 400, "must be a number of seconds, above 0"),
        ("POST", "/v1/pause", {"until": "18:00"}, 400, "field 'until' is not known here; there are: for_s"),
        ("POST", "/v1/mode", {"mode": "sometimes"}, 400, "mode = 'sometimes': must be one of always, auto, never"),
        ("PUT", "/v1/activity", {"idle_s": -1}, 400, "idle_s = -1: must be a number of seconds from 0"),
        ("PUT", "/v1/activity", {"metered": 1}, 400, "metered = 1: must be true, false or null"),
        ("POST", "/v1/mode", {}, 400, "mode = None: must be one of"),
        ("POST", "/v1/resume", {"now": True}, 400, "field 'now' is not known here; there are: none"),
        ("POST", "/v1/pause", b" " * (limits.CONTROL_BYTES + 1), 413, f"the body is larger than {limits.CONTROL_BYTES} bytes"),
        ("PUT", "/v1/run", {}, 400, "target = None: must be an invite"),
        ("PUT", "/v1/run", {"target": "/a/run.toml"}, 400, "or founded: what was put to /v1/founded"),
        ("PUT", "/v1/founded/passwd", b"x", 404, "'passwd' is no file of a founder's folder"),
        ("PUT", "/v1/founded/run.toml", b" " * (limits.RULES_BYTES + 1), 413, "run.toml: must say its length, at most"),
        ("PUT", "/v1/run", {"target": 3}, 400, "target = 3: must be an invite"),
        ("PUT", "/v1/bans/12D3", {}, 400, "peer_id = '12D3': '12D3' is not the id of an Ed25519 key; it must be whole"),
        ("PUT", f"/v1/bans/{'x' * 1000}", {}, 400, "a peer id of 1000 characters"),
        ("PUT", f"/v1/bans/{PEER}", {"for_s": -1}, 400, "for_s = -1: must be a number of seconds"),
        ("PUT", f"/v1/bans/{PEER}", {"reason": "two\nlines"}, 400, "must be one line of at most 200 characters"),
        ("PUT", f"/v1/bans/{PEER}", {"reason": ["a"]}, 400, "must be one line"),
        ("DELETE", "/v1/bans/nobody", None, 400, "it must be whole"),
        ("POST", "/v1/bans", {}, 405, "POST /v1/bans"),
        ("GET", "/v1/rounds?limit=0", None, 400, "limit = '0': must be a whole number from 1 to 1000"),
        ("GET", "/v1/rounds?limit=many", None, 400, "limit = 'many'"),
        ("GET", "/v1/egress?since=yesterday", None, 400, "since = 'yesterday': must be a whole number from 0 to"),
        ("GET", "/v1/rounds/7", None, 404, "nothing is remembered of round 7"),
        ("GET", "/v1/rounds/last", None, 400, "number = 'last': must be a whole number"),
        ("GET", "/v1/rounds/-1", None, 400, "number = '-1': must be a whole number"),
        ("GET", "/v1/rounds/" + "9" * 17, None, 400, "must be a whole number"),
        ("GET", "/v1/nothing", None, 404, "GET /v1/nothing: Not Found"),
        ("PATCH", "/v1/status", None, 405, "PATCH /v1/status: Method Not Allowed"),
        ("GET", "/v1/export/config.json", None, 409, "that export was replaced or never made"),
    ],
)
def test_refusals_are_problem_documents(served: Served, method: str, target: str, body: object, status: int, sentence: str) -> None:
    got, answer, headers = ask(served.socket, method, target, body)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    assert (got, answer["status"], headers["Content-Type"].partition(";")[0]) == (status, status, "application/problem+json")
    assert sentence in answer["detail"]
    assert answer["title"]
    assert ("Allow" in headers) == (status == 405)
    assert served.operator.asked == []


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://localhost"}, {"Referer": "http://localhost/"}, {"Host": "evil.example"}, {"Host": "localhost:80"}, {"Host": ""}],
)
def test_web_pages_are_turned_away(served: Served, headers: Headers) -> None:
    for method, target in (("GET", "/v1/status"), ("POST", "/v1/shutdown")):
        assert ask(served.socket, method, target, headers=headers)[0] == 403
    assert served.operator.asked == []


@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        (LocalFault("the file /a/run.toml is not there"), 409, "the file /a/run.toml is not there"),
        (DiskFull("no space"), 507, "no space"),
        (RuntimeError("a row of private text"), 500, "a bug in tapestryd; its log has the details"),
    ],
)
def test_faults_of_the_operator(served: Served, fault: Exception, status: int, detail: str) -> None:
    served.operator.fault = fault
    got, answer, _ = ask(served.socket, "PUT", "/v1/run", {"target": "founded"})
    assert (got, answer["detail"]) == (status, detail)


def test_a_founders_folder_comes_in(served: Served) -> None:
    """Larger than any document may be; the run's rules come first, and what lay there before goes."""
    large = bytes(range(256)) * 8192
    for name, content in (("run.toml", b"a"), ("genesis.base", large), ("tokenizer.json", b"{}")):
        assert ask(served.socket, "PUT", f"/v1/founded/{name}", content)[:2] == (200, {"schema": 1, "bytes": len(content)})
    assert (served.inbox.folder / "genesis.base").read_bytes() == large
    assert served.inbox.folder.stat().st_mode & 0o077 == 0
    assert ask(served.socket, "PUT", "/v1/founded/run.toml", b"b")[0] == 200
    assert [path.name for path in served.inbox.folder.iterdir()] == ["run.toml"]


def test_a_founders_folder_leaves_the_disk_its_reserve(served: Served) -> None:
    served.inbox._min_free = lambda: 1 << 60
    status, answer, _ = ask(served.socket, "PUT", "/v1/founded/genesis.base", b"x")
    assert (status, answer["detail"]) == (507, "genesis.base takes 1 bytes: less than storage.min_free would be left")


def test_no_run_no_rules(served: Served) -> None:
    served.operator.now = IDLE
    status, answer, _ = ask(served.socket, "GET", "/v1/run")
    assert (status, answer["detail"]) == (404, "no run is joined; join one with: tapestry run join INVITE")


def test_an_export_is_listed_and_streamed(served: Served) -> None:
    status, listing, _ = ask(served.socket, "POST", "/v1/export", {})
    assert status == 200
    assert [(file["name"], file["bytes"]) for file in listing["files"]] == [("config.json", 2), ("model.safetensors", 1 << 20)]
    status, content, _ = ask(served.socket, "GET", f"/v1/export/model.safetensors?id={listing['id']}")
    assert (status, hashlib.sha256(content).hexdigest()) == (200, listing["files"][1]["sha256"])
    for name in ("secret", "..%2frun%2ft.sock", "%2fetc%2fpasswd", "..", "."):
        assert ask(served.socket, "GET", f"/v1/export/{name}")[0] == 404
    assert ask(served.socket, "GET", "/v1/export/config.json?id=other")[0] == 409


def test_one_who_may_only_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def may_change(uid: int, gid: int) -> bool:
        seen.append((uid, gid))
        return False

    monkeypatch.setattr(control_socket, "may_change", may_change)
    assert ask(served.socket, "GET", "/v1/status")[0] == 200
    for method, target in (
        ("POST", "/v1/pause"),
        ("PUT", "/v1/run"),
        ("DELETE", "/v1/run"),
        ("POST", "/v1/export"),
        ("PUT", f"/v1/bans/{PEER}"),
    ):
        status, answer, _ = ask(served.socket, method, target)
        assert (status, answer["detail"]) == (403, "only root, the daemon's own user and the group tapestry-admin may change things")
    assert seen == [(os.getuid(), os.getgid())] * 5
    assert served.operator.asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_kernel_says_who_asks(served: Served) -> None:
    """A child that gave its uid up is told apart by the socket alone."""
    served.socket.chmod(0o666)
    for folder in served.socket.parents:
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os._exit((ask(served.socket, "GET", "/livez")[0] == 200) + 2 * (ask(served.socket, "POST", "/v1/resume")[0] == 403))
        finally:  # or it would go on with the tests, as nobody
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_members_of_the_group_may_change_things(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = pwd.getpwnam("nobody")
    assert control_socket.may_change(0, 0)
    assert control_socket.may_change(os.geteuid(), 12345)
    monkeypatch.setattr(control_socket, "ADMINS", "no-such-group")
    assert not control_socket.may_change(nobody.pw_uid, nobody.pw_gid)
    monkeypatch.setattr(control_socket, "ADMINS", grp.getgrgid(nobody.pw_gid).gr_name)
    assert control_socket.may_change(nobody.pw_uid, nobody.pw_gid)
    assert control_socket.may_change(nobody.pw_uid, 54321)
    assert not control_socket.may_change(4_000_000, 54321)


def test_the_socket_is_ours_alone_and_goes_with_us(served: Served) -> None:
    assert stat.S_IMODE(served.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(served.socket.parent.stat().st_mode) == 0o700
    served.run(served.api.stop())
    assert not served.socket.exists()


def test_a_living_daemon_is_not_displaced(served: Served) -> None:
    with pytest.raises(Unavailable, match=rf"another daemon answers on {served.socket}; stop it"):
        Served(served.operator, served.socket, asyncio.new_event_loop())
    assert ask(served.socket, "GET", "/livez")[0] == 200


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    daemon = Served(Scripted(tmp_path), path, asyncio.new_event_loop())
    assert ask(path, "GET", "/livez")[0] == 200
    daemon.close()


def test_stopping_leaves_a_successors_socket_alone(served: Served) -> None:
    served.socket.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(served.socket))
        served.run(served.api.stop())
        assert served.socket.exists()


def test_places_where_no_socket_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, sentence in (
        (tmp_path / "file", "a file that is no socket lies there"),
        (tmp_path / "file" / "t.sock", "cannot be made"),
        (tmp_path / ("x" * 107), "longer than 107 bytes"),
    ):
        with pytest.raises(ConfigFault, match=sentence):
            control_socket.claim(path)
    assert (tmp_path / "file").exists()


def test_it_works_under_uvloop(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "model.safetensors").write_bytes(b"x" * (3 << 20))
    daemon = Served(Scripted(tmp_path / "exports"), tmp_path / "t.sock", uvloop.new_event_loop())
    try:
        assert ask(daemon.socket, "POST", "/v1/pause", {"for_s": 1.5})[0] == 200
        assert ask(daemon.socket, "POST", "/v1/export")[0] == 200
        assert ask(daemon.socket, "GET", "/v1/export/model.safetensors")[1] == b"x" * (3 << 20)
    finally:
        daemon.close()
    assert not daemon.socket.exists()


def test_a_client_that_goes_away_is_nobodys_fault(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(served.socket))
        half.sendall(b'POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"for')
    assert ask(served.socket, "GET", "/livez")[0] == 200
    served.run(served.api.stop())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
