"""What doctor looks at, each as it is well and as it is not."""

import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapestryd.cli import checkup
from tapestryd.cli.finding import GOOD, WARNING, Finding
from tests.scripted import IDLE, STATUS


def verdicts(found: Iterable[Finding]) -> list[tuple[str, str]]:
    findings = list(found)
    assert all(one.says for one in findings)
    return [(one.name, one.verdict) for one in findings]


def test_the_clock() -> None:
    assert verdicts(checkup.clock(0x2001)) == [("clock", GOOD)]
    assert verdicts(checkup.clock(0x40)) == [("clock", WARNING)]
    assert {name for name, _ in verdicts(checkup.clock())} == {"clock"}


def test_the_disk(tmp_path: Path) -> None:
    assert verdicts(checkup.disk(tmp_path / "not" / "yet", 1)) == [("disk", GOOD)]
    assert verdicts(checkup.disk(tmp_path, 1 << 62)) == [("disk", WARNING)]


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = list(checkup.ports([f"/ip4/127.0.0.1/tcp/{port}", "/ip4/127.0.0.1/tcp/0", "/ip4/192.0.2.1/tcp/1", "/dns4/x/tcp/1"]))
    assert [one.verdict for one in found] == [WARNING, GOOD, WARNING]
    assert f"sport = :{port}" in found[0].fix
    assert found[2].fix == "correct network.listen"


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "2.13.0+cu126"
    monkeypatch.setattr(checkup, "torch_version", lambda: build)
    assert verdicts(checkup.gpu(tmp_path)) == []
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia0"):
        (tmp_path / "dev" / name).touch()
    (missing,) = checkup.gpu(tmp_path)
    assert (missing.verdict, missing.says) == (WARNING, "the NVIDIA driver is loaded, but /dev/nvidia-uvm is missing")
    (tmp_path / "dev/nvidia-uvm").touch()
    assert verdicts(checkup.gpu(tmp_path)) == [("gpu", GOOD)]
    build = "2.13.0+cpu"
    assert verdicts(checkup.gpu(tmp_path)) == [("gpu", WARNING)]
    (tmp_path / "proc/driver/nvidia/version").unlink()
    (tmp_path / "dev/kfd").touch()
    assert verdicts(checkup.gpu(tmp_path)) == [("gpu", WARNING)]


@pytest.mark.parametrize(
    ("device", "asked", "driver", "expected"),
    [
        ("cpu", "auto", True, [("gpu", WARNING)]),
        ("cpu", "auto", False, []),
        ("cpu", "cpu", True, []),
        ("cpu", "", True, []),
        ("cuda", "auto", True, []),
        ("", "auto", True, []),
    ],
)
def test_a_gpu_that_is_not_used(device: str, asked: str, driver: bool, expected: list[tuple[str, str]], tmp_path: Path) -> None:
    if driver:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").touch()
    assert verdicts(checkup.unused_gpu(device, asked, tmp_path)) == expected


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        ("LoadState=not-found\nActiveState=inactive\n", None),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n", GOOD),
        ("LoadState=loaded\nActiveState=active\nUnitFileState=disabled\n", WARNING),
        ("LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\n", WARNING),
        ("LoadState=loaded\nActiveState=activating\nUnitFileState=enabled\n", WARNING),
        ("LoadState=loaded\nActiveState=failed\nUnitFileState=enabled\nExecMainStatus=78\nResult=exit-code\n", WARNING),
        ("nonsense", None),
    ],
)
def test_units(tmp_path: Path, shown: str, verdict: str | None) -> None:
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat <<END\n{shown}END\n")
    (tmp_path / "systemctl").chmod(0o755)
    found = list(checkup.units([str(tmp_path / "systemctl")]))
    assert [one.verdict for one in found] == ([verdict] * 2 if verdict else [])
    assert "failed" not in shown or "exit 78" in found[0].says
    assert "activating" not in shown or found[0].fix.startswith("journalctl")  # it is being started again and again
    assert list(checkup.units(["/absent/systemctl"])) == []


def changed(**members: Any) -> dict[str, Any]:
    return replace(STATUS, **members).to_json()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (changed(version=checkup.__version__, peers=()), []),
        (changed(version="0.0.9", peers=()), [("version", WARNING)]),
        (
            changed(version=checkup.__version__, peers=tuple(replace(peer, version="99.2.0") for peer in STATUS.peers)),
            [("newer", WARNING)],
        ),
        (changed(version=checkup.__version__, peers=tuple(replace(peer, version="\x1b[31m") for peer in STATUS.peers)), []),
        (changed(version=checkup.__version__, peers=(), health=("one", "two")), [("health", WARNING), ("health", WARNING)]),
        (changed(version=checkup.__version__, peers=(), network=replace(STATUS.network, reachable="no")), [("reachable", WARNING)]),
        (changed(version=checkup.__version__, peers=(), network=replace(STATUS.network, clock_offset_ms=-900)), [("clock", WARNING)]),
        (replace(IDLE, version=checkup.__version__).to_json(), [("run", WARNING)]),
    ],
)
def test_a_daemon(status: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert verdicts(checkup.daemon(status, tmp_path)) == [("answers", GOOD), *expected]


@pytest.mark.parametrize(("limit", "expected"), [("1024", True), ("65536", False), ("unlimited", False), ("many", False)])
def test_a_daemon_that_may_open_few_files(tmp_path: Path, limit: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.resource, "getrlimit", lambda which: (1 << 20, 1 << 20))
    (tmp_path / "limits").write_text(f"Limit  Soft\nMax open files            {limit}             524288      files\n")
    assert (("files", WARNING) in verdicts(checkup.daemon(STATUS.to_json(), tmp_path))) == expected


@pytest.mark.parametrize(("text", "number"), [("0.1.0", (0, 1, 0)), ("1.2", (1, 2, 0)), ("10.0.3.dev1", (10, 0, 3)), ("x", ()), ("", ())])
def test_versions(text: str, number: tuple[int, ...]) -> None:
    number_of: Callable[[str], tuple[int, ...]] = checkup._number
    assert number_of(text) == number
