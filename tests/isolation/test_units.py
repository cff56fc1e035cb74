"""Every attack against the units of deploy/ under systemd, as PID 1 of its own namespaces; and both sides at work there."""

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapestryd.host import seccomp
from tests.isolation.attacks import DATA, NETWORK
from tests.isolation.machine import Machine, why_not
from tests.isolation.player import asked
from tests.living import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.root]

SIDES = {"data": DATA, "network": NETWORK}
UNITS = {"data": "tapestry-trainer", "network": "tapestryd"}
SOCKETS = {"data": "/run/tapestry/trainer.sock", "network": "/run/tapestry/tapestryd.sock"}
KINDS = {"data": socket.SOCK_SEQPACKET, "network": socket.SOCK_STREAM}
THEIRS = {
    "data": ["/var/lib/tapestry/identity.key", "/etc/tapestry/tapestryd.toml"],
    "network": [
        "/srv/tapestry/data", "/srv/tapestry/data/rows.txt", "/etc/tapestry/trainer.toml", "/var/lib/tapestry-train",
        "/var/lib/tapestry-train/tokens/a1b2.u16",
    ],
}  # fmt: skip
PYTHON = "/opt/tapestry/bin/python3"

Report = dict[str, dict[str, tuple[bool, str]]]


@pytest.fixture
def machine() -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        made = Machine(Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()


def ask(machine: Machine, side: str, question: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX, KINDS[side]) as channel:
        channel.settimeout(120)
        channel.connect(f"{machine.inside}{SOCKETS[side]}")
        return asked(channel, question)


def attacked(machine: Machine) -> Report:
    """What came of all attacks, with players in the services' places, as the services' users."""
    machine.run("sh", "-c", "mkdir -p /var/lib/tapestry-train/tokens /var/spool/bystander && chmod 755 /var/spool/bystander")
    for path in (*THEIRS["data"][:1], *THEIRS["network"][1:2], THEIRS["network"][-1]):
        machine.write(path, "a private row of the data")
    machine.run("sh", "-c", "chown -R tapestry: /var/lib/tapestry; chown -R tapestry-train: /var/lib/tapestry-train /srv/tapestry/data")
    for side, unit in UNITS.items():
        command = f"{PYTHON} -P -m tests.isolation.player {side} shut"
        machine.write(f"/etc/systemd/system/{unit}.service.d/90-player.conf", f"[Service]\nExecStart=\nExecStart={command}\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "tapestryd.socket", "tapestry-trainer.socket")
    with machine.popen(PYTHON, "-P", "-m", "tests.isolation.bystander", "/run", "/var/spool/bystander") as bystander:
        found = json.loads(bystander.stdout.readline())
        common = {key: found[key] for key in ("tcp", "udp", "unix", "packets", "abstract", "datagrams", "shm", "devshm")}
        common |= {
            "do": "attack",
            "attacks": [],
            "key": "tapestry-test",
            "data": "/srv/tapestry/data",
            "variables": ["AWS_SECRET_ACCESS_KEY"],
        }
        report = {}
        told = {side: ask(machine, side, {"do": "tell"}) for side in SIDES}
        for side, other in (("data", "network"), ("network", "data")):
            report[side] = ask(machine, side, common | {
                "pids": [told[other]["pid"], 1, found["pid"]], "address": told[other]["address"], "secret": told[other]["secret"],
                "theirs": THEIRS[side], "folder": f"/var/lib/{'tapestry-train' if side == 'data' else 'tapestry'}",
                "families": [int(family) for family in seccomp.NETWORK] if side == "network" else [],
            })  # fmt: skip
        bystander.communicate("")
    return report


def test_no_attack_comes_through(machine: Machine) -> None:
    report = attacked(machine)
    for side in SIDES:
        for attack, (_, how) in report[side].items():
            print(f"{side:8} {attack:24} {how}")
        assert set(report[side]) == set(SIDES[side])
    assert {side: [attack for attack, (through, _) in report[side].items() if through] for side in SIDES} == {"data": [], "network": []}


def founded(machine: Machine) -> None:
    machine.write("/srv/tapestry/config.json", json.dumps(CONFIG))
    words = ["run", "new", "/srv/tapestry/run", "--model", "/srv/tapestry/config.json", "--name", "t", "--sequences", "4", "--tokens", "64"]
    machine.run("tapestry", *words)
    machine.run("sed", "-i", 's/^#min_free = .*/min_free = "1 MiB"/', "/etc/tapestry/tapestryd.toml")


def test_both_sides_work_there_and_every_wall_holds(machine: Machine) -> None:
    """A run founded, joined and trained in, by the units as they are shipped."""
    founded(machine)
    machine.run("sh", "-c", "cp /usr/share/common-licenses/* /srv/tapestry/data/ && for f in /srv/tapestry/data/*; do mv $f $f.txt; done")
    machine.run("chown", "-R", "tapestry-train:", "/srv/tapestry/data")
    machine.run("sed", "-i", "s/^#min_examples = .*/min_examples = 1/", "/etc/tapestry/trainer.toml")
    machine.run("systemctl", "start", "tapestry.target", "tapestryd.service", timeout_s=180)
    machine.run("tapestry", "run", "join", "/srv/tapestry/run/run.toml", timeout_s=120)
    status = machine.wait_for(lambda status: status["trainer"]["state"] not in ("off", "starting"), timeout_s=240)
    assert status["trainer"]["state"] == "waiting", machine.journal(*UNITS.values())
    assert status["isolation"]["enforced"]
    assert set(status["isolation"]["checks"].values()) == {"held"}
    machine.run("systemctl", "stop", "tapestryd", timeout_s=120)
    assert "exit" not in machine.run("systemctl", "show", "-p", "Result", "tapestryd", "tapestry-trainer").stdout


def test_a_bootstrap_node_is_the_same_unit_and_never_starts_the_data_side(machine: Machine) -> None:
    """As OPERATING.md has it."""
    founded(machine)
    machine.run("tapestry", "config", "profile", "apply", "bootstrap")
    machine.run("systemctl", "start", "tapestry.target", "tapestryd.service", timeout_s=180)
    machine.run("tapestry", "run", "join", "/srv/tapestry/run/run.toml", timeout_s=120)
    status = machine.wait_for(lambda status: status["state"] == "serving", timeout_s=120)
    assert (status["trainer"]["state"], status["health"], set(status["isolation"]["checks"].values())) == ("off", [], {"held"})
    assert machine.run("systemctl", "show", "-p", "ActiveState", "tapestry-trainer").stdout == "ActiveState=inactive\n"
