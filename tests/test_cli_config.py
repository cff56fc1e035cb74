"""`tapestry config` as a process, on real files: shown with origins, checked, changed without losing a comment, or not at all."""

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from tapestryd import cli
from tapestryd.cli import sides
from tapestryd.config import DaemonConfig, TrainerConfig, settings_of
from tapestryd.layers import Source
from tapestryd.profiles import PROFILES
from tests.scripted import Served

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The examples, with each other's place in this folder."""
    tmp_path = tmp_path / "tapestry"
    tmp_path.mkdir()
    for name in ("tapestryd.toml", "trainer.toml"):
        text = (DEPLOY / name).read_text().replace('#config = "/etc/tapestry/', f'config = "{tmp_path}/')
        (tmp_path / name).write_text(text)
    (tmp_path / "trainer.toml").chmod(0o640)
    return tmp_path


def config(
    folder: Path, *words: str, socket: Path | None = None, stdin: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tapestryd.cli", "config", *words]
    if socket is None:
        command += ["--config", str(folder / "tapestryd.toml")]
    environment = {"PATH": os.environ["PATH"], "PYTHONUTF8": "1", "TAPESTRY_SOCKET": str(socket or folder / "absent.sock"), **environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, input=stdin)
    assert "Traceback" not in done.stderr
    return done


def test_every_setting_with_its_origin(files: Path) -> None:
    (files / "trainer.toml.d").mkdir()
    (files / "trainer.toml.d" / "mine.toml").write_text('[schedule]\nhours = ["sat 00:00-24:00"]\n')
    done = config(files, "show", "--origin", TAPESTRY_NODE__NAME="aspen")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(settings_of(DaemonConfig)) + len(settings_of(TrainerConfig))
    assert any(line.startswith('node.name = "aspen" ') and line.endswith("# environment TAPESTRY_NODE__NAME") for line in lines)
    assert any(line.startswith("schedule.hours = [") and line.endswith("trainer.toml.d/mine.toml") for line in lines)
    listed = json.loads(config(files, "show", "--json").stdout)
    assert listed["schema"] == 1
    assert {(one["side"], one["key"]): one["value"] for one in listed["settings"]}[("trainer", "checkpoint.every")] == "1m"


def test_get(files: Path) -> None:
    assert config(files, "get", "log.level").stdout == "info\n"
    assert config(files, "get", "data.paths").stdout == '["/srv/tapestry/data"]\n'
    assert config(files, "get", "sandbox.require", "--json").stdout.count('"tapestryd"') == 1
    assert json.loads(config(files, "get", "sandbox.require", "--trainer", "--json").stdout)["side"] == "trainer"
    done = config(files, "get", "log.levle")
    assert (done.returncode, done.stderr) == (1, "log.levle: no such key; did you mean log.level?\n")


def test_set_and_unset_keep_everything_else(files: Path) -> None:
    before = (files / "trainer.toml").read_text()
    done = config(files, "set", "cpu.max_load", "40%")
    assert done.returncode == 0
    assert done.stdout.startswith(f'cpu.max_load = "40%" (was "0%"), by {files}/trainer.toml. It takes effect with: systemctl restart')
    after = (files / "trainer.toml").read_text()
    assert [line for line in after.splitlines() if line not in before.splitlines()] == [
        next(line[1:] for line in before.splitlines() if line.startswith("#max_load")).replace('"0%"', '"40%"', 1)
    ]
    assert (files / "trainer.toml").stat().st_mode & 0o777 == 0o640
    done = config(files, "unset", "log.level")
    assert done.stdout == 'log.level = "info", as before, by built-in. `tapestry reload` takes it up.\n'
    assert "level" not in tomllib.loads((files / "tapestryd.toml").read_text())["log"]
    done = config(files, "set", "trust.score_ban", "-60")
    assert done.returncode == 0
    done = config(files, "set", "network.listen", "/ip4/0.0.0.0/tcp/4001,/ip6/::/tcp/4001")
    assert json.loads(config(files, "get", "network.listen").stdout) == ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"]


def test_set_to_what_is_wrong_changes_nothing(files: Path) -> None:
    before = (files / "tapestryd.toml").read_bytes()
    for key, value, says in (
        ("log.level", "loud", "log.level = 'loud': must be error, warning, info or debug"),
        ("network.max_upload", "1", "at least"),
        ("storage.keep_snapshots", "few", "must be a whole number"),
    ):
        done = config(files, "set", key, value)
        assert (done.returncode, done.stdout) == (1, "")
        assert says in done.stderr
    assert (files / "tapestryd.toml").read_bytes() == before
    (files / "tapestryd.toml.d").mkdir()
    (files / "tapestryd.toml.d" / "a.toml").write_text('[log]\nlevel = "error"\n')
    done = config(files, "set", "log.level", "debug")
    assert done.stdout.startswith(
        f'log.level is written to {files}/tapestryd.toml, but {files}/tapestryd.toml.d/a.toml has the last word: "er'
    )


def test_check_names_every_fault(files: Path, tmp_path: Path) -> None:
    assert config(files, "check").stdout == f"{files}/tapestryd.toml: good.\n{files}/trainer.toml: good.\n"
    other = tmp_path / "trainer-new.toml"
    other.write_text("schema_version = 1\n[data]\nseed = -1\nsed = 1\n")
    done = config(files, "check", str(other))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)
    (files / "trainer.toml").write_text("schema_version = 1\n[data]\nseed = -1\n")
    assert config(files, "check").returncode == 1
    (files / "trainer.toml").unlink()
    assert config(files, "check").stdout == f"{files}/tapestryd.toml: good.\n"


