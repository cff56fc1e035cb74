"""What the daemon does by itself, apart from a session's life."""

import asyncio
from pathlib import Path

import pytest

from protocols.rules import Invite
from tapestryd import pauses
from tapestryd.daemon import Daemon
from tapestryd.errors import DiskFull, Unavailable
from tapestryd.host import files
from tapestryd.host.state import StateDir
from tapestryd.host.systemd import Notifier
from tapestryd.layers import load_daemon
from tests.living import free_port
from tests.people import CAST, RUN
from tests.swarm.rooms import go, until

OLD, NEW = (f"/ip4/10.0.0.{i}/tcp/1/p2p/{peer}" for i, peer in enumerate(list(CAST)[:2], start=1))


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_the_peers_last_seen_and_not_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(lambda: load_daemon((), {}, {}), Notifier("", 0.0), "none", None)
    daemon._state = StateDir(tmp_path)
    daemon._state.current = str(Invite(RUN, (OLD,)))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        daemon._keep_peers([NEW])
        daemon._state.current = str(Invite(RUN, (OLD,)))  # as at a start
    assert Invite.parse(daemon._state.current) == Invite(RUN, (OLD,))
    daemon._keep_peers([NEW])
    assert Invite.parse(daemon._state.current) == Invite(RUN, (NEW, OLD))
    daemon._state.close()


async def begun(folder: Path, join: str = "") -> tuple[Daemon, "asyncio.Task[None]"]:
    """One that runs in this process, and is in no run but `join`."""
    flags = {
        "node.state_dir": str(folder / "state"), "api.socket": str(folder / "api.sock"), "trainer.enabled": "false",
        "network.listen": f"/ip4/127.0.0.1/tcp/{free_port()}", "dashboard.enabled": "false", "metrics.listen": "",
        "sandbox.require": "false", "run.join": join,
    }  # fmt: skip
    daemon = Daemon(lambda: load_daemon((), {}, flags), Notifier("", 0.0), "none", None)
    running = asyncio.create_task(daemon.run())

    async def answers() -> bool:
        return (folder / "api.sock").exists()

    await until(answers)
    return daemon, running


def test_a_state_directory_that_is_gone_ends_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file system was taken away, say: nobody looks any more what holds training, or tells how we are, and that is no life."""
    monkeypatch.setattr(pauses, "LOOK_S", 0.1)

    async def work() -> None:
        _, running = await begun(tmp_path)
        (tmp_path / "state").rename(tmp_path / "elsewhere")
        with pytest.raises(Unavailable, match="FileNotFoundError"):
            await running

    go(work)


def test_a_run_that_cannot_be_kept_on_disk_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes its p2pd along, or the port would be in use when there is room."""

    async def work() -> None:
        daemon, running = await begun(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(DiskFull):
                await daemon.join(str(Invite(RUN, ())))
        assert daemon.session is None
        await daemon.join(str(Invite(RUN, ())))
        await daemon.shutdown()
        await running

    go(work)


def test_a_run_of_the_configuration_is_joined_again_at_the_next_start(tmp_path: Path) -> None:
    """Which whoever leaves it, or joins by hand, is told."""
    invite, told = str(Invite(RUN, ())), " At the next start run.join of the configuration has the last word."

    async def work() -> None:
        daemon, running = await begun(tmp_path, invite)

        async def joined() -> bool:
            return daemon.session is not None

        await until(joined)
        assert (await daemon.leave()).endswith(f"{RUN}.{told}")
        assert await daemon.join(invite) == f"Joining run {RUN[:12]}.{told}"
        await daemon.shutdown()
        await running
        daemon, running = await begun(tmp_path / "other")
        assert await daemon.join(invite) == f"Joining run {RUN[:12]}."
        await daemon.shutdown()
        await running

    go(work)
