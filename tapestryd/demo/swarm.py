"""The processes of a demo: the founding, and one daemon a region, each with its own folder under DIR/peers.

Daemons get their own session, so that Ctrl-C reaches only the demo, which then ends them in order; and a death signal,
so that none outlives a demo that was killed. Knows nothing of what the swarm achieves.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import tapestryd
from protocols.refusal import Refused
from protocols.rules import Invite
from tapestryd.child import die_with_parent
from tapestryd.client import Client
from tapestryd.demo.regions import Region
from tapestryd.errors import LocalFault
from tapestryd.settings import SOCKET_PATH_BYTES

MODEL = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 257,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
"""A byte-level model of 246,336 parameters: two cores take some 20 local steps a second of it, all peers together."""

RULES = (
    "--fragments", "2", "--lr", "0.003", "--warmup-rounds", "2", "--sequences", "8", "--tokens", "96",
    "--outer-lr", "0.8", "--outer-momentum", "0.3",
)  # fmt: skip
"""What lets six rounds show something: few fragments, so that each is averaged three times, and an outer step about as
long as the mean delta. (A real run has thousands of rounds, and takes the defaults of `tapestry run new`.)"""

STOP_S = 30.0
"""A daemon ends within this of SIGTERM, by its own word; what is left then is killed."""


def windows(peers: int) -> tuple[int, int]:
    """Seconds of (local steps, averaging) in one round. Averaging takes a tenth of a second and whoever is done trains
    on, so the second only has to be long enough for a machine that is short of cores."""
    return 2 + 3 * peers, max(4, peers)


@dataclass(slots=True)
class Daemon:
    """One peer's process. `folder`: its configuration, state, log. `process`: None until it is started."""

    region: Region
    folder: Path
    client: Client
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def name(self) -> str:
        return self.region.name

    @property
    def log(self) -> Path:
        return self.folder / "log"


class Swarm:
    """`start_founding`, then `start` the first with the founder's run.toml and the others with its invite; `stop` in the end."""

    def __init__(self, folder: Path, regions: Sequence[Region]) -> None:
        """Writes every peer's configuration: boxed where this machine allows it, and shown all the same where it does not."""
        self.folder = folder
        self._sockets: Path | None = None
        self._environment = _environment()
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = _free_ports(len(regions))
        self.daemons = [self._furnish(region, port) for region, port in zip(regions, ports, strict=True)]

    @property
    def run_toml(self) -> Path:
        return self.folder / "run" / "run.toml"

    def start_founding(self) -> "subprocess.Popen[bytes]":
        """Write the run's rules and genesis; takes as long as importing torch does."""
        config = self.folder / "config.json"
        config.write_text(json.dumps(MODEL, indent=2) + "\n")
        train, average = windows(len(self.daemons))
        arguments = ["--model", str(config), "--name", "demo", "--min-peers", str(len(self.daemons)), *RULES]
        arguments += ["--train", str(train), "--average", str(average)]
        return self._spawn(["tapestryd.founding", str(self.run_toml.parent), *arguments], self.folder / "founding.log")

    def start(self, daemon: Daemon, join: str) -> None:
        arguments = ["tapestryd", "--config", str(daemon.folder / "tapestryd.toml"), "--set", f"run.join={join}"]
        daemon.process = self._spawn(arguments, daemon.log)

    def stop(self, hurried: Callable[[], bool]) -> None:
        """End every daemon, and return when none is left. `hurried`: whether to kill them at once, asked again and again."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while any(status_of(process) is None for process in self._processes) and not hurried() and time.monotonic() < end:
            time.sleep(0.05)
        for process in self._processes:  # its trainer is in its session; p2pd dies with its parent
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _furnish(self, region: Region, port: int) -> Daemon:
        folder = self.folder / "peers" / region.name
        folder.mkdir(parents=True, exist_ok=True)
        api, trainer = folder / "api.sock", folder / "trainer.sock"
        if len(os.fsencode(trainer)) > SOCKET_PATH_BYTES:
            self._sockets = self._sockets or Path(tempfile.mkdtemp(prefix="tapestry-demo-"))
            api, trainer = self._sockets / f"{port}.sock", self._sockets / f"{port}-trainer.sock"
        _write(
            folder / "tapestryd.toml",
            f"schema_version = 1\n[node]\nname = {_quoted(region.name)}\nstate_dir = 'state'\n"
            f"[network]\nlisten = ['/ip4/127.0.0.1/tcp/{port}']\n"
            f"[trainer]\nconfig = 'trainer.toml'\nsocket = {_quoted(str(trainer))}\n[sandbox]\nrequire = false\n"
            f"[api]\nsocket = {_quoted(str(api))}\n[dashboard]\nlisten = '127.0.0.1:0'\n[metrics]\nlisten = ''\n"
            "[log]\nformat = 'text'\n[storage]\nmin_free = '64 MiB'\n",
        )
        _write(
            folder / "trainer.toml",
            f"schema_version = 1\n[data]\npaths = [{_quoted(str(region.data))}]\n[compute]\ndevice = 'cpu'\nthreads = 1\n"
            f"[release]\nmin_steps = 4\nmin_examples = 16\nmax_per_hour = 1000\n[checkpoint]\ndir = 'trainer'\n"
            "[sandbox]\nrequire = false\n",
        )
        return Daemon(region, folder, Client(api))

    def _spawn(self, arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=self._environment, start_new_session=True, preexec_fn=die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        self._processes.append(process)
        return process


def status_of(process: "subprocess.Popen[bytes]") -> int | None:
    """Exit status (negative: minus the signal) of a process that has ended, which is not reaped: until `stop` does that,
    its id, and so its session's, belongs to nobody else. None while it runs."""
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def invite_of(status_run: object) -> str | None:
    """The invite in a Status's run, once it names somebody to ask."""
    text = status_run.get("invite") if isinstance(status_run, dict) else None
    try:
        return text if isinstance(text, str) and Invite.parse(text).peers else None
    except Refused:
        return None


def last_words(log: Path, lines: int = 4) -> str:
    """The end of a log, on one line."""
    try:
        text = log.read_text(errors="replace")[-4000:]
    except OSError:
        return "no log"
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(said[-lines:]) or "it said nothing"


def _environment() -> dict[str, str]:
    """Ours, without settings meant for another daemon, and with this very tapestryd first to be found."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"TAPESTRY_|NOTIFY_SOCKET$|WATCHDOG_", name)}
    root = Path(tapestryd.__file__).parent.parent
    if str(root) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), kept.get("PYTHONPATH", "")]))
    return kept | {"OMP_NUM_THREADS": "1"}


def _free_ports(count: int) -> list[int]:
    """Free now; all are held until all are found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except UnicodeEncodeError:
        raise LocalFault(f"{path}: a path in it is not UTF-8, as TOML wants it; choose another folder.") from None
