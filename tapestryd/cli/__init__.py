"""`tapestry`: the operator's commands. Parses arguments, asks the daemon on its unix socket, prints.

Starts fast: never imports torch, hivemind, aiohttp or pydantic. Whatever goes wrong is one sentence on standard
error and an exit code of protocols.control.Exit; 130 after Ctrl-C, 141 when whoever read the output went away.
The verbs are in the modules here, by noun; those that need more are programs of their own.
"""

import argparse
import os
import sys

from tapestryd import __version__
from tapestryd.cli import backup, config, doctor, identity, log, orders, peers, run, status, support
from tapestryd.cli.verbs import Verbs, common
from tapestryd.client import Client, default_socket
from tapestryd.errors import LocalFault
from tapestryd.program import ended

PROGRAMS = {
    ("run", "new"): "tapestryd.founding",
    ("bench",): "tapestryd.bench",
    ("lineage",): "tapestryd.audit",
    ("audit",): "tapestryd.auditing",
    ("contrib",): "tapestryd.contrib",
    ("member",): "tapestryd.delegating",
    ("data",): "tapestryd.declaring",
    ("completion",): "tapestryd.completing",
    ("manual",): "tapestryd.manual",
}
"""Verbs that are programs of their own: they import torch, cryptography or all of these, or read the data."""
EXITS = """exit codes: 0 done, 1 failed, 2 usage, 3 no daemon answers, 4 not permitted, 5 degraded (status --check, doctor),
124 wait timed out, 130 interrupted"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    for words, module in PROGRAMS.items():
        if argv[: len(words)] == list(words):
            os.execv(sys.executable, [sys.executable, "-P", "-m", module, *argv[len(words) :]])
    return ended(lambda: _asked(parser().parse_args(argv)))


def _asked(options: argparse.Namespace) -> int:
    try:
        code: int = options.verb(options, Client(options.socket or default_socket(os.environ)))
        return code
    except UnicodeError:
        raise LocalFault("Something in it is no text in UTF-8; in a locale such as C.UTF-8 it may be one.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise LocalFault(f"The daemon's answer is not one that tapestry {__version__} understands ({error!r}).") from None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tapestry", description="Ask and direct this machine's tapestryd.", epilog=EXITS, allow_abbrev=False)
    verbs = Verbs(top, common(top))
    for noun in (status, peers, run, orders, log, config, doctor, support, identity, backup):
        noun.add(verbs)
    verbs.elsewhere("bench", "tapestry bench", "what this machine would bring to a run, measured")
    verbs.elsewhere("lineage", "tapestry lineage", "prove a base from files, offline")
    verbs.elsewhere("audit", "tapestry audit", "what left this machine, and that nobody changed the ledger of it")
    verbs.elsewhere("contrib", "tapestry contrib", "who took part in the run, and how much, as certificates have it")
    verbs.elsewhere("member", "tapestry member", "a Member's key and delegations")
    verbs.elsewhere("data", "tapestry data", "declare the data that this machine trains on")
    verbs.elsewhere("completion", "tapestry completion", "complete these commands in bash, zsh or fish")
    verbs.elsewhere("manual", "tapestry manual", "write the manual pages, and completions, to a folder")
    return top
