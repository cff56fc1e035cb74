"""`tapestry manual`: manual pages and completions, written from the parsers themselves into a share folder. A program of its own.

A page is roff with the macros of man(7), as every `man` reads it. Knows of argparse what its own help is made of.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tapestryd import __main__, __version__, desktop
from tapestryd.commands import every, tree
from tapestryd.completing import SHELLS, completion
from tapestryd.host import steward
from tapestryd.host.files import write
from tapestryd.program import ended

_ALSO = "tapestry(1), tapestry\\-session(1), tapestryd(8), tapestry\\-trainer(8)"
_WIDE = argparse.HelpFormatter("", width=10_000)
_GLOBAL = ("help", "socket", "json", "color")
"""Of every command of `tapestry`; told once."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tapestry manual", description="Write the manual pages and the shells' completions.")
    p.add_argument("share", type=Path, metavar="DIR", help="a share folder, such as /usr/local/share")
    return p


def pages() -> dict[str, str]:
    """Name of the file below man/ → page."""
    return {
        "man1/tapestry.1": page(tree(), 1),
        "man1/tapestry-session.1": page(desktop.parser(), 1),
        "man8/tapestryd.8": page(__main__.parser(), 8),
        "man8/tapestry-trainer.8": page(steward.parser(), 8),
    }


def page(top: argparse.ArgumentParser, section: int) -> str:
    what, _, more = (top.description or "").partition(". ")
    lines = [f'.TH {_roff(top.prog.upper())} {section} "" "tapestryd {__version__}"']
    lines += [".SH NAME", f"{_roff(top.prog)} \\- {_roff(what.rstrip('.'))}", ".SH SYNOPSIS", f".B {_roff(_usage(top, ()))}"]
    if more:
        lines += [".SH DESCRIPTION", _roff(more)]
    lines += [".SH OPTIONS", *_arguments(top, ("help",))]
    commands = [one for one in every(top) if one[0] is not top]
    if commands:
        lines.append(".SH COMMANDS")
    for command, says in commands:
        lines += [
            ".SS " + _roff(_usage(command, _GLOBAL)),
            _roff(says[:1].upper() + says[1:].rstrip(".") + "."),
            *_arguments(command, _GLOBAL),
        ]
    if top.epilog:
        lines += [".SH NOTES", _roff(" ".join(top.epilog.split()))]
    return "\n".join([*lines, ".SH SEE ALSO", _ALSO, ""])


def _usage(command: argparse.ArgumentParser, without: Sequence[str]) -> str:
    formatter = argparse.HelpFormatter(command.prog, width=10_000)
    shown = [action for action in command._actions if action.dest not in without]
    formatter.add_usage(None, shown, command._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _arguments(command: argparse.ArgumentParser, without: Sequence[str]) -> Iterator[str]:
    for action in command._actions:
        if action.dest in without or action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        yield ".TP"
        yield f".B {_roff(_WIDE._format_action_invocation(action))}"
        yield _roff(_WIDE._expand_help(action)) if action.help else "\\&"


def _roff(text: str) -> str:
    """As it is to be read: nothing in it is roff's own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return "\\&" + text if text.startswith((".", "'")) else text


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)

    def work() -> int:
        files = {f"man/{name}": text for name, text in pages().items()} | {name: completion(shell) for shell, name in SHELLS.items()}
        for name, text in files.items():
            path = options.share / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, text.encode())
            print(path)
        return 0

    return ended(work, "tapestry manual")


if __name__ == "__main__":
    sys.exit(main())
