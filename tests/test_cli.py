"""`tapestry` as a process, against a real socket: output, exit codes, and one sentence for whatever goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tapestryd import __version__, cli, client, screen
from tapestryd.client import default_socket
from tapestryd.errors import LocalFault
from tapestryd.host import control_socket
from tests.scripted import BANS, IDLE, INVITE, OTHERS, PEER, RUN, STATUS, Served

COMMAND = [sys.executable, "-W", "error", "-m", "tapestryd.cli"]
ENVIRON = {"PATH": os.environ["PATH"], "COLUMNS": "80", "PYTHONUTF8": "1"}


ADDRESS = f"/ip4/192.0.2.8/tcp/31700/p2p/{OTHERS[0]}"


def tapestry(path: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command's result. Whatever happens, no traceback and nothing on both channels."""
    environment = ENVIRON | {"TAPESTRY_SOCKET": str(path)} | environ
    done = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_status_is_the_screen(served: Served) -> None:
    done = tapestry(served.socket, "status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == screen.render(json.loads(json.dumps(STATUS.to_json())), width=80, colour=False)
    assert "PEER" not in tapestry(served.socket, "status", "--no-peers").stdout


def test_json_before_and_after_the_verb(served: Served) -> None:
    for words in (["--json", "status"], ["status", "--json"], ["--socket", str(served.socket), "status", "--json"]):
        done = tapestry(served.socket if "--socket" not in words else Path("/absent"), *words)
        assert json.loads(done.stdout) == json.loads(json.dumps(STATUS.to_json()))
    assert len(json.loads(tapestry(served.socket, "peers", "--json").stdout)["peers"]) == 2
    assert len(json.loads(tapestry(served.socket, "rounds", "--json", "--limit", "3").stdout)["rounds"]) == 3
    assert json.loads(tapestry(served.socket, "run", "show", "--json").stdout)["invite"] == INVITE


def test_tables_and_rules(served: Served) -> None:
    assert tapestry(served.socket, "peers").stdout.startswith("PEER ")
    assert len(tapestry(served.socket, "rounds", "--limit", "2").stdout.splitlines()) == 3
    shown = tapestry(served.socket, "rounds", "show", "40").stdout
    assert shown.startswith("Round      40 committed   fragment 0   height 40\n")
    assert shown.endswith(f"Signed by  {PEER}\n")
    assert len(json.loads(tapestry(served.socket, "rounds", "show", "39", "--json").stdout)["stories"]) == 1
    done = tapestry(served.socket, "rounds", "show", "7")
    assert (done.returncode, done.stderr) == (1, "Nothing is remembered of round 7; `tapestry rounds` lists the latest.\n")
    rules, _, warning, invite = tapestry(served.socket, "run", "show").stdout.splitlines()
    assert (rules, invite) == ('name = "tapestry-1b"', f"# invite: {INVITE}")
    assert "from elsewhere nobody can use it" in warning  # nor can anybody: 192.0.2.7 is of a network for examples
    done = tapestry(served.socket, "version")
    assert done.stdout == f"tapestry {__version__} (treaty 1); daemon: 0.1.0\n"


def test_colour(served: Served) -> None:
    assert "\x1b[" not in tapestry(served.socket, "status").stdout
    assert "\x1b[" in tapestry(served.socket, "status", "--color", "always").stdout


def test_check(served: Served) -> None:
    assert tapestry(served.socket, "status", "--check").returncode == 0
    served.operator.now = replace(STATUS, health=("disk_low",))
    assert tapestry(served.socket, "status", "--check").returncode == 5
    served.operator.now = IDLE
    assert tapestry(served.socket, "status", "--check").returncode == 5


def test_changes_say_what_changed(served: Served, tmp_path: Path) -> None:
    for words, asked in (
        (["pause", "--for", "2h"], ("pause", 7200.0)),
        (["pause"], ("pause", None)),
        (["finish"], "finish"),
        (["mode", "always", "--for", "2h"], ("mode", "always", 7200.0)),
        (["mode", "auto"], ("mode", "auto", None)),
        (["resume"], "resume"),
        (["run", "join", INVITE], ("join", INVITE)),
        (["run", "leave"], "leave"),
        (["peers", "ban", PEER, "--for", "12h", "--reason", "spam, and more"], ("ban", PEER, 43_200.0, "spam, and more")),
        (["peers", "ban", "nQ8b"], ("ban", OTHERS[0], None, "")),
        (["peers", "ban", "12D3…nQ8b"], ("ban", OTHERS[0], None, "")),
        (["peers", "unban", "…mQ8b"], ("unban", BANS[1].peer_id)),
        (["peers", "connect", ADDRESS], ("connect", ADDRESS)),
        (["bootstrap", "add", ADDRESS], ("add", ADDRESS)),
        (["bootstrap", "rm", ADDRESS], ("remove", OTHERS[0])),
        (["bootstrap", "rm", OTHERS[0]], ("remove", OTHERS[0])),
        (["bootstrap", "reset"], "reset"),
        (["reload"], "reload"),
        (["shutdown"], "shutdown"),
    ):
        done = tapestry(served.socket, *words)
        assert (done.returncode, served.operator.asked[-1]) == (0, asked)
        assert done.stdout.endswith(".\n")
    assert json.loads(tapestry(served.socket, "resume", "--json").stdout) == {"schema": 1, "said": "Training goes on."}


def test_the_dashboards_link(served: Served) -> None:
    done = tapestry(served.socket, "dashboard", "--print")
    url, said = done.stdout.splitlines()
    assert (done.returncode, url.partition("#")[0]) == (0, served.dashboard.web.url)
    assert said == "This link works once, within 10 minutes."
    assert tapestry(served.socket, "dashboard", DISPLAY="", WAYLAND_DISPLAY="").stdout.startswith(served.dashboard.web.url)
    other = json.loads(tapestry(served.socket, "dashboard", "--json").stdout)["url"]
    assert other.startswith(served.dashboard.web.url)
    assert other != url


def test_one_peer_and_the_way_to_it(served: Served) -> None:
    shown = tapestry(served.socket, "peers", "show", "nQ8b").stdout
    assert shown.startswith(f"Peer       {OTHERS[0]}\n")
    assert "31.2 ms there and back   clock +4 ms" in shown
    assert json.loads(tapestry(served.socket, "peers", "show", "nQ8b", "--json").stdout)["name"] == "ornl"
    assert tapestry(served.socket, "peers", "show", BANS[1].peer_id).returncode == 1
    done = tapestry(served.socket, "peers", "ping", "nQ8b", "-c", "2")
    assert done.stdout == "12D3…nQ8b: 31.2 ms, clock -4 ms\n" * 2
    assert json.loads(tapestry(served.socket, "peers", "ping", "nQ8b", "-c", "1", "--json").stdout)["rtt_ms"] == [31.25]
    for address in ("nonsense", "/ip4/192.0.2.8/tcp/31700", "/ip4/192.0.2.8/tcp/31700/p2p/12D3"):
        done = tapestry(served.socket, "peers", "connect", address)
        assert (done.returncode, done.stdout) == (1, "")
        assert "must be" in done.stderr or "is no" in done.stderr


def test_whom_to_begin_with(served: Served) -> None:
    assert tapestry(served.socket, "bootstrap", "list").stdout.splitlines()[1] == f"configuration  known  {ADDRESS}"
    assert json.loads(tapestry(served.socket, "bootstrap", "list", "--json").stdout)["peers"][0]["known"] is True


def test_whether_others_can_dial(served: Served) -> None:
    done = tapestry(served.socket, "netcheck")
    assert done.returncode == 0
    assert done.stdout.startswith("Reachable  no\n")
    assert "/ip4/192.168.1.5/tcp/31700 not reached" in done.stdout
    assert json.loads(tapestry(served.socket, "netcheck", "--json").stdout)["verdict"] == "no"


def test_bans_and_whom_an_end_of_an_id_means(served: Served) -> None:
    assert len(json.loads(tapestry(served.socket, "peers", "bans", "--json").stdout)["bans"]) == 2
    assert tapestry(served.socket, "peers", "bans").stdout.splitlines()[1].startswith("12D3…wZZa  configuration  - ")
    served.operator.asked.clear()
    for words, sentence in (
        (["ban", "Q8b"], f"Q8b may be any of {BANS[1].peer_id}, {OTHERS[0]}; write more of its end."),
        (["ban", "zzz\x1b[2J"], "zzz?[2J is neither a whole peer id nor the end of one that is present or banned."),
        (["unban", "…"], "… is neither a whole peer id nor the end of one that is present or banned."),
        (["ban", "../run"], "../run is neither a whole peer id nor the end of one that is present or banned."),
    ):
        done = tapestry(served.socket, "peers", *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence + "\n")
    assert served.operator.asked == []


def test_no_daemon_is_3_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    for path, why in ((tmp_path / "absent.sock", "No such file"), (tmp_path / "dead.sock", "refused"), (Path("/" + "x" * 120), "too long")):
        done = tapestry(path, "status")
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith(f"No daemon answers on {path} (")
        assert why in done.stderr
        assert "Is tapestryd running?" in done.stderr
    assert tapestry(tmp_path / "absent.sock", "version").stdout == f"tapestry {__version__} (treaty 1); daemon: none answers\n"


def test_not_permitted_is_4(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "may_change", lambda uid, gid: False)
    done = tapestry(served.socket, "pause")
    assert (done.returncode, done.stderr) == (4, "Only root, the daemon's own user and the group tapestry-admin may change things.\n")
    assert tapestry(served.socket, "status").returncode == 0


def test_the_daemons_own_sentence_is_1(served: Served) -> None:
    served.operator.fault = LocalFault("the file /a/run.toml is not there; check its name")
    done = tapestry(served.socket, "run", "join", INVITE)
    assert (done.returncode, done.stderr) == (1, "The file /a/run.toml is not there; check its name.\n")


def test_a_founders_folder_is_brought_to_the_daemon(served: Served, tmp_path: Path) -> None:
    """Which need not be able to read it; what is missing is named."""
    done = tapestry(served.socket, "run", "join", str(tmp_path / "run.toml"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'run.toml'}: No such file or directory; join with the run.toml that")
    contents = {"run.toml": b"rules", "genesis.json": b"{}", "genesis.base": bytes(1 << 20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    done = tapestry(served.socket, "run", "join", str(tmp_path / "run.toml"))
    assert (done.returncode, served.operator.asked[-1]) == (0, ("join", "founded"))
    assert {path.name: path.read_bytes() for path in served.inbox.folder.iterdir()} == contents


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["dance"],
        ["pause", "--for", "soon"],
        ["pause", "--for", "0s"],
        ["mode", "never", "--for", "367d"],
        ["pause", "--until", "6pm"],
        ["pause", "--for", "2h", "--until", "18:00"],
        ["mode", "sometimes"],
        ["peers", "ban"],
        ["peers", "ban", "x", "--for", "soon"],
        ["wait"],
        ["wait", "--for", "round=x"],
        ["rounds", "show"],
        ["rounds", "hide", "7"],
        ["status", "--watch=x"],
        ["export"],
        ["--json", "run", "new"],
        ["--json", "lineage"],
        ["lineage"],
        ["--json", "audit"],
        ["audit", "--since", "never"],
        ["lineage", "verify", "--from", "height"],
        ["lineage", "verify", "--state", ".", "."],
        ["lineage", "show", "--run", "x"],
    ],
)
def test_usage_is_2(tmp_path: Path, words: list[str]) -> None:
    done = tapestry(tmp_path / "absent.sock", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tapestry")


def test_help_of_every_verb() -> None:
    for words in (
        [],
        ["status"],
        ["peers"],
        ["peers", "ban"],
        ["peers", "bans"],
        ["rounds"],
        ["rounds", "show"],
        ["pause"],
        ["resume"],
        ["wait"],
        ["export"],
        ["run"],
        ["run", "join"],
        ["version"],
    ):
        done = tapestry(Path("/absent"), *words, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("usage: tapestry")


@pytest.mark.parametrize(
    ("words", "module"), [(["run", "new"], "tapestryd.founding"), (["lineage"], "tapestryd.audit"), (["audit"], "tapestryd.auditing")]
)
def test_programs_of_their_own_are_handed_on_whole(words: list[str], module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []

    class Gone(BaseException):
        """execv does not come back."""

    def execv(path: str, argv: list[str]) -> None:
        handed.append([path, *argv])
        raise Gone

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Gone):
        cli.main([*words, "--help", "--name", "x"])
    assert handed == [[sys.executable, sys.executable, "-P", "-m", module, "--help", "--name", "x"]]


@pytest.mark.parametrize("what", ["ready", "joined", "training", "round=40", "round=0"])
def test_waiting_for_what_is(served: Served, what: str) -> None:
    done = tapestry(served.socket, "wait", "--for", what)
    assert (done.returncode, done.stdout) == (0, "The daemon is training in tapestry-1b, round 41, height 40.\n")


def test_waiting_until_it_comes(served: Served) -> None:
    served.operator.now = IDLE
    waiting = subprocess.Popen([*COMMAND, "--socket", str(served.socket), "wait", "--for", "round=41"], env=ENVIRON, stdout=subprocess.PIPE)
    served.operator.now = replace(STATUS, run=replace(RUN, height=41))
    out, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, b"The daemon is training in tapestry-1b, round 41, height 41.\n")


def test_waiting_in_vain_is_124_with_the_last_state(served: Served, tmp_path: Path) -> None:
    served.operator.now = replace(STATUS, state="joining", reasons=("no_peers",))
    done = tapestry(served.socket, "wait", "--for", "joined", "--timeout", "300ms")
    assert (done.returncode, done.stdout) == (124, "")
    assert done.stderr == "Timed out after 0.3 s. The daemon is joining in tapestry-1b, round 41, height 40; no_peers.\n"
    done = tapestry(tmp_path / "absent.sock", "wait", "--for", "joined", "--timeout", "100ms")
    assert done.returncode == 124
    assert "No daemon answers on" in done.stderr


def test_export(served: Served, tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "base", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = tapestry(served.socket, "export", str(folder))
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert (folder / "model.safetensors").read_bytes() == (served.operator.exports / "model.safetensors").read_bytes()
        assert subprocess.run(["sha256sum", "-c"], input=done.stdout, text=True, capture_output=True, check=True).stdout.count(": OK") == 2
    assert not list(tmp_path.glob("**/*.partial"))


def test_export_leaves_what_is_there_alone(served: Served, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "base.partial").mkdir()
    for name, sentence in (
        ("full", "exists and is not an empty folder"),
        ("full/mine", "exists and is not an empty folder"),
        ("full/mine/base", "cannot be made (Not a directory)"),
        ("base", "base.partial cannot be made (File exists); remove what an earlier export left there"),
    ):
        done = tapestry(served.socket, "export", str(tmp_path / name))
        assert done.returncode == 1
        assert sentence in done.stderr
    assert served.operator.asked == []
    assert (tmp_path / "base.partial").is_dir()


def test_export_of_nothing_damaged(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client.Client, "fetch", lambda self, target, into: "00" * 32)
    assert cli.main(["--socket", str(served.socket), "export", str(tmp_path / "base")]) == 1
    assert capsys.readouterr().err == "config.json did not arrive as it was sent; nothing was kept. Try again.\n"
    assert not list(tmp_path.glob("base*"))


def test_export_on_a_full_disk(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(self: object, target: str, into: Path) -> str:
        into.touch()
        with open("/dev/full", "wb") as file:
            file.write(b"x")
        return ""

    monkeypatch.setattr(client.Client, "fetch", full)
    assert cli.main(["--socket", str(served.socket), "export", str(tmp_path / "base")]) == 1
    assert capsys.readouterr().err == f"No space for the export at {tmp_path}/base: it takes 1.0 MiB. Nothing was kept.\n"
    assert not list(tmp_path.glob("base*"))


def test_watching_ends_quietly_with_ctrl_c(served: Served) -> None:
    words = [*COMMAND, "--socket", str(served.socket), "status", "--watch=0.2", "--json"]
    with subprocess.Popen(words, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert [json.loads(watching.stdout.readline())["state"] for _ in range(2)] == ["training", "training"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert watching.stderr.read() == ""


def test_watching_outlives_the_daemon(tmp_path: Path) -> None:
    words = [*COMMAND, "--socket", str(tmp_path / "absent.sock"), "status", "--watch"]
    with subprocess.Popen(words, env=ENVIRON, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("No daemon answers on")
        assert watching.poll() is None
        watching.send_signal(signal.SIGINT)


def test_a_reader_that_goes_away_is_met_quietly(served: Served) -> None:
    words = [*COMMAND, "--socket", str(served.socket), "status"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(words, env=ENVIRON, stdout=out, stderr=subprocess.PIPE, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("into", "code", "says"),
    [("/dev/null", 0, ""), ("/dev/full", 1, "what it says cannot be written: No space left on device\n"), ("&-", 0, "")],
)
@pytest.mark.parametrize("words", [["version"], ["completion", "zsh"]])
def test_whatever_its_output_is_and_without_letters_for_it(words: list[str], into: str, code: int, says: str, tmp_path: Path) -> None:
    environ = {"PATH": ENVIRON["PATH"], "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    line = ["sh", "-c", f'"$@" >{into}', "sh", *COMMAND, *words, *(["--socket", str(tmp_path / "none")] if words == ["version"] else [])]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.removeprefix("tapestry completion: ")) == (code, says)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("no run is joined", "No run is joined."),
        ("Nothing has changed.", "Nothing has changed."),
        ("limit = '0': must be more", "limit = '0': must be more."),
        ("network.bootstrap names it", "network.bootstrap names it."),
        ("/t.toml: no such key; did you mean node.name?", "/t.toml: no such key; did you mean node.name?"),
        ("", "."),
    ],
)
def test_what_the_daemon_says_is_a_sentence(words: str, said: str) -> None:
    assert client.sentence(words) == said


def test_a_file_that_is_refused_before_it_was_read(tmp_path: Path) -> None:
    """As aiohttp does it with one that takes longer than it has patience for."""
    problem = b'{"detail": "genesis.base takes too much"}'
    head = b"HTTP/1.1 507 Full\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(problem)
    with socket.socket(socket.AF_UNIX) as server, (tmp_path / "file").open("wb") as file:
        file.truncate(64 << 20)
        server.bind(str(tmp_path / "s.sock"))
        server.listen()

        def serve() -> None:
            connection, _address = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(head + problem)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(LocalFault, match=r"^genesis\.base takes too much\.$"):
            client.Client(tmp_path / "s.sock").put("/v1/founded/genesis.base", tmp_path / "file")
        thread.join(10)


def test_a_stranger_on_the_socket(tmp_path: Path) -> None:
    """Something else than a tapestryd answers."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    answers = [b"", b"220 smtp ready\r\n", head + b"<html>", head + b"[]", head + b'{"schema": 1}', b"HTTP/1.1 500 No\r\n\r\n{}"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.sock"))
        server.listen()

        def serve() -> None:
            for answer in answers:
                connection, _address = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        ends = [tapestry(tmp_path / "s.sock", "status") for _ in answers]
        thread.join(10)
    assert [end.returncode for end in ends] == [3, 3, 1, 1, 1, 1]
    assert all(end.stdout == "" and len(end.stderr.splitlines()) == 1 for end in ends)


def test_where_the_socket_is_looked_for(tmp_path: Path) -> None:
    assert default_socket({"TAPESTRY_SOCKET": "/x"}) == Path("/x")
    mine = tmp_path / "tapestry" / "tapestryd.sock"
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == Path("/run/tapestry/tapestryd.sock")
    mine.parent.mkdir()
    mine.touch()
    assert default_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == mine


def test_it_starts_without_the_heavy_libraries() -> None:
    heavy = ("torch", "hivemind", "aiohttp", "pydantic", "multiaddr", "numpy", "asyncio")
    script = f"import sys, tapestryd.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
