"""Log lines: priorities for journald, text, JSON; levels by subsystem while running; the latest, kept."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd.errors import LocalFault
from tapestryd.host.logs import LINES, Logs


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
    for name in ("swarm", "swarm.node"):
        logging.getLogger(f"tapestryd.{name}").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("root")
def test_journald_gets_a_priority_on_every_line(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        where = os.fstat(stream.fileno())
        Logs().start("info", "auto", {"JOURNAL_STREAM": f"{where.st_dev}:{where.st_ino}"}, stream)
        logging.getLogger("tapestryd.x").warning("two\nlines")
        logging.getLogger("tapestryd.x").debug("unheard")
        stream.seek(0)
        assert stream.read() == "<4>tapestryd.x: two\n<4>lines\n"


@pytest.mark.usefixtures("root")
def test_text_has_the_time_and_json_is_json() -> None:
    text, structured = io.StringIO(), io.StringIO()
    Logs().start("warning", "auto", {"JOURNAL_STREAM": "1:1"}, text)
    logging.getLogger("tapestryd.x").error("plain")
    Logs().start("info", "json", {}, structured)
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
    Logs().start("debug", "text", {}, heard)
    logging.getLogger("hivemind.dht").info("chatter")
    logging.getLogger("hivemind.dht").warning("trouble")
    assert "chatter" not in heard.getvalue()
    assert heard.getvalue().count("trouble") == 1
    assert theirs.handlers == []


@pytest.mark.usefixtures("root")
def test_a_subsystem_has_a_level_of_its_own_and_the_others_theirs() -> None:
    heard, logs = io.StringIO(), Logs()
    logs.start("info", "text", {}, heard)
    node, session = logging.getLogger("tapestryd.swarm.node"), logging.getLogger("tapestryd.session")
    logs.set("debug", "swarm.node")
    node.debug("one")
    session.debug("two")
    assert logs.levels() == {"": "info", "swarm.node": "debug"}
    logs.set("error")
    node.debug("three")
    session.warning("four")
    logs.set("error", "swarm")
    logs.set("error", "swarm.node")
    node.warning("five")
    assert [line.split(": ")[1] for line in heard.getvalue().splitlines()] == ["one", "three"]
    with pytest.raises(LocalFault, match=r"dht9: no such subsystem; there are .*hivemind, .*session, .*swarm, .*swarm.node"):
        logs.set("debug", "dht9")


@pytest.mark.usefixtures("root")
def test_debug_comes_and_goes_with_a_signal() -> None:
    heard, logs = io.StringIO(), Logs()
    logs.start("warning", "text", {}, heard)
    log = logging.getLogger("tapestryd.session")
    for words in ("one", "two", "three"):
        log.debug(words)
        logs.toggle_debug()
    assert "two" in heard.getvalue()
    assert "three" not in heard.getvalue()
    assert logs.levels()[""] == "debug"
    logs.set("info")
    assert logs.levels() == {"": "info"}


@pytest.mark.usefixtures("root")
def test_the_latest_lines_are_kept() -> None:
    logs = Logs()
    logs.start("info", "text", {}, io.StringIO())
    log = logging.getLogger("tapestryd.session")
    for number in range(LINES + 5):
        log.info("line %d", number + 1)
    try:
        raise ValueError("the cause")
    except ValueError:
        log.exception("x" * 20_000)
    assert logs.lines(0)[0].message == "line 7"
    last = logs.lines(LINES + 5)
    assert [(line.number, line.level, line.subsystem) for line in last] == [(LINES + 6, "error", "session")]
    assert len(last[0].message) == 8_000
    assert logs.lines(LINES + 6) == []


@pytest.mark.usefixtures("root")
def test_the_data_sides_lines() -> None:
    words = "import logging, os, sys; from tapestryd.host.logs import start_trainer; start_trainer(os.environ, sys.stderr); "
    words += "logging.getLogger('tapestryd.x').warning('two\\nlines')"
    reading, writing = os.pipe()
    where = os.fstat(writing)
    for stream, said in (("1:1", "trainer: two\nlines\n"), (f"{where.st_dev}:{where.st_ino}", "<4>tapestryd.x: two\n<4>lines\n")):
        subprocess.run([sys.executable, "-c", words], env={**os.environ, "JOURNAL_STREAM": stream}, stderr=writing, check=True)
        assert os.read(reading, 4096).decode() == said
    os.close(reading)
    os.close(writing)
