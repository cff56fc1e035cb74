"""`tapestry-trainer`: the data side's steward. Waits for the daemon, and runs one trainer process for each channel that it opens.

    tapestry-trainer --config trainer.toml [--listen PATH]

Holds one listening SOCK_SEQPACKET socket, made by systemd (tapestry-trainer.socket) or by the warden, in the box that they put it in, or
made by itself, in a container; it can make no other. Trainers are its children and in the same box. Standard library only: it stays
while trainers, with torch and the GPU's memory, come and go. Behind one that failed it ends, too, so that the next is started with the
configuration, and in a box, as they are then. A trainer whose daemon has gone has GRACE_S to write its checkpoint; then SIGTERM, then
SIGKILL. Knows nothing of what they say. A channel that begins with WATCH is its own: there it says what its lookout sees.
"""

import argparse
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from protocols.refusal import Refused
from protocols.trainer import ABI, SIZE, Around, Ended, Watch, pack, unpack
from tapestryd.child import die_with_parent
from tapestryd.errors import ConfigFault, LocalFault
from tapestryd.host import control_socket
from tapestryd.host.box import shut
from tapestryd.host.clock import now_ms
from tapestryd.host.inherited import inherited
from tapestryd.host.logs import start_trainer
from tapestryd.host.lookout import Lookout
from tapestryd.host.sensors.machine import LOOK_S
from tapestryd.layers import trainer_at

log = logging.getLogger(__name__)

GRACE_S = 20.0

_NAMES = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "JOURNAL_STREAM"}
_PREFIXES = (
    "LC_", "PYTHON", "TAPESTRY_TRAINER_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "HSA_",
    "PYTORCH_", "TORCH_", "BNB_",
)  # fmt: skip


