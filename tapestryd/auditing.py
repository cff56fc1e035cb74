"""`tapestry audit`: what left this machine and what was kept back, from the data side's ledger; `--verify` proves that nobody changed it.

Runs as a program of its own, because it checks signatures. Ledger and witness are files, for whoever may read them (root, or each
side's user), also while a trainer writes; only what the network side sent in all is asked of the daemon, if there is one.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from protocols.canonical import digest
from protocols.control import SCHEMA, Exit
from protocols.ledger import HEADS_BYTES, Chain, Entry, Heads, Opened, Recovered, Released, Withheld, parse
from protocols.refusal import Refused
from tapestryd import canary
from tapestryd.client import Client, Doc, default_socket
from tapestryd.config import Checkpoint, Node
from tapestryd.errors import LocalFault, NotAllowed
from tapestryd.host.clock import now_ms
from tapestryd.host.keys import verify
from tapestryd.host.ledger import read, segments
from tapestryd.layers import daemon_at_hand, trainer_at_hand
from tapestryd.program import ended
from tapestryd.settings import parse_duration
from tapestryd.statement import shown

LEDGER = Checkpoint().dir / "ledger"
WITNESS = Node().state_dir / "witness.json"


class Broken(LocalFault):
    """The first thing in a ledger that is not as it was written. `entry`: where it is, or where one is missing."""

    def __init__(self, file: Path, entry: int, what: str) -> None:
        super().__init__(f"{file}: entry {entry}: {what}")
        self.file = file
        self.entry = entry
        self.what = what


@dataclass(slots=True)
class Totals:
    released: int = 0
    bytes: int = 0
    epsilon: float = 0.0
    withheld: dict[str, int] = field(default_factory=dict)
    unwritten: int = 0

    def add(self, entry: Entry) -> None:
        match entry.what:
            case Released() as left:
                self.released += 1
                self.bytes += left.bytes
                self.epsilon = max(self.epsilon, left.epsilon)
            case Withheld() as kept:
                self.withheld[kept.reason] = self.withheld.get(kept.reason, 0) + 1
                self.unwritten += kept.unwritten


class Account:
    """What a ledger says. `entries`, `totals`: from `since_ms` on, `in_all` of everything; `digests`: of the lines of the entries in
    `wanted`; `torn`: bytes behind the last line."""

    def __init__(self, since_ms: int, wanted: Collection[int]) -> None:
        self.key = ""
        self.first = self.last = self.torn = 0
        self.entries: list[Entry] = []
        self.totals, self.in_all = Totals(), Totals()
        self.digests: dict[int, str] = {}
        self.since_ms, self._wanted = since_ms, wanted

    def take(self, entry: Entry, line: bytes) -> None:
        self.first, self.last = self.first or entry.number, entry.number
        self.in_all.add(entry)
        if isinstance(entry.what, Opened):
            self.key = entry.what.key
        if entry.time_ms >= self.since_ms:
            self.entries.append(entry)
            self.totals.add(entry)
        if entry.number in self._wanted:
            self.digests[entry.number] = digest(line)


def reckon(folder: Path, found: Account, *, check: bool) -> None:
    """Read the ledger in `folder` into `found`; `check`: as a chain, whose every link and signature counts. Raises Broken, LocalFault."""
    chain = Chain(verify)
    try:
        files = segments(folder)
        for file in files:
            lines, rest = read(file)
            if check:
                _begins(file, chain.number + 1)
            for line in lines:
                try:
                    found.take(chain.follow(line) if check else parse(line), line)
                except Refused as refused:
                    raise Broken(file, found.last + 1, refused.detail) from None
            if rest and file != files[-1]:
                raise Broken(file, found.last + 1, "it is not whole, and another file follows")
            found.torn = len(rest)
    except PermissionError:
        raise NotAllowed(f"Only root and the data side's user may read {folder}; try: sudo tapestry audit") from None
    except (FileNotFoundError, NotADirectoryError):
        files = []
    if not files:
        raise LocalFault(f"{folder} holds no ledger; --ledger names the folder `ledger` in checkpoint.dir of trainer.toml")


def _begins(file: Path, due: int) -> None:
    named = int(file.stem)
    if named > due:
        raise Broken(file, due, f"entries {due} to {named - 1} are missing: a file of the ledger was taken away")
    if named < due:
        raise Broken(file, due, f"the file's name says that entry {named} is its first; it was put where it does not belong")


@dataclass(frozen=True, slots=True)
class Memory:
    """What the network side remembers. `why`: why that is nothing, if it is."""

    file: Path
    heads: Heads
    why: str = "it was given no vector yet"


def remembered(path: Path, *, asked: bool) -> Memory:
    """`asked`: somebody named this file, so it has to be there. Raises LocalFault for one that is no witness, OSError."""
    try:
        with path.open("rb") as file:
            return Memory(path, Heads.parse(file.read(HEADS_BYTES + 1)))
    except Refused as refused:
        raise LocalFault(f"{path}: {refused.detail}; it is no witness") from None
    except OSError as error:
        if asked:
            raise
        return Memory(path, Heads(), f"{path}: {error.strerror}")


def compare(found: Account, memory: Memory) -> str:
    """A ledger with what the network side remembers of it → what came of that. Raises Broken."""
    if not memory.heads.heads:
        return f"none ({memory.why}): an end that was cut off would not show"
    lost = memory.heads.lost(found.digests)
    if lost is not None and lost > found.last:
        raise Broken(memory.file, lost, f"the network side was given it, but the ledger ends with entry {found.last}: its end was cut off")
    if lost is not None:
        raise Broken(memory.file, lost, "the network side was given another: the ledger was written anew, from there or from before")
    return f"{memory.file} agrees, on {len(memory.heads.heads)} entries"


def document(found: Account, folder: Path, witness: str | None, egress: Doc | str) -> Doc:
    """`witness`: what came of the comparison with it, None if the ledger was not checked; `egress`: the daemon's document, or why not."""

    def listed(kind: type) -> list[Doc]:
        return [{"entry": one.number, "time_ms": one.time_ms, **asdict(one.what)} for one in found.entries if isinstance(one.what, kind)]

    return {
        "schema": SCHEMA,
        "ledger": str(folder),
        "key": found.key,
        "first": found.first,
        "last": found.last,
        "since_ms": found.since_ms,
        "opened": listed(Opened),
        "released": listed(Released),
        "withheld": listed(Withheld),
        "recovered": listed(Recovered),
        "totals": asdict(found.totals),
        "in_all": asdict(found.in_all),
        "torn": found.torn,
        "verified": witness is not None,
        "witness": witness,
        "egress": None if isinstance(egress, str) else egress,
        "egress_unknown": egress if isinstance(egress, str) else "",
    }


