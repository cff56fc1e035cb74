"""`tapestry data`: declare data sets, look at them, check that they are what was recorded. Asks no daemon, needs no network.

Runs as a program of its own, on the data side: it reads trainer.toml and the data, as only root and the trainer's user may.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from protocols.control import SCHEMA, Exit
from tapestryd.config import Checkpoint, Node, TrainerChoice, TrainerConfig
from tapestryd.editing import with_value
from tapestryd.errors import ConfigFault, NotAllowed, Unavailable
from tapestryd.host import allowance, budget, datasets
from tapestryd.host.accountant import missing
from tapestryd.host.datasets import Dataset
from tapestryd.host.files import write
from tapestryd.host.manifest import CLASSES, CONSTRAINTS, UNDECLARED, Manifest, key, refusal
from tapestryd.layers import trainer_at, usual
from tapestryd.program import ended
from tapestryd.screen import clean, size
from tapestryd.training.exclusion import protected

_TEXTS = {
    "artifact_id": ("--id", "ID", "what to call it (default: the folder's name)"),
    "artifact_type": ("--type", "TYPE", "what it is (text)"),
    "owner": ("--owner", "NAME", "whose it is"),
    "source": ("--source", "TEXT", "where it comes from"),
    "provenance": ("--provenance", "TEXT", "how it came to be, and came here"),
    "rights": ("--rights", "LICENCE", "its licence, by its SPDX name if it has one: CC-BY-4.0"),
    "residency": ("--residency", "PLACE", "where it must stay"),
    "visibility": ("--visibility", "TEXT", "who may know of it"),
    "quality": ("--quality", "TEXT", "how good it is, and how that is known"),
    "version": ("--version", "TEXT", "of this data set (1)"),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tapestry data", description="Declare the data that this machine trains on.")
    verbs = top.add_subparsers(metavar="COMMAND", required=True)
    one = verbs.add_parser(
        "add",
        help="declare a data set, or record it anew",
        description=f"Write {datasets.MANIFEST} and {datasets.RECORD} into the folder of a data set. What was declared before and is not "
        "said anew stays.",
    )
    one.set_defaults(verb=add)
    one.add_argument("folder", type=Path, metavar="DIR", help="the data set: this folder, with all text in it")
    one.add_argument("--class", dest="data_class", choices=CLASSES, metavar="CLASS", help=f"who may use it: {', '.join(CLASSES)}")
    one.add_argument("--tier", type=int, choices=range(5), metavar="0-4", help="of protection: 1 licence, 2 differential privacy")
    one.add_argument("--epsilon", type=float, metavar="E", help="in tier 2: the most that may ever be spent of it")
    for name, (flag, word, text) in _TEXTS.items():
        one.add_argument(flag, dest=name, metavar=word, help=text)
    one.add_argument("--lineage", action="append", metavar="ID", help="a data set that it was made from; may be repeated")
    one.add_argument(
        "--constraint", action="append", dest="use_constraints", choices=list(CONSTRAINTS), metavar="WORD",
        help=f"may be repeated: {', '.join(CONSTRAINTS)}",
    )  # fmt: skip
    one = verbs.add_parser("list", help="the data sets of data.paths, and whether they may be contributed")
    two = verbs.add_parser("verify", help="read every file, and say what is not as it was recorded")
    two.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="data sets (default: those of data.paths)")
    for each, verb in ((one, listing), (two, verify)):
        each.set_defaults(verb=verb)
        each.add_argument("--json", action="store_true", help="print one document")
        _config(each)
    for name, change, text in (
        ("allow", allow, "let the trainer read a folder, and hide it from the daemon"), ("forbid", forbid, "take that back")
    ):  # fmt: skip
        one = verbs.add_parser(name, help=text, description=f"As root: {text}, in drop-ins of their units and in data.paths.")
        one.set_defaults(verb=change)
        one.add_argument("folder", type=Path, metavar="DIR")
        one.add_argument("--units", type=Path, default=allowance.UNITS, metavar="DIR", help="where units are (%(default)s)")
        _config(one)
    one = verbs.add_parser(
        "protect",
        help="make a list of protected text",
        description="Print what data.exclude needs to know of texts that must not be trained on: digests, which do not tell the text.",
    )
    one.set_defaults(verb=protect)
    one.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a text in UTF-8 each")
    return top


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, metavar="FILE", help=f"trainer.toml ({TrainerChoice().config}, or your own daemon's)")


def add(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if not folder.is_dir():
        raise ConfigFault(f"{folder}: no such folder; a data set is a folder")
    root = folder.resolve()
    given = {item.name: value for item in fields(Manifest) if (value := getattr(options, item.name)) is not None}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    before = asdict(datasets.manifest(root)) if (root / datasets.MANIFEST).exists() else {"artifact_id": root.name}
    if "data_class" not in before | given:
        raise ConfigFault(f"{folder}: --class is missing; say who may use it: {', '.join(CLASSES)}")
    said = Manifest(**before | given)
    count, total = datasets.declare(root, said)
    print(f"{said.artifact_id} version {said.version}: {said.data_class}, tier {said.tier}, {_files(count)}, {size(total)}")
    if refused := refusal(said, volunteer=False, budget=True):
        print(f"It will not be contributed: {refused[1]}.")
    return Exit.OK


def listing(options: argparse.Namespace) -> int:
    config = _loaded(options)
    found = [_document(dataset, config) for dataset in datasets.datasets(config.data.paths)]
    if options.json:
        print(json.dumps({"schema": SCHEMA, "datasets": found}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(line for one in found for line in _shown(one)))
    return Exit.OK


def _loaded(options: argparse.Namespace) -> TrainerConfig:
    return trainer_at(options.config or usual(os.environ, "trainer.toml"), os.environ)


def _document(dataset: Dataset, config: TrainerConfig) -> dict[str, Any]:
    said, some = dataset.manifest, config.privacy.epsilon > 0
    taken = said or UNDECLARED
    refused = refusal(taken, volunteer=False, budget=some)
    where = "nowhere" if refused else "members" if refusal(taken, volunteer=True, budget=some) else "all"
    return {
        "folder": str(dataset.root),
        "manifest": {key(name): value for name, value in asdict(said).items()} if said else None,
        "files": len(dataset.files),
        "bytes": sum(file.stat().st_size for file in dataset.files),
        "contributed": where,
        "why_not": refused[1] if refused else "",
        "privacy": _privacy(said, config) if said and said.tier == 2 else None,
    }


def _privacy(said: Manifest, config: TrainerConfig) -> dict[str, float]:
    """What is spent and what may be, of one data set and of all data."""
    entries, delta = budget.read(config.checkpoint.dir / budget.FILE), config.privacy.delta
    if entries and (fault := missing()):
        raise Unavailable(f"what is spent of {said.artifact_id} cannot be added up: {fault}")
    most = config.privacy.epsilon
    own, whole = budget.spent(entries, delta, said.artifact_id), budget.spent(entries, delta)
    return {"delta": delta, "spent": own, "most": said.epsilon or most, "all_spent": whole, "all_most": most}


def _shown(found: dict[str, Any]) -> list[str]:
    """A data set's document as text."""
    said, privacy = found["manifest"], found["privacy"]
    lines = [found["folder"], f"    not declared: taken as {UNDECLARED.data_class}, unless data.require_manifest"]
    if said:
        rights = said["rights"] or "no licence"
        lines[1] = f"    {said['artifact_id']} version {said['version']}, {said['class']}, tier {said['tier']}, {rights}"
    lines.append(f"    {_files(found['files'])}, {size(found['bytes'])}")
    if privacy:
        spent = f"epsilon {privacy['spent']:.3f} of {privacy['most']:g} spent"
        lines.append(f"    {spent}, of all data {privacy['all_spent']:.3f} of {privacy['all_most']:g}, at delta {privacy['delta']:g}")
    where = {"nowhere": f"not contributed: {found['why_not']}", "members": "contributed in runs of named Members", "all": "contributed"}
    return [*map(clean, lines), f"    {where[found['contributed']]}"]


