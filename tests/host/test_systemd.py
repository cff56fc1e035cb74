"""What systemd hears from us, on a path and on an abstract address; and the log lines that journald reads."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd.host.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that hears, and its address as NOTIFY_SOCKET has it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@tapestry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.settimeout(5)
        hears.bind("\0" + address[1:] if address.startswith("@") else address)
        yield hears, address


def test_what_systemd_hears(systemd: tuple[socket.socket, str]) -> None:
    hears, address = systemd
    notifier = Notifier.of({"NOTIFY_SOCKET": address}, 1)
    notifier.ready()
    notifier.status("training,\nround 3")
    notifier.stopping()
    assert [hears.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=training, round 3", b"STOPPING=1"]


def test_the_watchdog_is_fed_until_cancelled(systemd: tuple[socket.socket, str]) -> None:
    hears, address = systemd

    async def feed() -> None:
        task = asyncio.create_task(Notifier.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "7"}, 7).watchdog())
        heard = [await asyncio.to_thread(hears.recv, 100) for _ in range(3)]
        task.cancel()
        assert heard == [b"WATCHDOG=1"] * 3

    asyncio.run(feed())


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/nobody/listens"},
        {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "junk"},
        {"NOTIFY_SOCKET": "/nobody/listens", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_systemd_or_a_watchdog_of_ours_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier.of(environ, 7)
    notifier.ready()
    assert notifier.watchdog_s == 0.0
    asyncio.run(asyncio.wait_for(notifier.watchdog(), 5))
