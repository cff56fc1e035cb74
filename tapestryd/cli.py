"""`tapestry`: the operator's commands. Parses arguments, asks the daemon on its unix socket, prints.

Starts fast: never imports torch, hivemind, aiohttp or pydantic. Whatever goes wrong is one sentence on standard
error and an exit code of protocols.control.Exit; 130 after Ctrl-C, 141 when whoever read the output went away.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protocols import TREATY
from protocols.control import SCHEMA, Exit
from protocols.identity import public_key
from protocols.refusal import Refused
from tapestryd import __version__, screen
from tapestryd.client import Client, Doc, default_socket, export, join
from tapestryd.errors import LocalFault, NotAllowed, NotRunning
from tapestryd.program import ended
from tapestryd.settings import parse_duration

POLL_S = 0.2
_PROGRAMS = {
    ("run", "new"): "tapestryd.founding",
    ("lineage",): "tapestryd.audit",
    ("audit",): "tapestryd.auditing",
    ("member",): "tapestryd.delegating",
}
"""Verbs that are programs of their own, because they import torch or cryptography."""
EXITS = """exit codes: 0 done, 1 failed, 2 usage, 3 no daemon answers, 4 not permitted, 5 degraded (status --check),
124 wait timed out, 130 interrupted"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without "●" gets "?"
    for words, module in _PROGRAMS.items():
        if argv[: len(words)] == list(words):
            os.execv(sys.executable, [sys.executable, "-P", "-m", module, *argv[len(words) :]])
    options = _parser().parse_args(argv)
    return ended(lambda: _asked(options))


def _asked(options: argparse.Namespace) -> int:
    try:
        code: int = options.verb(options, Client(options.socket or default_socket(os.environ)))
        return code
    except (KeyError, TypeError, ValueError) as error:
        raise LocalFault(f"The daemon's answer is not one that tapestry {__version__} understands ({error!r}).") from None


def status(options: argparse.Namespace, client: Client) -> int:
    rows = {None: 10, True: 10_000, False: 0}[options.peers]

    def shown() -> str:
        document = client.ask("GET", "/v1/status")
        if options.json:
            return json.dumps(document, ensure_ascii=False, indent=None if options.watch else 2) + "\n"
        return screen.render(document, width=_columns(), colour=_colour(options), rows=rows)

    if options.watch is not None and options.check:
        raise LocalFault("--check looks once, --watch again and again: give one of the two.")
    if options.watch is None:
        print(shown(), end="")
        return Exit.OK if not options.check or _well(client) else Exit.DEGRADED
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    while True:
        try:
            text = shown()
        except NotRunning as absent:  # it may come back, as in a restart
            text = f"{absent}\n"
        print(clear + text, end="", flush=True)
        time.sleep(options.watch)


def _well(client: Client) -> bool:
    return client.ready() and not client.ask("GET", "/v1/status")["health"]


def peers(options: argparse.Namespace, client: Client) -> int:
    return _show(options, client.ask("GET", "/v1/peers"), lambda found: screen.peers(found["peers"], width=_columns()))


def ban(options: argparse.Namespace, client: Client) -> int:
    body = {"for_s": options.duration, "reason": options.reason}
    return _said(options, client.ask("PUT", f"/v1/bans/{_whole_id(options.peer, client)}", body))


def unban(options: argparse.Namespace, client: Client) -> int:
    return _said(options, client.ask("DELETE", f"/v1/bans/{_whole_id(options.peer, client)}"))


def bans(options: argparse.Namespace, client: Client) -> int:
    return _show(options, client.ask("GET", "/v1/bans"), lambda found: screen.bans(found["bans"], width=_columns()))


def _whole_id(text: str, client: Client) -> str:
    """The peer id that is meant: itself, or by its end, as tables and logs show it. Raises LocalFault unless there is just one."""
    with suppress(Refused):
        public_key(text)
        return text
    end = text.rpartition("…")[2]
    listed: list[str] = [peer["peer_id"] for peer in client.ask("GET", "/v1/peers")["peers"] + client.ask("GET", "/v1/bans")["bans"]]
    meant = sorted({peer for peer in listed if end and peer.endswith(end)})
    if len(meant) > 1:
        raise LocalFault(f"{screen.clean(text)} may be any of {', '.join(meant[:4])}; write more of its end.")
    if not meant:
        raise LocalFault(f"{screen.clean(text)} is neither a whole peer id nor the end of one that is present or banned.")
    return meant[0]


def rounds(options: argparse.Namespace, client: Client) -> int:
    found = client.ask("GET", f"/v1/rounds?limit={quote(options.limit)}")
    return _show(options, found, lambda found: screen.rounds(found["rounds"], width=_columns()))


