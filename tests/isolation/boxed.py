"""Both sides in the boxes that the warden makes, with players in their places, and what came of their attacks: a line of JSON.

    python -P -m tests.isolation.boxed FOLDER '["filter", …]' '["ip", …]'

Runs as whoever starts it, root or not. The second argument names guards to be left out, so that the attacks can be seen to be real; the
third the attacks that are wanted, all if it is empty.
"""

import ctypes
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tapestryd import warden
from tapestryd.config import DaemonConfig, TrainerConfig
from tapestryd.errors import ConfigFault
from tapestryd.host import box, seccomp
from tapestryd.layers import files_at, load_daemon, load_trainer
from tests.isolation.player import asked

HERE = Path(__file__).parent
_ANSWER_S = 60
_NO_BOX = 77
_LEFT_OPEN = 100
"""A descriptor of the data that somebody forgot to close."""
_ADD_KEY = 248 if os.uname().machine == "x86_64" else 217
SECRETS = {"TAPESTRY_TRAINER_DATA__SEED": "7", "AWS_SECRET_ACCESS_KEY": "x"}


def nothing(*arguments: object) -> None:
    pass


def one_user_namespace() -> None:
    """Both sides in one, instead of one each."""
    uid, gid = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
    box._same_user(uid, gid)
    box._NEWUSER = 0
    box._same_user = nothing  # type: ignore[assignment]


GUARDS: dict[str, Callable[[], object]] = {
    "network namespace": lambda: setattr(box, "_NEWNET", 0),
    "user namespaces": one_user_namespace,
    "IPC namespace": lambda: setattr(box, "_NEWIPC", 0),
    "PID namespace": lambda: ALONE.clear(),
    "own root": lambda: (setattr(box, "_root", nothing), ALONE.clear()),
    "read-only": lambda: setattr(box, "_ATTR_RDONLY", 0),
    "no capabilities": lambda: setattr(box, "_powerless", nothing),
    "scopes": lambda: setattr(box, "_scopes", nothing),
    "filter": lambda: setattr(seccomp, "load", nothing),
    "descriptors": lambda: setattr(warden, "close_all_but", nothing),
    "pipes": lambda: PIPES.clear(),
    "environment": lambda: LISTED.clear(),
}
ALONE, PIPES, LISTED = [True], [True], [True]
"""Emptied to leave a guard out."""


class Output:
    """Where both sides print: the warden's pipe, or what it replaces: a log file for both, or a terminal that somebody types on."""

    def __init__(self, folder: Path, terminal: bool) -> None:
        if PIPES:
            self.theirs = warden.Output().theirs
        elif terminal:
            self.typing, self.theirs = os.openpty()
            os.write(self.typing, b"a password\n")
        else:
            self.theirs = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


def configured(folder: Path) -> tuple[DaemonConfig, TrainerConfig]:
    data, state, saved = folder / "data", folder / "network" / "state", folder / "trainer" / "saved"
    for made in (data, state, saved / "tokens"):
        made.mkdir(parents=True, exist_ok=True)
    (data / "rows.txt").write_text("a private row of the data")
    (data / "tapestry-data.toml").write_text("")
    (saved / "tokens" / "a1b2.u16").write_text("tokens")
    (saved / "local.pt").write_text("a checkpoint")
    (state / "identity.key").write_text("a key")
    (folder / "trainer.toml").write_text(f'schema_version = 1\n[data]\npaths = ["{data}"]\n[checkpoint]\ndir = "{saved}"\n')
    (folder / "tapestryd.toml").write_text(
        f'schema_version = 1\n[node]\nstate_dir = "{state}"\n'
        '[trainer]\nconfig = "trainer.toml"\nsocket = "t.sock"\n[api]\nsocket = "a.sock"\n'
    )
    daemon, trainer = files_at(folder / "tapestryd.toml"), files_at(folder / "trainer.toml")
    return load_daemon(daemon, {}, {}).config, load_trainer(trainer, {}, {}).config


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.bind(str(path))
    made.listen()
    return made


def program(first: int) -> int:
    """The player itself, behind the first process of its box, if that has one."""
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return int(children[0]) if children else first


def at(path: Path, question: Mapping[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_ANSWER_S)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        channel.connect(str(path))
        return asked(channel, question)


@contextmanager
def bystander():  # type: ignore[no-untyped-def]
    command = [sys.executable, "-P", "-m", "tests.isolation.bystander", "/tmp", "/tmp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate("")


def main() -> int:
    folder, removed = Path(sys.argv[1]), json.loads(sys.argv[2])
    attacks: list[str] = json.loads(sys.argv[3])
    config, trainer = configured(folder)
    os.environ |= SECRETS
    for guard in removed:
        GUARDS[guard]()
    ctypes.CDLL(None).syscall(_ADD_KEY, b"user", b"tapestry-test", b"a password", 10, -3)
    os.dup2(os.open(folder / "data" / "rows.txt", os.O_RDONLY), _LEFT_OPEN, inheritable=True)
    with bystander() as found:
        players: dict[str, int] = {}
        try:
            for side, made in boxes(config, trainer).items():
                command = [sys.executable, "-P", "-m", "tests.isolation.player", side]
                listed = {"network": warden.network_environment, "data": warden.environment_of}[side](os.environ)
                output: Any = Output(folder, terminal="terminal" in attacks)
                with listening(folder / f"{side}.sock") as sock:
                    environment = listed if LISTED else os.environ
                    players[side] = warden.start(side, made, command, environment, {"x": sock}, output=output, death=signal.SIGKILL)
            briefs = briefed(folder, config, trainer, players, found)
            print(json.dumps({side: at(folder / f"{side}.sock", brief | {"attacks": attacks}) for side, brief in briefs.items()}))
        except ConfigFault as fault:
            print(fault, file=sys.stderr)
            return _NO_BOX
        finally:
            for process in players.values():
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
    return 0


def boxes(config: DaemonConfig, trainer: TrainerConfig) -> dict[str, box.Box]:
    network, data = warden.network_box(config, trainer, [HERE]), warden.data_box(config, trainer)
    return {
        "network": dataclasses.replace(network, alone=bool(ALONE)),
        "data": dataclasses.replace(data, readable=(*data.readable, HERE)),
    }


def briefed(
    folder: Path, config: DaemonConfig, trainer: TrainerConfig, players: Mapping[str, int], found: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """side → what it is told of its targets."""
    targets = ("tcp", "udp", "unix", "packets", "abstract", "datagrams", "shm", "devshm")
    common = {"do": "attack", "key": "tapestry-test", "data": str(folder / "data"), **{name: found[name] for name in targets}}
    saved, state = trainer.checkpoint.dir, config.node.state_dir
    own: dict[str, dict[str, Any]] = {
        "network": {
            "theirs": [str(path) for path in (config.trainer.config, *trainer.data.paths, saved, *_below(saved))],
            "folder": str(state), "variables": list(SECRETS), "families": [int(family) for family in seccomp.NETWORK],
        },
        "data": {
            "theirs": [str(state / "identity.key"), str(folder / "tapestryd.toml")],
            "folder": str(saved), "variables": ["AWS_SECRET_ACCESS_KEY"], "families": [],
        },
    }  # fmt: skip
    for side, other in (("network", "data"), ("data", "network")):
        told = at(folder / f"{other}.sock", {"do": "tell"})
        pids = dict.fromkeys((program(players[other]), players[other], os.getpid(), found["pid"]))
        own[side] |= common | {"pids": list(pids), "address": told["address"], "secret": told["secret"]}
    return own


def _below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


if __name__ == "__main__":
    sys.exit(main())
