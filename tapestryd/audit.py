"""`tapestry lineage`: prove a Shared Base from files, or list what a state directory holds of its lineage.

Runs as a program of its own, because the operator's CLI never imports torch. Needs no daemon and asks none.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protocols.canonical import is_digest
from protocols.control import SCHEMA, Exit
from tapestryd.archive import Archive, Branch, Fault, branches, run_folder
from tapestryd.config import Node
from tapestryd.host.keys import verify
from tapestryd.layers import daemon_at_hand
from tapestryd.program import ended, run_id
from tapestryd.screen import clean, duration, short, size

Doc = dict[str, Any]

STATE_DIR = Node().state_dir
_TOLD_S = 0.2
_NAMED = 12
_CLEAR = "\r\x1b[K"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tapestry lineage", description="Prove a Shared Base from files; list them. Asks no daemon.")
    verbs = top.add_subparsers(metavar="COMMAND", required=True)
    one = verbs.add_parser(
        "verify",
        help="replay the log and prove the base",
        description="Replay a run's log offline and prove the base that it leads to: the rules have the run's hash, every entry is "
        "certified, follows the one before it and leads to the base that was voted for; snapshots on the way are that base.",
    )
    one.set_defaults(verb=prove)
    one.add_argument("files", type=Path, nargs="*", metavar="FILE", help="rules, snapshots, log entries, or folders of them")
    one.add_argument("--from", dest="genesis", choices=["genesis"], help="only a proof from genesis counts")
    two = verbs.add_parser("show", help="heights, tip and snapshots of each branch on disk", description="What a state directory holds.")
    two.set_defaults(verb=show, files=[])
    for each in (one, two):
        each.add_argument("--state", type=Path, metavar="DIR", help=f"a daemon's state directory ({STATE_DIR}); it may be running")
        each.add_argument("--run", type=run_id, metavar="ID", help="the run that it must be; else the one that is there")
        each.add_argument("--json", action="store_true", help="print one document")
    return top


def prove(options: argparse.Namespace) -> int:
    from tapestryd.proof import prove  # torch

    began = time.monotonic()
    document: Doc
    try:
        places = options.files or [_folder(options)]
        named = places[0].absolute().name if len(places) == 1 else ""
        archive = Archive.of(places, options.run or (named if is_digest(named) else ""))
        proof = prove(archive, from_genesis=options.genesis is not None, told=_progress(began))
    except Fault as fault:
        if not options.json:
            raise
        document = {"schema": SCHEMA, "proved": False, "fault": {"file": str(fault.file), "height": fault.height, "what": fault.what}}
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return Exit.FAILED
    assert proof.start is not None
    assert proof.tip is not None
    document = {
        "schema": SCHEMA,
        "proved": True,
        "run": archive.rules.run_id,
        "name": archive.rules.name,
        "rules": str(archive.rules_file),
        "from": {"height": proof.start.height, "base_digest": proof.start.base, "certified_by": proof.certified_by},
        "height": proof.tip.height,
        "round": proof.round,
        "weight": proof.tip.weight,
        "base_digest": proof.tip.base,
        "entries": proof.entries,
        "snapshots": proof.snapshots,
        "snapshots_left_out": sorted(set(archive.snapshots) - set(proof.snapshots)),
        "members": dict(proof.members.most_common()),
        "bytes": proof.bytes,
        "took_s": round(time.monotonic() - began, 3),
    }
    print(json.dumps(document, ensure_ascii=False, indent=2) if options.json else proved(document))
    return Exit.OK


def proved(found: Doc) -> str:
    """The document of a proof as text."""
    start = found["from"]
    begins = "genesis" if start["height"] == 0 else f"the snapshot of height {start['height']}"
    heights = [f"snapshots of height {', '.join(map(str, found['snapshots']))}"]
    if found["snapshots_left_out"]:
        heights.append(f"not looked at: of height {', '.join(map(str, found['snapshots_left_out']))}")
    latest = f", round {found['round']}" if found["entries"] else ""
    members = [f"{short(peer)} in {count}" for peer, count in found["members"].items()]
    if len(members) > _NAMED:
        members[_NAMED:] = [f"and {len(members) - _NAMED} more"]
    rate = f", {found['entries'] / found['took_s']:.1f} entries a second" if found["entries"] and found["took_s"] else ""
    lines = [
        f"Proved      the base of height {found['height']}{latest}, weight {found['weight']}: {found['base_digest']}",
        f"From        {begins}, certified by {start['certified_by']}: {start['base_digest']}",
        f"Run         {found['name']}, {found['run']}, the hash of {found['rules']}",
        f"Checked     {found['entries']} log entries; {'; '.join(heights)}; {size(found['bytes'])}",
        f"Members     {len(found['members'])}: {', '.join(members) or 'no round was committed'}",
        f"Took        {duration(found['took_s'])}{rate}",
    ]
    return "\n".join(map(clean, lines))


def show(options: argparse.Namespace) -> int:
    folder = _folder(options)
    found = branches(folder, verify)
    document = {"schema": SCHEMA, "run": folder.name, "folder": str(folder), "branches": list(map(_document, found))}
    print(json.dumps(document, ensure_ascii=False, indent=2) if options.json else shown(document))
    return Exit.OK


def _document(branch: Branch) -> Doc:
    tip = branch.tip
    return {
        "name": branch.name,
        "heights": [list(stretch) for stretch in branch.stretches],
        "bytes": branch.bytes,
        "tip": {"height": tip.height, "round": branch.round, "weight": tip.weight, "base_digest": tip.base} if tip else None,
        "fault": branch.fault,
        "snapshots": [{"height": height, "bytes": count} for height, count in branch.snapshots.items()],
    }


def shown(found: Doc) -> str:
    """The document of a lineage on disk as text."""
    lines = [f"Run {found['run']} in {found['folder']}"]
    for branch in found["branches"]:
        log = ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in branch["heights"])
        tip = branch["tip"]
        bases = ", ".join(f"{base['height']} ({size(base['bytes'])})" for base in branch["snapshots"])
        lines += ["", branch["name"], f"    log        {f'heights {log}, ' + size(branch['bytes']) if log else 'no entries'}"]
        if tip:
            lines.append(
                f"    tip        height {tip['height']}, round {tip['round']}, weight {tip['weight']}, base {tip['base_digest'][:16]}"
            )
        if branch["fault"]:
            lines.append(f"    damaged    {branch['fault']}")
        lines.append(f"    snapshots  {bases or 'none'}")
    return "\n".join(map(clean, lines))


def _folder(options: argparse.Namespace) -> Path:
    return run_folder(options.state or daemon_at_hand(os.environ).node.state_dir, options.run or "")


def _progress(began: float) -> Callable[[int, int], None]:
    """A line on a terminal that says how far it has got."""
    told, done = 0.0, 0

    def tell(height: int, last: int) -> None:
        nonlocal told, done
        done, now = done + 1, time.monotonic()
        if height == last:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        elif now - told >= _TOLD_S:
            told = now
            print(f"{_CLEAR}height {height} of {last}, {done / (now - began):.1f} a second", end="", file=sys.stderr, flush=True)

    return tell if sys.stderr.isatty() else lambda height, last: None


def main(argv: Sequence[str] | None = None) -> int:
    top = parser()
    options = top.parse_args(argv)
    if options.files and options.state:
        top.error("give --state or files, not both")
    return ended(lambda: options.verb(options), f"{_CLEAR if sys.stderr.isatty() else ''}tapestry lineage")


if __name__ == "__main__":
    sys.exit(main())
