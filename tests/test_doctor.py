"""`tapestry doctor`: what it finds with a daemon and without, and that each finding names its way out."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.trainer import Check
from tapestryd import __version__
from tapestryd.cli import walls
from tapestryd.cli.finding import GOOD, UNKNOWN, WARNING
from tapestryd.host import probes
from tests.scripted import STATUS, Served
from tests.test_cli import tapestry


def checks(**verdicts: str) -> dict[str, str]:
    names = [*(f"data.{check.name.lower()}" for check in Check), *(f"network.{name}" for name in probes.network_side(Path("/x"), []))]
    return dict.fromkeys(names, "held") | {name.replace("_", ".", 1): verdict for name, verdict in verdicts.items()}


def test_every_check_is_known_and_has_a_fix() -> None:
    assert set(checks()) == set(walls._SAYS)
    found = walls.of_daemon({"method": "systemd", "checks": dict.fromkeys(checks(), "open")})
    assert all(finding.fix for finding in found if finding.verdict == WARNING)
    assert len([finding for finding in found if finding.verdict == WARNING]) == len(checks())


@pytest.mark.parametrize(
    ("isolation", "verdicts"),
    [
        ({"method": "namespaces", "checks": checks()}, {GOOD}),
        ({"method": "namespaces", "checks": checks(data_memory="untried")}, {GOOD, UNKNOWN}),
        ({"method": "none", "checks": checks()}, {GOOD, WARNING}),
        ({"method": "systemd", "checks": {"network.devices": "held"}}, {GOOD, UNKNOWN}),
    ],
)
def test_what_a_daemon_has_found(isolation: dict[str, object], verdicts: set[str]) -> None:
    assert {finding.verdict for finding in walls.of_daemon(isolation)} == verdicts


@pytest.mark.parametrize(
    ("scoped", "units", "verdict"), [(True, True, GOOD), (True, False, GOOD), (False, True, UNKNOWN), (False, False, WARNING)]
)
def test_an_older_kernel_is_no_fault_of_the_units(
    scoped: bool, units: bool, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doctor ends with 5 for what can be put right; the kernel of a distribution cannot."""
    monkeypatch.setattr(walls.box, "trouble", lambda: "")  # tests are not single-threaded
    monkeypatch.setattr(walls.box, "scoped", lambda: scoped)
    monkeypatch.setattr(walls, "_UNITS", (tmp_path if units else tmp_path / "none",))
    assert {finding.name: finding.verdict for finding in walls.of_machine()}["scopes"] == verdict


def test_with_a_daemon_and_without(served: Served) -> None:
    told = json.loads(tapestry(served.socket, "doctor", "--json").stdout)
    assert told["schema"] == 1
    names = {finding["name"] for finding in told["findings"]}
    assert {"boxes", "scopes", "method"} <= names
    done = tapestry(served.socket.with_name("absent"), "doctor")
    assert done.returncode == 5
    assert "No daemon answers" in done.stdout


def test_whether_boxes_can_be_made_is_tried() -> None:
    """In processes of their own: tests are not single-threaded."""

    def printed(spoil: str) -> str:
        script = f"from tapestryd.host import box; {spoil}; print(box.trouble())"
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    if here := printed("pass"):
        pytest.skip(f"none can: {here}")
    assert "the box cannot be closed (No such file or directory at /nowhere)" in printed("box._STAGE = '/nowhere'")


def test_how_many_files_it_may_open_is_asked_of_the_process_that_answers(served: Served) -> None:
    """Here that is this one, whatever it believes its own number to be, as in a box."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit in (1000, min(hard, 4096)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            found = json.loads(tapestry(served.socket, "doctor", "--json").stdout)["findings"]
            assert [one["says"] for one in found if (one["section"], one["name"]) == ("daemon", "files")] == [
                "it may open only 1000 files"
            ] * (limit == 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_of_a_daemon_and_its_files(served: Served, tmp_path: Path) -> None:
    served.operator.now = replace(STATUS, version=__version__, peers=(), health=("the clock is wrong\x1b[2J",))
    (tmp_path / "state").mkdir()
    toml = tmp_path / "tapestryd.toml"
    toml.write_text('schema_version = 1\n[node]\nstate_dir = "state"\n[trainer]\nenabled = false\n[storage]\nmin_free = "1 MiB"\n')
    served.operator.named = (toml,)
    done = tapestry(served.socket, "doctor", "--json")
    found = {(one["section"], one["name"], one["verdict"]) for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 5
    assert found >= {
        ("settings", "tapestryd", GOOD), ("settings", "running", WARNING), ("machine", "disk", GOOD), ("daemon", "answers", GOOD),
        ("daemon", "health", WARNING),
    }  # fmt: skip
    shown = tapestry(served.socket, "doctor").stdout
    assert "✗ daemon: the clock is wrong?[2J\n" in shown
    assert "✗ settings: the daemon has not taken up node.name\n    tapestry reload" in shown
    toml.write_text("schema_version = 1\n[log]\nlevel = 'loud'\n")
    assert f"✗ settings: {toml}: log.level = 'loud': must be" in tapestry(served.socket, "doctor").stdout
    toml.rename(elsewhere := tmp_path / "elsewhere.toml")
    assert f"✗ settings: {elsewhere}: log.level" in tapestry(served.socket, "doctor", "--config", str(elsewhere)).stdout
