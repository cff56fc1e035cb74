"""Folders for the trainer alone: which will not do, drop-ins that systemd takes, and trainer.toml with its comments kept."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tapestryd.errors import ConfigFault
from tapestryd.host.allowance import allow, allowed, fault, forbid


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("/", "is tapestryd's own"), ("/var", "is tapestryd's own"), ("/var/lib/tapestry", "is tapestryd's own"),
        ("/var/lib/tapestry/x", "no such folder"), ("/etc", "the system's"), ("/usr/share", "the system's"), ("/proc", "the system's"),
        ("/root", "the units hide"), ("/tmp", "the units hide"), ("/etc/passwd", "no such folder"), ("/no/such", "no such folder"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(folder: str, says: str) -> None:
    assert says in fault(Path(folder), [Path("/var/lib/tapestry")]) or not Path(folder).exists()
    assert fault(Path(folder), [Path("/var/lib/tapestry")])


def test_names_that_systemd_would_misread_are_refused(tmp_path: Path) -> None:
    for name in ("a b", "a:b", "a%n", 'a"b', "a\\b", "a;b", "a\nb"):
        (tmp_path / name).mkdir()
        assert "would mean something else to systemd" in fault(tmp_path / name, [])


def test_a_folder_of_data_will_do() -> None:
    assert fault(Path("/srv"), [Path("/var/lib/tapestry")]) == ""


def texts(units: Path) -> dict[str, list[str]]:
    return {path.parent.name: path.read_text().splitlines()[1:] for path in sorted(units.rglob("*.conf"))}


def test_both_drop_ins_say_the_same(tmp_path: Path) -> None:
    assert allowed(tmp_path) == []
    assert allow(tmp_path, Path("/scratch/b"))
    assert allow(tmp_path, Path("/scratch/a"))
    assert not allow(tmp_path, Path("/scratch/a"))
    assert texts(tmp_path) == {
        "tapestry-trainer.service.d": ["[Service]", "BindReadOnlyPaths=-/scratch/a", "BindReadOnlyPaths=-/scratch/b"],
        "tapestryd.service.d": ["[Service]", "InaccessiblePaths=-/scratch/a", "InaccessiblePaths=-/scratch/b"],
    }
    assert allowed(tmp_path) == [Path("/scratch/a"), Path("/scratch/b")]
    assert forbid(tmp_path, Path("/scratch/b"))
    assert not forbid(tmp_path, Path("/scratch/b"))
    assert forbid(tmp_path, Path("/scratch/a"))
    assert texts(tmp_path) == {}


def test_half_a_change_is_mended_by_the_next(tmp_path: Path) -> None:
    """As after a crash between the two files."""
    allow(tmp_path, Path("/scratch/a"))
    (tmp_path / "tapestryd.service.d" / "10-data.conf").unlink()
    allow(tmp_path, Path("/scratch/a"))
    assert texts(tmp_path)["tapestryd.service.d"] == ["[Service]", "InaccessiblePaths=-/scratch/a"]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    allow(tmp_path, Path("/scratch/a"))
    path = tmp_path / "tapestry-trainer.service.d" / "10-data.conf"
    path.write_text(path.read_text() + "Nice=3\n")
    for change in (allow, forbid):
        with pytest.raises(ConfigFault, match="'Nice=3' is not of"):
            change(tmp_path, Path("/scratch/b"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_drop_ins(tmp_path: Path) -> None:
    for unit in ("tapestryd", "tapestry-trainer"):
        (tmp_path / f"{unit}.service").write_text("[Service]\nExecStart=/bin/true\n")
    allow(tmp_path, Path("/scratch/ä+b"))
    for unit in ("tapestryd", "tapestry-trainer"):
        words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{unit}.service")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if unit in line] == []
