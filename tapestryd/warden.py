"""`tapestryd` outside systemd: the parent of both sides. Puts each in a box, and does what systemd does for the units.

    warden ── network side: tapestryd --inside …     may talk to the swarm; sees its own state and nothing of the data
          └── data side:    tapestry-trainer         sees the data; has no network, started when the network side connects

Makes the two sockets (control API, trainer channel) and hands them on listening; starts the data side's steward when somebody connects
and none lives; passes signals on, and the files of settings when the network side asks for them; ends when it does, with its exit
code. Standard library only, reads no network and no data. Killed, it takes both with it.
"""

import fcntl
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tapestryd import errand
from tapestryd.child import close_all_but, die_with_parent
from tapestryd.config import DaemonConfig, TrainerConfig
from tapestryd.errors import ConfigFault, StateFault
from tapestryd.host import control_socket, seccomp
from tapestryd.host.box import Box, NoBox, enter, fork, interpreter, second
from tapestryd.host.datasets import MANIFEST
from tapestryd.host.inherited import FIRST, announced
from tapestryd.host.output import Output
from tapestryd.host.steward import environment_of
from tapestryd.layers import drop_ins, files_at, of_trainer, trainer_at

log = logging.getLogger(__name__)

_NODES = ("null", "zero", "full", "random", "urandom")
_GPU_NODES = ("nvidia*", "nvidia-caps/*", "kfd", "dri/*", "dxg")
_DRIVERS = tuple(map(Path, ("/sys/bus", "/sys/class", "/sys/devices", "/sys/module")))
_OF_SERVICES = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LD_PRELOAD"}
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
_HIGH = 64
"""A descriptor beyond those that a child is to hold."""
_NO_BOX = 120
"""Exit code of a child that could not be shut in: its sentence is in the pipe."""
_END_S = 40.0
"""For a side to be gone after its signal; each has shorter limits of its own."""


def network_box(config: DaemonConfig, trainer: TrainerConfig | None, files: Sequence[Path]) -> Box:
    """`files`: what else it must see. Raises ConfigFault where the data side's files lie around the network side's."""
    readable = [*interpreter(os.environ), *config.sandbox.read, *files]
    readable += [Path(name).parent for name in (config.run.join, config.run.delegation) if name and not name.startswith("tapestry:")]
    hidden = (*_own_files(config), *trainer.data.paths, trainer.checkpoint.dir) if trainer else ()
    for path in (config.node.state_dir, *interpreter(os.environ)):
        for secret in hidden:
            if path.resolve().is_relative_to(secret.resolve()):
                raise ConfigFault(
                    f"{secret}, which only the data side may see, holds {path}, which the network side needs: move one of them "
                    "(data.paths, checkpoint.dir of the trainer's file; node.state_dir)"
                )
    return Box(tuple(readable), (config.node.state_dir,), hidden, _nodes(_NODES), seccomp.NETWORK, alone=True)


def data_box(config: DaemonConfig, trainer: TrainerConfig) -> Box:
    """Other processes stay visible: drivers of GPUs know processes by their numbers outside."""
    readable = [*interpreter(os.environ), *_DRIVERS, *_own_files(config), *trainer.data.paths]
    readable += [folder / MANIFEST for path in trainer.data.paths for folder in path.parents]  # a part of a data set is to be told from one
    readable += [Path(trainer.data.exclude)] if trainer.data.exclude else []
    return Box(
        tuple(readable), (trainer.checkpoint.dir,), (config.node.state_dir,), _nodes((*_NODES, *_GPU_NODES)), (), alone=False
    )  # fmt: skip


