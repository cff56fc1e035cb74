"""Folders for the trainer alone: which will not do, drop-ins that systemd takes, and trainer.toml with its comments kept."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.errors import ConfigFault
from tapestryd.host.allowance import allow, allowed, fault, forbid, with_paths

EXAMPLE = Path(__file__).parents[2] / "deploy" / "trainer.toml"


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


NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1).map("/{}".format)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_the_example_keeps_all_but_its_paths(names: list[str]) -> None:
    before, paths = EXAMPLE.read_text(), list(map(Path, names))
    after = with_paths(before, paths)
    expected = tomllib.loads(before)
    expected["data"]["paths"] = list(map(str, paths))
    assert tomllib.loads(after) == expected
    assert [line for line in after.splitlines() if "paths" not in line] == [line for line in before.splitlines() if "paths" not in line]
    assert with_paths(after, paths) == after


@pytest.mark.parametrize(
    "text",
    [
        "schema_version = 1\n", "schema_version = 1\n[data]\nseed = 3 # x\n", "[compute]\npaths_ = 1\n\n[data]\n",
        'schema_version = 1\n[data]\nseed = 1\npaths = [\n  "/a", # one\n  "/b",\n]  # all\n[compute]\nthreads = 1\n',
        "[data]\ntext_field = 'paths = [1]'\n", "[data]\npaths = ['/a]b', # ] \"\n]\n", "# [data]\nschema_version = 1\n",
    ],
)  # fmt: skip
def test_every_way_of_writing_it(text: str) -> None:
    after = with_paths(text, [Path("/x"), Path("/y")])
    assert tomllib.loads(after).pop("data")["paths"] == ["/x", "/y"]
    kept = ("# x", "# all", "# [data]")
    assert [word for word in kept if word in after] == [word for word in kept if word in text]


@pytest.mark.parametrize("text", ['data.paths = ["/a"]\n', 'data = { paths = ["/a"] }\n'])
def test_what_is_not_understood_is_left_to_the_reader(text: str) -> None:
    with pytest.raises(ConfigFault, match=r'write there yourself: paths = \["/x"\]'):
        with_paths(text, [Path("/x")])
