"""What a daemon says when this machine is at fault: one sentence, an exit status, and nothing left behind."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.living import PLAIN, Peer, found, free_port

TEXT = "Text that a trainer could learn from, if there were more of it. " * 400


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found(tmp_path_factory.mktemp("founder"), *PLAIN, "--train", "3", "--average", "3")


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text(TEXT)
    peer = Peer(tmp_path / "peer", [data])
    yield peer
    peer.end()


def ended(peer: Peer, timeout_s: float = 120) -> tuple[int, str]:
    assert peer.process is not None
    status = peer.process.wait(timeout_s)
    assert "Traceback" not in peer.log()
    return status, peer.log()


def test_alone_it_says_so_and_keeps_looking(peer: Peer, toml: Path) -> None:
    peer.start(str(toml))
    status = peer.wait("trainer", lambda s: s["trainer"]["state"] == "waiting", 60)
    assert status["state"] == "joining"
    assert status["reasons"] == ["no_peers"]
    assert peer.term() == 0
    assert peer.processes() == []


def test_a_second_daemon_on_the_same_state(peer: Peer, tmp_path: Path) -> None:
    peer.start()
    peer.wait("idle", lambda s: s["state"] == "idle", 120)
    second = Peer(tmp_path / "second", [tmp_path / "data"])
    second.start("", f"node.state_dir={peer.folder / 'state'}")
    status, log = ended(second)
    assert status == 78
    assert "another tapestryd runs on it" in log
    assert peer.status()["state"] == "idle"


def test_an_occupied_port(peer: Peer, toml: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        peer.start(str(toml), f"network.listen=/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
        status, log = ended(peer)
    assert status == 75
    assert "the port is in use" in log
    assert peer.processes() == []


def test_every_fault_of_the_configuration_at_once(peer: Peer) -> None:
    peer.start("", "node.colour=red", "storage.min_free=lots", "network.bootstrap=/ip4/1.2.3.4")
    status, log = ended(peer)
    assert status == 78
    for word in ("node.colour", "storage.min_free", "network.bootstrap", "command line"):
        assert word in log


@pytest.mark.parametrize(
    ("join", "says"),
    [
        ("tapestry:nonsense", "invite"),
        ("/nowhere/run.toml", "/nowhere/run.toml"),
    ],
)
def test_a_bad_invitation(peer: Peer, join: str, says: str) -> None:
    peer.start(join)
    status, log = ended(peer)
    assert status == 78
    assert says in log


def test_a_founders_folder_that_does_not_fit_together(peer: Peer, toml: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    broken.mkdir()
    (broken / "run.toml").write_bytes(toml.read_bytes().replace(b'name = "test"', b'name = "tost"'))
    for name in ("genesis.json", "genesis.base"):
        (broken / name).write_bytes((toml.parent / name).read_bytes())
    peer.start(str(broken / "run.toml"))
    status, log = ended(peer)
    assert status == 78
    assert "another run" in log


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda data: (data / "a.txt").write_text("short"), "less text than one training window"),
        (lambda data: ((data / "a.txt").unlink(), data.rmdir()), "not there"),
    ],
)
def test_data_that_cannot_be_trained_on(peer: Peer, toml: Path, tmp_path: Path, make: object, says: str) -> None:
    """The trainer's fault is the daemon's health, not its end: the node stays, says what is wrong, and tries again."""
    make(tmp_path / "data")  # type: ignore[operator]
    peer.start(str(toml))
    status = peer.wait("health", lambda s: any(says in sentence for sentence in s["health"]), 60)
    assert "trainer" in status["reasons"]
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "a.txt").write_text(TEXT)
    peer.wait("recovery", lambda s: s["trainer"]["state"] == "waiting" and not s["health"], 60)


def test_a_damaged_snapshot_is_set_aside(peer: Peer, toml: Path) -> None:
    """With nobody to fetch it from, the node has no base, says so, and keeps the damaged file for its owner."""
    peer.start(str(toml))
    peer.wait("base", lambda s: s["run"] and s["run"]["base_digest"], 120)
    peer.term()
    [base] = (peer.folder / "state").rglob("*.base")
    data = bytearray(base.read_bytes())
    data[100] ^= 1
    base.write_bytes(data)
    peer.start()
    status = peer.wait("no base", lambda s: "no_base" in s["reasons"], 120)
    assert status["run"]["base_digest"] == ""
    assert list((peer.folder / "state").rglob("*.damaged"))


def test_an_identity_that_is_none(peer: Peer) -> None:
    (peer.folder / "state").mkdir()
    (peer.folder / "state" / "identity.key").write_bytes(b"not a key")
    peer.start()
    status, log = ended(peer)
    assert status == 78
    assert "identity.key" in log


def test_a_newer_state_directory(peer: Peer) -> None:
    (peer.folder / "state").mkdir()
    (peer.folder / "state" / "schema").write_text("7")
    peer.start()
    status, log = ended(peer)
    assert status == 78
    assert "upgrade tapestryd" in log


def test_little_disk_left_pauses_with_a_reason(peer: Peer, toml: Path) -> None:
    peer.start(str(toml), "storage.min_free=1000000 GiB")
    status = peer.wait("disk_low", lambda s: "disk_low" in s["reasons"], 60)
    assert any("storage.min_free" in sentence for sentence in status["health"])


@pytest.mark.root
def test_a_full_disk_loses_nothing(peer: Peer, toml: Path, tmp_path: Path) -> None:
    """The state directory on a file system too small for a second snapshot: rounds are discarded with a reason, the daemon lives,
    starts again, and goes on when there is room."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    state = peer.folder / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1700k", "tmpfs", str(state)], check=True)
    other = Peer(tmp_path / "other", [tmp_path / "data"])
    try:
        peer.start(str(toml), "storage.min_free=0 B", f"network.listen=/ip4/127.0.0.1/tcp/{free_port()}")
        invite = peer.invite()
        other.start(invite)
        peer.height(1, 90)
        with contextlib.suppress(OSError), (state / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"\0" * 4096)
                ballast.flush()
        peer.wait("disk_full", lambda s: any(story["reason"] == "disk_full" for story in peer.rounds()), 60)
        assert peer.term() == 0
        peer.start("", "storage.min_free=0 B")
        peer.wait("a start", lambda s: s["run"]["height"] > 0, 60)
        (state / "ballast").unlink()
        peer.wait("commit or replay", lambda s: (s["averaging"]["last"] or {}).get("result") in ("committed", "replayed"), 60)
        height = other.status()["run"]["height"]
        peer.height(height, 120)
    finally:
        peer.end()
        other.end()
        subprocess.run(["umount", str(state)], check=False)


def test_the_configuration_alone_can_be_checked(peer: Peer) -> None:
    command = [sys.executable, "-m", "tapestryd", "--config", str(peer.folder / "tapestryd.toml"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "The configuration is good.\n")