def environment_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` the data side gets: paths, language, the numeric libraries' knobs, its own settings; no secrets."""
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}


class Job:
    """One trainer, from its start to its end. From when the daemon is gone, or we are to stop, it is hurried along."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> None:
        self.process, self.channel = process, channel
        self.pidfd = os.pidfd_open(process.pid)
        self.ends_s: float | None = None
        """When it will be hurried next; None: nobody is in a hurry."""
        self._hurry = [(GRACE_S, signal.SIGTERM), (GRACE_S / 2, signal.SIGKILL)]

    def hurry(self, now_s: float, *, stopping: bool, gone: bool) -> None:
        if self.ends_s is None and (stopping or gone):
            if stopping:
                self.process.send_signal(self._hurry.pop(0)[1])
            self.ends_s = now_s + self._hurry[0][0]
        elif self.ends_s is not None and now_s >= self.ends_s and self._hurry:
            self.process.send_signal(self._hurry.pop(0)[1])
            self.ends_s = now_s + (self._hurry[0][0] if self._hurry else GRACE_S)

    def over(self, status: int) -> None:
        if status < 0:
            log.warning("the trainer was killed by signal %d", -status)
        with suppress(OSError):  # the daemon may be gone
            self.channel.send(pack(Ended(status)))
        os.close(self.pidfd)
        self.channel.close()


class Steward:
    """`run` until a trainer failed or `stop`, which a signal handler may call. One trainer at a time; who connects meanwhile waits.
    `lookout`: what is said to whoever watches; None: nothing."""

    def __init__(self, listening: socket.socket, config: Path, environ: Mapping[str, str], lookout: Lookout | None) -> None:
        self._listening = listening
        self._config = config
        self._environment = environment_of(environ)
        self._lookout = lookout
        self._stopping = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._job: Job | None = None
        self._new: list[socket.socket] = []
        """Channels on which nothing has been said yet."""
        self._queue: list[socket.socket] = []
        """Channels that want a trainer."""
        self._watch: socket.socket | None = None
        self._look_s = 0.0

    def stop(self) -> None:
        self._stopping = True
        os.write(self._woken, b"!")

    def run(self) -> None:
        while self._job is not None or not self._stopping:
            ready = self._wait()
            for channel in [channel for channel in self._new if channel.fileno() in ready]:
                self._new.remove(channel)
                self._begin(channel)
            if self._listening.fileno() in ready:
                with suppress(BlockingIOError):
                    self._new.append(self._listening.accept()[0])
            if self._watch is not None and self._watch.fileno() in ready:
                self._hear(self._watch)
            if self._work(ready):
                return
            self._look()
        for channel in (*self._new, *self._queue, *filter(None, [self._watch])):
            channel.close()

    def _wait(self) -> set[int]:
        """Descriptors with news, as soon as there is any, or something is due."""
        waiting, job, now_s = select.poll(), self._job, time.monotonic()
        heard = [self._listening.fileno(), self._wake, *(channel.fileno() for channel in self._new)]
        due = []
        if self._watch is not None:
            heard.append(self._watch.fileno())
            due.append(self._look_s)
        if job is not None:
            heard.append(job.pidfd)
            if job.ends_s is None:
                waiting.register(job.channel, 0)  # whether the daemon has closed its end; what it says is not ours to hear
            else:
                due.append(job.ends_s)
        for descriptor in heard:
            waiting.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in waiting.poll(max(0.0, 1000 * (min(due) - now_s)) if due else None)}
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        return ready

    def _begin(self, channel: socket.socket) -> None:
        """By its first packet, which stays where it is, a channel is a trainer's or ours."""
        try:
            first = unpack(channel.recv(SIZE + 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except (OSError, Refused):
            first = None  # the trainer will say what it thinks of it
        if not isinstance(first, Watch):
            self._queue.append(channel)
            return
        channel.setblocking(False)
        channel.recv(SIZE)
        if self._watch is not None:
            self._watch.close()
        self._watch, self._look_s = channel, 0.0
        if self._lookout is None or first.abi != ABI:
            self._unwatched()
        else:
            self._lookout.forget()

    def _hear(self, watch: socket.socket) -> None:
        assert self._lookout is not None
        try:
            around = unpack(watch.recv(SIZE + 1))
        except BlockingIOError:
            return
        except (OSError, Refused):
            around = None
        if isinstance(around, Around):
            self._lookout.heard(around)
        else:
            self._unwatched()

    def _unwatched(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _work(self, ready: set[int]) -> int:
        """See to the trainer at work, or begin one → the status of one that has ended, as long as it is not 0."""
        job = self._job
        if job is not None:
            status = job.process.poll()
            if status is None:
                job.hurry(time.monotonic(), stopping=self._stopping, gone=job.channel.fileno() in ready)
                return 0
            job.over(status)
            self._job = None
            if status:
                return status
        if self._queue and not self._stopping:
            self._start(self._queue.pop(0))
        return 0

    def _start(self, channel: socket.socket) -> None:
        command = [sys.executable, "-P", "-m", "tapestryd.host.trainer_main", "--config", str(self._config)]
        process = subprocess.Popen(
            [*command, "--channel", str(channel.fileno())],
            pass_fds=(channel.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self._environment,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )  # fmt: skip
        self._job = Job(process, channel)

    def _look(self) -> None:
        """Say what is new to whoever watches."""
        now_s = time.monotonic()
        if self._watch is None or self._lookout is None or now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        pids = [os.getpid(), *([self._job.process.pid] if self._job else [])]
        try:
            for sight in self._lookout.look(now_ms() / 1000, now_s, pids, training=self._job is not None):
                self._watch.send(pack(sight))
        except OSError:  # gone, or stuck
            self._unwatched()


def _made(path: Path) -> socket.socket:
    made = control_socket.claim(path, "--listen", socket.SOCK_SEQPACKET, 0o660)
    made.listen()
    return made


def _lookout(config: Path) -> Lookout | None:
    """None with a configuration that is wrong: the trainer will say so."""
    try:
        return Lookout(trainer_at(config, os.environ), environment_of(os.environ))
    except ConfigFault:
        return None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tapestry-trainer", description="The data side of tapestryd: trains, and has no network.")
    p.add_argument("--config", type=Path, required=True, metavar="FILE", help="this machine's trainer.toml")
    p.add_argument("--listen", type=Path, metavar="PATH", help="make this socket and listen at it: in a container, where nobody else does")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(argv)
    start_trainer(os.environ, sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; what it means is the daemon's to say
    try:
        listening = _made(chosen.listen) if chosen.listen else inherited(os.environ, os.getpid())["trainer"]
        shut(())
    except LocalFault as fault:
        log.error("%s", fault)
        return fault.exit_code
    except (OSError, KeyError):
        log.error(
            "there is no socket to listen at; systemd (tapestry-trainer.socket) or `tapestryd` starts tapestry-trainer, people do not"
        )
        return 78
    listening.setblocking(False)
    steward = Steward(listening, chosen.config.absolute(), os.environ, _lookout(chosen.config))
    signal.signal(signal.SIGTERM, lambda number, frame: steward.stop())
    steward.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
