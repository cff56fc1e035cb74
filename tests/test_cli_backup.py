"""`tapestry identity` and `backup` as processes, on real state directories: what is taken, what is put back, and what never is."""

import io
import json
import os
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tapestryd.cli.packing import Kept, pack, unpack
from tapestryd.config import Release
from tapestryd.errors import LocalFault
from tapestryd.host.keys import Identity
from tapestryd.host.ledger import Ledger
from tapestryd.host.state import StateDir
from tests.people import RUN


def tapestry(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "TAPESTRY_SOCKET": "/absent", "PYTHONUTF8": "1"}
    command = [sys.executable, "-W", "error", "-m", "tapestryd.cli", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def node(folder: Path) -> Path:
    """Settings, state and ledger of a node, stopped → its tapestryd.toml."""
    folder.mkdir(exist_ok=True)
    state = StateDir(folder / "state")
    Identity.load_or_make(state.path / "identity.key")
    state.current = f"tapestry:{RUN}"
    run = state.path / "runs" / RUN
    (run / "log").mkdir(parents=True)
    (run / "rules.json").write_text("{}")
    (run / "log" / "0000000001.entry").write_bytes(b"an entry, which peers have, too")
    state.close()
    Ledger(folder / "train" / "ledger", Release(), now_ms=lambda: 1, waiting=lambda: None).close()
    (folder / "train" / "privacy.json").write_text("{}")
    (folder / "t.toml").write_text('schema_version = 1\n[node]\nstate_dir = "state"\n[trainer]\nconfig = "own/trainer.toml"\n')
    (folder / "own" / "trainer.toml.d").mkdir(parents=True)
    (folder / "own" / "trainer.toml").write_text('schema_version = 1\n[compute]\ndevice = "cpu"\n')
    (folder / "own" / "trainer.toml.d" / "a.toml").write_text('[checkpoint]\ndir = "../../train"\n')
    return folder / "t.toml"


def test_a_backup_put_back_elsewhere_is_the_same_node(tmp_path: Path) -> None:
    toml, file = node(tmp_path / "here"), tmp_path / "b.tar.gz"
    done = tapestry("backup", "create", file, "--config", toml)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    who = tapestry("identity", "show", "--config", toml).stdout.strip()
    told = json.loads(tapestry("backup", "verify", file, "--json").stdout)
    assert told["peer_id"] == who
    assert set(told["files"]) == {
        "config/tapestryd.toml", "trainer/trainer.toml", "trainer/trainer.toml.d/a.toml", "checkpoint/ledger/key",
        "checkpoint/ledger/000000000001.ledger", "checkpoint/privacy.json",
        "state/identity.key", "state/schema", "state/current", f"state/runs/{RUN}/rules.json",
    }  # fmt: skip
    (tmp_path / "there").mkdir()
    done = tapestry("backup", "restore", file, "--config", tmp_path / "there" / "t.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 files of ")
    for path in (path for path in (tmp_path / "there").rglob("*") if path.is_file() and path.name != "lock"):
        original = tmp_path / "here" / path.relative_to(tmp_path / "there")
        assert (path.read_bytes(), path.stat().st_mode) == (original.read_bytes(), original.stat().st_mode)
    assert tapestry("identity", "show", "--config", tmp_path / "there" / "t.toml").stdout.strip() == who
    assert tapestry("audit", "--verify", "--ledger", tmp_path / "there" / "train" / "ledger").returncode == 0
    done = tapestry("backup", "restore", file, "--config", tmp_path / "there" / "t.toml")
    assert (done.returncode, "nothing is written over what left" in done.stderr) == (1, True)


def test_nothing_is_put_where_another_nodes_key_is_or_a_daemon_runs(tmp_path: Path) -> None:
    toml, file = node(tmp_path / "here"), tmp_path / "b.tar.gz"
    assert tapestry("backup", "create", file, "--config", toml).returncode == 0
    (tmp_path / "there").mkdir()
    state = StateDir(tmp_path / "there" / "state")
    done = tapestry("backup", "restore", file, "--config", tmp_path / "there" / "t.toml")
    assert (done.returncode, "A daemon runs on" in done.stderr) == (1, True)
    Identity.load_or_make(state.path / "identity.key")
    state.close()
    done = tapestry("backup", "restore", file, "--config", tmp_path / "there" / "t.toml")
    assert (done.returncode, "is another node's" in done.stderr) == (1, True)
    assert not (tmp_path / "there" / "t.toml").exists()
    assert tapestry("backup", "create", file, "--config", toml).returncode == 1


def packed(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = folder / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("tapestry/../x", tarfile.REGTYPE, b""), ("/etc/passwd", tarfile.REGTYPE, b""), ("tapestry/a", tarfile.SYMTYPE, b""),
        ("tapestry/a\x1b", tarfile.REGTYPE, b""), ("tapestry/manifest.json", tarfile.REGTYPE, b"{"),
        ("tapestry/manifest.json", tarfile.REGTYPE, b"[]"), ("tapestry/manifest.json", tarfile.REGTYPE, b'{"schema": 1, "files": {}}'),
        ("tapestry/manifest.json", tarfile.REGTYPE, b"[" * 100_000), ("tapestry/a", tarfile.REGTYPE, b"x"),
    ],
)  # fmt: skip
def test_what_is_no_backup_is_a_sentence(tmp_path: Path, name: str, kind: bytes, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    done = tapestry("backup", "verify", packed(tmp_path, (info, data)))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_byte_that_differs_is_found(tmp_path: Path) -> None:
    toml, file = node(tmp_path / "here"), tmp_path / "b.tar.gz"
    assert tapestry("backup", "create", file, "--config", toml).returncode == 0
    with tarfile.open(file) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    bent = [(info, data.replace(b"state_dir", b"state_dis")) for info, data in members]
    with pytest.raises(LocalFault, match=r"config/tapestryd.toml is not what it was"):
        unpack(packed(tmp_path, *bent))
    for content in (file.read_bytes()[:400], b"", b"nonsense"):
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(LocalFault):
            unpack(tmp_path / "y")
    with pytest.raises(LocalFault, match="No such file"):
        unpack(tmp_path / "absent")


def test_whatever_bit_of_it_is_lost(tmp_path: Path) -> None:
    rng = Random(1)
    data = pack("", 0, {f"state/{number}": Kept(rng.randbytes(5_000) + b"abc" * 3_000, 0o600, "", "") for number in range(8)})
    for _ in range(500):
        bent = bytearray(data)
        bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        (tmp_path / "x").write_bytes(bent)
        with suppress(LocalFault):  # a bit of the date is none that is checked
            unpack(tmp_path / "x")


def test_a_peer_that_a_terminal_would_obey(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pack("12D3\x1b[2J", 0, {}))
    with pytest.raises(LocalFault, match="its peer is none"):
        unpack(tmp_path / "x")


def test_a_key_goes_out_comes_in_and_is_changed(tmp_path: Path) -> None:
    toml, out = node(tmp_path / "here"), tmp_path / "mine.key"
    where = ("--config", toml)
    who = tapestry("identity", "show", *where).stdout.strip()
    assert tapestry("identity", "export", out, *where).returncode == 0
    assert out.stat().st_mode & 0o777 == 0o400
    assert tapestry("identity", "export", out, *where).returncode == 1
    done = tapestry("identity", "rotate", *where)
    aside = tmp_path / "here" / "state" / f"identity.key.{who[-8:]}"
    assert (done.returncode, str(aside) in done.stdout, aside.read_bytes()) == (0, True, out.read_bytes())
    assert tapestry("identity", "rotate", *where).returncode == 1
    assert tapestry("identity", "show", *where).returncode == 1
    assert tapestry("identity", "import", out, *where).returncode == 0
    assert tapestry("identity", "show", *where).stdout.strip() == who
    (tmp_path / "no.key").write_bytes(b"x" * 68)
    assert "it is no key of a node" in tapestry("identity", "import", tmp_path / "no.key", *where).stderr
    state = StateDir(tmp_path / "here" / "state")
    assert "A daemon runs on" in tapestry("identity", "rotate", *where).stderr
    state.close()
