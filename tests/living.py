"""Real daemons for tests: processes, config files, sockets. Nothing here stands in for anything."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tapestryd import founding
from tapestryd.client import Client

_libc = ctypes.CDLL(None)

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
"""A real Llama, small enough for four of them on two cores: 0.1 M parameters."""

PLAIN = ("--optimizer", "adamw")
"""For tests of anything but training: bitsandbytes takes each trainer 2 s to import."""


def corpora() -> Path | None:
    """Real text in six languages beside the checkout, where there is any."""
    here = Path(os.environ.get("TAPESTRY_CORPORA", Path(__file__).parents[2] / "shared" / "corpora"))
    return here if here.is_dir() else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def found(folder: Path, *options: str, config: dict[str, Any] = CONFIG) -> Path:
    """`tapestry run new` → the run.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    quick = ["--lr", "0.003", "--sequences", "4", "--tokens", "64", "--warmup-rounds", "2", "--decay-rounds", "100"]
    words = [str(folder / "run"), "--model", str(folder / "config.json"), "--name", "test"]
    founding.found(founding.parser().parse_args([*words, *quick, *options]))  # in this process, which has imported torch before
    return folder / "run" / "run.toml"


class Peer:
    """One daemon's folder, and its processes while it runs, boxed wherever this machine allows it. `namespace`: the network namespace
    to run in. `environment`: added to ours. `program`: the module to run, tapestryd or what stands in for it."""

    def __init__(
        self, folder: Path, data: Sequence[Path], *, listen: str = "", namespace: str = "", program: str = "tapestryd",
        device: str = "cpu", environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.namespace = namespace
        self.program = program
        self.environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        paths = ", ".join(json.dumps(str(path)) for path in data)
        (folder / "tapestryd.toml").write_text(
            f'schema_version = 1\n[node]\nname = "{folder.name}"\nstate_dir = "state"\n'
            f'[network]\nlisten = ["{listen or f"/ip4/127.0.0.1/tcp/{free_port()}"}"]\n'
            '[trainer]\nconfig = "trainer.toml"\nsocket = "trainer.sock"\n[api]\nsocket = "api.sock"\n'
            '[dashboard]\nlisten = "127.0.0.1:0"\n[metrics]\nlisten = ""\n'
            '[storage]\nmin_free = "10 MiB"\nsnapshot_every = 4\n[sandbox]\nrequire = false\n'
        )
        (folder / "trainer.toml").write_text(
            f'schema_version = 1\n[data]\npaths = [{paths}]\n[compute]\nthreads = 1\ndevice = "{device}"\n'
            "[release]\nmin_steps = 1\nmin_examples = 1\nmax_per_hour = 100000\n"
            '[evaluate]\ntokens = 2048\n[checkpoint]\ndir = "trainer"\nevery = "5s"\n[sandbox]\nrequire = false\n'
        )

    def start(self, join: str = "", *settings: str) -> "Peer":
        command = [sys.executable, "-m", self.program, "--config", str(self.folder / "tapestryd.toml")]
        for setting in [*([f"run.join={join}"] if join else []), *settings]:
            command += ["--set", setting]
        if self.namespace:
            command = ["ip", "netns", "exec", self.namespace, *command]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdout=log, env=self.environment, preexec_fn=_die_with_test, start_new_session=True
            )
        return self

    @property
    def client(self) -> Client:
        return Client(self.folder / "api.sock")

    def status(self) -> dict[str, Any]:
        return self.client.ask("GET", "/v1/status")

    def rounds(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self.client.ask("GET", "/v1/rounds?limit=500")["rounds"]
        return answer

    def wait(self, what: str, good: Callable[[dict[str, Any]], Any], timeout_s: float) -> dict[str, Any]:
        """The first status that is good. Fails with the daemon's log when it ended, or when none comes in time."""
        deadline = time.monotonic() + timeout_s
        last: Any = None
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.folder.name} ended with {self.process.returncode} before {what}:\n{self.log()[-3000:]}")
            try:
                last = self.status()
                if good(last):
                    return dict(last)
            except Exception as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"{self.folder.name}: no {what} within {timeout_s} s; last {last}\n{self.log()[-3000:]}")

    def invite(self, timeout_s: float = 120) -> str:
        return str(self.wait("invite", lambda s: s["run"] and "?peer=" in s["run"]["invite"], timeout_s)["run"]["invite"])

    def height(self, height: int, timeout_s: float) -> dict[str, Any]:
        return self.wait(f"height {height}", lambda s: s["run"] and s["run"]["height"] >= height, timeout_s)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def term(self, timeout_s: float = 30) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Whatever happened: nothing stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def gone(self, timeout_s: float = 20) -> bool:
        """Whether nothing of this peer lives on; a trainer whose daemon was killed may write its checkpoint first."""
        deadline = time.monotonic() + timeout_s
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()

    def processes(self) -> list[int]:
        """Living processes that carry this peer's folder in their command line: daemon, trainer, p2pd."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"{self.folder}/".encode() in words:
                    found.append(int(entry.name))
        return found


def _die_with_test() -> None:
    _libc.prctl(1, signal.SIGKILL)


def digests_by_height(peers: Sequence[Peer]) -> dict[int, set[str]]:
    """height → the digests that the peers' round histories name for it."""
    found: dict[int, set[str]] = {}
    for peer in peers:
        for story in peer.rounds():
            if story["result"] in ("committed", "replayed"):
                found.setdefault(story["height"], set()).add(story["base_digest"])
    return found
