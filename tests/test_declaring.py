"""`tapestry data` as a process: what it writes, what it says, and every mistake in one sentence."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tapestryd.host.accountant import Steps, epsilon
from tapestryd.host.datasets import MANIFEST, RECORD
from tapestryd.host.manifest import parse


class Machine:
    """A trainer.toml, a folder for units, data under `data`, and `tapestry` run there."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.units, self.config = root, root / "data", root / "units", root / "trainer.toml"
        self.data.mkdir()
        self.units.mkdir()
        (self.data / "a.txt").write_text("a text\n")
        self.config.write_text('schema_version = 1\n[data]\npaths = ["data"]  # mine\n[checkpoint]\ndir = "state"\n')

    def tapestry(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "tapestryd.cli", "data", *words]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUTF8": "1"}
        done = subprocess.run(command, cwd=self.root, env=environ, capture_output=True, text=True, timeout=30, check=False)
        assert "Traceback" not in done.stderr
        return done

    def said(self, *words: str) -> str:
        done = self.tapestry(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_data_set_is_declared_listed_and_verified(machine: Machine) -> None:
    config = ("--config", str(machine.config))
    assert "not declared: taken as fully-open" in machine.said("list", *config)
    told = machine.said(
        "add", "data", "--class", "sovereign", "--tier", "1", "--owner", "North", "--lineage", "x", "--constraint", "attribution"
    )
    assert told.splitlines() == [
        "data version 1: sovereign, tier 1, 1 file, 7 B",
        "It will not be contributed: tier 1 needs its licence, and none is said; say it: tapestry data add DIR --rights ….",
    ]
    assert machine.said("add", "data", "--rights", "CC-BY-4.0", "--id", "north/a").count("\n") == 1
    manifest = parse((machine.data / MANIFEST).read_bytes())
    assert (manifest.artifact_id, manifest.owner, manifest.rights, manifest.lineage) == ("north/a", "North", "CC-BY-4.0", ("x",))
    assert machine.said("list", *config).splitlines() == [
        str(machine.data),
        "    north/a version 1, sovereign, tier 1, CC-BY-4.0",
        "    1 file, 7 B",
        "    contributed in runs of named Members",
    ]
    (found,) = json.loads(machine.said("list", "--json", *config))["datasets"]
    assert (found["manifest"]["class"], found["bytes"], found["contributed"]) == ("sovereign", 7, "members")
    assert machine.said("verify", *config) == f"{machine.data}: as it was recorded\n"
    assert json.loads(machine.said("verify", "--json", *config)) == {"schema": 1, "differences": {str(machine.data): []}}
    (machine.data / "a.txt").write_text("another\n")
    done = machine.tapestry("verify", *config)
    assert (done.returncode, done.stdout) == (1, f"{machine.data}/a.txt: changed since it was recorded\n")
    done = machine.tapestry("verify", "data", "--json")
    changed = [f"{machine.data}/a.txt: changed since it was recorded"]
    assert (done.returncode, json.loads(done.stdout)["differences"]) == (1, {"data": changed})
    assert "among" not in machine.said("add", "data")
    assert machine.said("verify", "data").endswith("as it was recorded\n")
    assert sorted(path.name for path in machine.data.iterdir()) == ["a.txt", RECORD, MANIFEST]


def test_what_is_spent_of_a_data_set_is_listed(machine: Machine) -> None:
    config = ("--config", str(machine.config))
    machine.said("add", "data", "--class", "fully-open", "--tier", "2", "--rights", "CC0-1.0", "--epsilon", "3")
    assert "not contributed: tier 2 is differential privacy, and there is no budget" in machine.said("list", *config)
    machine.config.write_text(machine.config.read_text() + "[privacy]\nepsilon = 8\ndelta = 1e-5\n")
    assert "epsilon 0.000 of 3 spent, of all data 0.000 of 8, at delta 1e-05" in machine.said("list", *config)
    one, other = ({"datasets": [name], "rate": 0.01, "multiplier": 1.0, "steps": 1000} for name in ("data", "other"))
    (machine.root / "state").mkdir()
    (machine.root / "state" / "privacy.json").write_text(json.dumps({"schema": 1, "spent": [one, other]}))
    (found,) = json.loads(machine.said("list", "--json", *config))["datasets"]
    assert found["privacy"] == {
        "delta": 1e-5, "spent": epsilon([Steps(0.01, 1.0, 1000)], 1e-5), "most": 3.0,
        "all_spent": epsilon([Steps(0.01, 1.0, 2000)], 1e-5), "all_most": 8.0,
    }  # fmt: skip
    (machine.root / "state" / "privacy.json").write_text("{")
    assert "what is spent is not known" in machine.tapestry("list", *config).stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["add", "absent", "--class", "private"], 1, "absent: no such folder"),
        (["add", "data"], 1, "--class is missing; say who may use it: fully-open, unique-open"),
        (["add", "data", "--class", "open"], 2, "--class"),
        (["add", "data", "--class", "fully-open", "--epsilon", "-1"], 1, "epsilon = -1.0: must be a number from 0 to 100"),
        (["add", "data", "--class", "fully-open", "--owner", "a\nb"], 1, "owner = "),
        (["add", "data", "--class", "fully-open", "--constraint", "no"], 2, "--constraint"),
        (["add", "units", "--class", "fully-open"], 1, "no .txt, .md, .jsonl, .parquet file under"),
        (["verify", "--config", "trainer.toml"], 1, "nothing is declared in data.paths"),
        (["verify", "data"], 1, "tapestry-data.toml: No such file"),
        (["list", "--config", "absent.toml"], 1, "absent.toml: cannot be read"),
        (["list"], 1, "/etc/tapestry/trainer.toml"),
        (["protect", "absent"], 1, "absent: No such file"),
        ([], 2, "COMMAND"),
    ],
)
def test_faults_are_one_sentence(machine: Machine, words: list[str], code: int, says: str) -> None:
    done = machine.tapestry(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert sorted(path.name for path in machine.data.iterdir()) == ["a.txt"]


def test_a_list_of_protected_text(machine: Machine) -> None:
    (machine.root / "poem.txt").write_text(" ".join(map(str, range(30))))
    lines = machine.said("protect", "poem.txt", "data/a.txt").splitlines()
    assert [line[64:] for line in lines] == ["  # poem.txt", "  # poem.txt", "  # a.txt"]
    (machine.root / "bad").write_bytes(b"\xff")
    assert "not text in UTF-8" in machine.tapestry("protect", "bad").stderr


@pytest.mark.skipif(not os.access("/srv", os.W_OK), reason="needs a folder that the units do not hide")
def test_a_folder_is_allowed_and_forbidden(machine: Machine) -> None:
    import tempfile

    options = ("--config", str(machine.config), "--units", str(machine.units))
    (machine.units / "tapestry-trainer.service").touch()
    machine.config.chmod(0o640)
    with tempfile.TemporaryDirectory(dir="/srv") as folder:
        told = machine.said("allow", folder, *options)
        assert "systemctl daemon-reload" in told
        assert f"chgrp -R tapestry-train {folder}" in told
        assert "It was so before." in machine.said("allow", folder, *options)
        assert tomllib.loads(machine.config.read_text())["data"]["paths"] == [str(machine.data), folder]
        assert "# mine" in machine.config.read_text()
        assert machine.config.stat().st_mode & 0o777 == 0o640
        assert f"InaccessiblePaths=-{folder}\n" in (machine.units / "tapestryd.service.d" / "10-data.conf").read_text()
        assert machine.said("forbid", folder, *options).startswith(f"data.paths = {machine.data}\n")
        assert list(machine.units.rglob("*.conf")) == []
        assert tomllib.loads(machine.config.read_text())["data"]["paths"] == [str(machine.data)]
        (machine.units / "tapestry-trainer.service").unlink()
        assert "Takes effect when tapestryd is started again" in machine.said("allow", folder, *options)
        assert list(machine.units.rglob("*.conf")) == []
        machine.said("forbid", folder, *options)
        assert "allow another folder first" in machine.tapestry("forbid", "data", *options).stderr
    for nonsense in ("/", "/etc", "state", "absent"):
        done = machine.tapestry("allow", nonsense, *options)
        assert (done.returncode, done.stdout) == (1, ""), nonsense
    assert list(machine.units.rglob("*.conf")) == []
