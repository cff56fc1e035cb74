"""`tapestry lineage` on real logs: what proves a base, and every way in which files may fail to."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.canonical import digest
from tapestryd import audit
from tapestryd.host.state import StateDir
from tapestryd.host.store import RunStore
from tests.lineages import PEOPLE, Line
from tests.people import certified
from tests.test_keeper import begin

ROUNDS = 5


class Kept:
    """A state directory with one run of ROUNDS commits: genesis, a snapshot at 3, the log."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.state = path
        self.line = Line.begin()
        self.folder = path / "runs" / self.line.rules.run_id
        self.store: RunStore = begin(self.line, self.folder)
        for round in range(ROUNDS):
            self.line.grow(seed=seed)
            if round == 2:
                self.snapshot()
        for entry, parts in self.line.entries:
            self.store.write_entry(entry, *parts)

    def snapshot(self) -> None:
        made, data = self.line.snapshot()
        half = len(data) // 2
        self.store.write_snapshot(made, memoryview(data)[:half], memoryview(data)[half:])

    def entry(self, height: int) -> Path:
        return self.folder / "log" / f"{height:010d}.entry"

    def base(self, height: int) -> Path:
        return self.folder / "snapshots" / f"{height:010d}.base"

    def manifest(self, height: int) -> Path:
        return self.base(height).with_suffix(".json")

    def voted(self, height: int, voters: int = 3, **changed: Any) -> None:
        """Another entry in this one's place: its parts, another vote, signed by `voters` of the three."""
        entry, parts = self.line.entries[height - 1]
        other = certified(entry.roster, parts, PEOPLE[:voters], replace(entry.vote, **changed))
        self.store.write_entry(other, *parts)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "state")


