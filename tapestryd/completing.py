"""`tapestry completion`: what a shell has to know to complete `tapestry`, from the parsers themselves. A program of its own."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import shtab

from tapestryd.commands import every, tree
from tapestryd.program import ended

SHELLS = {
    "bash": "bash-completion/completions/tapestry",
    "zsh": "zsh/vendor-completions/_tapestry",
    "fish": "fish/vendor_completions.d/tapestry.fish",
}
"""Where each looks for it below a share folder, as Debian has them."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tapestry completion",
        description="Print what a shell needs to complete tapestry, as in: source <(tapestry completion bash). Packages ship it.",
    )
    p.add_argument("shell", choices=tuple(SHELLS))
    return p


def completion(shell: str) -> str:
    top = tree()
    for one, _ in every(top):
        for action in one._actions:
            if action.type is Path:
                action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(top, shell)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: print(completion(options.shell), end="") or 0, "tapestry completion")


if __name__ == "__main__":
    sys.exit(main())
