"""How a verb of `tapestry` is declared, and how its answer is shown. Knows no verb."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from protocols.control import Exit
from tapestryd.client import Client, Doc
from tapestryd.errors import NotRunning
from tapestryd.settings import PAUSE_S, parse_duration

Verb = Callable[[argparse.Namespace, Client], int]


class Verbs:
    """A place in the tree of commands to which verbs are added. Each also takes the options of `common`."""

    def __init__(self, parser: argparse.ArgumentParser, common: argparse.ArgumentParser, *, required: bool = True) -> None:
        self._common = common
        self._parsers = parser.add_subparsers(metavar="COMMAND", required=required)

    def add(self, name: str, verb: Verb, text: str) -> argparse.ArgumentParser:
        made = self._parsers.add_parser(name, parents=[self._common], help=text, description=text, allow_abbrev=False)
        made.set_defaults(verb=verb)
        return made

    def below(self, verb: argparse.ArgumentParser) -> "Verbs":
        """More verbs behind one that also stands alone."""
        return Verbs(verb, self._common, required=False)

    def noun(self, name: str, help: str, text: str) -> "Verbs":
        """Verbs behind a word that says nothing alone."""
        return Verbs(self._parsers.add_parser(name, help=help, description=text, allow_abbrev=False), self._common)

    def elsewhere(self, name: str, words: str, text: str) -> None:
        """A program of its own, which is only reached where `words` come first."""
        made = self._parsers.add_parser(name, parents=[self._common], help=f"{text}; see {words} --help", allow_abbrev=False)
        made.set_defaults(verb=lambda options, client: made.error(f"put it right behind `tapestry`: {words} …"))


def common(top: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The global options, which may stand before or after the verb: given to `top`, and returned for the verbs."""
    after = argparse.ArgumentParser(add_help=False)
    for parser, default in ((top, None), (after, argparse.SUPPRESS)):
        parser.add_argument("--socket", type=Path, metavar="PATH", default=default, help="the daemon's control socket")
        parser.add_argument("--json", action="store_true", default=default or False, help="print the API's document")
        parser.add_argument("--color", choices=("auto", "always", "never"), default=default or "auto", help="NO_COLOR is honoured, too")
    return after


def show(options: argparse.Namespace, document: Doc, text: Callable[[Doc], str]) -> int:
    print(json.dumps(document, ensure_ascii=False, indent=2) + "\n" if options.json else text(document), end="")
    return Exit.OK


def watchable(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--watch", nargs="?", const=2.0, type=_seconds, metavar="SECONDS", help="again and again, every 2 seconds or as given"
    )


def watched(options: argparse.Namespace, ask: Callable[[], Doc], text: Callable[[Doc], str]) -> int:
    """As `show`, and with --watch again and again, until interrupted: one document a line, or one screen in place of another."""
    if options.watch is None:
        return show(options, ask(), text)
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() and not options.json else ""
    while True:
        try:
            document = ask()
            shown = json.dumps(document, ensure_ascii=False) + "\n" if options.json else text(document)
        except NotRunning as absent:  # it may come back, as in a restart
            shown = f"{absent}\n"
        print(clear + shown, end="", flush=True)
        time.sleep(options.watch)


def _seconds(text: str) -> float:
    return max(0.2, duration(text if text[-1:].isalpha() else text + "s"))


def said(options: argparse.Namespace, answer: Doc) -> int:
    return show(options, answer, lambda answer: f"{answer['said']}\n")


def columns() -> int:
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def colour(options: argparse.Namespace) -> bool:
    if options.color == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return bool(options.color == "always")


def lasting(text: str) -> float:
    """For argparse: how long something is to hold."""
    found = duration(text)
    if not 0 < found <= PAUSE_S:
        raise argparse.ArgumentTypeError(f"{text!r}: must be longer than nothing, and at most 366 days")
    return found


def duration(text: str) -> float:
    """For argparse."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