@pytest.fixture
def lineage(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Run the command with --json: its exit code and document."""

    def run(*words: object) -> tuple[int, Any]:
        code = audit.main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert err == ""
        return code, json.loads(out)

    return run


Lineage = Callable[..., tuple[int, Any]]


def test_a_base_is_proved_from_genesis(kept: Kept, lineage: Lineage) -> None:
    tip, files = kept.line.base.tip, sorted(kept.state.rglob("*"))
    assert tip is not None
    (kept.folder / "epochs.json").write_text("{}")
    lock = StateDir(kept.state)  # as a daemon at work holds it
    code, found = lineage("verify", "--from", "genesis", "--state", kept.state)
    lock.close()
    assert code == 0
    assert (found["proved"], found["run"], found["height"], found["round"]) == (True, kept.line.rules.run_id, ROUNDS, ROUNDS - 1)
    assert (found["base_digest"], found["weight"]) == (tip.base, tip.weight)
    assert found["from"] == {"height": 0, "base_digest": kept.line.rules.model.genesis, "certified_by": "the rules"}
    assert (found["entries"], found["snapshots"], found["snapshots_left_out"]) == (ROUNDS, [0, 3], [])
    assert found["members"] == {person.peer: ROUNDS for person in PEOPLE[:3]}
    used = [kept.folder / "rules.json", *kept.folder.glob("log/*"), *kept.folder.glob("snapshots/*")]
    assert found["bytes"] == sum(path.stat().st_size for path in used)
    assert [path for path in sorted(kept.state.rglob("*")) if path.name not in ("lock", "schema", "epochs.json")] == files


def test_a_third_party_needs_nothing_but_the_files(kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its founder wrote them, and with entries from anywhere; and the command itself, in a process with no socket to ask."""
    (tmp_path / "run.toml").write_text(kept.line.rules.to_toml())
    shutil.copy(kept.manifest(0), tmp_path / "genesis.json")
    shutil.copy(kept.base(0), tmp_path / "genesis.base")
    files = [tmp_path / "run.toml", tmp_path / "genesis.json", *(kept.entry(height) for height in range(1, ROUNDS + 1))]
    command = [sys.executable, "-W", "error", "-m", "tapestryd.cli", "lineage", "verify", "--run", kept.line.rules.run_id, *map(str, files)]
    environ = {"PATH": os.environ["PATH"], "TAPESTRY_SOCKET": "/absent"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == (f"Proved      the base of height 5, round 4, weight 15: {kept.line.base.tip.base}")  # type: ignore[union-attr]
    assert audit.main(["verify", "--run", "ab" * 32, *map(str, files)]) == 1
    assert capsys.readouterr().err.startswith(f"tapestry lineage: {files[0]}: the rules of run {kept.line.rules.run_id[:12]}, not of abab")


KINDS: dict[str, Callable[[Kept], Path]] = {
    "rules": lambda kept: kept.folder / "rules.json",
    "genesis": lambda kept: kept.base(0),
    "manifest of genesis": lambda kept: kept.manifest(0),
    "snapshot": lambda kept: kept.base(3),
    "manifest": lambda kept: kept.manifest(3),
    "entry": lambda kept: kept.entry(4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_anywhere_is_found_in_its_file(kept: Kept, lineage: Lineage, kind: str) -> None:
    path = KINDS[kind](kept)
    good = path.read_bytes()
    dice = random.Random(kind)
    for at in [0, len(good) - 1, *(dice.randrange(len(good)) for _ in range(25))]:
        bad = bytearray(good)
        bad[at] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        code, found = lineage("verify", "--state", kept.state)
        assert (code, found["proved"], found["fault"]["file"]) == (1, False, str(path)), at
    path.write_bytes(good)
    assert lineage("verify", "--state", kept.state)[0] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rules"])
def test_a_file_cut_short_or_grown(kept: Kept, lineage: Lineage, kind: str) -> None:
    path = KINDS[kind](kept)
    good = path.read_bytes()
    for bad in (b"", good[:-1], good + b"\0"):
        path.write_bytes(bad)
        code, found = lineage("verify", "--state", kept.state)
        assert (code, found["fault"]["file"]) == (1, str(path))


def _another_run(kept: Kept) -> None:
    other = Line.begin(fragments=1)
    other.grow()
    kept.entry(1).write_bytes(other.entries[0][0].head() + b"".join(other.entries[0][1]))


def _another_branch(kept: Kept) -> None:
    other = Line.begin()
    for _ in range(4):
        other.grow(seed=1)
    kept.entry(4).write_bytes(other.entries[3][0].head() + b"".join(other.entries[3][1]))


def _exchanged(kept: Kept) -> None:
    second, third = kept.entry(2).read_bytes(), kept.entry(3).read_bytes()
    kept.entry(2).write_bytes(third)
    kept.entry(3).write_bytes(second)


def _round_again(kept: Kept) -> None:
    """Everything else is in order, and all have signed it: but its round was over before the one of the entry before it began."""
    kept.line = Line.begin()
    for round in (4, 6, 5):
        kept.line.grow(round=round)
    for path in [*kept.folder.glob("log/*"), kept.base(3), kept.manifest(3)]:
        path.unlink()
    for entry, parts in kept.line.entries:
        kept.store.write_entry(entry, *parts)


@pytest.mark.parametrize(
    ("spoil", "height", "what"),
    [
        (lambda kept: kept.entry(3).unlink(), 3, "missing"),
        (_another_run, 1, "other_run: an entry of another run"),
        (_another_branch, 4, "other_base: entry 4 starts from base"),
        (_exchanged, 2, "holds the entry of height 3"),
        (_round_again, 3, "other_round: entry 3 is of round 5, the one before it of round 6"),
        (lambda kept: kept.voted(4, voters=1), 4, "no_quorum: 1 votes of a roster of 3"),
        (lambda kept: kept.voted(4, weight=13), 4, "out_of_range: entry 4 claims weight 13 for 9 and 3 members"),
        (lambda kept: kept.voted(4, coverage_ppm=900_000), 4, "out_of_range: entry 4 claims coverage 0.9"),
        (lambda kept: kept.voted(4, after=digest(b"")), 4, "bad_digest: entry 4 leads to"),
        (lambda kept: kept.voted(4, root=digest(b"")), 4, "bad_digest: the parts do not have the root that was voted for"),
    ],
)
def test_a_log_that_does_not_hold_together(kept: Kept, lineage: Lineage, spoil: Callable[[Kept], None], height: int, what: str) -> None:
    spoil(kept)
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["proved"]) == (1, False)
    assert (found["fault"]["file"], found["fault"]["height"]) == (str(kept.entry(height)), height)
    assert found["fault"]["what"].startswith(what)


def test_with_just_enough_votes_it_holds(kept: Kept, lineage: Lineage) -> None:
    kept.voted(4, voters=2)
    assert lineage("verify", "--state", kept.state)[0] == 0


def test_a_log_cut_by_joining_from_a_snapshot(kept: Kept, lineage: Lineage) -> None:
    """As a joiner has it: the snapshot of height 3, the entry that certifies it, and what came later."""
    for path in (kept.entry(1), kept.entry(2), kept.base(0), kept.manifest(0)):
        path.unlink()
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["height"], found["entries"], found["snapshots"]) == (0, ROUNDS, 3, [3])
    assert found["from"] == {"height": 3, "base_digest": kept.line.entries[2][0].vote.after, "certified_by": "entry 3"}
    code, found = lineage("verify", "--state", kept.state, "--from", "genesis")
    assert code == 1
    assert found["fault"] == {
        "file": str(kept.folder),
        "height": None,
        "what": "that the base comes from genesis cannot be shown with these files: entries 1 to 2 are not here",
    }
    kept.voted(3, after=digest(b""))  # certified, but not of the snapshot that is here
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["fault"]["file"]) == (1, str(kept.manifest(3)))


def test_a_snapshot_is_certified_by_the_entry_that_starts_from_it(kept: Kept, lineage: Lineage) -> None:
    for height in (1, 2, 3):
        kept.entry(height).unlink()
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["from"]["certified_by"], found["snapshots"], found["snapshots_left_out"]) == (0, "entry 4", [3], [0])


