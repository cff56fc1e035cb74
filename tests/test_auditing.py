"""`tapestry audit` on real ledgers: what it shows, and every way in which a ledger may not be what it was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.canonical import digest
from protocols.identity import peer_id
from protocols.ledger import START, Entry, Opened, line, parse
from protocols.trainer import ALL_FRAGMENTS
from tapestryd import auditing
from tapestryd.config import Release
from tapestryd.host import ledger
from tapestryd.host.keys import make_key, read_key
from tapestryd.host.ledger import Ledger, segments
from tapestryd.host.witness import Witness
from tests.host.test_ledger import RELEASED, WITHHELD
from tests.scripted import Served

ROUNDS = 20
WIDE = {**os.environ, "COLUMNS": "170"}
DAY_MS = 86_400_000


class Kept:
    """A ledger of three starts, some days and several files, and the network side's witness of it."""

    def __init__(self, root: Path) -> None:
        self.folder, self.witness = root / "ledger", root / "witness.json"
        self.now_ms = auditing.now_ms() - 2 * DAY_MS - 60_000
        for start in range(3):
            self.write(start * ROUNDS, ROUNDS)
            self.now_ms += DAY_MS
        self.now_ms -= DAY_MS

    def write(self, first: int, rounds: int) -> None:
        """A trainer's life."""
        witness = Witness(self.witness)
        held = Ledger(self.folder, Release(), now_ms=lambda: self.now_ms, waiting=lambda: None)
        for round in range(first, first + rounds):
            if round % 5 == 4:
                held.write(replace(WITHHELD, round=round, unwritten=round % 2))
            else:
                witness.saw(*held.write(replace(RELEASED, round=round, fragment=ALL_FRAGMENTS if round == 6 else round % 4)))
        held.close()
        witness.keep()

    @property
    def files(self) -> list[Path]:
        return segments(self.folder)

    def put(self, file: Path, data: bytes) -> None:
        file.chmod(0o600)
        file.write_bytes(data)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 8000)
    return Kept(tmp_path)


