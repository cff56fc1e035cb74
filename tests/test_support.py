"""`tapestry support-bundle`: what is planted everywhere is nowhere in it, and what explains a fault is."""

import base64
import json
import logging
import re
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from tapestryd.cli.scrub import Scrub
from tapestryd.host.tokens import Tokens
from tests.scripted import INVITE, PEER, STATUS, Served
from tests.test_cli import tapestry
from tests.test_cli_backup import node

ROW = "Dear diary, nobody may know of this"


def planted(folder: Path) -> tuple[Path, list[str]]:
    """A node of files, with a data folder and secrets of every kind → its tapestryd.toml, what must not be told."""
    toml = node(folder / "jo smith")
    data = folder / "jo smith" / "medical records"
    data.mkdir()
    (data / "a.txt").write_text(ROW)
    (toml.parent / "own" / "trainer.toml").write_text(f'schema_version = 1\n[data]\npaths = [{str(data)!r}]\ntext_field = "diagnosis"\n')
    toml.write_text(toml.read_text() + f'[run]\njoin = "{INVITE}"\n[network]\nbootstrap = ["/dns4/home.smith.example/tcp/7/p2p/{PEER}"]\n')
    keys = [path.read_bytes()[4:36] for path in (toml.parent / "state" / "identity.key", toml.parent / "train" / "ledger" / "key")]
    told = [form(key) for key in keys for form in (bytes.hex, lambda key: base64.urlsafe_b64encode(key).decode().rstrip("="))]
    return toml, [*told, ROW, "smith", "medical", "records", "a.txt", "diagnosis", "ab" * 32, "192.0.2.", "203.0.113.9", "2001:db8"]


def test_no_secret_is_in_it(served: Served, tmp_path: Path) -> None:
    toml, never = planted(tmp_path)
    code, hunter = Tokens().code(0.0), secrets.token_hex(20)
    never += [code, hunter]
    served.operator.named = (toml,)
    served.operator.now = replace(STATUS, health=(f"{toml}: run.join = 'my {hunter}': no invite",))
    logger, handler = logging.getLogger("tapestryd.session"), served.operator.logs._recent
    logger.addHandler(handler)
    try:
        for line in (
            *never[:4],
            f"joining {INVITE}",
            f"http://127.0.0.1:8470/#{code}",
            f"no such file: {tmp_path}/jo smith/medical records/a.txt",
        ):
            logger.error("%s", line)
        logger.error("dialled /ip6/2001:db8::7/tcp/31700/p2p/%s and /ip4/192.168.7.1/tcp/31700", PEER)
    finally:
        logger.removeHandler(handler)
    file = tmp_path / "b.json"
    done = tapestry(served.socket, "support-bundle", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert [secret for secret in never if secret in text] == []
    told = json.loads(text)
    assert told["daemon"]["status"]["self"]["peer_id"] == PEER
    lines = [line["message"] for line in told["daemon"]["log"]["lines"]]
    assert re.fullmatch(rf"dialled /ip6/private-\d+/tcp/31700/p2p/{PEER} and /ip4/private-\d+/tcp/31700", lines[-1])
    settings = {(one["side"], one["key"]): one["value"] for one in told["settings"]}
    assert settings["trainer", "data.paths"] == settings["tapestryd", "run.join"] == "(set)"
    assert settings["tapestryd", "storage.keep_snapshots"] == 2
    assert {finding["name"] for finding in told["doctor"]} >= {"tapestryd", "disk"}
    done = tapestry(served.socket, "support-bundle", str(file))
    assert (done.returncode, "is there already" in done.stderr) == (1, True)


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    done = tapestry(tmp_path / "absent", "support-bundle", str(tmp_path / "b.json"), XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0
    told = json.loads((tmp_path / "b.json").read_text())
    assert "No daemon answers" in told["daemon"]["status"]["fault"]
    assert told["versions"]["torch"]
    toml, _ = planted(tmp_path)
    assert tapestry(tmp_path / "absent", "support-bundle", str(tmp_path / "c.json"), "--config", str(toml)).returncode == 0
    assert {one["side"] for one in json.loads((tmp_path / "c.json").read_text())["settings"]} == {"tapestryd", "trainer"}


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (f"{INVITE} is it", "(invite) is it"),
        (f"peer {PEER}, base {'0123456789abcdef' * 4}", f"peer {PEER}, base 0123456789ab…"),
        ("AbCd" * 10 + "==", "AbCdAbCdAbCd…"),
        ("tapestry_averaging_round_duration_seconds of TAPESTRY_TRAINER_RELEASE__MIN_STEPS",) * 2,
        ("/home/jo/x, and file:///home/jo/y:/z", "(path), and file://(path):(path)"),
        ("/etc/tapestry/tapestryd.toml, /var/lib/tapestry-train/ledger, POST /v1/pause, km/h, 1/2",) * 2,
        ("/etc/tapestryx /etc/passwd", "(path) (path)"),
        ('File "/home/jo/venv/lib/python3.11/site-packages/tapestryd/x.py"', "File '…'"),
        ("at /home/jo/venv/lib/python3.11/site-packages/tapestryd/x.py:7", "at site-packages/tapestryd/x.py:7"),
        ("10.1.2.3 8.8.8.8 10.1.2.3 127.0.0.1 0.0.0.0 1.2.3 1.2.3.4.5", "private-1 public-2 private-1 127.0.0.1 0.0.0.0 1.2.3 1.2.3.4.5"),
        ("/ip6/2a00::1/tcp/7 [::1]:80 at 08:21:38", "/ip6/public-1/tcp/7 [::1]:80 at 08:21:38"),
        ("/dns4/a.example/tcp/7 /dns/b/tcp/1 /dns6/a.example/tcp/7", "/dns4/host-1/tcp/7 /dns/host-2/tcp/1 /dns6/host-1/tcp/7"),
        ("log.level = 'hunter2': another node's, and its owner's", "log.level = '…': another node's, and its owner's"),
        ("no /data/my own/x y: gone", "no (data.paths): gone"),
        ("abcdef" * 6, "abcdefabcdef…"),
    ],
)  # fmt: skip
def test_what_stays_of_a_text(text: str, scrubbed: str) -> None:
    assert Scrub({"/data/my own": "(data.paths)"}).text(text) == scrubbed
    assert Scrub({}).document({"a": [scrubbed, 1, None, True]}) == {"a": [scrubbed, 1, None, True]}
