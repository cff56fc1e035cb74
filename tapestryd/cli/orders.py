"""`tapestry pause`, `finish`, `resume`, `mode`, `dashboard`, `reload`, `shutdown`: what the operator wants of the daemon."""

import argparse
import os
from pathlib import Path

from tapestryd.cli.verbs import Verbs, lasting, said, show
from tapestryd.client import Client
from tapestryd.host.clock import now_ms
from tapestryd.host.hours import next_at
from tapestryd.host.sensors.wall import zone


def add(verbs: Verbs) -> None:
    one = verbs.add("pause", pause, "stop training; the round in hand is left")
    either = one.add_mutually_exclusive_group()
    either.add_argument("--for", dest="duration", type=lasting, metavar="2h", help="resume by itself after this time")
    either.add_argument("--until", dest="duration", type=until, metavar="18:00", help="resume by itself when it is so late here")
    verbs.add("finish", finish, "complete the round in hand, and pause behind it")
    verbs.add("resume", resume, "train again: ends a pause, a finish, and the mode never")
    one = verbs.add("mode", mode, "always train, whoever is at this machine and whatever the hours; as the policy has it; never")
    one.add_argument("mode", choices=("always", "auto", "never"))
    one.add_argument("--for", dest="duration", type=lasting, metavar="2h", help="for so long, then auto")
    one = verbs.add("dashboard", dashboard, "open this machine's page in a browser, by a link that may pause and resume")
    one.add_argument("--print", action="store_true", help="print the link instead, as is done where no browser can be opened")
    verbs.add("reload", reload, "read the configuration again, without losing the round; what needs a restart is named")
    verbs.add("shutdown", shutdown, "stop the daemon")


def pause(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/pause", {"for_s": options.duration}))


def finish(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/finish", {}))


def mode(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/mode", {"mode": options.mode, "for_s": options.duration}))


def resume(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/resume", {}))


def dashboard(options: argparse.Namespace, client: Client) -> int:
    link = client.ask("POST", "/v1/dashboard", {})
    screens = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (options.print or options.json) and screens and os.geteuid() != 0:  # nobody's browser should run as root
        import webbrowser  # only who opens one waits for it

        if webbrowser.open(link["url"]):
            return said(options, link)
    return show(options, link, lambda link: f"{link['url']}\n{link['said']}\n")


def reload(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/reload", {}))


def shutdown(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/shutdown", {}))


def until(text: str) -> float:
    """For argparse: seconds from now to the next time that it is so late here."""
    now_s = now_ms() / 1000
    try:
        return next_at(text, now_s, zone(Path("/"))) - now_s
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