def test_who_may_not_read_is_told_so(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = files / "tapestryd.toml"
    monkeypatch.setattr(sides, "files_at", lambda path: (Source(path, fault=os.strerror(errno.EACCES)),))
    assert cli.main(["config", "show", "--config", str(path)]) == 4
    assert capsys.readouterr().err == f"{path}: only root and the service's own user may read it; use sudo.\n"


def test_edit_keeps_only_what_is_good(files: Path) -> None:
    path = files / "tapestryd.toml"
    before = path.read_text()
    assert config(files, "edit", EDITOR="true").stdout == "Nothing was changed.\n"
    done = config(files, "edit", EDITOR="sed -i '/^#level/s/.*/level = \"loud\"/'", stdin="")
    assert (done.returncode, path.read_text()) == (1, before)
    assert "log.level = 'loud'" in done.stderr
    assert done.stderr.endswith(f"{path} is as it was.\n")
    done = config(files, "edit", EDITOR="sed -i '/^#level/s/#level = .info/level = \\x22debug/'")
    assert (done.returncode, path.read_text()) == (0, before.replace('#level = "info"', 'level = "debug"'))
    assert config(files, "edit", EDITOR="/absent").returncode == 1


def test_a_link_to_a_file_stays_one(files: Path) -> None:
    path, kept = files / "tapestryd.toml", files / "kept"
    kept.mkdir()
    path.rename(kept / path.name)
    path.symlink_to(kept / path.name)
    assert config(files, "set", "node.name", "aspen").returncode == 0
    assert path.is_symlink()
    assert 'name = "aspen"' in (kept / path.name).read_text()


def test_files_are_utf_8_in_every_locale(files: Path) -> None:
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = files / "tapestryd.toml"
    path.write_text(path.read_text("utf-8") + "# °C\n", "utf-8")
    assert config(files, "edit", EDITOR="sed -i '/^#level/s/#level = .info/level = \\x22debug/'", **plain).returncode == 0
    assert path.read_text("utf-8").endswith("# °C\n")
    done = config(files, "edit", EDITOR="sed -i 's/°/\\xb0/'", stdin="", **plain)
    assert (done.returncode, "not a TOML file in UTF-8" in done.stderr) == (1, True)
    done = config(files, "set", "node.name", "Žižka", **plain)
    assert (done.returncode, done.stderr) == (1, "Something in it is no text in UTF-8; in a locale such as C.UTF-8 it may be one.\n")


def test_diff_against_the_daemon(served: Served, files: Path) -> None:
    served.operator.named = (files / "tapestryd.toml",)
    done = config(files, "diff", socket=served.socket)
    assert done.stdout == 'node.name: "aspen" → ""  (reload)\n'
    (files / "tapestryd.toml").write_text('schema_version = 1\n[node]\nname = "aspen"\n[storage]\nkeep_snapshots = 3\n')
    assert config(files, "diff", socket=served.socket).stdout == "storage.keep_snapshots: 2 → 3  (restart)\n"
    assert "aspen" in config(files, "show", "--running", "--origin", socket=served.socket).stdout
    assert config(files, "diff").returncode == 3


def test_profiles(files: Path) -> None:
    listed = json.loads(config(files, "profile", "list", "--json").stdout)["profiles"]
    assert [one["name"] for one in listed] == list(PROFILES)
    before = (files / "trainer.toml").read_text()
    done = config(files, "profile", "apply", "laptop", "--dry-run")
    assert 'schedule.when_user_active: "run" → "pause"\n' in done.stdout
    assert done.stdout.endswith("Nothing is written.\n")
    assert (files / "trainer.toml").read_text() == before
    assert config(files, "profile", "apply", "laptop").returncode == 0
    assert config(files, "get", "schedule.when_user_active").stdout == "pause\n"
    assert config(files, "get", "node.profile", "--trainer").stdout == "laptop\n"
    assert config(files, "profile", "apply", "mainframe").returncode == 2
    assert config(files, "set", "storage.keep_snapshots", "2").returncode == 0
    (files.parent / "systemd" / "user").mkdir(parents=True)
    (files.parent / "systemd" / "user" / "tapestry.service").touch()
    assert config(files, "profile", "apply", "server").stdout.endswith("\nIt takes effect with: systemctl --user restart tapestry.\n")
    assert f"storage.keep_snapshots: 2 stays, by {files}/tapestryd.toml\n" in config(files, "profile", "apply", "server").stdout


@pytest.mark.parametrize(("name", "words"), [("tapestryd.toml", []), ("trainer.toml", ["--trainer"])])
def test_the_schema_takes_the_examples_and_not_what_is_wrong(files: Path, name: str, words: list[str]) -> None:
    schema = json.loads(config(files, "schema", *words).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    body = tomllib.loads(re.sub(r"(?m)^#(?=\w+ = )", "", (files / name).read_text()))
    jsonschema.validate(body, schema)
    for section, table in body.items():
        if isinstance(table, dict):
            for key in table:
                wrong = {**body, section: {**table, key: {"of": "another kind"}}}
                with pytest.raises(jsonschema.ValidationError):
                    jsonschema.validate(wrong, schema)
