"""`tapestry contrib` on a real log: the account, the evidence that is handed on, and every way in which it may be none."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocols.accounts import opening
from tapestryd import contrib
from tapestryd.host.files import write
from tapestryd.screen import columns
from tests.lineages import PEOPLE
from tests.scripted import STATUS, Served
from tests.test_audit import ROUNDS, Kept
from tests.test_cli import tapestry

RunIt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "state")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunIt:
    monkeypatch.setenv("TAPESTRY_SOCKET", "/absent")

    def run(*words: object) -> tuple[int, str, str]:
        code = contrib.main(list(map(str, words)))
        return code, *capsys.readouterr()

    return run


def told(result: tuple[int, str, str]) -> Any:
    assert (result[0], result[2]) == (0, "")
    return json.loads(result[1])


def test_the_account_of_a_log(kept: Kept, run: RunIt, tmp_path: Path) -> None:
    me = PEOPLE[1]
    from protocols.identity import identity_file

    write(kept.state / "identity.key", identity_file(me.seed, me.key.public_key().public_bytes_raw()))
    found = told(run("--state", kept.state, "--json"))
    assert (found["run"], found["heights"], found["membership"]) == (kept.line.rules.run_id, [1, ROUNDS], "open")
    assert {share["peer"]: share["rounds"] for share in found["shares"]} == {person.peer: ROUNDS for person in PEOPLE[:3]}
    assert found["mine"]["peer"] == me.peer
    assert found["mine"]["steps"] == sum(
        claim.steps
        for entry, _ in kept.line.entries
        for peer, claim in zip(entry.roster.members, entry.roster.claims, strict=True)
        if peer == me.peer
    )
    code, shown, _ = run("--state", kept.state)
    assert code == 0
    assert f"{ROUNDS} rounds, heights 1 to {ROUNDS}" in shown
    assert "33.3%" in shown
    assert "keys are free" in shown


def test_names_are_of_those_who_gave_themselves_one(kept: Kept, served: Served) -> None:
    named = replace(STATUS.peers[0], peer_id=PEOPLE[0].peer, name="ada\x1b[31m")
    served.operator.now = replace(STATUS, peers=(named,))
    done = tapestry(served.socket, "contrib", "--state", str(kept.state), "--json")
    assert {share["peer"]: share["name"] for share in json.loads(done.stdout)["shares"]} == {
        person.peer: "ada\x1b[31m" if person is PEOPLE[0] else "" for person in PEOPLE[:3]
    }
    shown = tapestry(served.socket, "contrib", "--state", str(kept.state), COLUMNS="40").stdout
    assert "ada?[31m" in shown
    assert max(map(columns, shown.splitlines())) == 40


def test_evidence_proves_the_same_elsewhere(kept: Kept, run: RunIt, tmp_path: Path) -> None:
    file, id = tmp_path / "run.account", kept.line.rules.run_id
    assert told(run("export", file, "--state", kept.state, "--json"))["said"].endswith(f"heights 1 to {ROUNDS} of run {id}.")
    mine = told(run("--state", kept.state, "--json"))
    assert told(run("verify", file, "--run", id, "--json")) == mine
    assert run("export", file, "--state", kept.state)[0] == 1
    kept.entry(1).unlink()
    assert told(run("--state", kept.state, "--json"))["heights"] == [2, ROUNDS]
    kept.entry(3).unlink()
    code, out, err = run("--state", kept.state)
    assert (code, out) == (1, "")
    assert "0000000004.entry" in err


@pytest.mark.parametrize("spoil", ["number", "short", "run", "nothing", "text", "packing", "only rules", "absent"])
def test_what_is_no_evidence_is_a_sentence(kept: Kept, run: RunIt, tmp_path: Path, spoil: str) -> None:
    file, named = tmp_path / "a", ()
    run("export", file, "--state", kept.state)
    packed, data = file.read_bytes(), gzip.decompress(file.read_bytes())
    match spoil:
        case "number":
            steps = b'"steps":' + str(kept.line.entries[2][0].roster.claims[0].steps).encode()
            packed = gzip.compress(data.replace(steps, b'"steps":99'))
            assert steps in data
        case "short":
            packed = gzip.compress(data[:-3])
        case "run":
            named = ("--run", "ab" * 32)
        case "nothing":
            packed = gzip.compress(b"")
        case "text":
            packed = b"I did it all, believe me"
        case "packing":
            packed = packed[:-9]
        case "only rules":
            packed = gzip.compress(opening(kept.line.rules))
    file.write_bytes(packed)
    if spoil == "absent":
        file.unlink()
    code, out, err = run("verify", file, *named)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert str(file) in err


def test_a_log_that_is_wrong_is_named(kept: Kept, run: RunIt, tmp_path: Path) -> None:
    kept.voted(2, voters=1)
    code, _, err = run("--state", kept.state)
    assert (code, "0000000002.entry" in err, "no_quorum" in err) == (1, True, True)
    kept.entry(2).write_bytes(b"")
    assert "0000000002.entry" in run("--state", kept.state)[2]
    for height in range(1, ROUNDS + 1):
        kept.entry(height).unlink()
    assert "nothing to account for" in run("--state", kept.state)[2]
    (kept.folder / "rules.json").write_bytes(b"{}")
    assert "rules.json" in run("--state", kept.state)[2]
    assert run("--state", tmp_path / "absent")[0] == 1