def run(options: argparse.Namespace) -> int:
    now = now_ms()
    folder = options.ledger or trainer_at_hand(os.environ).checkpoint.dir / "ledger"
    memory = Memory(WITNESS, Heads(), "--witness names the witness.json of the network side")
    if options.verify and (options.witness or not options.ledger):  # read before the ledger, which may grow meanwhile
        witness = options.witness or daemon_at_hand(os.environ).node.state_dir / "witness.json"
        memory = remembered(witness, asked=options.witness is not None)
    found = Account(max(0, now - round(options.since * 1000)), {number for number, _ in memory.heads.heads})
    try:
        reckon(folder, found, check=options.verify)
        told = compare(found, memory) if options.verify else None
    except Broken as broken:
        if not options.json:
            raise
        fault = {"file": str(broken.file), "entry": broken.entry, "what": broken.what}
        print(json.dumps({"schema": SCHEMA, "verified": False, "fault": fault}, ensure_ascii=False, indent=2))
        return Exit.FAILED
    doc = document(found, folder, told, _egress(options, found.since_ms))
    if options.json:
        print(json.dumps(doc, ensure_ascii=False, indent=2))
    else:
        print(shown(doc, now_ms=now, width=shutil.get_terminal_size((160, 24)).columns), end="")
    return Exit.OK


def _egress(options: argparse.Namespace, since_ms: int) -> Doc | str:
    """What this machine's daemon says that it sent, or why it says nothing. Of a ledger from elsewhere it does not know."""
    if options.ledger and not options.socket:
        return "--socket names the daemon whose ledger this is"
    try:
        return Client(options.socket or default_socket(os.environ)).ask("GET", f"/v1/egress?since={since_ms}")
    except LocalFault as fault:
        return str(fault)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tapestry audit", description="What left this machine, and what was kept back, from its ledger.")
    p.add_argument("--since", type=_since, default=86_400.0, metavar="24h", help="list what is not older (24h)")
    p.add_argument(
        "--verify", action="store_true", help="prove that no entry was changed, added or taken away; exit 1 naming the first that was"
    )
    p.add_argument("--ledger", type=Path, metavar="DIR", help=f"checkpoint.dir/ledger ({LEDGER}, or as trainer.toml says)")
    p.add_argument("--witness", type=Path, metavar="FILE", help=f"what the network side remembers ({WITNESS})")
    p.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's control socket, to ask what it sent")
    p.add_argument("--json", action="store_true", help="print one document")
    p.set_defaults(verb=run)
    canary.add(p.add_subparsers(metavar="[canary]"))
    return p


def _since(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: options.verb(options), "tapestry audit")


if __name__ == "__main__":
    sys.exit(main())