def rounds_show(options: argparse.Namespace, client: Client) -> int:
    found = client.ask("GET", f"/v1/rounds/{quote(options.number)}")
    return _show(options, found, lambda found: screen.one_round(found, width=_columns()))


def run_show(options: argparse.Namespace, client: Client) -> int:
    return _show(options, client.ask("GET", "/v1/run"), lambda run: f"{run['rules_toml'] or ''}\n# invite: {run['invite']}\n")


def version(options: argparse.Namespace, client: Client) -> int:
    try:
        daemon = client.ask("GET", "/v1/version")["version"]
    except LocalFault:
        daemon = None
    document = {"schema": SCHEMA, "version": __version__, "treaty": TREATY, "daemon": daemon}
    return _show(options, document, lambda _: f"tapestry {__version__} (treaty {TREATY}); daemon: {daemon or 'none answers'}\n")


def pause(options: argparse.Namespace, client: Client) -> int:
    return _said(options, client.ask("POST", "/v1/pause", {"for_s": options.duration}))


def resume(options: argparse.Namespace, client: Client) -> int:
    return _said(options, client.ask("POST", "/v1/resume", {}))


def dashboard(options: argparse.Namespace, client: Client) -> int:
    link = client.ask("POST", "/v1/dashboard", {})
    screens = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (options.print or options.json) and screens and os.geteuid() != 0:  # nobody's browser should run as root
        import webbrowser  # only who opens one waits for it

        if webbrowser.open(link["url"]):
            return _said(options, link)
    return _show(options, link, lambda link: f"{link['url']}\n{link['said']}\n")


def shutdown(options: argparse.Namespace, client: Client) -> int:
    return _said(options, client.ask("POST", "/v1/shutdown", {}))


def run_join(options: argparse.Namespace, client: Client) -> int:
    return _said(options, join(client, options.target))


def run_leave(options: argparse.Namespace, client: Client) -> int:
    return _said(options, client.ask("DELETE", "/v1/run"))


def export_base(options: argparse.Namespace, client: Client) -> int:
    listing = export(client, options.folder)
    lines = [f"{file['sha256']}  {options.folder / file['name']}\n" for file in listing["files"]]
    return _show(options, listing, lambda _: "".join(lines))


def wait(options: argparse.Namespace, client: Client) -> int:
    """Poll until what is waited for holds. A daemon that does not answer yet is waited for, too."""
    until = time.monotonic() + options.timeout
    while True:
        try:
            now = client.ask("GET", "/v1/status")
            if options.what(client, now):
                return _show(options, now, lambda now: f"{_in_short(now)}\n")
            last = _in_short(now)
        except NotAllowed:
            raise
        except LocalFault as absent:  # not there yet, or too busy to answer
            last = str(absent)
        if time.monotonic() >= until:
            print(f"Timed out after {screen.duration(options.timeout)}. {last}", file=sys.stderr)
            return Exit.TIMED_OUT
        time.sleep(POLL_S)


def _in_short(now: Doc) -> str:
    run = f" in {now['run']['name']}, round {now['run']['round']}, height {now['run']['height']}" if now["run"] else ""
    return screen.clean(f"The daemon is {now['state']}{run}" + "".join(f"; {reason}" for reason in now["reasons"]) + ".")


def _what(text: str) -> Callable[[Client, Doc], bool]:
    head, _, height = text.partition("=")
    if text == "joined":
        return lambda client, now: client.ready()
    if text == "training":
        return lambda client, now: now["state"] == "training"
    if head == "round" and height.isascii() and height.isdigit():
        return lambda client, now: now["run"] is not None and now["run"]["height"] >= int(height)
    raise argparse.ArgumentTypeError(f"{text!r}: must be joined, training or round=N")


def _said(options: argparse.Namespace, answer: Doc) -> int:
    return _show(options, answer, lambda answer: f"{answer['said']}\n")


def _show(options: argparse.Namespace, document: Doc, text: Callable[[Doc], str]) -> int:
    print(json.dumps(document, ensure_ascii=False, indent=2) + "\n" if options.json else text(document), end="")
    return Exit.OK


