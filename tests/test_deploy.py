"""What deploy/ ships, held against the code and against systemd's own tools."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tapestryd.config import DaemonConfig, TrainerConfig, load_daemon, load_trainer, settings_of

DEPLOY = Path(__file__).parent.parent / "deploy"
EXPOSURE = 20
"""Tenths of the exposure level, 1.8 by systemd 252: the network, the GPU, and what the unit's last comment says."""

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.mark.parametrize(("name", "config"), [("tapestryd.toml", DaemonConfig), ("trainer.toml", TrainerConfig)])
def test_the_examples_hold_every_key_with_its_default_and_a_comment(name: str, config: type) -> None:
    path = DEPLOY / name
    load = load_daemon if config is DaemonConfig else load_trainer
    assert load(path, {}, {}) == config()
    tables = tomllib.loads(path.read_text())
    assert tables.pop("schema_version") == 1
    assert [f"{section}.{key}" for section, table in tables.items() for key in table] == list(settings_of(config))
    for line in path.read_text().splitlines():
        if re.match(r"\w+ = ", line) and not line.startswith("schema_version"):
            assert re.search(r" # \w", line), f"no comment: {line}"


@needs_analyze
def test_the_unit_is_sound(tmp_path: Path) -> None:
    """Verified with a program that exists: on this machine ours may not be installed at that place."""
    unit = tmp_path / "tapestryd.service"
    unit.write_text((DEPLOY / "tapestryd.service").read_text().replace("/opt/tapestry/bin/tapestryd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "tapestryd" in line] == []
    assert done.returncode == 0


@needs_analyze
def test_the_unit_stays_hardened() -> None:
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(DEPLOY / "tapestryd.service")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_and_the_defaults_name_the_same_places() -> None:
    unit = (DEPLOY / "tapestryd.service").read_text()
    daemon, trainer = DaemonConfig(), TrainerConfig()
    assert "--config /etc/tapestry/tapestryd.toml" in unit
    assert daemon.trainer.config == Path("/etc/tapestry/trainer.toml")
    assert f"StateDirectory={daemon.node.state_dir.name} {trainer.checkpoint.dir.name}\n" in unit
    assert f"RuntimeDirectory={daemon.api.socket.parent.name}\n" in unit
    made = (DEPLOY / "tmpfiles.d" / "tapestry.conf").read_text()
    assert f"d {trainer.data.paths[0]} " in made


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_user_and_the_group(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    words = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(DEPLOY / "sysusers.d" / "tapestry.conf")]
    (tmp_path / "etc" / "passwd").touch()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Creating user 'tapestry'" in done.stderr
    assert "Creating group 'tapestry-admin'" in done.stderr


def test_the_instructions_name_files_that_exist() -> None:
    named = set(re.findall(r"deploy/[\w./-]+", (DEPLOY / "README.md").read_text()))
    shipped = {str(path.relative_to(DEPLOY.parent)) for path in DEPLOY.rglob("*") if path.is_file() and path.name != "README.md"}
    assert named == shipped
