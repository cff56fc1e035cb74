"""Data of tier 2 in a trainer, with the daemon played by hand: what is told of it, what it costs, and its end."""

import json
import logging
import threading
from pathlib import Path

import pytest

from protocols.trainer import ALL_FRAGMENTS, Beat, Code, Delta, Evaluated, Quit, Report, Stop, Train, Withheld, Withhold
from tapestryd.host import ledger, session, trainer_main
from tapestryd.host.accountant import Steps, epsilon
from tapestryd.host.budget import CHUNK, read
from tapestryd.host.datasets import declare
from tapestryd.host.ledger import segments
from tapestryd.host.manifest import Manifest
from tests.host.home import Daemon, Home
from tests.host.test_trainer_main import ready, started_with_fault


def hidden(root: Path, *, total: float = 50.0, own: float = 0.0, rows: int = 200, delta: str = "1e-5") -> Home:
    """A home whose data, rows of prose of two records each, is of tier 2."""
    home = Home(root)
    text = (home.data / "topics.txt").read_text()
    (home.data / "topics.txt").unlink()
    lines = [json.dumps({"text": text[at : at + 50]}) for at in range(0, 50 * rows, 50)]
    (home.data / "rows.jsonl").write_text("\n".join(lines))
    declare(home.data, Manifest("fully-open", artifact_id="rows", tier=2, rights="PSF-2.0", epsilon=own))
    home.config.write_text(home.config.read_text() + f"[privacy]\nepsilon = {total}\ndelta = {delta}\nbatch = 4\n")
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return hidden(tmp_path)


def reports(daemon: Daemon) -> list[Report]:
    """All that comes, the answer to a STOP at the end."""
    found: list[Report] = []
    while not found or not isinstance(found[-1], Delta | Withheld):
        found.append(daemon.next(Report))  # type: ignore[type-var, arg-type]
    return found


def told(home: Home, kind: str) -> list[dict[str, str]]:
    """The ledger's entries of a kind."""
    lines = [json.loads(line) for file in segments(home.checkpoints / "ledger") for line in ledger.read(file)[0]]
    return [line for line in lines if line["kind"] == kind]


def test_what_is_told_of_private_text(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        daemon = ready(home, daemons)
        daemon.base()
        daemon.send(Train(0, 0))
        beat = daemon.next(Beat)
        daemon.base(1, keep=True)
        daemon.send(Stop(0, ALL_FRAGMENTS))
        found = [beat, *reports(daemon)]
    delta = found[-1]
    assert isinstance(delta, Delta)
    assert not [report for report in found if isinstance(report, Evaluated)]
    assert {report.loss for report in found if isinstance(report, Beat | Delta)} == {0.0}
    assert (beat.tokens, delta.tokens) == (beat.steps * 4 * 32, delta.steps * 4 * 32)
    assert delta.norm > 0
    paid = sum(entry.steps.steps for entry in read(home.checkpoints / "privacy.json"))
    assert delta.steps <= paid < delta.steps + CHUNK + 1
    exact = epsilon([Steps(4 / 400, 1.0, paid)], 1e-5)
    assert float(told(home, "released")[0]["epsilon"]) == exact >= beat.epsilon > 0
    assert f"(told to nobody) epsilon={exact:.3f}" in caplog.text


def test_no_restart_gives_back(home: Home, daemons: list[Daemon]) -> None:
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    first = daemon.next(Beat).epsilon
    daemon.close()
    assert daemon.end() == 0
    again = ready(home, daemons)
    again.base(keep=True)
    again.send(Train(1, 0))
    assert again.next(Beat).epsilon > first


def test_what_is_spent_stays_spent(
    tmp_path: Path, daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The steps that were paid for leave; then nothing does, and the next start is refused."""
    home, ended = hidden(tmp_path, total=epsilon([Steps(4 / 400, 1.0, CHUNK)], 1e-5) + 1e-6), threading.Event()
    monkeypatch.setattr(session.log, "warning", lambda text, *given: ended.set() if text.startswith("no local steps") else None)
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    assert ended.wait(30)
    daemon.send(Stop(0, ALL_FRAGMENTS))
    delta = reports(daemon)[-1]
    assert isinstance(delta, Delta)
    assert delta.steps == CHUNK
    daemon.send(Train(1, 0), Stop(1, ALL_FRAGMENTS))
    assert reports(daemon)[-1] == Withheld(1, ALL_FRAGMENTS, int(Withhold.BUDGET))
    assert told(home, "withheld")[0]["reason"] == "budget"
    daemon.send(Quit())
    assert daemon.end() == 0
    assert started_with_fault(home, daemons) == Code.BUDGET
    assert "would be spent of all data, and privacy.epsilon" in caplog.text


def test_a_data_set_may_allow_less(tmp_path: Path, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    assert started_with_fault(hidden(tmp_path, own=0.001), daemons) == Code.BUDGET
    assert "of the data set rows epsilon" in caplog.text


def test_a_damaged_record_of_what_is_spent_is_an_end(home: Home, daemons: list[Daemon]) -> None:
    home.checkpoints.mkdir()
    (home.checkpoints / "privacy.json").write_bytes(b"{")
    assert started_with_fault(home, daemons) == Code.BUDGET


def test_what_is_missing_for_it_fails_closed(
    home: Home, tmp_path: Path, daemons: list[Daemon], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = home.config.read_text()
    home.config.write_text(good.replace("epsilon = 50.0", "epsilon = 0"))
    assert started_with_fault(home, daemons) == Code.TIER
    (tmp_path / "more").mkdir()
    assert started_with_fault(hidden(tmp_path / "more", rows=1000, delta="1e-3"), daemons) == Code.TIER
    assert "privacy.delta = 0.001 must be below one in 2000 records" in caplog.text
    home.config.write_text(good)
    monkeypatch.setattr(trainer_main, "missing", lambda: "it is not there")
    assert started_with_fault(home, daemons) == Code.TIER
    assert "needs an accountant: it is not there" in caplog.text


def test_progress_that_was_not_private_is_not_gone_on_with(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    declare(home.data, Manifest("fully-open", artifact_id="rows", tier=1, rights="PSF-2.0"))
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.send(Quit())
    assert daemon.end() == 0
    declare(home.data, Manifest("fully-open", artifact_id="rows", tier=2, rights="PSF-2.0"))
    again = ready(home, daemons)
    again.base(keep=True)
    again.send(Stop(0, ALL_FRAGMENTS))
    delta = reports(again)[-1]
    assert isinstance(delta, Delta)
    assert (delta.steps, delta.norm) == (0, 0.0)
    assert "its steps were without differential privacy" in caplog.text


def test_one_private_data_set_makes_all_steps_private(tmp_path: Path, daemons: list[Daemon]) -> None:
    home = hidden(tmp_path)
    (home.data / "open").mkdir()
    (home.data / "open" / "a.txt").write_text("open text " * 1000)
    declare(home.data / "open", Manifest("fully-open", artifact_id="open"))
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    assert daemon.next(Beat).loss == 0
    (entry,) = read(home.checkpoints / "privacy.json")
    assert entry.datasets == ("rows",)
    assert entry.steps.rate < 4 / 400