def test_without_genesis_a_whole_log_proves_from_the_first_snapshot(kept: Kept, lineage: Lineage) -> None:
    kept.base(0).unlink()
    kept.manifest(0).unlink()
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["entries"], found["from"]["certified_by"]) == (0, ROUNDS, "entry 3")
    assert lineage("verify", "--state", kept.state, "--from", "genesis")[0] == 1
    kept.voted(2, weight=8)  # below the snapshot, where no base is at hand yet
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["fault"]["file"]) == (1, str(kept.entry(2)))


def test_a_snapshot_that_nothing_certifies(kept: Kept, lineage: Lineage) -> None:
    kept.line.grow()
    kept.snapshot()
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["fault"]["file"], found["fault"]["height"]) == (1, str(kept.manifest(6)), 6)
    assert found["fault"]["what"] == "nothing certifies it: the log here ends at height 5"


def test_a_snapshot_of_another_branch(kept: Kept, lineage: Lineage) -> None:
    """Whole, of this run and of this height, with its own entry nowhere."""
    kept.line = Line.begin()
    for _ in range(3):
        kept.line.grow(seed=1)
    kept.snapshot()
    code, found = lineage("verify", "--state", kept.state)
    assert (code, found["fault"]["file"]) == (1, str(kept.manifest(3)))
    assert "the log leads to" in found["fault"]["what"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda kept: shutil.rmtree(kept.state), "holds no run; --state names the folder that node.state_dir"),
        (lambda kept: (kept.folder / "rules.json").unlink(), "There are no rules among these files"),
        (lambda kept: [path.unlink() for path in kept.folder.glob("*/*")], "there is neither genesis nor any log entry here"),
        (
            lambda kept: [path.unlink() for path in kept.folder.glob("snapshots/*")],
            "there is no snapshot to begin from; one of height 0 to 5",
        ),
        (lambda kept: kept.base(3).unlink(), "missing; its manifest is here"),
        (lambda kept: shutil.copytree(kept.folder, kept.folder.with_name("ab" * 32)), "holds 2 runs; name one with --run"),
        (lambda kept: (kept.state / "current").write_text("tapestry:" + "cd" * 32), "does not hold run cdcd"),
        (lambda kept: (kept.state / "current").write_text("x"), "name the run with --run"),
        (lambda kept: kept.entry(1).rename(kept.entry(1).with_name("first.entry")), "a log entry is named by its height"),
    ],
)
def test_what_is_not_there_is_said(kept: Kept, capsys: pytest.CaptureFixture[str], spoil: Callable[[Kept], object], sentence: str) -> None:
    spoil(kept)
    assert audit.main(["verify", "--state", str(kept.state)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tapestry lineage: ")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_what_lies_on_disk(kept: Kept, lineage: Lineage, capsys: pytest.CaptureFixture[str]) -> None:
    kept.store.take_over([])
    begin(kept.line, kept.folder)
    for entry, parts in [kept.line.entries[0], *kept.line.entries[2:4]]:
        kept.store.write_entry(entry, *parts)
    code, found = lineage("show", "--state", kept.state)
    current, aside = found["branches"]
    assert (code, current["name"], aside["name"]) == (0, "current", "superseded-0")
    assert (current["heights"], aside["heights"]) == ([[1, 1], [3, 4]], [[1, 5]])
    assert current["tip"]["base_digest"] == kept.line.entries[3][0].vote.after
    assert aside["tip"] == {"height": 5, "round": 4, "weight": 15, "base_digest": kept.line.base.tip.base}  # type: ignore[union-attr]
    assert aside["bytes"] == sum(path.stat().st_size for path in kept.folder.glob("superseded-0/log/*"))
    assert [snapshot["height"] for snapshot in aside["snapshots"]] == [0, 3]
    kept.entry(4).write_bytes(b"TAPENTRY")
    assert audit.main(["show", "--state", str(kept.state)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Run {kept.line.rules.run_id} in {kept.folder}\n\ncurrent\n    log        heights 1, 3 to 4, ")
    assert "    damaged    0000000004.entry: malformed: shorter than an entry's head\n    snapshots  0 (7.0 KiB)\n" in out
    assert "superseded-0\n    log        heights 1 to 5, " in out
    code, found = lineage("verify", kept.folder / "superseded-0", kept.folder / "rules.json")
    assert (code, found["height"]) == (0, ROUNDS)
