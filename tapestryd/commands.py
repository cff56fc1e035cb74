"""Every command of `tapestry` in one tree, as argparse knows it: those of the CLI, and the programs of their own in their places."""

import argparse
from collections.abc import Iterator
from importlib import import_module

from tapestryd import cli


def tree() -> argparse.ArgumentParser:
    top = cli.parser()
    for (*above, name), module in cli.PROGRAMS.items():
        place = top
        for word in above:
            place = below(place)[word]
        below(place)[name] = import_module(module).parser()
    return top


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Its own verbs, which may be replaced there; none for a leaf."""
    found = _verbs(parser)
    return found.choices if found else {}


def every(parser: argparse.ArgumentParser, help: str = "") -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Each parser of a tree and what is said of it, parents first."""
    yield parser, parser.description or help
    found = _verbs(parser)
    said = {one.dest: one.help or "" for one in found._choices_actions} if found else {}
    for name, verb in below(parser).items():
        yield from every(verb, said.get(name, ""))


def _verbs(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[argparse.ArgumentParser] | None":
    return next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