@pytest.fixture
def audit(kept: Kept, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Run the command with --json: its exit code and document."""

    def run(*words: object) -> tuple[int, Any]:
        code = auditing.main(["--ledger", str(kept.folder), "--witness", str(kept.witness), *map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert err == ""
        return code, json.loads(out)

    return run


Audit = Callable[..., tuple[int, Any]]


def test_what_left_and_what_was_withheld(kept: Kept, audit: Audit) -> None:
    code, doc = audit("--since", "1h")
    assert code == 0
    assert [one["round"] for one in doc["released"]] == [round for round in range(40, 60) if round % 5 != 4]
    assert [(one["round"], one["reason"], one["unwritten"]) for one in doc["withheld"]] == [
        (44, "rate", 0), (49, "rate", 1), (54, "rate", 0), (59, "rate", 1),
    ]  # fmt: skip
    first = doc["released"][0]
    assert {name: first[name] for name in ("fragment", "steps", "examples", "bytes", "norm", "clip", "sha256")} == {
        "fragment": 0, "steps": 128, "examples": 900, "bytes": 4096, "norm": 12.5, "clip": 1.0, "sha256": digest(b"vector"),
    }  # fmt: skip
    assert doc["totals"] == {"released": 16, "bytes": 16 * 4096, "epsilon": 0.0, "withheld": {"rate": 4}, "unwritten": 2}
    assert doc["in_all"] == {"released": 48, "bytes": 48 * 4096, "epsilon": 0.0, "withheld": {"rate": 12}, "unwritten": 6}
    assert (doc["first"], doc["last"], doc["verified"], doc["witness"]) == (1, 63, False, None)
    assert len(audit("--since", "30h")[1]["released"]) == 32
    assert len(audit("--since", "30d")[1]["opened"]) == 3


def test_a_ledger_as_it_was_written_is_proved(kept: Kept, audit: Audit) -> None:
    code, doc = audit("--verify")
    assert (code, doc["verified"]) == (0, True)
    assert doc["witness"] == f"{kept.witness} agrees, on 48 entries"
    assert len(kept.files) > 4
    kept.write(60, 40)
    assert audit("--verify")[1]["witness"].endswith("agrees, on 64 entries")


def test_an_unfinished_line_is_shown_and_recovered_later(kept: Kept, audit: Audit) -> None:
    last = kept.files[-1]
    last.write_bytes(last.read_bytes() + b'{"entry":')
    code, doc = audit("--verify")
    assert (code, doc["torn"]) == (0, 9)
    kept.write(60, 1)
    code, doc = audit("--verify", "--since", "1h")
    assert (code, doc["torn"]) == (0, 0)
    assert [one["bytes"] for one in doc["recovered"]] == [9]


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def edited_entry(kept: Kept) -> int:
    file = kept.files[2]
    kept.put(file, file.read_bytes().replace(b'"bytes":4096', b'"bytes":1024', 1))
    return next(parse(one[:-1]).number for one in lines(file) if b'"bytes":1024' in one)


def swapped_order(kept: Kept) -> int:
    file = kept.files[1]
    first, second, *rest = lines(file)
    kept.put(file, b"".join([second, first, *rest]))
    return int(file.stem)


def removed_entry(kept: Kept) -> int:
    file = kept.files[1]
    first, _, *rest = lines(file)
    kept.put(file, b"".join([first, *rest]))
    return int(file.stem) + 1


def removed_file(kept: Kept) -> int:
    missing = int(kept.files[2].stem)
    kept.files[2].unlink()
    return missing


def removed_beginning(kept: Kept) -> int:
    kept.files[0].unlink()
    return 1


def copied_file(kept: Kept) -> int:
    due = int(kept.files[2].stem)
    shutil.copy(kept.files[1], kept.folder / f"{due - 1:012d}.ledger")
    return due


def cut_file_in_the_middle(kept: Kept) -> int:
    file = kept.files[1]
    kept.put(file, file.read_bytes()[:-20])
    return int(kept.files[2].stem) - 1


def forged_entry(kept: Kept) -> int:
    """By somebody without the key, who does everything else right."""
    file = kept.files[-1]
    *before, last = lines(file)
    make_key(kept.folder / "mine", 0o600)
    mine = read_key(kept.folder / "mine")
    entry = parse(last[:-1])
    kept.put(file, b"".join([*before, line(replace(entry, what=replace(WITHHELD, round=99)), mine.sign) + b"\n"]))
    return entry.number


ALTERED = [
    (edited_entry, "is not signed by the ledger's key"),
    (swapped_order, "stands where"),
    (removed_entry, "stands where"),
    (removed_file, "are missing: a file of the ledger was taken away"),
    (removed_beginning, "are missing: a file of the ledger was taken away"),
    (copied_file, "it was put where it does not belong"),
    (cut_file_in_the_middle, "it is not whole, and another file follows"),
    (forged_entry, "is not signed by the ledger's key"),
]


@pytest.mark.parametrize(("change", "what"), ALTERED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_was_altered_is_named(change: Callable[[Kept], int], what: str, kept: Kept, audit: Audit) -> None:
    entry = change(kept)
    code, doc = audit("--verify")
    assert (code, doc["verified"], doc["fault"]["entry"]) == (1, False, entry)
    assert what in doc["fault"]["what"]


def cut_end(kept: Kept) -> int:
    """Whole lines, and whole files: what is left is a ledger without fault."""
    *_, last = kept.files
    cut = int(last.stem)
    last.unlink()
    return cut


def cut_last_vector(kept: Kept) -> int:
    file = kept.files[-1]
    *before, one, _ = lines(file)
    kept.put(file, b"".join(before))
    return parse(one[:-1]).number


@pytest.mark.parametrize("change", [cut_end, cut_last_vector])
def test_a_cut_end_shows_only_to_who_remembers(change: Callable[[Kept], int], kept: Kept, audit: Audit) -> None:
    entry = change(kept)
    code, doc = audit("--verify")
    assert code == 1
    assert doc["fault"]["file"] == str(kept.witness)
    assert doc["fault"]["entry"] >= entry
    assert "its end was cut off" in doc["fault"]["what"]
    kept.witness.unlink()
    assert auditing.main(["--ledger", str(kept.folder), "--verify"]) == 0


def test_an_end_that_was_cut_and_grew_again_shows_too(kept: Kept, audit: Audit) -> None:
    """With the right key, and more entries than before; the network side is told of new ones as if nothing had been."""
    cut = cut_last_vector(kept)
    kept.write(60, 10)
    code, doc = audit("--verify")
    assert (code, doc["fault"]["entry"]) == (1, cut)
    assert "the ledger was written anew" in doc["fault"]["what"]


def test_a_ledger_that_its_owner_wrote_anew_shows_too(kept: Kept, audit: Audit) -> None:
    for file in kept.files:
        file.unlink()
    key = read_key(kept.folder / "key")
    opened = Opened(peer_id(key.public_key().public_bytes_raw()), 0, 0, 0.0, 0.0, 1)
    (kept.folder / "000000000001.ledger").write_bytes(line(Entry(1, START, 1, opened), key.sign) + b"\n")
    code, doc = audit("--verify")
    assert code == 1
    assert "its end was cut off" in doc["fault"]["what"]


def tapestry(*words: object, **more: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tapestryd.cli", "audit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


def test_the_command_tells_people(kept: Kept) -> None:
    done = tapestry("--ledger", kept.folder, "--witness", kept.witness, "--verify", env=WIDE)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout.splitlines()
    assert text[0].startswith(f"Ledger     {kept.folder}   entries 1 to 63   key 12D3")
    assert text[1:7] == [
        "Released   16 vectors in 1d   64.0 KiB",
        "           48 vectors in all   192 KiB",
        "Withheld   6 in 1d   4 rate   2 only counted",
        "Sent       not known: --socket names the daemon whose ledger this is",
        "Verified   every entry is signed, and follows the one before it",
        f"Witness    {kept.witness} agrees, on 48 entries",
    ]
    assert text[8].split()[:7] == ["ENTRY", "AGO", "RUN", "ROUND", "FRAGMENT", "RESULT", "STEPS"]
    assert len(text) == 9 + 20
    edited = edited_entry(kept)
    done = tapestry("--ledger", kept.folder, "--verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"tapestry audit: {kept.files[2]}: entry {edited}: entry {edited} is not signed by the ledger's key\n"


def test_what_the_daemon_sent_is_beside_it(kept: Kept, served: Served, audit: Audit) -> None:
    done = tapestry("--ledger", kept.folder, "--socket", served.socket, env=WIDE)
    assert done.stdout.splitlines()[4] == "Sent       1000 B in 1d   delta 1000 B"
    code, doc = audit("--socket", served.socket)
    assert (code, doc["egress"]["by_kind"]["delta"]["sent"]) == (0, 1000)
    assert doc["egress"]["since_ms"] == doc["since_ms"]
    nobody = kept.folder / "nobody.sock"
    code, doc = audit("--socket", nobody)
    assert (code, doc["egress"]) == (0, None)
    assert f"No daemon answers on {nobody}" in doc["egress_unknown"]


def test_mistakes_are_sentences(kept: Kept, tmp_path: Path) -> None:
    assert "holds no ledger; --ledger names the folder `ledger` in checkpoint.dir" in tapestry("--ledger", tmp_path / "x").stderr
    assert "holds no ledger" in tapestry("--ledger", tmp_path).stderr
    done = tapestry("--ledger", kept.folder, "--verify", "--witness", tmp_path / "no.json")
    assert (done.returncode, done.stderr) == (1, f"tapestry audit: {tmp_path / 'no.json'}: No such file or directory\n")
    (tmp_path / "no.json").write_text("[]")
    assert "it is no witness" in tapestry("--ledger", kept.folder, "--verify", "--witness", tmp_path / "no.json").stderr
    assert tapestry("--since", "never").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_who_may_not_read_it_is_told_who_may(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    for parent in [kept.folder.parent, *kept.folder.parent.parents][:3]:
        parent.chmod(0o755)
    os.seteuid(65534)
    try:
        code = auditing.main(["--ledger", str(kept.folder)])
    finally:
        os.seteuid(0)
    assert code == 4
    assert capsys.readouterr().err == (
        f"tapestry audit: Only root and the data side's user may read {kept.folder}; try: sudo tapestry audit\n"
    )
