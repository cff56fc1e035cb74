"""`tapestry-trainer`: the data side's steward. Waits for the daemon, and runs one trainer process for each channel that it opens.

    tapestry-trainer --config trainer.toml [--listen PATH]

Holds one listening SOCK_SEQPACKET socket, made by systemd (tapestry-trainer.socket) or by the warden, in the box that they put it in, or
made by itself, in a container; it can make no other. Trainers are its children and in the same box. Standard library only: it stays
while trainers, with torch and the GPU's memory, come and go. Behind one that failed it ends, too, so that the next is started with the
configuration, and in a box, as they are then. A trainer whose daemon has gone has GRACE_S to write its checkpoint; then SIGTERM, then
SIGKILL. Knows nothing of what they say.
"""

import argparse
import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from protocols.trainer import Ended, pack
from tapestryd.child import die_with_parent
from tapestryd.errors import LocalFault
from tapestryd.host import control_socket
from tapestryd.host.box import shut
from tapestryd.host.inherited import inherited
from tapestryd.host.logs import start_trainer

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


class Steward:
    """`run` until a trainer failed or `stop`, which a signal handler may call. One at a time; who connects meanwhile waits."""

    def __init__(self, listening: socket.socket, config: Path, environ: Mapping[str, str]) -> None:
        self._listening = listening
        self._config = config
        self._environment = environment_of(environ)
        self._stopping = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(self) -> None:
        self._stopping = True
        os.write(self._woken, b"!")

    def run(self) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._listening, selectors.EVENT_READ)
            waiting.register(self._wake, selectors.EVENT_READ)
            while not self._stopping:
                waiting.select()
                with suppress(BlockingIOError):
                    channel, _ = self._listening.accept()
                    with channel:
                        if self._serve(channel):
                            return

    def _serve(self, channel: socket.socket) -> int:
        """One trainer, from its start to its end → its exit status."""
        command = [sys.executable, "-P", "-m", "tapestryd.host.trainer_main", "--config", str(self._config)]
        process = subprocess.Popen(
            [*command, "--channel", str(channel.fileno())],
            pass_fds=(channel.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self._environment,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )  # fmt: skip
        status = self._wait(process, channel)
        if status < 0:
            log.warning("the trainer was killed by signal %d", -status)
        with suppress(OSError):  # the daemon may be gone
            channel.send(pack(Ended(status)))
        return status

    def _wait(self, process: "subprocess.Popen[bytes]", channel: socket.socket) -> int:
        """Its exit status. From when the daemon is gone, or we are to stop, it is hurried along."""
        hurry = [(GRACE_S, signal.SIGTERM), (GRACE_S / 2, signal.SIGKILL)]
        ends: float | None = None
        pidfd = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as waiting:
                waiting.register(pidfd, selectors.EVENT_READ)
                waiting.register(self._wake, selectors.EVENT_READ)
                while process.poll() is None:
                    waiting.select(1.0 if ends is None else max(0.0, ends - time.monotonic()))
                    now = time.monotonic()
                    if ends is None and (self._stopping or _gone(channel)):
                        if self._stopping:
                            process.send_signal(hurry.pop(0)[1])
                        waiting.unregister(self._wake)
                        ends = now + hurry[0][0]
                    elif ends is not None and now >= ends and hurry:
                        process.send_signal(hurry.pop(0)[1])
                        ends = now + (hurry[0][0] if hurry else GRACE_S)
        finally:
            os.close(pidfd)
        return process.returncode


def _gone(channel: socket.socket) -> bool:
    """Whether the daemon has closed its end."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def _made(path: Path) -> socket.socket:
    made = control_socket.claim(path, "--listen", socket.SOCK_SEQPACKET, 0o660)
    made.listen()
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tapestry-trainer", description="The data side of tapestryd: trains, and has no network.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="this machine's trainer.toml")
    parser.add_argument(
        "--listen", type=Path, metavar="PATH", help="make this socket and listen at it: in a container, where nobody else does"
    )
    chosen = parser.parse_args(argv)
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
    steward = Steward(listening, chosen.config.absolute(), os.environ)
    signal.signal(signal.SIGTERM, lambda number, frame: steward.stop())
    steward.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
