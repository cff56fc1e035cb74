"""`tapestry contrib`: who took part in a run, from the certificates in its log; as evidence for others, and theirs checked.

Runs as a program of its own, because the operator's CLI imports no third party. Needs no daemon; one that answers is asked for the
names that nodes gave themselves, which no certificate has.
"""

import argparse
import gzip
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from protocols import accounts, limits
from protocols.accounts import WHOLE, Account, Accounting
from protocols.control import SCHEMA, Exit
from protocols.identity import peer_id
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd import archive
from tapestryd.archive import Fault, run_folder
from tapestryd.client import Client, default_socket
from tapestryd.config import Node
from tapestryd.errors import LocalFault
from tapestryd.host.files import write
from tapestryd.host.keys import read_key, verify
from tapestryd.layers import daemon_at_hand
from tapestryd.program import ended, run_id
from tapestryd.screen import clean, labelled, number, short, table

STATE_DIR = Node().state_dir
_ROWS = 20


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="tapestry contrib", description="Who took part in the run: rounds, steps, tokens, weight, from certificates in the log."
    )
    verbs = top.add_subparsers(metavar="COMMAND")
    two = verbs.add_parser("export", help="write the certificates to a file, with which anybody can check the account")
    three = verbs.add_parser("verify", help="the account that such a file proves; needs nothing of this machine")
    two.add_argument("file", type=Path, metavar="FILE", help="a file that is not there yet")
    three.add_argument("file", type=Path, metavar="FILE", help="as export wrote it")
    for each, verb, default in ((top, shown, None), (two, export, argparse.SUPPRESS), (three, verified, argparse.SUPPRESS)):
        each.set_defaults(verb=verb)
        each.add_argument("--run", type=run_id, default=default, metavar="ID", help="the run that it must be; else the one that is there")
        each.add_argument("--json", action="store_true", default=default or False, help="print one document")
        if each is not three:
            each.add_argument("--state", type=Path, default=default, metavar="DIR", help=f"a daemon's state directory ({STATE_DIR})")
    top.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's control socket, to ask for names")
    return top


def shown(options: argparse.Namespace) -> int:
    state = options.state or daemon_at_hand(os.environ).node.state_dir
    rules, heads = _log(run_folder(state, options.run or ""))
    mine = ""
    with suppress(OSError, Refused):
        mine = peer_id(read_key(state / "identity.key").public_key().public_bytes_raw())
    names = _names(Client(options.socket or default_socket(os.environ)))
    return _show(options, rules, _counted(rules, heads), mine=mine, names=names)


def export(options: argparse.Namespace) -> int:
    if options.file.exists():
        raise LocalFault(f"{options.file} is there already; name another file.")
    rules, heads = _log(run_folder(options.state or daemon_at_hand(os.environ).node.state_dir, options.run or ""))
    packer = zlib.compressobj(wbits=31)  # gzip
    chunks = [packer.compress(accounts.opening(rules))]

    def packed() -> Iterator[tuple[Path, bytes]]:
        for path, head in heads:
            chunks.append(packer.compress(head))
            yield path, head

    account = _counted(rules, packed())
    write(options.file, *chunks, packer.flush())
    text = f"{options.file} proves the account of heights {account.first} to {account.last} of run {rules.run_id}."
    print(json.dumps({"schema": SCHEMA, "said": text}) if options.json else text)
    return Exit.OK


