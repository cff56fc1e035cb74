"""`tapestry member` as a process: keys that are made once and stay private, delegations that peers take, faults in one sentence."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocols.identity import public_key
from protocols.membership import from_file, owner
from tests.people import CAST, MEMBERS, RULES, RUN, in_roster_mode, verify

ADA, BO = list(CAST)[:2]


def tapestry(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tapestryd.cli", *words]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done


def made(folder: Path) -> str:
    """A new key in north.key; the Member's id."""
    done = tapestry(folder, "member", "new", "north.key")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def delegate(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return tapestry(folder, "member", "delegate", "--key", "north.key", "-o", "delegation.json", *words)


def test_a_key_is_made_once_private_and_shown(tmp_path: Path) -> None:
    member = made(tmp_path)
    public_key(member)
    path = tmp_path / "north.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["north.key"]
    assert tapestry(tmp_path, "member", "show", "north.key").stdout.strip() == member
    before = path.read_bytes()
    done = tapestry(tmp_path, "member", "new", "north.key")
    assert (done.returncode, done.stdout) == (1, "")
    assert "never overwritten" in done.stderr
    assert path.read_bytes() == before


def test_all_nodes_get_one_file_of_one_epoch(tmp_path: Path) -> None:
    member, began = made(tmp_path), time.time()
    done = delegate(tmp_path, "--run", RUN, "--node", ADA, "--node", BO, "--days", "2")
    assert done.returncode == 0, done.stderr
    first, second = from_file((tmp_path / "delegation.json").read_bytes(), verify)
    assert [first.node, second.node] == [ADA, BO]
    assert (first.nodes, first.epoch, first.not_after_ms) == (second.nodes, second.epoch, second.not_after_ms)
    assert first.nodes == 2
    assert began - 1 <= first.epoch <= time.time()
    assert abs(first.not_after_ms / 1000 - began - 2 * 86_400) < 30
    assert owner(second, run=RUN, members=[member], node=BO, at_ms=first.not_after_ms) == member
    assert f"epoch {first.epoch}" in done.stdout
    assert ADA in done.stdout


def test_each_has_a_document(tmp_path: Path) -> None:
    made_ = json.loads(tapestry(tmp_path, "member", "new", "north.key", "--json").stdout)
    assert json.loads(tapestry(tmp_path, "member", "show", "north.key", "--json").stdout) == made_
    told = json.loads(delegate(tmp_path, "--run", RUN, "--node", ADA, "--json").stdout)
    (only,) = from_file((tmp_path / "delegation.json").read_bytes(), verify)
    assert told == made_ | {
        "schema": 1, "run": RUN, "nodes": [ADA], "epoch": only.epoch, "not_after_ms": only.not_after_ms
    }  # fmt: skip


def test_the_run_may_be_named_by_its_rules(tmp_path: Path) -> None:
    member = made(tmp_path)
    rules = in_roster_mode(RULES, sorted([member, MEMBERS[0].peer]))
    (tmp_path / "run.toml").write_text(rules.to_toml())
    done = delegate(tmp_path, "--run", "run.toml", "--node", ADA, "--epoch", "7")
    assert done.returncode == 0, done.stderr
    (only,) = from_file((tmp_path / "delegation.json").read_bytes(), verify)
    assert (only.run, only.epoch, only.nodes) == (rules.run_id, 7, 1)
    (tmp_path / "run.toml").write_text(in_roster_mode(RULES).to_toml())
    done = delegate(tmp_path, "--run", "run.toml", "--node", ADA)
    assert done.returncode == 1
    assert f"{member} is none of this run's 3 Members" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--run", "absent.toml", "--node", ADA], 1, "No such file"),
        (["--run", "north.key", "--node", ADA], 1, "--run north.key: "),
        (["--run", RUN, "--node", ADA, "--node", ADA], 1, "a node is named twice"),
        (["--run", RUN, "--node", "zoe"], 2, "not the id of an Ed25519 key"),
        (["--run", RUN], 2, "--node"),
        (["--run", RUN, "--node", ADA, "--days", "0"], 2, "from 1 to 3650"),
        (["--run", RUN, "--node", ADA, "--epoch", "-1"], 2, "--epoch"),
        (["--run", RUN, "--node", ADA, "--epoch", str(1 << 53)], 2, "must be a whole number"),
        (["--run", RUN, "--node", ADA, "--key", "absent.key"], 1, "absent.key: No such file"),
        (["--run", RUN, "--node", ADA, "--key", "text"], 1, "not an Ed25519 libp2p identity file"),
        (["--run", RUN, "--node", ADA, "-o", "absent/x"], 1, "absent/x: No such file"),
        (["--run", RUN, "--node", ADA, "-o", "north.key"], 1, "is the key itself"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    made(tmp_path)
    (tmp_path / "text").write_text("x")
    key = (tmp_path / "north.key").read_bytes()
    done = delegate(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "delegation.json").exists()
    assert (tmp_path / "north.key").read_bytes() == key


def test_help_and_no_words(tmp_path: Path) -> None:
    assert "delegate" in tapestry(tmp_path, "member", "--help").stdout
    assert tapestry(tmp_path, "member").returncode == 2
    assert "member" in tapestry(tmp_path, "--help").stdout
    assert tapestry(tmp_path, "--json", "member").returncode == 2
