"""A trainer's surroundings on disk, and a daemon played by hand, for the tests of the data side."""

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.layout import Layout
from protocols.rules import RunRules
from protocols.trainer import ABI, ALL_FRAGMENTS, SIZE, Base, Fault, Hello, Order, Report, pack, unpack
from tapestryd.host.box import Box
from tapestryd.host.channel import Channel
from tapestryd.host.output import Output
from tapestryd.host.steward import environment_of
from tapestryd.host.trainer_main import serve
from tapestryd.warden import start
from tests.training.tiny import genesis, rules, write_text

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

R = TypeVar("R", bound=Report)


FREE = "min_steps = 0\nmin_examples = 0\nmax_per_hour = 100000\n"
"""Rules of release under which everything leaves, however short the test."""


class Home:
    """`config`: what a trainer is started with; real text under `data`. `release`: the section of that name. No box: here both sides are
    one process, or its child."""

    def __init__(
        self, root: Path, made: RunRules | None = None, *, evaluate: int = 1, every: str = "60s", release: str = FREE
    ) -> None:  # fmt: skip
        self._release = release
        self.rules = made or rules()
        self.layout: Layout = self.rules.layout()
        self.data, self.checkpoints = root / "data", root / "checkpoints"
        self.config, self.socket = root / "trainer.toml", root / "trainer.sock"
        self.tokenizer = b""
        write_text(self.data)
        self.write(f'[checkpoint]\ndir = "{self.checkpoints}"\nevery = "{every}"\n[evaluate]\nevery = {evaluate}\ntokens = 640\n')

    def write(self, rest: str) -> None:
        machine = f'[data]\npaths = ["{self.data}"]\n[compute]\nthreads = 1\ndevice = "cpu"\n[sandbox]\nrequire = false\n'
        self.config.write_text(f"schema_version = 1\n{machine}[release]\n{self._release}{rest}")

    @property
    def saved(self) -> Path:
        return self.checkpoints / self.rules.run_id / "local.pt"

    def hello(self) -> Hello:
        return Hello(ABI, self.layout.fragments, self.layout.elements, bytes.fromhex(self.layout.digest()))


@contextmanager
def stewarded(home: Home, box: Box | None = None, **sooner: float) -> Iterator[int]:
    """The data side, without a box unless there is one: listening, and started by somebody else, as systemd and the warden do. Its
    process id. `sooner`: seconds that it takes in the place of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(home.socket))
        listening.listen()
        environment = environment_of(os.environ | {"AWS_SECRET_ACCESS_KEY": "x", "OMP_NUM_THREADS": "1"})
        hasty = f"import sys; from tapestryd.host import steward; vars(steward).update({sooner}); sys.exit(steward.main())"
        program = ["-c", hasty] if sooner else ["-m", "tapestryd.host.steward"]
        command = [sys.executable, "-P", *program, "--config", str(home.config)]
        output = Output()
        child = start("the data side", box, command, environment, {"trainer": listening}, output=output, death=signal.SIGKILL)
    try:
        yield child
    finally:
        output.pass_on(2)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, -signal.SIGTERM)  # it may be ending by itself already


class Daemon:
    """The daemon's end of the channel by hand, so that it can also do what a daemon must not; the trainer is a thread."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(120)
        self.channel = Channel(theirs)
        self.status: int | None = None
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def hello(
        self, hello: Hello | None = None, *, count: int = 4, seals: int = SEALS, elements: int | None = None,
        rules: bytes | None = None, final: int = SEALS | fcntl.F_SEAL_WRITE,
    ) -> None:  # fmt: skip
        """Send HELLO with the first `count` of params, delta, rules, tokenizer (more: once more the last); then `params` and `delta` are
        mapped."""
        made = [os.memfd_create("v", os.MFD_ALLOW_SEALING) for _ in range(4)]
        for vector in made[:2]:
            os.ftruncate(vector, 4 * (elements or self.home.layout.elements))
            fcntl.fcntl(vector, fcntl.F_ADD_SEALS, seals)
        for file, content in zip(made[2:], (rules or self.home.rules.canonical(), self.home.tokenizer), strict=True):
            os.write(file, content)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, final)
        maps: list[NDArray[np.float32]] = [np.memmap(f"/proc/self/fd/{vector}", "<f4", "r+") for vector in made[:2]]
        self.params, self.delta = maps
        socket.send_fds(self.socket, [pack(hello or self.home.hello())], [*made, made[-1]][:count])
        for descriptor in made:
            os.close(descriptor)

    def send(self, *orders: Order) -> None:
        for order in orders:
            self.socket.send(pack(order))

    def base(self, height: int = 0, *, keep: bool = False) -> None:
        """Genesis as the whole base."""
        self.params[:] = genesis().numpy()
        self.send(Base(height, ALL_FRAGMENTS, keep))

    def next(self, kind: type[R]) -> R:
        """The next report of this kind; others before it are passed over, but a FAULT is not."""
        while True:
            report = unpack(self.socket.recv(SIZE + 1))
            if isinstance(report, kind):
                return report
            assert not isinstance(report, Fault), report

    def end(self) -> int:
        """Wait for the trainer's exit code."""
        self._thread.join(120)
        assert self.status is not None
        return self.status

    def close(self) -> None:
        self.socket.close()
        self._thread.join(120)
        torch.set_num_threads(self._threads)

    def _serve(self) -> None:
        self.status = serve(self.channel, self.home.config)
        self.channel._socket.close()
