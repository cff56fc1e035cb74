"""SIGKILL of each process of a boxed node, in turn: nothing that it had started outlives it, and the rest goes on or ends as it must."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.living import PLAIN, Peer, found
from tests.training.tiny import write_text

MODULES = {"tapestryd": b"tapestryd\0", "steward": b"tapestryd.host.steward", "trainer": b"tapestryd.host.trainer_main"}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    made = Peer(tmp_path / "peer", [write_text(tmp_path / "data", 20_000)])
    made.start(str(found(tmp_path / "founder", *PLAIN, "--train", "60", "--average", "10")))
    yield made
    made.end()


def below(pid: int) -> list[int]:
    """The process and all that descend from it, parents first."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *(one for child in children for one in below(child))]


def alive(pid: int) -> bool:
    """Running: one that has ended, and is only waited for, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def roles(peer: Peer) -> dict[str, int]:
    """What this node consists of: who does what → its process id."""
    assert peer.process is not None
    warden, *others = below(peer.process.pid)
    named = {"warden": warden}
    for pid in others:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        name = next((name for name, word in MODULES.items() if word in words), "p2pd")
        if name == "tapestryd" and b"--inside" not in words:
            name = "first process"  # of the network side's box: a fork of the warden
        named.setdefault(name, pid)
    return named


def up(peer: Peer) -> dict[str, int]:
    peer.wait("its trainer", lambda s: s["trainer"] and s["trainer"]["state"] == "waiting", 90)
    named = roles(peer)
    assert {"warden", "tapestryd", "p2pd", "steward", "trainer"} <= set(named)
    return named


@pytest.mark.timeout(600)
def test_nobody_outlives_whom_it_was_started_by(peer: Peer) -> None:
    for name in ("trainer", "steward"):
        before, restarts = up(peer), peer.status()["trainer"]["restarts"]
        os.kill(before[name], signal.SIGKILL)
        peer.wait("another trainer", lambda s, least=restarts: s["trainer"]["restarts"] > least and s["trainer"]["state"] == "waiting", 90)
        after = roles(peer)
        assert after["tapestryd"] == before["tapestryd"]
        assert not {before["steward"], before["trainer"]} & set(peer.processes())
    boxed = ["first process"] if "first process" in roles(peer) else []
    for name in ("warden", "tapestryd", "p2pd", *boxed):
        if peer.process and peer.process.poll() is not None:
            peer.start()
        named = up(peer)
        os.kill(named[name], signal.SIGKILL)
        assert peer.process is not None
        status = peer.process.wait(60)
        assert status == {"warden": -signal.SIGKILL, "p2pd": 75}.get(name, 128 + signal.SIGKILL), name
        assert peer.gone(40), (name, peer.processes())
        assert [role for role, pid in named.items() if alive(pid)] == [], name
