"""`tapestry member`: a Member's key, kept offline, and the delegations that it signs. Asks no daemon and no network.

Runs as a program of its own, because the operator's CLI imports no third party. The key file has the format of a
node's identity; what a Member's key signs is never read as a node's word, nor the other way round.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from protocols import limits
from protocols.canonical import is_digest
from protocols.control import SCHEMA
from protocols.identity import public_key
from protocols.membership import Delegation, to_file
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd.errors import ConfigFault
from tapestryd.host.clock import now_ms
from tapestryd.host.files import write
from tapestryd.host.keys import Identity, make_key, read_key
from tapestryd.program import ended, whole

_DAY_MS = 24 * 3_600_000


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tapestry member", description="A Member's key and delegations, for runs in roster mode.")
    verbs = p.add_subparsers(metavar="COMMAND", required=True)
    one = verbs.add_parser("new", help="make a Member's key and print the Member's id")
    one.add_argument("key", type=Path, metavar="FILE", help="a file that is not there yet; it will be readable by you alone")
    one.set_defaults(verb=new)
    one = verbs.add_parser("show", help="print the Member's id of a key")
    one.add_argument("key", type=Path, metavar="FILE")
    one.set_defaults(verb=show)
    one = verbs.add_parser("delegate", help="let nodes speak for the Member in one run; earlier delegations to others end with it")
    one.add_argument("--key", type=Path, required=True, metavar="FILE", help="the Member's key")
    one.add_argument("--run", required=True, metavar="RUN_ID|run.toml")
    one.add_argument(
        "--node", action="append", required=True, metavar="PEER_ID", type=_node, dest="nodes",
        help="once for each of the Member's nodes, all of them; `tapestry status --json` on a node says its id (self.peer_id)",
    )  # fmt: skip
    one.add_argument("--days", type=whole(1, 3650), default=90, help="how long they hold (default 90)")
    one.add_argument(
        "--epoch", type=whole(0, limits.INTEGER - 1), help="voids all smaller ones of this Member (default: Unix time in seconds)"
    )
    one.add_argument("-o", dest="out", type=_file, required=True, metavar="delegation.json", help="the same file for all these nodes")
    one.set_defaults(verb=delegate)
    for one in verbs.choices.values():
        one.add_argument("--json", action="store_true", help="print one document")
    return p


def _node(text: str) -> str:
    try:
        public_key(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(refused.detail) from None
    return text


def _file(text: str) -> Path:
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r}: is no file's name")
    return Path(text)


Told = tuple[dict[str, object], list[str]]
"""The document, and the same as lines of text."""


def new(options: argparse.Namespace) -> Told:
    path: Path = options.key
    if path.exists():
        raise ConfigFault(f"{path} is there already, and a key is never overwritten; name another file")
    try:
        make_key(path, 0o600)
    except OSError as error:
        raise ConfigFault(f"{path}: {error.strerror}") from None
    print(f"{path} is the key: keep it offline, and a copy of it. Who has it speaks for the Member; lost, nobody does.", file=sys.stderr)
    return show(options)


def show(options: argparse.Namespace) -> Told:
    member = _member(options.key).peer_id
    return {"member": member}, [member]


def delegate(options: argparse.Namespace) -> Told:
    member, now = _member(options.key), now_ms()
    if options.out.exists() and options.out.samefile(options.key):
        raise ConfigFault(f"-o {options.out} is the key itself; name another file")
    run = _run(options.run, member.peer_id)
    epoch = now // 1000 if options.epoch is None else options.epoch
    ends_ms = now + options.days * _DAY_MS
    try:
        made = Delegation.make(member.sign, run=run, member=member.peer_id, nodes=options.nodes, epoch=epoch, not_after_ms=ends_ms)
    except Refused as refused:
        raise ConfigFault(f"--node: {refused.detail}") from None
    try:
        write(options.out, to_file(made))
    except OSError as error:
        raise ConfigFault(f"{options.out}: {error.strerror}") from None
    until = datetime.fromtimestamp(ends_ms / 1000, UTC)
    document = {"member": member.peer_id, "run": run, "nodes": options.nodes, "epoch": epoch, "not_after_ms": ends_ms}
    return document, [
        f"{len(made)} of this Member's nodes in run {run[:12]}, until {until:%Y-%m-%d %H:%M} UTC, epoch {epoch}:",
        *(f"  {delegation.node}" for delegation in made),
        f"Put {options.out} on each of them, where run.delegation in its tapestryd.toml says; no restart is needed for that.",
        "Once it is seen, this Member's delegations of smaller epochs are void: whatever node is not named here is out.",
    ]


def _member(path: Path) -> Identity:
    try:
        return Identity(read_key(path), path)
    except OSError as error:
        raise ConfigFault(f"{path}: {error.strerror}; name a key that `tapestry member new` made") from None
    except Refused as refused:
        raise ConfigFault(f"{path}: {refused.detail}; name a key that `tapestry member new` made") from None


def _run(text: str, member: str) -> str:
    """The run id; of a run.toml only if it lists `member`."""
    if is_digest(text):
        return text
    try:
        rules = RunRules.from_toml(Path(text).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFault(
            f"--run {text}: {getattr(error, 'strerror', error)}; give a run id of 64 hexadecimal digits, or a run.toml"
        ) from None
    except Refused as refused:
        raise ConfigFault(f"--run {text}: {refused.detail}") from None
    if member not in rules.members:
        raise ConfigFault(f"--run {text}: {member} is none of this run's {len(rules.members)} Members, and a run's rules never change")
    return rules.run_id


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: _print(options, *options.verb(options)), "tapestry member")


def _print(options: argparse.Namespace, document: dict[str, object], lines: list[str]) -> int:
    print(json.dumps({"schema": SCHEMA, **document}, indent=2) if options.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
