"""`tapestry doctor`: what is not as it should be on this machine, and what to do about it; with a daemon, or without one."""

import argparse
import json
from dataclasses import asdict

from protocols.control import SCHEMA, Exit
from tapestryd import screen
from tapestryd.cli import walls
from tapestryd.cli.finding import GOOD, WARNING, Finding
from tapestryd.cli.verbs import Verbs
from tapestryd.client import Client
from tapestryd.errors import LocalFault

_MARKS = {GOOD: "✓", WARNING: "✗"}


def add(verbs: Verbs) -> None:
    verbs.add("doctor", doctor, "what is not as it should be here, and what to do about it; exit 5 if anything is")


def doctor(options: argparse.Namespace, client: Client) -> int:
    found = walls.of_machine()
    try:
        found += walls.of_daemon(client.ask("GET", "/v1/status")["isolation"])
    except LocalFault as absent:
        found.append(Finding("daemon", "answers", WARNING, str(absent)))
    if options.json:
        print(json.dumps({"schema": SCHEMA, "findings": [asdict(finding) for finding in found]}, ensure_ascii=False, indent=2))
    else:
        print("".join(_shown(finding) for finding in found), end="")
    return Exit.DEGRADED if any(finding.verdict == WARNING for finding in found) else Exit.OK


def _shown(finding: Finding) -> str:
    fix = f"\n    {finding.fix}" if finding.fix and finding.verdict == WARNING else ""
    return f"{_MARKS.get(finding.verdict, '?')} {finding.section}: {screen.clean(finding.says)}{fix}\n"
