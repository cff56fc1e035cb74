"""`tapestryd demo`: real swarms of two, however they end, and every way in which none is started."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapestryd import demo
from tapestryd.errors import LocalFault

Event = dict[str, Any]


class Running:
    """A demo in a process of its own, told to speak JSON. `python`: what it starts daemons with."""

    def __init__(self, folder: Path, *arguments: str, python: Path) -> None:
        program = f"import sys; from tapestryd.demo import main; sys.executable = {str(python)!r}; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "--json", "--dir", str(folder), *arguments]
        self.folder = folder
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events: list[Event] = []

    def until(self, name: str) -> Event:
        """Read on to the first event of this name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            if self.events[-1]["event"] == name:
                return self.events[-1]
        raise AssertionError(f"no {name} among {self.events}; {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        """Exit status and standard error."""
        out, err = self.process.communicate()  # the demo has limits of its own
        self.events += map(json.loads, out.splitlines())
        return self.process.returncode, err

    def left(self) -> list[str]:
        """Command lines of living processes that name the demo's folder: daemons, trainers and p2pd all do."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if f"{self.folder}/" in command:
                    found.append(command)
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Running] = []

    def begin(*arguments: str, python: Path = Path(sys.executable)) -> Running:
        started.append(Running(tmp_path / "demo", *arguments, python=python))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def test_a_swarm_of_two_learns_and_leaves_nothing_behind(start: Any) -> None:
    running = start("--peers", "2", "--rounds", "2")
    code, err = running.end()
    assert (code, err) == (0, "")
    summary, names = running.events[-1], ["prose", "library"]
    assert list(summary) == [
        "event", "ok", "peers", "rounds_committed", "base_digest", "digests_equal", "heldout", "bytes_sent", "seconds",
    ]  # fmt: skip
    assert (summary["event"], summary["ok"], summary["peers"], summary["digests_equal"]) == ("summary", True, 2, True)
    assert summary["rounds_committed"] >= 2
    assert len(summary["base_digest"]) == 64
    assert list(summary["heldout"]) == names
    assert sum(loss["last"] - loss["first"] for loss in summary["heldout"].values()) < 0
    assert summary["bytes_sent"] > 100_000
    told = [event["event"] for event in running.events]
    assert told[0] == "started"
    assert [told.count(one) for one in ("peer_up", "joined")] == [2, 2]
    commits = [event for event in running.events if event["event"] == "round_committed"]
    assert [commit["height"] for commit in commits[:2]] == [1, 2]
    assert commits[0]["members"] == sorted(names)
    assert running.left() == []
    assert (running.folder / "report.html").stat().st_size > 5_000
    kept = [json.loads(line) for line in (running.folder / "events.jsonl").read_text().splitlines()]
    assert kept == running.events
    joined = {name: (running.folder / "peers" / name / "state").is_dir() for name in names}
    assert joined == {"prose": True, "library": True}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_tells_what_was_reached(start: Any, number: signal.Signals) -> None:
    running = start("--peers", "2")
    running.until("evaluated" if number == signal.SIGINT else "started")  # a trainer is at work; nothing but the founding is
    if number == signal.SIGINT:
        assert any("trainer_main" in command for command in running.left())
        assert any("/p2pd " in command for command in running.left())
    running.process.send_signal(number)
    code, err = running.end()
    assert code == 128 + number
    assert err == f"tapestryd demo: Stopped by {number.name} at height 0 of 6.\n"
    assert (running.events[-1]["event"], running.events[-1]["ok"]) == ("summary", False)
    assert running.left() == []


@pytest.mark.slow
def test_no_process_of_a_swarm_outlives_a_demo_that_was_killed(start: Any) -> None:
    running = start("--peers", "2")
    running.until("evaluated")
    dies_with_it(running)


def test_no_daemon_outlives_a_demo_that_was_killed(start: Any, tmp_path: Path) -> None:
    running = start("--peers", "2", python=fake(tmp_path, 'exec tail -f "$5"'))
    end = time.monotonic() + 30
    while not running.left() and time.monotonic() < end:
        time.sleep(0.05)
    dies_with_it(running)


def dies_with_it(running: Running) -> None:
    assert running.left() != []
    running.process.kill()
    end = time.monotonic() + 60
    while running.left() and time.monotonic() < end:
        time.sleep(0.1)
    assert running.left() == []


def fake(folder: Path, daemon: str) -> Path:
    """A Python that founds at once, and whose daemons do what this shell line says."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\ncase "$3" in tapestryd.founding) exit 0;; *) {daemon};; esac\n')
    script.chmod(0o755)
    return script


def test_a_daemon_that_ends_early_is_named_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", str(fake(tmp_path, "echo one; echo the port is in use; exit 75")))
    folder = tmp_path / "demo"
    assert demo.main(["--peers", "2", "--dir", str(folder)]) == 1
    out, err = capsys.readouterr()
    log = folder / "peers" / "prose" / "log"
    assert err == f"tapestryd demo: prose ended by itself (status 75). The end of {log}: one | the port is in use\n"
    assert out.splitlines()[-3:] == [
        f"0 rounds committed by 2 peers in {out.splitlines()[-3].split(' in ')[1].split(';')[0]}; not all were seen on the same base.",
        "0 B of vectors were sent.",
        f"Report: {folder}/report.html",
    ]


def test_a_founding_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such model >&2; exit 78\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert demo.main(["--peers", "2", "--json", "--dir", str(tmp_path / "demo")]) == 1
    out, err = capsys.readouterr()
    assert err == "tapestryd demo: The run could not be founded: no such model\n"
    assert json.loads(out.splitlines()[-1])["base_digest"] is None


def test_what_cannot_be_started_is_refused_in_a_sentence(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for arguments, sentence in [
        (["--peers", "1"], "--peers 1: must be from 2 to 16."),
        (["--peers", "0"], "--peers 0: must be from 2 to 16."),
        (["--rounds", "0"], "--rounds 0: must be from 1 to 1000."),
        (["--data", str(full)], "--peers 1: must be from 2 to 16."),
        (
            ["--data", str(full), str(tmp_path), "--peers", "3"],
            "--peers 3 with 2 folders of --data: name one folder a peer, or leave --peers out.",
        ),
        (["--data", str(full), "--data", str(full)], f"--data {full}: given twice; each peer has its own text"),
        (["--data", str(full), f"{full}/none"], f"--data {full}/none: no such folder"),
        (["--dir", str(full)], f"--dir {full}: is not empty; name a folder that is, or one that does not exist yet."),
        (["--dir", f"{full}/thesis.txt"], f"--dir {full}/thesis.txt: cannot be used (File exists)."),
    ]:
        with pytest.raises(LocalFault) as caught:
            demo.main(arguments)
        assert str(caught.value) == sentence
    assert os.listdir(full) == ["thesis.txt"]