def _files(count: int) -> str:
    return f"{count} file" + ("" if count == 1 else "s")


def verify(options: argparse.Namespace) -> int:
    paths = [] if options.folders else _loaded(options).data.paths
    roots = options.folders or [found.root for found in datasets.datasets(paths) if found.manifest]
    if not roots:
        raise ConfigFault("nothing is declared in data.paths; `tapestry data add DIR` declares a data set")
    found = dict[str, list[str]]()
    for root in roots:
        datasets.manifest(root)
        wrong = found[str(root)] = datasets.differences(root)
        if not options.json:
            print("\n".join(map(clean, wrong or [f"{root}: as it was recorded"])), flush=True)
    if options.json:
        print(json.dumps({"schema": SCHEMA, "differences": found}, ensure_ascii=False, indent=2))
    return Exit.FAILED if any(found.values()) else Exit.OK


def allow(options: argparse.Namespace) -> int:
    config = _loaded(options)
    folder = options.folder.resolve()
    own = [config.checkpoint.dir, Node().state_dir, Checkpoint().dir, Path(sys.prefix)]
    if wrong := allowance.fault(folder, [path.resolve() for path in own]):
        raise ConfigFault(wrong)
    paths = config.data.paths if folder in map(Path.resolve, config.data.paths) else (*config.data.paths, folder)
    _change(options, allowance.allow, folder, config.data.paths, paths)
    print(f"The user of the trainer must have the right to read it: chgrp -R tapestry-train {folder}; chmod -R g+rX {folder}")
    return Exit.OK


