"""What the daemon does by itself, apart from a session's life."""

import asyncio
from pathlib import Path

import pytest

from protocols.rules import Invite
from tapestryd import pauses
from tapestryd.daemon import Daemon
from tapestryd.errors import Unavailable
from tapestryd.host import files
from tapestryd.host.state import StateDir
from tapestryd.host.systemd import Notifier
from tapestryd.layers import load_daemon
from tests.people import CAST, RUN
from tests.swarm.rooms import go, until

OLD, NEW = (f"/ip4/10.0.0.{i}/tcp/1/p2p/{peer}" for i, peer in enumerate(list(CAST)[:2], start=1))


def test_a_full_disk_costs_the_peers_last_seen_and_not_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(lambda: load_daemon((), {}, {}), Notifier("", 0.0), "none", None)
    daemon._state = StateDir(tmp_path)
    daemon._state.current = str(Invite(RUN, (OLD,)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        daemon._keep_peers([NEW])
    assert Invite.parse(daemon._state.current) == Invite(RUN, (OLD,))
    daemon._keep_peers([NEW])
    assert Invite.parse(daemon._state.current) == Invite(RUN, (NEW, OLD))
    daemon._state.close()


def test_a_state_directory_that_is_gone_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file system was taken away, say: nobody looks any more what holds training, or tells how we are, and that is no life."""
    monkeypatch.setattr(pauses, "LOOK_S", 0.1)
    flags = {
        "node.state_dir": str(tmp_path / "state"), "api.socket": str(tmp_path / "api.sock"), "trainer.enabled": "false",
        "dashboard.enabled": "false", "metrics.listen": "", "sandbox.require": "false",
    }  # fmt: skip

    async def work() -> None:
        daemon = Daemon(lambda: load_daemon((), {}, flags), Notifier("", 0.0), "none", None)
        running = asyncio.create_task(daemon.run())

        async def answers() -> bool:
            return (tmp_path / "api.sock").exists()

        await until(answers)
        (tmp_path / "state").rename(tmp_path / "elsewhere")
        with pytest.raises(Unavailable, match="FileNotFoundError"):
            await running

    go(work)
