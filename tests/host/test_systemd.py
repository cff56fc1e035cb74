"""What systemd hears from us, on a path and on an abstract address; and the log lines that journald reads."""

import asyncio
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd.host import logs
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


@pytest.fixture
def root() -> Iterator[None]:
    """Logging as it was, afterwards."""
    loggers = [logging.getLogger(), logging.getLogger("hivemind")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate
    logging.captureWarnings(False)


@pytest.mark.usefixtures("root")
def test_journald_gets_a_priority_on_every_line(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        where = os.fstat(stream.fileno())
        logs.set_up("info", "auto", {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"}, stream)
        logging.getLogger("tapestryd.x").warning("two\nlines")
        logging.getLogger("tapestryd.x").debug("unheard")
        stream.seek(0)
        assert stream.read() == "<4>tapestryd.x: two\n<4>lines\n"


@pytest.mark.usefixtures("root")
def test_text_has_the_time_and_json_is_json() -> None:
    text, structured = io.StringIO(), io.StringIO()
    logs.set_up("warning", "auto", {"JOURNAL_STREAM": "1:1"}, text)
    logging.getLogger("tapestryd.x").error("plain")
    logs.set_up("info", "json", {}, structured)
    try:
        raise ValueError("the cause")
    except ValueError:
        logging.getLogger("tapestryd.x").exception("said é")
    assert text.getvalue().endswith(" error tapestryd.x: plain\n")
    assert text.getvalue()[:2] == "20"
    line = json.loads(structured.getvalue())
    assert (line["level"], line["logger"], line["message"]) == ("error", "tapestryd.x", "said é")
    assert "the cause" in line["exception"]


@pytest.mark.usefixtures("root")
def test_hivemind_speaks_through_us_and_seldom() -> None:
    theirs = logging.getLogger("hivemind")
    theirs.addHandler(logging.StreamHandler(sys.stderr))  # as hivemind does on import
    theirs.propagate = False
    theirs.setLevel("INFO")
    heard = io.StringIO()
    logs.set_up("debug", "text", {}, heard)
    logging.getLogger("hivemind.dht").info("chatter")
    logging.getLogger("hivemind.dht").warning("trouble")
    assert "chatter" not in heard.getvalue()
    assert heard.getvalue().count("trouble") == 1
    assert theirs.handlers == []
