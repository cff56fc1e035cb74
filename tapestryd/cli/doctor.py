"""`tapestry doctor`: what is not as it should be on this machine, and what to do about it; with a daemon, or without one."""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from protocols.control import SCHEMA, Exit
from tapestryd import screen
from tapestryd.cli import checkup, walls
from tapestryd.cli.config import differences
from tapestryd.cli.finding import GOOD, UNKNOWN, WARNING, Finding
from tapestryd.cli.sides import sides, takes_config
from tapestryd.cli.verbs import Verbs, colour, show
from tapestryd.client import Client
from tapestryd.config import DaemonConfig
from tapestryd.errors import LocalFault, NotAllowed, NotRunning

_MARKS = {GOOD: "✓", WARNING: "✗"}
_COLOURS = {GOOD: "\x1b[32m", WARNING: "\x1b[31m"}


def add(verbs: Verbs) -> None:
    one = verbs.add("doctor", doctor, "what is not as it should be here, and what to do about it; exit 5 if anything is")
    takes_config(one)


def doctor(options: argparse.Namespace, client: Client) -> int:
    found = list(findings(options, client))
    document = {"schema": SCHEMA, "findings": [asdict(finding) for finding in found]}
    show(options, document, lambda _: "".join(_shown(finding, colour(options)) for finding in found))
    return Exit.DEGRADED if any(finding.verdict == WARNING for finding in found) else Exit.OK


def _shown(finding: Finding, coloured: bool) -> str:
    mark = _MARKS.get(finding.verdict, "?")
    if coloured:
        mark = f"{_COLOURS.get(finding.verdict, '')}{mark}\x1b[0m"
    fix = f"\n    {finding.fix}" if finding.fix and finding.verdict == WARNING else ""
    return f"{mark} {finding.section}: {screen.clean(finding.says)}{fix}\n"


def findings(options: argparse.Namespace, client: Client) -> Iterator[Finding]:
    config, device = DaemonConfig(), ""
    try:
        daemon, trainer = sides(options, client)
        config = daemon.loaded().config
        yield Finding("settings", daemon.name, GOOD, f"{daemon.path} is good")
        if config.trainer.enabled:
            device = trainer.loaded().config.compute.device
            yield Finding("settings", trainer.name, GOOD, f"{trainer.path} is good")
        with suppress(NotRunning):
            changes = differences(client.ask("GET", "/v1/config")["settings"], daemon)
            if changes:
                says = f"the daemon has not taken up {', '.join(one['key'] for one in changes)}"
                yield Finding("settings", "running", WARNING, says, "tapestry reload; a restart, where that names one")
    except LocalFault as fault:
        for line in str(fault).splitlines():
            yield Finding("settings", "files", UNKNOWN if isinstance(fault, NotAllowed) else WARNING, line)
    yield from checkup.clock()
    yield from checkup.disk(config.node.state_dir, config.storage.min_free_bytes)
    if config.trainer.enabled:
        yield from checkup.gpu()
    yield from checkup.units()
    if config.trainer.enabled:
        yield from walls.of_machine()
    try:
        status, process = client.ask("GET", "/v1/status"), Path("/proc", str(client.pid()))
    except LocalFault as absent:
        yield Finding("daemon", "answers", WARNING, str(absent))
        yield from checkup.ports(config.network.listen)
        return
    yield from checkup.daemon(status, process)
    if config.trainer.enabled:
        yield from checkup.unused_gpu(status["trainer"]["device"], device)
        yield from walls.of_daemon(status["isolation"])
