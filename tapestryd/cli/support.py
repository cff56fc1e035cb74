"""`tapestry support-bundle`: what somebody who helps has to know of this node, in one file, to be read before it is handed on.

Nothing of the data side but its settings, and of what an owner wrote in settings only that it is there: no keys, no tokens, no invite,
no text, no addresses, no places of files (scrub.py).
"""

import argparse
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from json import dumps
from pathlib import Path

from protocols.control import SCHEMA
from tapestryd import __version__
from tapestryd.cli.doctor import findings
from tapestryd.cli.scrub import Scrub
from tapestryd.cli.sides import Side, network_side, sides, takes_config
from tapestryd.cli.verbs import Verbs, said
from tapestryd.client import Client, Doc
from tapestryd.config import DaemonConfig
from tapestryd.errors import LocalFault
from tapestryd.host.clock import now_ms
from tapestryd.host.files import write
from tapestryd.settings import CHECKS, OneOf, written

_PACKAGES = ("hivemind", "torch", "numpy", "transformers", "bitsandbytes", "multiaddr", "uvloop", "aiohttp", "cryptography", "protobuf")
_ASKED = ("status", "health", "netcheck", "rounds", "bans", "egress", "log")
_FREE = ("text", "texts", "path", "paths")
"""Kinds of settings in which an owner writes what it likes."""


def add(verbs: Verbs) -> None:
    one = verbs.add("support-bundle", bundle, "what somebody who helps has to know, without secrets, in one file")
    one.add_argument("file", nargs="?", type=Path, default=Path("tapestry-support.json"), metavar="FILE", help="tapestry-support.json")
    takes_config(one)


def bundle(options: argparse.Namespace, client: Client) -> int:
    if options.file.exists():
        raise LocalFault(f"{options.file} is there already; name another file.")
    both = _both(options, client)
    document = {
        "schema": SCHEMA,
        "made_ms": now_ms(),
        "versions": _versions(),
        "doctor": [asdict(finding) for finding in findings(options, client)],
        "settings": [one for side in both for one in _settings(side)],
        "daemon": dict(_answers(client)),
    }
    scrubbed = Scrub({path: f"({name})" for side in both for path, name in _paths(side)}).document(document)
    write(options.file, dumps(scrubbed, ensure_ascii=False, indent=1).encode(errors="replace"), mode=0o600)
    text = f"{options.file} is written, without keys, tokens, invites, addresses, and paths of yours. Read it before you hand it on."
    return said(options, {"schema": SCHEMA, "file": str(options.file), "said": text})


def _both(options: argparse.Namespace, client: Client) -> list[Side]:
    """The network side alone, where its file does not say where the other's is; doctor tells why."""
    try:
        return list(sides(options, client))
    except LocalFault:
        return [network_side(options, client)]


def _versions() -> Doc:
    found = {"tapestryd": __version__, "python": sys.version, "system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version_of(name)
    return found


def _settings(side: Side) -> Iterator[Doc]:
    with suppress(LocalFault):
        loaded = side.loaded()
        for key, setting in side.settings.items():
            check, value = CHECKS.get(key), written(setting.kind, loaded.value(key))
            told = value == written(setting.kind, setting.default) or setting.kind not in _FREE or isinstance(check, OneOf)
            yield {"side": side.name, "key": key, "value": value if told else "(set)", "origin": loaded.origins[key]}


def _paths(side: Side) -> Iterator[tuple[str, str]]:
    """This machine's own places, and what each is for."""
    if side.path.parent != DaemonConfig().trainer.config.parent:
        yield str(side.path.parent), f"folder of {side.name}'s settings"
    with suppress(LocalFault):
        loaded = side.loaded()
        for key, setting in side.settings.items():
            value = loaded.value(key)
            if setting.kind in ("path", "paths") and (value != setting.default or setting.section == "data"):
                yield from ((str(path), key) for path in (value if setting.kind == "paths" else (value,)))


def _answers(client: Client) -> Iterator[tuple[str, Doc]]:
    """What each question brought; a sentence where it brought none."""
    for name in _ASKED:
        try:
            yield name, client.ask("GET", f"/v1/{name}")
        except LocalFault as fault:
            yield name, {"fault": str(fault)}
