"""`tapestryd` outside systemd: the parent of both sides. Puts each in a box, and does what systemd does for the units.

    warden ── network side: tapestryd --inside …     may talk to the swarm; sees its own state and nothing of the data
          └── data side:    tapestry-trainer         sees the data; has no network, started when the network side connects

Makes the two sockets (control API, trainer channel) and hands them on listening; starts the data side's steward when somebody connects
and none lives; passes signals on; ends when the network side does, with its exit code. Standard library only, reads no network and
no data. Killed, it takes both with it.
"""

import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tapestryd.child import die_with_parent
from tapestryd.config import DaemonConfig, TrainerConfig, load_trainer
from tapestryd.errors import ConfigFault, StateFault
from tapestryd.host import control_socket, seccomp
from tapestryd.host.box import Box, enter, interpreter
from tapestryd.host.datasets import MANIFEST
from tapestryd.host.inherited import FIRST, announced
from tapestryd.host.steward import environment_of

log = logging.getLogger(__name__)

_NODES = ("null", "zero", "full", "random", "urandom")
_GPU_NODES = ("nvidia*", "nvidia-caps/*", "kfd", "dri/*", "dxg")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_NO_BOX = 120
"""Exit code of a child that could not be shut in: its sentence is in the pipe."""
_END_S = 40.0
"""For a side to be gone after its signal; each has shorter limits of its own."""


def network_box(config: DaemonConfig, trainer: TrainerConfig | None, files: Sequence[Path]) -> Box:
    """`files`: what else it must see. Raises ConfigFault where the data side's files lie around the network side's."""
    readable = [*interpreter(os.environ), *config.sandbox.read, *files]
    readable += [Path(name).parent for name in (config.run.join, config.run.delegation) if name and not name.startswith("tapestry:")]
    hidden = (config.trainer.config, *trainer.data.paths, trainer.checkpoint.dir) if trainer else ()
    for path in (config.node.state_dir, *interpreter(os.environ)):
        for secret in hidden:
            if path.resolve().is_relative_to(secret.resolve()):
                raise ConfigFault(
                    f"{secret}, which only the data side may see, holds {path}, which the network side needs: move one of them "
                    "(data.paths, checkpoint.dir of the trainer's file; node.state_dir)"
                )
    return Box(tuple(readable), (config.node.state_dir,), hidden, _nodes(_NODES), seccomp.NETWORK)


def data_box(config: DaemonConfig, trainer: TrainerConfig) -> Box:
    readable = [*interpreter(os.environ), config.trainer.config, *trainer.data.paths]
    readable += [folder / MANIFEST for path in trainer.data.paths for folder in path.parents]  # a part of a data set is to be told from one
    readable += [Path(trainer.data.exclude)] if trainer.data.exclude else []
    return Box(tuple(readable), (trainer.checkpoint.dir,), (config.node.state_dir,), _nodes((*_NODES, *_GPU_NODES)), ())


def _nodes(patterns: Sequence[str]) -> tuple[Path, ...]:
    return tuple(node for pattern in patterns for node in Path("/dev").glob(pattern))


