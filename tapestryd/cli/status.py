"""`tapestry status`, `wait`, `version`: how this peer is."""

import argparse
import sys
import time
from collections.abc import Callable

from protocols import TREATY
from protocols.control import SCHEMA, Exit
from tapestryd import __version__, screen
from tapestryd.cli.verbs import Verbs, colour, columns, duration, show, watchable, watched
from tapestryd.client import Client, Doc
from tapestryd.errors import LocalFault, NotAllowed

POLL_S = 0.2


def add(verbs: Verbs) -> None:
    one = verbs.add("status", status, "is it well, what is it doing, why is it not training")
    watchable(one)
    one.add_argument("--peers", action=argparse.BooleanOptionalAction, default=None, help="all peers, or none, instead of the first ten")
    one.add_argument("--check", action="store_true", help="exit 5 unless in a run and with nothing to say about health")
    one = verbs.add(
        "wait", wait, "wait until the daemon answers, is a member of a run, trains, is paused, or at least N rounds are committed"
    )
    one.add_argument("--for", dest="what", type=_what, required=True, metavar="ready|joined|training|paused|round=N")
    one.add_argument("--timeout", type=duration, default=300.0, metavar="5m", help="then exit 124, saying the last state (5m)")
    verbs.add("version", version, "the version of this command and of the daemon")


def status(options: argparse.Namespace, client: Client) -> int:
    rows = {None: 10, True: 10_000, False: 0}[options.peers]
    if options.watch is not None and options.check:
        raise LocalFault("--check looks once, --watch again and again: give one of the two.")
    code = watched(
        options, lambda: client.ask("GET", "/v1/status"), lambda now: screen.render(now, width=columns(), colour=colour(options), rows=rows)
    )  # fmt: skip
    return code if not options.check or _well(client) else Exit.DEGRADED


def _well(client: Client) -> bool:
    return client.ready() and not client.ask("GET", "/v1/status")["health"]


def wait(options: argparse.Namespace, client: Client) -> int:
    """Poll until what is waited for holds. A daemon that does not answer yet is waited for, too."""
    until = time.monotonic() + options.timeout
    while True:
        try:
            now = client.ask("GET", "/v1/status")
            if options.what(client, now):
                return show(options, now, lambda now: f"{_in_short(now)}\n")
            last = _in_short(now)
        except NotAllowed:
            raise
        except LocalFault as absent:  # not there yet, or too busy to answer
            last = str(absent)
        if time.monotonic() >= until:
            print(f"Timed out after {screen.duration(options.timeout)}. {last}", file=sys.stderr)
            return Exit.TIMED_OUT
        time.sleep(POLL_S)


def version(options: argparse.Namespace, client: Client) -> int:
    try:
        daemon = client.ask("GET", "/v1/version")["version"]
    except LocalFault:
        daemon = None
    document = {"schema": SCHEMA, "version": __version__, "treaty": TREATY, "daemon": daemon}
    return show(options, document, lambda _: f"tapestry {__version__} (treaty {TREATY}); daemon: {daemon or 'none answers'}\n")


def _in_short(now: Doc) -> str:
    joined = now["run"]
    run = f" in {joined['name'] or joined['id'][:8]}, round {joined['round']}, height {joined['height']}" if joined else ""
    return screen.clean(f"The daemon is {now['state']}{run}" + "".join(f"; {reason}" for reason in now["reasons"]) + ".")


def _what(text: str) -> Callable[[Client, Doc], bool]:
    head, _, height = text.partition("=")
    if text == "ready":
        return lambda client, now: True
    if text == "joined":
        return lambda client, now: client.ready()
    if text in ("training", "paused"):
        return lambda client, now: now["state"] == text
    if head == "round" and height.isascii() and height.isdigit():
        return lambda client, now: now["run"] is not None and now["run"]["height"] >= int(height)
    raise argparse.ArgumentTypeError(f"{text!r}: must be ready, joined, training, paused or round=N")
