"""The files of settings of both sides, found and read as whoever starts them would.

The network side's is named by --config, by the daemon that answers, or lies where it usually does; it names the data side's.
"""

import argparse
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapestryd.client import Client
from tapestryd.config import DaemonConfig, Setting, TrainerConfig, settings_of
from tapestryd.errors import LocalFault, NotAllowed
from tapestryd.layers import Loaded, Source, files_at, load_daemon, load_trainer, nearest, usual


@dataclass(frozen=True, slots=True)
class Side:
    """`name`: tapestryd or trainer. `restart`: what makes it read all of its file anew."""

    name: str
    path: Path
    config: type
    restart: str
    _load: Callable[[Sequence[Source], Mapping[str, str], Mapping[str, str]], Loaded[Any]]

    @property
    def settings(self) -> dict[str, Setting]:
        return settings_of(self.config)

    def files(self) -> tuple[Source, ...]:
        """Raises NotAllowed where this user may not read one."""
        files = files_at(self.path)
        for file in files:
            if file.fault == os.strerror(errno.EACCES):
                raise NotAllowed(f"{file.path}: only root and the service's own user may read it; use sudo.")
        return files

    def loaded(self, changed: bytes | None = None) -> Loaded[Any]:
        """`changed`: what the file is to say, instead of what it says. Raises ConfigFault, NotAllowed."""
        files = self.files()
        if changed is not None:
            files = (Source(self.path, changed), *files[1:])
        return self._load(files, os.environ, {})

    def text(self) -> str:
        """The file itself. Raises LocalFault where it is not there, NotAllowed."""
        file = self.files()[0]
        if file.fault:
            raise LocalFault(f"{file.path}: {file.fault}; copy the example from deploy/ there first, or name another file with --config.")
        return file.data.decode(errors="replace")


def takes_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, metavar="FILE", help="tapestryd.toml, if it is not the usual one")


def sides(options: argparse.Namespace, client: Client) -> tuple[Side, Side]:
    """The network side's and the data side's. Raises ConfigFault if the first one's file, which names the other's, is wrong."""
    daemon = network_side(options, client)
    config: DaemonConfig = daemon.loaded().config
    return daemon, data_side(config.trainer.config)


def network_side(options: argparse.Namespace, client: Client) -> Side:
    path = options.config.absolute() if options.config else _in_use(client) or usual(os.environ)
    return Side("tapestryd", path, DaemonConfig, _own(path) or "systemctl restart tapestryd", load_daemon)


def data_side(path: Path) -> Side:
    restart = _own(path) or "systemctl restart tapestry-trainer (without the units, tapestryd)"
    return Side("trainer", path.absolute(), TrainerConfig, restart, load_trainer)


def _own(path: Path) -> str:
    """What starts both sides anew where install-user.sh has installed them; "" elsewhere."""
    unit = path.parent.parent / "systemd" / "user" / "tapestry.service"
    return "systemctl --user restart tapestry" if unit.exists() else ""


def _in_use(client: Client) -> Path | None:
    with suppress(LocalFault, KeyError, TypeError):
        return next((Path(file) for file in client.ask("GET", "/v1/config")["files"]), None)
    return None


def of_key(both: Sequence[Side], key: str, *, trainer: bool) -> Side:
    """The side that has this key; of those that both have, the network side unless `trainer`. Raises LocalFault."""
    having = [side for side in both if key in side.settings and (side.name == "trainer" or not trainer)]
    if not having:
        known = [known for side in both for known in side.settings]
        raise LocalFault(f"{key}: no such key{nearest(key, known)}")
    return having[0]