class Warden:
    """`run` once. `trainer`: None if this node trains nothing. `command`: the network side's; `files`: what it names."""

    def __init__(self, config: DaemonConfig, trainer: TrainerConfig | None, command: Sequence[str], files: Sequence[Path]) -> None:
        self._config, self._trainer, self._command, self._files = config, trainer, command, files
        self._boxed = config.sandbox.method != "none"
        self._network = self._steward = 0
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals: list[int] = []

    def run(self) -> int:
        """The network side's exit code. Raises LocalFault where there is nothing to be started."""
        config, trainer = self._config, self._trainer
        for folder in [config.node.state_dir, *([trainer.checkpoint.dir] if trainer else [])]:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StateFault(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
        with ExitStack() as held:
            api = self._claim(held, config.api.socket, "api.socket", socket.SOCK_STREAM, 0o660)
            orders = self._claim(held, config.trainer.socket, "trainer.socket", socket.SOCK_SEQPACKET, 0o600) if trainer else None
            for number in _SIGNALS:
                signal.signal(number, self._heard)
            held.callback(lambda: _end(self._steward))
            held.callback(lambda: _end(self._network))
            try:
                self._start_network(api)
            except ConfigFault as fault:
                if config.sandbox.method != "auto" or config.sandbox.require:
                    raise
                log.warning("%s", fault)
                self._boxed = False
                self._start_network(api)
            return self._watch(orders)

    def _claim(self, held: ExitStack, path: Path, key: str, kind: int, mode: int) -> socket.socket:
        """Listening, and removed with `held`."""
        made = control_socket.claim(path, key, kind, mode)
        held.callback(control_socket.release, made, path, path.lstat().st_ino)
        made.listen(64)
        return made

    def _start_network(self, api: socket.socket) -> None:
        command = [*self._command, "--inside", "namespaces" if self._boxed else "none"]
        files = [
            *self._files,
            self._config.trainer.socket,
            *(Path(name) for name in [os.environ.get("NOTIFY_SOCKET", "")] if name.startswith("/")),
        ]
        box = network_box(self._config, self._trainer, files) if self._boxed else None
        self._network = start("the network side", box, command, dict(os.environ), api, "api", signal.SIGKILL)

    def _start_steward(self, orders: socket.socket) -> None:
        assert self._trainer is not None
        with suppress(ConfigFault):  # the trainer will say so itself
            self._trainer = load_trainer(self._config.trainer.config, os.environ, {})
        command = [sys.executable, "-P", "-m", "tapestryd.host.steward", "--config", str(self._config.trainer.config)]
        box = data_box(self._config, self._trainer) if self._boxed else None
        self._steward = start("the data side", box, command, environment_of(os.environ), orders, "trainer", signal.SIGTERM)

    def _heard(self, number: int, frame: object) -> None:
        self._signals.append(number)
        with suppress(BlockingIOError):
            os.write(self._woken, b"!")

    def _watch(self, orders: socket.socket | None) -> int:
        """Until the network side ends."""
        while True:
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            if orders is not None and not self._steward:
                waiting.register(orders, select.POLLIN)
            ready = {descriptor for descriptor, _ in waiting.poll()}
            with suppress(BlockingIOError):
                os.read(self._wake, 4096)
            while self._signals:
                if (number := self._signals.pop(0)) != signal.SIGCHLD:
                    os.kill(self._network, signal.SIGTERM if number == signal.SIGINT else number)
            for child, status in _ended():
                if child == self._network:
                    self._network = 0
                    return status if status >= 0 else 128 - status
                if status:
                    log.warning("the data side ended with %d", status)
                self._steward = 0
            if orders is not None and orders.fileno() in ready:
                self._start_steward(orders)


def start(
    who: str, box: Box | None, command: Sequence[str], environment: dict[str, str], listening: socket.socket, name: str, death: int
) -> int:
    """Fork, shut the child in, execute → its process id. It holds the standard streams and `listening`, and gets the signal `death`
    when we end. Raises ConfigFault if there is no box to be had."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    arrange = die_with_parent(death)
    child = os.fork()
    if child == 0:
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if box is not None:
                environment |= {"HOME": "/tmp", "TMPDIR": "/tmp"}
                enter(box)
            arrange()  # behind the box: a change of credentials would undo it
            os.dup2(listening.fileno(), FIRST)
            os.set_inheritable(FIRST, True)
            announced(environment, os.getpid(), name)
            environment.pop("WATCHDOG_PID", None)
            os.closerange(FIRST + 1, tell)
            os.closerange(tell + 1, 1 << 16)
            os.execve(command[0], [*command], environment)
        except BaseException as error:
            os.write(tell, str(error).encode()[:4000])
        finally:
            os._exit(_NO_BOX)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        sentence = pipe.read().decode(errors="replace")
    if sentence:
        os.waitpid(child, 0)
        raise ConfigFault(f'{who} cannot be shut in: {sentence}. To go on without: [sandbox] method = "none" and require = false')
    return child


def _ended() -> list[tuple[int, int]]:
    """Children that have ended, with their exit status (negative: minus the signal)."""
    found = []
    with suppress(ChildProcessError):
        while (done := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((done[0], os.waitstatus_to_exitcode(done[1])))
    return found


def _end(child: int) -> None:
    """SIGTERM, and SIGKILL if it takes too long."""
    if not child:
        return
    with suppress(ProcessLookupError, ChildProcessError):
        pidfd = os.pidfd_open(child)
        os.kill(child, signal.SIGTERM)
        if not select.select([pidfd], [], [], _END_S)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(child, 0)


def main(config: DaemonConfig, command: Sequence[str], files: Sequence[Path]) -> int:
    """`command`: of the network side, to be executed, which names `files`. Raises LocalFault."""
    if config.sandbox.method == "none" and config.sandbox.require:
        raise ConfigFault(
            'sandbox.method = "none": without a box nothing keeps the network side from the data; that takes sandbox.require = false, too'
        )
    trainer = load_trainer(config.trainer.config, os.environ, {}) if config.trainer.enabled else None
    return Warden(config, trainer, command, files).run()
