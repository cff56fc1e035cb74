"""What keeps data and network apart on this machine: what can be had here, by trying, and what the daemon has found of its own.

Knows nothing of how it is printed.
"""

import os
from pathlib import Path

from tapestryd.cli.finding import GOOD, UNKNOWN, WARNING, Finding
from tapestryd.client import Doc
from tapestryd.host import box

_UNITS = tuple(Path(folder, "tapestryd.service") for folder in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"))
_RUNS = 'run it by the systemd units (deploy/README.md), or without, in boxes of its own: [sandbox] method = "auto"'

_SAYS = {
    "data.interfaces": ("the data side has no network but its own loopback", _RUNS),
    "data.sockets": ("it can open no socket that reaches anybody", _RUNS),
    "data.io_uring": ("nor have the kernel open one", _RUNS),
    "data.descriptors": ("it was handed nothing open but its channel", "close what you start it with, and restart it"),
    "data.network_side": ("it cannot open the network side's files", "chmod 0700 node.state_dir; one user for each side"),
    "data.memory": ("it cannot look into any process but its own", _RUNS),
    "data.privileges": ("it has no privilege, and can get none", _RUNS),
    "data.writes": ("it can write nothing but its checkpoint", "mount the data only to be read, or take away the write permission"),
    "network.devices": ("the network side has no GPU", _RUNS),
    "network.families": ("it can open sockets of the usual kinds only", _RUNS),
    "network.io_uring": ("nor have the kernel open others", _RUNS),
    "network.places": ("it sees no folder where people keep data", f"{_RUNS}; what it needs there: sandbox.read"),
    "network.privileges": ("it has no privilege, and can get none", _RUNS),
    "network.processes": ("it cannot look into any process but its own", _RUNS),
    "network.trainer_config": ("it cannot read the data side's settings", "chmod 0640 trainer.toml; group tapestry-train"),
}
"""check of Status.isolation → what holds, and what to do where it does not."""


def of_machine() -> list[Finding]:
    """Without a daemon: whether the two sides could be shut in here."""
    units = next((unit for unit in _UNITS if unit.exists()), None)
    found = [
        Finding("isolation", "units", GOOD, f"systemd units are installed ({units.parent})")
        if units
        else Finding("isolation", "units", UNKNOWN, "the systemd units are not installed; boxes are made without them")
    ]
    why = box.trouble()
    if why:
        found.append(Finding("isolation", "boxes", UNKNOWN if units else WARNING, f"no boxes can be made here: {why}"))
    else:
        found.append(Finding("isolation", "boxes", GOOD, "boxes can be made here: one was"))
    if box.scoped():
        found.append(Finding("isolation", "scopes", GOOD, "the kernel can shut off abstract sockets and signals (Landlock)"))
    elif units:  # two users that are nobody else's: their signals reach nobody, and whoever listens sees that it is not its owner who calls
        says = "the network side may knock at abstract sockets (X11, some D-Bus), as a user of its own; Linux 6.12 would refuse it"
        found.append(Finding("isolation", "scopes", UNKNOWN, says))
    else:
        says = "the kernel cannot shut off abstract sockets (X11, some D-Bus) from the network side, nor signals from the data side"
        found.append(Finding("isolation", "scopes", WARNING, says, "Linux 6.12 or newer, with landlock in its list of LSMs"))
    if os.geteuid() == 0 and not units:
        says = "as root both sides are root, without its privileges"
        found.append(Finding("isolation", "user", WARNING, says, "the units, or an ordinary user (deploy/install-user.sh)"))
    return found


def of_daemon(isolation: Doc) -> list[Finding]:
    """`isolation`: of Status."""
    method, checks = isolation["method"], isolation["checks"]
    if method == "none":
        found = [Finding("isolation", "method", WARNING, "this daemon runs without walls", f"sandbox.require = true; {_RUNS}")]
    else:
        found = [Finding("isolation", "method", GOOD, f"the walls are made by {method}")]
    for name, verdict in checks.items():
        holds, fix = _SAYS.get(name, (name, _RUNS))
        if verdict == "open":
            found.append(Finding("isolation", name, WARNING, f"NOT SO: {holds}", fix))
        else:
            found.append(Finding("isolation", name, GOOD if verdict == "held" else UNKNOWN, holds))
    if not any(name.startswith("data.") for name in checks):
        found.append(Finding("isolation", "data", UNKNOWN, "no trainer runs, so nothing is known of the data side's walls"))
    return found
