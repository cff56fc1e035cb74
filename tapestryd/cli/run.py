"""`tapestry run`, `rounds`, `export`: the run that this node is in, what it has lived through, and what it has learned."""

import argparse
from pathlib import Path
from urllib.parse import quote

from tapestryd import screen
from tapestryd.cli.verbs import Verbs, columns, said, show, watchable, watched
from tapestryd.client import Client, Doc, export, join
from tapestryd.netcheck import local

_LOCAL = "# Its addresses are of private networks: from elsewhere nobody can use it; see network.announce, and `tapestry netcheck`.\n"


def add(verbs: Verbs) -> None:
    runs = verbs.noun("run", "found, join, show, leave", "The run that this node is in.")
    runs.add("show", run_show, "the run's rules and its invite")
    one = runs.add("join", run_join, "join a run")
    one.add_argument("target", metavar="INVITE|FILE", help="tapestry:…, or a run.toml with its genesis beside it")
    runs.add("leave", run_leave, "leave the run; what was learned stays")
    runs.elsewhere("new", "tapestry run new", "found a run")
    one = verbs.add("rounds", rounds, "the latest rounds as this node lived them, newest last")
    watchable(one)
    one.add_argument("--limit", default="20", metavar="N", help="how many (20)")
    one = verbs.below(one).add("show", rounds_show, "one round in full: who, how much, how long, certified by whom")
    one.add_argument("number", metavar="N", help="the round's number")
    one = verbs.add("export", export_base, "write the Shared Base as a Hugging Face folder")
    one.add_argument("folder", type=Path, metavar="DIR", help="a new or an empty folder")


def run_show(options: argparse.Namespace, client: Client) -> int:
    def text(run: Doc) -> str:
        return f"{run['rules_toml'] or ''}\n{_LOCAL if local(run['invite']) else ''}# invite: {run['invite']}\n"

    return show(options, client.ask("GET", "/v1/run"), text)


def run_join(options: argparse.Namespace, client: Client) -> int:
    return said(options, join(client, options.target))


def run_leave(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("DELETE", "/v1/run"))


def rounds(options: argparse.Namespace, client: Client) -> int:
    target = f"/v1/rounds?limit={quote(options.limit)}"
    return watched(options, lambda: client.ask("GET", target), lambda found: screen.rounds(found["rounds"], width=columns()))


def rounds_show(options: argparse.Namespace, client: Client) -> int:
    found = client.ask("GET", f"/v1/rounds/{quote(options.number)}")
    return show(options, found, lambda found: screen.one_round(found, width=columns()))


def export_base(options: argparse.Namespace, client: Client) -> int:
    listing = export(client, options.folder)
    lines = [f"{file['sha256']}  {options.folder / file['name']}\n" for file in listing["files"]]
    return show(options, listing, lambda _: "".join(lines))
