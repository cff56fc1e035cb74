"""The daemon's end of the trainer: start the data-side process, share two vectors, pass orders and reports.

Never imports torch: vectors are numpy views of memfds. Everything the trainer sends is checked as if it were
hostile; what is no report ends it. Restarting, and what a report means, are the caller's.
"""

import asyncio
import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocols.layout import Layout
from protocols.refusal import Reason, Refused
from protocols.trainer import ABI, SIZE, Beat, Checks, Delta, Evaluated, Fault, Hello, Order, Quit, Ready, Report, Withheld, pack, unpack

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_NAMES = {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
_PREFIXES = (
    "LC_", "PYTHON", "TAPESTRY_TRAINER_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "HSA_",
    "PYTORCH_", "TORCH_", "BNB_",
)  # fmt: skip

_BURST = 64
"""Reports read in one turn of the loop, so that a flooding trainer cannot hold it."""

_TEARDOWN_S = 10.0
"""A trainer that has closed the channel and is still there after this long is killed."""


def environment_of(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` a trainer gets: paths, language, the numeric libraries' knobs, its own settings; no secrets."""
    return {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}


class Trainer:
    """One running trainer process. Use `start`. `params` and `delta` stay readable after its end.

    `params` (n,) float32: ours to write, before a BASE. `delta` (n,) float32: the trainer's; copy, then validate.
    """

    params: NDArray[np.float32]
    delta: NDArray[np.float32]

    def __init__(self, elements: int, on_report: Callable[[Report], None], on_exit: Callable[[int], None]) -> None:
        self._elements, self._on_report, self._on_exit = elements, on_report, on_exit
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket
        self._process: subprocess.Popen[bytes]
        self._pidfd: int
        self._ended = asyncio.Event()

    @classmethod
    async def start(
        cls, layout: Layout, *, config: Path, run_dir: Path, on_report: Callable[[Report], None], on_exit: Callable[[int], None],
        environment: Mapping[str, str] | None = None,
    ) -> "Trainer":  # fmt: skip
        """Spawn `tapestry-trainer` and send HELLO; READY comes later, by `on_report`.

        `on_exit` is called exactly once, after the last report, with the exit status (negative: minus the signal), also
        after `stop`. Both run in this loop and must not raise. `environment`: what `environment_of` picks from; None is
        ours. Raises OSError when there is no memory, descriptor or process to be had; nothing is left behind then.
        """
        trainer = cls(layout.elements, on_report, on_exit)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        vectors: list[int] = []
        try:
            ours.setblocking(False)
            for name in ("params", "delta"):
                vectors.append(os.memfd_create(f"tapestry-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            trainer.params, trainer.delta = (_share(vector, 4 * layout.elements) for vector in vectors)
            hello = Hello(ABI, layout.fragments, layout.elements, bytes.fromhex(layout.digest()))
            socket.send_fds(ours, [pack(hello)], vectors)
            command = [sys.executable, "-P", "-m", "tapestryd.host.trainer_main"]
            command += ["--config", str(config), "--run", str(run_dir), "--channel", str(theirs.fileno())]
            trainer._process = _spawn(command, theirs.fileno(), environment_of(os.environ if environment is None else environment))
            trainer._pidfd = os.pidfd_open(trainer._process.pid)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for vector in vectors:
                os.close(vector)
        trainer._socket = ours
        trainer._loop.add_reader(ours.fileno(), trainer._read, _BURST)
        trainer._loop.add_reader(trainer._pidfd, trainer._over)
        return trainer

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Never blocks. A trainer that left some 200 orders unread is killed: it is stuck. One that is gone hears nothing."""
        try:
            self._socket.send(pack(order))
        except BlockingIOError:
            self._process.kill()
        except OSError:
            pass  # closed or reset: `on_exit` tells

    async def stop(self, timeout_s: float) -> None:
        """QUIT, so that it writes its checkpoint; SIGTERM after `timeout_s`, SIGKILL after as long again. Returns when the
        process is gone and `on_exit` has run. Idempotent."""
        self.send(Quit())
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout_s)
                return
            self._process.send_signal(number)
        await self._ended.wait()

    def _read(self, most: int) -> None:
        """Pass on the reports that have come, at most so many."""
        for _ in range(most):
            try:
                packet = self._socket.recv(SIZE + 1)
                report = self._checked(packet) if packet else None
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it ended with orders unread; what it had sent before can still be read behind this error
            except Refused:
                self._loop.remove_reader(self._socket.fileno())
                self._process.kill()  # not to be believed any more
                return
            if report is None:  # it ends, or has ended; torch may take a second to be torn down
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(_TEARDOWN_S, self._process.kill)
                return
            self._on_report(report)

    def _checked(self, packet: bytes) -> Report:
        report = unpack(packet)
        if not isinstance(report, Ready | Beat | Delta | Withheld | Evaluated | Checks | Fault):
            raise Refused(Reason.MALFORMED, f"a {type(report).__name__} is no report")
        if isinstance(report, Ready) and (report.abi, report.elements) != (ABI, self._elements):
            raise Refused(Reason.MALFORMED, "READY of another ABI or vector")
        return report

    def _over(self) -> None:
        """The process has ended."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        if self._loop.remove_reader(self._socket.fileno()):
            self._read(4 * _BURST)  # its last words, FAULT among them, may still lie in the socket
        self._socket.close()
        self._ended.set()
        self._on_exit(status)


def _spawn(command: list[str], channel: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """The child holds its standard streams and `channel`, nothing else. Not by the loop: uvloop 0.23 passes on every
    inheritable descriptor when there are pass_fds. Takes milliseconds."""
    return subprocess.Popen(
        command, pass_fds=(channel,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
    )  # fmt: skip


def _share(descriptor: int, size: int) -> NDArray[np.float32]:
    """Size and seal a memfd and map it → (size / 4,) float32, zeros."""
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return np.frombuffer(mmap.mmap(descriptor, size), "<f4")