def network_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` the network side gets: as the data side, but its own settings, and systemd's to a service."""
    own = {name: value for name, value in environ.items() if name.startswith("TAPESTRY_") or name in _OF_SERVICES}
    return {name: value for name, value in (environment_of(environ) | own).items() if not of_trainer(name)}


def _own_files(config: DaemonConfig) -> tuple[Path, ...]:
    """The data side's settings."""
    file = config.trainer.config
    return (file, *(dict.fromkeys(drop_in.parent for drop_in in drop_ins(file))))


def _nodes(patterns: Sequence[str]) -> tuple[Path, ...]:
    return tuple(node for pattern in patterns for node in Path("/dev").glob(pattern))


class Warden:
    """`run` once. `trainer`: None if this node trains nothing. `command`: the network side's; `file`: its settings."""

    def __init__(self, config: DaemonConfig, trainer: TrainerConfig | None, command: Sequence[str], file: Path | None) -> None:
        self._config, self._trainer, self._command, self._file = config, trainer, command, file
        self._boxed = config.sandbox.method != "none"
        self._network = self._steward = 0
        self._network_output, self._data_output = self._outputs = (Output(), Output())
        self._errands, self._asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errands.setblocking(False)
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
            held.callback(self._pass_on)
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
            self._config.trainer.socket,
            *(Path(name) for name in [os.environ.get("NOTIFY_SOCKET", "")] if name.startswith("/")),
        ]
        box = network_box(self._config, self._trainer, files) if self._boxed else None
        environment = network_environment(os.environ) | self._network_output.journal(os.environ)
        held = {"api": api, "settings": self._asks}
        self._network = start(
            "the network side", box, command, environment, held, output=self._network_output, death=signal.SIGKILL
        )  # fmt: skip

    def _start_steward(self, orders: socket.socket) -> None:
        assert self._trainer is not None
        with suppress(ConfigFault):  # the trainer will say so itself
            self._trainer = trainer_at(self._config.trainer.config, os.environ)
        command = [sys.executable, "-P", "-m", "tapestryd.host.steward", "--config", str(self._config.trainer.config)]
        box = data_box(self._config, self._trainer) if self._boxed else None
        environment = environment_of(os.environ) | self._data_output.journal(os.environ)
        self._steward = start(
            "the data side", box, command, environment, {"trainer": orders}, output=self._data_output, death=signal.SIGTERM
        )  # fmt: skip

    def _pass_on(self) -> None:
        for output in self._outputs:
            output.pass_on(sys.stderr.fileno())

    def _heard(self, number: int, frame: object) -> None:
        self._signals.append(number)
        with suppress(BlockingIOError):
            os.write(self._woken, b"!")

    def _watch(self, orders: socket.socket | None) -> int:
        """Until the network side ends."""
        while True:
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            for output in self._outputs:
                waiting.register(output, select.POLLIN)
            waiting.register(self._errands, select.POLLIN)
            if orders is not None and not self._steward:
                waiting.register(orders, select.POLLIN)
            ready = {descriptor for descriptor, _ in waiting.poll()}
            self._pass_on()
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
            if self._errands.fileno() in ready and self._errands.recv(1):
                errand.answer(self._errands, files_at(self._file))
            if orders is not None and orders.fileno() in ready:
                self._start_steward(orders)


def start(
    who: str, box: Box | None, command: Sequence[str], environment: Mapping[str, str], held: Mapping[str, socket.socket], *,
    output: Output, death: int,
) -> int:  # fmt: skip
    """Fork, shut the child in, execute → its process id. It holds `output` and `held`, by name, is in a session without a terminal, and
    gets the signal `death` when we end. Raises ConfigFault if there is no box to be had."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    arrange = die_with_parent(death)
    uid, gid = os.getuid(), os.getgid()
    try:
        child = fork(box) if box is not None else os.fork()
    except NoBox as fault:
        os.close(told)
        os.close(tell)
        raise _no_box(who, str(fault)) from None
    if child == 0:
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            for copy, original in enumerate((os.open(os.devnull, os.O_RDONLY), output.theirs, output.theirs)):
                os.dup2(original, copy)
            variables = dict(environment)
            if box is not None:
                variables |= {"HOME": "/tmp", "TMPDIR": "/tmp"}
                enter(box, uid, gid)
            arrange()  # behind the box: a change of credentials would undo it
            if box is not None and box.alone:
                second()
            tell, *high = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _HIGH) for one in (tell, *(given.fileno() for given in held.values())))
            for place, descriptor in enumerate(high, FIRST):
                os.dup2(descriptor, place)
            announced(variables, os.getpid(), [*held])
            close_all_but(0, 1, 2, *range(FIRST, FIRST + len(held)), tell)
            os.execve(command[0], [*command], variables)
        except BaseException as error:
            os.write(tell, str(error).encode()[:4000])
        finally:
            os._exit(_NO_BOX)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        sentence = pipe.read().decode(errors="replace")
    if sentence:
        os.waitpid(child, 0)
        raise _no_box(who, sentence)
    return child


def _no_box(who: str, why: str) -> ConfigFault:
    return ConfigFault(f'{who} cannot be shut in: {why}. To go on without: [sandbox] method = "none" and require = false')


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


def main(config: DaemonConfig, command: Sequence[str], file: Path | None) -> int:
    """`command`: of the network side, to be executed; `file`: its settings. Raises LocalFault."""
    if config.sandbox.method == "none" and config.sandbox.require:
        raise ConfigFault(
            'sandbox.method = "none": without a box nothing keeps the network side from the data; that takes sandbox.require = false, too'
        )
    trainer = trainer_at(config.trainer.config, os.environ) if config.trainer.enabled else None
    return Warden(config, trainer, command, file).run()