def forbid(options: argparse.Namespace) -> int:
    before = _loaded(options).data.paths
    folder = options.folder.resolve()
    after = tuple(path for path in before if path.resolve() != folder)
    if not after:
        raise ConfigFault(f"{folder} is all that data.paths names; allow another folder first, or set trainer.enabled = false")
    _change(options, allowance.forbid, folder, before, after)
    return Exit.OK


def _change(
    options: argparse.Namespace, drop_ins: Callable[[Path, Path], bool], folder: Path, before: Sequence[Path], after: Sequence[Path]
) -> None:  # fmt: skip
    """Change the drop-ins where there are units, then data.paths, and say how it takes effect. Raises ConfigFault, NotAllowed."""
    path, separate = options.config or usual(os.environ, "trainer.toml"), allowance.separate(options.units)
    try:
        text = with_value(path.read_text("utf-8"), "data.paths", list(map(str, after))) if before != after else ""
        changed = drop_ins(options.units, folder) if separate else False
        if text:
            write(path.resolve(), text.encode(), like=path.stat())
    except ConfigFault as fault:
        raise ConfigFault(f"{path}: {fault}") from None
    except PermissionError as error:
        raise NotAllowed(f"{error.filename}: {error.strerror}; only root may say what is data: use sudo") from None
    print(f"data.paths = {', '.join(map(str, after))}")
    if not changed and not text:
        print("It was so before.")
    elif separate:
        print("Takes effect with: systemctl daemon-reload && systemctl restart tapestryd tapestry-trainer")
    else:
        print("Takes effect when tapestryd is started again.")


def protect(options: argparse.Namespace) -> int:
    for file in options.files:
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigFault(f"{file}: not text in UTF-8; save it as plain text first") from None
        for digest in protected([text]):
            print(f"{digest.hex()}  # {clean(file.name)}")
    return Exit.OK


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: int(options.verb(options)), "tapestry data")


if __name__ == "__main__":
    sys.exit(main())
