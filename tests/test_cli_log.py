"""`tapestry log`, `events`, `metrics` as processes against a real socket."""

import json
import logging
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapestryd.cli import log
from tests.scripted import Served
from tests.test_cli import COMMAND, ENVIRON, tapestry


@contextmanager
def running(socket: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    environment = ENVIRON | {"TAPESTRY_SOCKET": str(socket)}
    with subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130


@pytest.fixture
def spoken(served: Served) -> Iterator[logging.Logger]:
    """Whatever this logger says, the daemon has said."""
    logger = logging.getLogger("tapestryd.session")
    before = logger.level
    logger.addHandler(served.operator.logs._recent)
    logger.setLevel("INFO")
    yield logger
    logger.removeHandler(served.operator.logs._recent)
    logger.setLevel(before)


def test_the_latest_lines_and_those_that_come(served: Served, spoken: logging.Logger) -> None:
    spoken.info("one\x1b[2J")
    spoken.error("two\nlines")
    done = tapestry(served.socket, "log", TZ="UTC")
    assert [line[20:] or line for line in done.stdout.splitlines()] == ["info session: one?[2J", "error session: two", "    lines"]
    assert [line["number"] for line in json.loads(tapestry(served.socket, "log", "--json").stdout)["lines"]] == [1, 2]
    with running(served.socket, "log", "follow", "--json") as following:
        assert following.stdout is not None
        told = [json.loads(following.stdout.readline()) for _ in range(2)]
        assert [(line["schema"], line["number"]) for line in told] == [(1, 1), (1, 2)]
        spoken.info("three")
        assert json.loads(following.stdout.readline())["message"] == "three"
    assert tapestry(served.socket.with_name("absent"), "log", "follow").returncode == 3


def test_levels(served: Served) -> None:
    assert tapestry(served.socket, "log", "level").stdout == "everything: info\n"
    done = tapestry(served.socket, "log", "level", "session=debug")
    assert done.stdout == "The log level of session is debug until tapestryd is started again.\n"
    assert served.operator.logs.levels() == {"": "info", "session": "debug"}
    logging.getLogger("tapestryd.session").setLevel(logging.NOTSET)
    for word, says in (("loud", "must be one of error, warning, info, debug"), ("abc=debug", "Abc: no such subsystem; there are ")):
        done = tapestry(served.socket, "log", "level", word)
        assert done.returncode == 1
        assert says in done.stderr


def test_events_as_they_happen(served: Served) -> None:
    served.operator.watch.look()
    with running(served.socket, "events") as listening:
        assert listening.stdout is not None
        assert listening.stderr is not None
        for _ in range(300):  # until it listens
            served.operator.watch.told(served.operator.stories[-1])
            if select.select([listening.stdout], [], [], 0.2)[0]:
                break
        assert listening.stdout.readline()[20:] == "round 40 committed, 2 peers, height 40\n"
        served.run(close(served))
        assert listening.wait(60) == 3
        assert listening.stderr.read() == "The daemon has ended, or tells us no more.\n"


def test_a_round_goes_through_its_phases() -> None:
    told = {"at_ms": 0, "state": "averaging", "phase": "reducing", "reasons": [], "round": 41}
    assert log._event("state", told)[20:] == "reducing, round 41"
    assert log._event("state", told | {"state": "paused", "phase": "paused", "reasons": ["user"]})[20:] == "paused (user), round 41"


async def close(served: Served) -> None:
    served.operator.watch.events.close()


def test_the_metrics(served: Served) -> None:
    done = tapestry(served.socket, "metrics")
    assert done.returncode == 0
    assert "\ntapestry_ready 1.0\n" in done.stdout