def _columns() -> int:
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def _colour(options: argparse.Namespace) -> bool:
    if options.color == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return bool(options.color == "always")


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _seconds(text: str) -> float:
    return max(POLL_S, _duration(text if text[-1:].isalpha() else text + "s"))


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tapestry", description="Ask and direct this machine's tapestryd.", epilog=EXITS, allow_abbrev=False)
    after = argparse.ArgumentParser(add_help=False)
    for parser, default in ((top, None), (after, argparse.SUPPRESS)):  # the global options may stand before or after the verb
        parser.add_argument("--socket", type=Path, metavar="PATH", default=default, help="the daemon's control socket")
        parser.add_argument("--json", action="store_true", default=default or False, help="print the API's document")
        parser.add_argument("--color", choices=("auto", "always", "never"), default=default or "auto", help="NO_COLOR is honoured, too")
    verbs = top.add_subparsers(metavar="COMMAND", required=True)

    def add(group: Any, name: str, verb: Callable[[argparse.Namespace, Client], int], text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = group.add_parser(name, parents=[after], help=text, description=text, allow_abbrev=False)
        made.set_defaults(verb=verb)
        return made

    one = add(verbs, "status", status, "is it well, what is it doing, why is it not training")
    one.add_argument("--watch", nargs="?", const=2.0, type=_seconds, metavar="SECONDS", help="again and again, every 2 seconds or as given")
    one.add_argument("--peers", action=argparse.BooleanOptionalAction, default=None, help="all peers, or none, instead of the first ten")
    one.add_argument("--check", action="store_true", help="exit 5 unless in a run and with nothing to say about health")
    one = add(verbs, "peers", peers, "the peers of this run, with their addresses; whom to keep out")
    some = one.add_subparsers(metavar="COMMAND")
    one = add(some, "ban", ban, "close the door to a peer, whatever it does")
    one.add_argument("peer", metavar="ID", help="a peer id, or the end of one as the tables show it")
    one.add_argument(
        "--for", dest="duration", type=_duration, metavar="12h", help="for so long (default: trust.ban_time of the configuration)"
    )
    one.add_argument("--reason", metavar="TEXT", help="for whoever reads the list")
    one = add(some, "unban", unban, "open it again; what was held against the peer is forgotten")
    one.add_argument("peer", metavar="ID", help="as for ban")
    add(some, "bans", bans, "who is kept out, until when, and why")
    one = add(verbs, "rounds", rounds, "the latest rounds as this node lived them, newest last")
    one.add_argument("--limit", default="20", metavar="N", help="how many (20)")
    one = add(one.add_subparsers(metavar="COMMAND"), "show", rounds_show, "one round in full: who, how much, how long, certified by whom")
    one.add_argument("number", metavar="N", help="the round's number")
    one = add(verbs, "pause", pause, "stop training; the round in hand is left")
    one.add_argument("--for", dest="duration", type=_duration, metavar="2h", help="resume by itself after this time")
    add(verbs, "resume", resume, "train again")
    one = add(verbs, "wait", wait, "wait until joined, training, or at least N rounds are committed")
    one.add_argument("--for", dest="what", type=_what, required=True, metavar="joined|training|round=N")
    one.add_argument("--timeout", type=_duration, default=300.0, metavar="5m", help="then exit 124, saying the last state (5m)")
    one = add(verbs, "export", export_base, "write the Shared Base as a Hugging Face folder")
    one.add_argument("folder", type=Path, metavar="DIR", help="a new or an empty folder")
    one = add(verbs, "dashboard", dashboard, "open this machine's page in a browser, by a link that may pause and resume")
    one.add_argument("--print", action="store_true", help="print the link instead, as is done where no browser can be opened")
    add(verbs, "shutdown", shutdown, "stop the daemon")
    add(verbs, "version", version, "the version of this command and of the daemon")
    lineage = add(
        verbs, "lineage", lambda options, client: lineage.error("put it right behind `tapestry`: tapestry lineage …"),
        "prove a base from files, offline; see tapestry lineage --help",
    )  # fmt: skip
    audit = add(
        verbs, "audit", lambda options, client: audit.error("put it right behind `tapestry`: tapestry audit …"),
        "what left this machine, and that nobody changed the ledger of it; see tapestry audit --help",
    )  # fmt: skip
    member = add(
        verbs, "member", lambda options, client: member.error("put it right behind `tapestry`: tapestry member …"),
        "a Member's key and delegations; see tapestry member --help",
    )  # fmt: skip
    run = verbs.add_parser("run", help="found, join, show, leave", description="The run that this node is in.", allow_abbrev=False)
    runs = run.add_subparsers(metavar="COMMAND", required=True)
    add(runs, "show", run_show, "the run's rules and its invite")
    one = add(runs, "join", run_join, "join a run")
    one.add_argument("target", metavar="INVITE|FILE", help="tapestry:…, or a run.toml with its genesis beside it")
    add(runs, "leave", run_leave, "leave the run; what was learned stays")
    new = add(
        runs,
        "new",
        lambda options, client: new.error("put it right behind `tapestry`: tapestry run new …"),
        "found a run; see tapestry run new --help",
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
