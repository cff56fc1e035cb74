"""The Debian package on a Debian of its own, where systemd is PID 1: installed, upgraded with its state, refused backwards, removed.

    pytest -m 'slow and root' -s tests/installed
Takes as long as debootstrap, pip and dpkg do: a quarter of an hour and more. TAPESTRY_DEBIAN names a folder to keep the bare Debian in.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installed.debian import Debian, why_not
from tests.living import CONFIG, Peer

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(5400)]

BUILD = Path(__file__).parents[2] / "deploy" / "debian" / "build.sh"
ROUNDS = ("--train", "8", "--average", "4", "--lr", "0.003", "--sequences", "4", "--tokens", "64")


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Debian]:
    if reason := why_not():
        pytest.skip(reason)
    made = Debian.bare(tmp_path / "debian")
    subprocess.run(["sh", str(BUILD), str(made.root / "root")], check=True)
    made.start()
    yield made
    made.stop()


def install(debian: Debian) -> None:
    [package] = (debian.root / "root").glob("tapestryd_*.deb")
    debian.run("dpkg", "-i", f"/root/{package.name}", timeout_s=1800)


def test_a_packages_life(debian: Debian, tmp_path: Path) -> None:
    install(debian)
    assert debian.wait_for(lambda status: status["state"] == "idle", 60)["isolation"]["method"] == "systemd"

    # From the package to a training node, as an operator would.
    debian.write("/root/config.json", json.dumps(CONFIG))
    debian.write("/srv/tapestry/data/text.txt", "\n".join(f"{number} green bottles hanging on the wall" for number in range(20_000)))
    debian.run("chgrp", "-R", "tapestry-train", "/srv/tapestry/data")
    debian.write("/etc/tapestry/trainer.toml", "schema_version = 1\n[release]\nmin_steps = 1\nmin_examples = 1\nmax_per_hour = 1000\n")
    debian.run("tapestry", "run", "new", "/root/run", "--model", "/root/config.json", "--name", "packaged", *ROUNDS, timeout_s=300)
    debian.run("tapestry", "run", "join", "/root/run/run.toml", timeout_s=120)
    invite = debian.wait_for(lambda status: status["run"] and "?peer=" in status["run"]["invite"], 60)["run"]["invite"]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copyfile(__file__, data / "text.txt")
    other = Peer(tmp_path / "other", [data], namespace=debian.namespace).start(invite)
    try:
        debian.run("systemctl", "start", "tapestry-ready", timeout_s=300)
        status = debian.wait_for(lambda status: status["run"]["height"] >= 2, 600)
    finally:
        other.end()
    assert status["isolation"]["enforced"], status["isolation"]
    assert set(status["isolation"]["checks"].values()) == {"held"}
    peer, height = status["self"]["peer_id"], status["run"]["height"]

    # The same package again is an upgrade: state, identity and configuration stay.
    install(debian)
    status = debian.wait_for(lambda status: status["run"] and status["run"]["base_digest"], 300)
    assert (status["self"]["peer_id"], status["run"]["height"] >= height) == (peer, True)
    assert "max_per_hour = 1000" in debian.run("cat", "/etc/tapestry/trainer.toml").stdout

    # A state of a later version is refused, and nothing is changed.
    debian.run("systemctl", "stop", "tapestryd")
    debian.write("/var/lib/tapestry/schema", "99\n")
    debian.run("systemctl", "start", "tapestryd", check=False)
    assert debian.run("systemctl", "show", "-P", "ExecMainStatus", "tapestryd").stdout.strip() == "78"
    assert re.search(r"schema.*99", debian.journal("tapestryd"))
    debian.write("/var/lib/tapestry/schema", "1\n")

    # Removed, the identity stays; purged, it goes, and what `tapestry data` wrote beside the units.
    debian.run("mkdir", "/more")
    debian.run("tapestry", "data", "allow", "/more")
    drop_in = "/etc/systemd/system/tapestryd.service.d/10-data.conf"
    assert debian.run("cat", drop_in).stdout.endswith("=-/more\n")
    debian.run("dpkg", "-r", "tapestryd", timeout_s=600)
    assert debian.run("sh", "-c", "ls -d /opt/tapestry /usr/bin/tapestry", check=False).stdout == ""
    assert debian.run("ls", "/var/lib/tapestry/identity.key").stdout
    debian.run("dpkg", "-P", "tapestryd", timeout_s=600)
    gone = ("/var/lib/tapestry", "/var/lib/tapestry-train", "/etc/tapestry", drop_in, "/etc/systemd/system/tapestry-trainer.service.d")
    assert debian.run("ls", "-d", *gone, "/srv/tapestry/data", check=False).stdout == "/srv/tapestry/data\n"
