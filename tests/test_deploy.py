"""What deploy/ ships, held against the code and against systemd's own tools."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tapestryd.config import DaemonConfig, TrainerConfig, settings_of
from tapestryd.host import accountant, allowance
from tapestryd.layers import files_at, load_daemon, load_trainer

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted(path.name for path in (DEPLOY / "systemd").iterdir())
EXPOSURE = {"tapestryd.service": 15, "tapestry-trainer.service": 7, "tapestry-ready.service": 7}
"""Tenths of the exposure level by systemd 252: the one has the network and what its last comment says, the other the GPU."""

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.mark.parametrize(("name", "config"), [("tapestryd.toml", DaemonConfig), ("trainer.toml", TrainerConfig)])
def test_the_examples_hold_every_key_with_its_default_and_a_comment(name: str, config: type, tmp_path: Path) -> None:
    """Behind a "#": what a file says is in the way of a profile."""
    text = (DEPLOY / name).read_text()
    assert {key: value for key, value in tomllib.loads(text).items() if value} == {"schema_version": 1}
    path = tmp_path / name
    path.write_text(re.sub(r"(?m)^#(?=\w+ = )", "", text))
    load = load_daemon if config is DaemonConfig else load_trainer
    assert load(files_at(path), {}, {}).config == config()
    tables = tomllib.loads(path.read_text())
    assert tables.pop("schema_version") == 1
    assert [f"{section}.{key}" for section, table in tables.items() for key in table] == list(settings_of(config))
    for line in path.read_text().splitlines():
        if re.match(r"\w+ = ", line) and not line.startswith("schema_version"):
            assert re.search(r" # \w", line), f"no comment: {line}"


@needs_analyze
def test_the_units_are_sound(tmp_path: Path) -> None:
    """Verified with a program that exists: on this machine ours may not be installed at that place."""
    for name in UNITS:
        text = re.sub(r"/opt/tapestry/bin/tapestry\S*|/usr/bin/nvidia-modprobe(?= )", "/bin/true", (DEPLOY / "systemd" / name).read_text())
        (tmp_path / name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "tapestry" in line] == []
    assert done.returncode == 0


@needs_analyze
@pytest.mark.parametrize("unit", EXPOSURE)
def test_the_units_stay_hardened(unit: str) -> None:
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[unit]}", "--no-pager", str(DEPLOY / "systemd" / unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_and_the_defaults_name_the_same_places() -> None:
    daemon, trainer = DaemonConfig(), TrainerConfig()
    one, other = ((DEPLOY / "systemd" / name).read_text() for name in ("tapestryd.service", "tapestry-trainer.service"))
    assert "--config /etc/tapestry/tapestryd.toml" in one
    assert f"--config {daemon.trainer.config}" in other
    assert f"StateDirectory={daemon.node.state_dir.name}\n" in one
    assert f"StateDirectory={trainer.checkpoint.dir.name}\n" in other
    assert f"InaccessiblePaths=-{trainer.checkpoint.dir} -{daemon.trainer.config} -{daemon.trainer.config}.d\n" in one
    own = "/etc/tapestry/tapestryd.toml"
    assert f"InaccessiblePaths=-{daemon.node.state_dir} -{own} -{own}.d\n" in other
    assert f"BindReadOnlyPaths=-{trainer.data.paths[0]}\n" in other
    for key, unit in (
        (f"ListenStream={daemon.api.socket}", "tapestryd"),
        (f"ListenSequentialPacket={daemon.trainer.socket}", "tapestry-trainer"),
    ):
        assert f"{key}\n" in (DEPLOY / "systemd" / f"{unit}.socket").read_text()
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
    assert "Creating user 'tapestry-train'" in done.stderr
    assert "Creating group 'tapestry-admin'" in done.stderr


def test_the_instructions_name_files_that_exist() -> None:
    named = set(re.findall(r"deploy/[\w./-]+", (DEPLOY / "README.md").read_text()))
    shipped = {str(path.relative_to(DEPLOY.parent)) for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".md"}
    folders = {f"deploy/{name}" for name in ("systemd", "sysusers.d", "tmpfiles.d")}  # named as a whole
    parts = {"deploy/place.sh", "deploy/systemd-user/configure.sh", "deploy/systemd-user/tapestry.service"}
    parts |= {f"deploy/debian/{script}" for script in ("postinst", "prerm", "postrm")}  # of those that are named
    missing = {path for path in shipped - named if not any(path.startswith(f"{folder}/") for folder in folders)}
    assert missing <= parts
    assert named <= shipped | folders


@pytest.mark.parametrize(
    "script", sorted((*DEPLOY.glob("*.sh"), *DEPLOY.glob("debian/*"), *DEPLOY.glob("slurm/*"))), ids=lambda path: path.name
)
def test_scripts_are_shell(script: Path) -> None:
    shell = script.read_text().splitlines()[0].removeprefix("#!")
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_everything_is_put_in_its_place_and_configurations_stay(tmp_path: Path) -> None:
    place = ["sh", str(DEPLOY / "place.sh"), str(tmp_path), "/usr/lib/systemd/system", sys.executable]
    subprocess.run(place, check=True, umask=0o077)  # as of root on hardened machines
    placed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"usr/lib/systemd/system/{unit}" for unit in UNITS} <= placed
    assert {"etc/tapestry/tapestryd.toml", "etc/tapestry/trainer.toml", "usr/lib/sysusers.d/tapestry.conf"} <= placed
    closed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.stat().st_mode & 0o004}
    assert closed == {"etc/tapestry/tapestryd.toml", "etc/tapestry/trainer.toml"}
    removed = (DEPLOY / "uninstall.sh").read_text()
    folders = ("usr/share/tapestry", "usr/share/doc/tapestryd")
    assert all(f" /{folder}" in removed for folder in folders)
    written = {path for path in placed if path.startswith("usr/share/") and not path.startswith(folders)}
    assert len(written) == 7
    assert [path for path in written if f"/{path}" not in removed] == []
    removed = (DEPLOY / "uninstall-user.sh").read_text()
    assert [path for path in written if path.removeprefix("usr/share/") not in removed] == []
    ours = tmp_path / "etc" / "tapestry" / "trainer.toml"
    ours.write_text("ours")
    subprocess.run(place, check=True)
    assert ours.read_text() == "ours"
    documents = tmp_path / "usr/share/doc/tapestryd"
    named = {
        (page.parent / link).resolve()
        for page in documents.rglob("*.md")
        for link in re.findall(r"\]\(([\w./-]+\.md)[#)]", page.read_text())
    }
    assert documents / "deploy" / "OPERATING.md" in named
    assert {page for page in named if not page.is_file()} == set()


@pytest.mark.parametrize("script", ["uninstall.sh", "debian/postrm"])
def test_what_tapestry_data_wrote_goes_with_a_purge(script: str) -> None:
    purge = (DEPLOY / script).read_text()
    for drop_in, _ in (allowance._DAEMON, allowance._TRAINER):
        folder, name = drop_in.split("/")
        assert re.search(rf"for drop_ins in .*\b{re.escape(folder)}\b", purge)
        assert f'"{allowance.UNITS}/$drop_ins/{name}"' in purge


def test_what_is_to_be_installed_besides_is_what_the_package_asks_for() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)}
    told = {
        requirement
        for path in (*DEPLOY.rglob("*.md"), *DEPLOY.glob("*.toml"), *(DEPLOY.parent / "tapestryd").rglob("*.md"), Path(accountant.__file__))
        for requirement in re.findall(r"bin/pip install [^'`\n]*'([^']+)'", path.read_text())
    }
    assert {re.split("[<>=]", requirement)[0] for requirement in told} == {"torch", "dp-accounting", "nvidia-ml-py"}
    assert told <= known


def test_the_users_own_service_finds_its_configuration_good(tmp_path: Path) -> None:
    """The examples with one user's places, as they were typed: two files that load, with no path of the system's left."""
    places = ["config", str(tmp_path / "state"), "run", "data"]
    subprocess.run(["sh", str(DEPLOY / "systemd-user" / "configure.sh"), *places], check=True, cwd=tmp_path)
    assert load_trainer(files_at(tmp_path / "config" / "trainer.toml"), {}, {}).config.data.paths == (tmp_path / "data",)
    for name, load in (("tapestryd.toml", load_daemon), ("trainer.toml", load_trainer)):
        file = tmp_path / "config" / name
        assert str(tmp_path) in repr(load(files_at(file), {}, {}))  # type: ignore[operator]
        assert not re.search(r'"/(etc|srv|var|run)/', file.read_text())
    subprocess.run(["sh", str(DEPLOY / "systemd-user" / "configure.sh"), *places[:3], "other"], check=True, cwd=tmp_path)
    assert not (tmp_path / "other").exists()  # the settings stay, and name another


def test_the_containers() -> None:
    sides = yaml.safe_load((DEPLOY / "container" / "compose.yaml").read_text())["services"]
    program, file, *settings = sides["tapestryd"]["command"]
    assert (program, file) == ("tapestryd", "--config=/etc/tapestry/tapestryd.toml")
    flags = dict(setting.removeprefix("--set=").split("=", 1) for setting in settings)
    config = load_daemon(files_at(DEPLOY / "tapestryd.toml"), {}, flags).config
    assert str(config.trainer.socket) in sides["tapestry-trainer"]["command"]
    assert f"127.0.0.1:{config.metrics.listen.rpartition(':')[2]}:9470" in sides["tapestryd"]["ports"]
    for side, name in (("tapestryd", "tapestryd.toml"), ("tapestry-trainer", "trainer.toml")):
        assert f"../{name}:/etc/tapestry/{name}:ro" in sides[side]["volumes"]


def test_the_image_is_given_what_the_package_is_made_of() -> None:
    whole = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    folders = {pattern.rstrip("*") for pattern in whole["tool"]["setuptools"]["packages"]["find"]["include"]}
    lines = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert allowed == {"pyproject.toml", whole["project"]["readme"], *whole["project"]["license-files"], *folders}


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_at_its_time_limit_is_put_back_into_the_queue(number: int, requeued: bool, tmp_path: Path) -> None:
    """Slurm does so itself only for who is preempted. What is cancelled (SIGTERM) must not come back."""
    for name, text in (
        ("tapestryd", 'trap "kill \\$!; exit 0" TERM\nsleep 60 &\necho "$@"\nwait\n'),
        ("scontrol", f'echo "$@" > {tmp_path}/asked\n'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    job = subprocess.Popen(
        ["bash", str(DEPLOY / "slurm" / "tapestry.sbatch"), "own.toml"], env=environ, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    with job:
        assert job.stdout is not None
        given, said = sorted(job.stdout.readline().split() for _ in range(2))
        sockets = Path(said[1])
        assert (given[:2], said[0]) == (["--config", "own.toml"], "sockets:")
        assert f"api.socket={sockets}/tapestryd.sock" in given
        assert sockets.stat().st_mode & 0o777 == 0o700
        job.send_signal(number)
        assert job.wait(30) == 0
    assert (tmp_path / "asked").exists() == requeued
    assert not requeued or (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not sockets.exists()
