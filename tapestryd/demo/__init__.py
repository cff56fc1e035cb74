"""`tapestryd demo`: a live swarm on this machine, to see the whole loop work in three minutes.

regions (whose text) → swarm (the processes) → progress (what was seen) → view, report, chart (how it is told); show runs it.
The daemons are real ones, started as an operator would, so nothing here knows torch or hivemind.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tapestryd.errors import ConfigFault, LocalFault


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tapestryd demo",
        description="A live swarm on this machine: full daemons, each with its own private text, train one small model together.",
        epilog="Exit: 0 when all peers hold the same base and its held-out loss fell, 1 when not, 2 usage, 130 after Ctrl-C, "
        "143 after SIGTERM.",
    )
    p.add_argument("--peers", type=int, metavar="N", help="daemons to start (default: 3, or one for each folder of --data)")
    p.add_argument("--rounds", type=int, default=6, metavar="N", help="stop after so many committed rounds (default 6)")
    p.add_argument("--data", type=Path, action="extend", nargs="+", metavar="DIR", help="text to train on, one folder a peer")
    p.add_argument("--dir", type=Path, metavar="DIR", help="where everything is kept; must not exist yet or be empty")
    p.add_argument("--json", action="store_true", help="one event a line, for programs; the last is the summary")
    return p


def main(argv: Sequence[str]) -> int:
    """Raises LocalFault for what the user can put right before anything is started."""
    from tapestryd.demo import regions
    from tapestryd.demo.show import Show, audience

    options = parser().parse_args(argv)
    folders: list[Path] = options.data or []
    peers: int = options.peers if options.peers is not None else len(folders) or 3
    if not 2 <= peers <= regions.PEERS:
        raise LocalFault(f"--peers {peers}: must be from 2 to {regions.PEERS}.")
    if not 1 <= options.rounds <= 1000:
        raise LocalFault(f"--rounds {options.rounds}: must be from 1 to 1000.")
    if folders and len(folders) != peers:
        raise LocalFault(f"--peers {peers} with {len(folders)} folders of --data: name one folder a peer, or leave --peers out.")
    chosen = regions.from_folders(folders) if folders else None
    folder = _empty(options.dir)
    try:
        show = Show(folder, chosen or regions.from_python(peers, folder / "peers"), options.rounds, audience(folder, options.json))
        return show.run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at exit
        return 141
    except OSError as error:
        raise LocalFault(f"{error.filename or folder}: {error.strerror or error}.") from None


def _empty(folder: Path | None) -> Path:
    """A folder with nothing in it, made where it is missing."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="tapestry-demo-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigFault(f"--dir {folder}: is not empty; name a folder that is, or one that does not exist yet.")
    except OSError as error:
        raise ConfigFault(f"--dir {folder}: cannot be used ({error.strerror}).") from None
    return folder.resolve()
