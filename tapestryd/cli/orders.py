"""`tapestry pause`, `resume`, `dashboard`, `shutdown`: what the operator wants of the daemon."""

import argparse
import os

from tapestryd.cli.verbs import Verbs, duration, said, show
from tapestryd.client import Client


def add(verbs: Verbs) -> None:
    one = verbs.add("pause", pause, "stop training; the round in hand is left")
    one.add_argument("--for", dest="duration", type=duration, metavar="2h", help="resume by itself after this time")
    verbs.add("resume", resume, "train again")
    one = verbs.add("dashboard", dashboard, "open this machine's page in a browser, by a link that may pause and resume")
    one.add_argument("--print", action="store_true", help="print the link instead, as is done where no browser can be opened")
    verbs.add("shutdown", shutdown, "stop the daemon")


def pause(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/pause", {"for_s": options.duration}))


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


def shutdown(options: argparse.Namespace, client: Client) -> int:
    return said(options, client.ask("POST", "/v1/shutdown", {}))