def verified(options: argparse.Namespace) -> int:
    try:
        with gzip.open(options.file) as file:
            rules, account = accounts.read(file.read, options.run or "", verify)
    except Refused as refused:
        raise LocalFault(f"{options.file} proves nothing: {refused}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise LocalFault(f"{options.file} proves nothing: not what `tapestry contrib export` wrote, or damaged") from None
    return _show(options, rules, account)


Heads = Iterator[tuple[Path, bytes]]
"""Of entries, in the order of their heights, each with the file that it is from."""


def _log(folder: Path) -> tuple[RunRules, Heads]:
    """Raises Fault if the rules are not those of the run."""
    path = folder / "rules.json"
    try:
        rules = RunRules.from_canonical(archive.read(path, limits.RULES_BYTES), folder.name)
    except Refused as refused:
        raise Fault(path, None, str(refused)) from None
    return rules, ((path, _head(path)) for path in sorted(folder.glob("log/*.entry")))


def _head(path: Path) -> bytes:
    """An entry without its parts, or as much of it as may be one."""
    try:
        with path.open("rb") as file:
            return accounts.head(file.read)
    except OSError as error:
        raise Fault(path, None, f"cannot be read: {error.strerror}") from None
    except Refused as refused:
        raise Fault(path, None, str(refused)) from None


def _counted(rules: RunRules, heads: Heads) -> Account:
    """Raises Fault for the first that is not certified, LocalFault if there is none."""
    counting = Accounting(rules, verify)
    for path, head in heads:
        try:
            counting.add(head)
        except Refused as refused:
            raise Fault(path, None, str(refused)) from None
    account = counting.account()
    if account is None:
        raise LocalFault("No round of this run was committed yet; there is nothing to account for.")
    return account


def _names(client: Client) -> dict[str, str]:
    """Peer id → the name that it gave itself, of those present; none if no daemon answers."""
    try:
        status = client.ask("GET", "/v1/status")
        return {one["peer_id"]: one["name"] for one in (status["self"], *status["peers"]) if one["name"]}
    except (LocalFault, KeyError, TypeError):
        return {}


def _show(options: argparse.Namespace, rules: RunRules, account: Account, *, mine: str = "", names: Mapping[str, str] | None = None) -> int:
    shares = [asdict(share) | {"name": (names or {}).get(share.peer, "")} for share in account.shares]
    document = {
        "schema": SCHEMA,
        "run": account.run,
        "name": rules.name,
        "membership": rules.membership,
        "heights": [account.first, account.last],
        "rounds": [account.first_round, account.last_round],
        "coverage_ppm": account.coverage_ppm,
        "mine": next((share for share in shares if share["peer"] == mine), None),
        "shares": shares,
    }
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    print(json.dumps(document, ensure_ascii=False, indent=2) + "\n" if options.json else text(document, width), end="")
    return Exit.OK


def text(found: Mapping[str, Any], width: int) -> str:
    """An account's document on one screen."""
    first, last = found["heights"]
    whole = sum(share["weight_ppm"] for share in found["shares"])
    since = "from genesis" if first == 1 else "before that this node kept nothing"
    open_ = ["keys are free in an open run: it proves no more than its nodes"] if found["membership"] == "open" else []
    mine, sums = found["mine"], {key: sum(share[key] for share in found["shares"]) for key in ("steps", "tokens")}
    sections = [
        ("Run", [found["name"], found["run"]]),
        ("Proved", [f"{last - first + 1} rounds, heights {first} to {last}", since, *open_]),
        ("Came", [f"{found['coverage_ppm'] / WHOLE:.1%} of what was announced"]),
        ("Swarm", [f"{len(found['shares'])} nodes", f"{number(sums['steps'])} steps", f"{number(sums['tokens'])} tokens"]),
        ("Mine", _line(mine, whole) if mine else []),
    ]
    head = ("NODE", "NAME", "MEMBER", "ROUNDS", "STEPS", "TOKENS", "WEIGHT")
    rows = [
        (short(one["peer"]), clean(one["name"]) or "-", short(one["member"]) or "-", str(one["rounds"]), number(one["steps"]),
         number(one["tokens"]), f"{one['weight_ppm'] / whole:.1%}")
        for one in found["shares"][:_ROWS]
    ]  # fmt: skip
    more = [f"… and {len(found['shares']) - _ROWS} more: --json"] if len(found["shares"]) > _ROWS else []
    return "\n".join([*labelled(sections, width), "", *table([head, *rows], width), *more]) + "\n"


def _line(one: Mapping[str, Any], whole: int) -> list[str]:
    share = f"{one['weight_ppm'] / whole:.1%} of the weight"
    return [f"{one['rounds']} rounds", f"{number(one['steps'])} steps", f"{number(one['tokens'])} tokens", share]


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: options.verb(options), "tapestry contrib")


if __name__ == "__main__":
    sys.exit(main())
