"""A machine to be cruel to: a daemon in its own namespace, its state on a small disk of its own, its wall clock ours to move.

Each cruelty has its way back: kill - start, freeze - thaw, fill - clear, shift(ms) - shift(0). Needs root and a C compiler.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tapestryd.host.keys import Identity
from tests.chaos.namespaces import Lan
from tests.living import Peer

_DISK_BYTES = 256 << 20
_TRAINER = b"tapestryd.host.trainer_main"


def compile_clock(folder: Path) -> Path:
    """The library that shifts a process's wall clock."""
    library = folder / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True, capture_output=True)
    return library


class Machine(Peer):
    def __init__(self, number: int, folder: Path, data: Path, lan: Lan, clock: Path) -> None:
        self.number = number
        self.state = folder / "state"
        self._shift = folder / "shift_ms"
        super().__init__(
            folder, [data], listen=f"/ip4/{lan.address(number)}/tcp/31700", namespace=lan.namespace(number),
            environment={"LD_PRELOAD": str(clock), "TAPESTRY_SHIFTED_CLOCK": str(self._shift)},
        )  # fmt: skip
        self._disk = f"tapdisk{lan.number}-{number}"
        self.shift(0)
        with (folder / "tapestryd.toml").open("a") as config:  # its last section is [sandbox]
            config.write(f"read = {json.dumps([str(clock), str(self._shift)])}\n")
        self._frozen: list[int] = []
        self._set_aside = 0
        unmount(self._disk)
        self.state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", self._disk, str(self.state)], check=True)

    @property
    def pid(self) -> int:
        """The network side's."""
        return next(process for process in self.processes() if b"--inside" in Path(f"/proc/{process}/cmdline").read_bytes())

    @property
    def run(self) -> Path:
        """The joined run's folder."""
        [run] = (self.state / "runs").iterdir()
        return run

    def log(self) -> str:
        return super().log() if (self.folder / "log").exists() else ""

    def ended(self) -> int | None:
        """The daemon's exit status; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def freeze(self, *, trainer: bool = False) -> None:
        self._frozen = self._trainers() if trainer else [self.pid]
        for process in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
        self._frozen = []

    def _trainers(self) -> list[int]:
        return [process for process in self.processes() if _TRAINER in Path(f"/proc/{process}/cmdline").read_bytes()]

    def fill(self) -> None:
        """To the last byte."""
        space = os.statvfs(self.state)
        with self._ballast.open("wb") as ballast, suppress(OSError):
            os.posix_fallocate(ballast.fileno(), 0, space.f_bavail * space.f_frsize)
        with self._ballast.open("ab", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"\0" * 4096)

    def clear(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.state / "ballast"

    def shift(self, ms: int) -> None:
        """How far the daemon's wall clock is from the true one, from now on."""
        with self._shift.open("r+b" if self._shift.exists() else "wb") as file:
            file.write(ms.to_bytes(8, "little", signed=True))

    def back_up(self, copy: Path) -> None:
        """The state as it is at one instant, as a snapshot of the file system would have it."""
        running = self.process is not None and self.ended() is None and not self._frozen
        if running:
            os.kill(self.pid, signal.SIGSTOP)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.state, copy, ignore=shutil.ignore_patterns("ballast"))
        if running:
            os.kill(self.pid, signal.SIGCONT)

    def put_back(self, copy: Path) -> None:
        """A backup in the state's place; the state that it replaces is kept beside it."""
        self._set_aside += 1
        aside = self.folder / f"state-{self._set_aside}"
        aside.mkdir()
        for entry in self.state.iterdir():
            shutil.move(entry, aside / entry.name)
        shutil.copytree(copy, self.state, dirs_exist_ok=True)

    def member(self) -> str:
        """The id of a Member whose one node the machine is."""
        return _tapestry("member", "new", str(self.folder / "member.key")).stdout.strip()

    def delegate(self, toml: Path) -> None:
        """The Member lets this node speak for it, before the first start."""
        node = Identity.load_or_make(self.state / "identity.key").peer_id
        words = ("--key", str(self.folder / "member.key"), "--run", str(toml), "--node", node, "-o", str(self.folder / "delegation.json"))
        assert _tapestry("member", "delegate", *words).returncode == 0
        with (self.folder / "tapestryd.toml").open("a") as config:
            config.write('[run]\ndelegation = "delegation.json"\n')

    def lineage(self) -> dict[str, Any]:
        """What `tapestry lineage verify` says of the state directory, from its files alone."""
        done = _tapestry("lineage", "verify", "--state", str(self.state), "--json")
        found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"proved": False, "fault": done.stderr}
        return found

    def runs(self) -> list[Path]:
        """The run's folder of today, and of the states set aside."""
        return sorted(self.folder.glob("state*/runs/*"))

    def end(self) -> None:
        """Nothing runs on, nothing stays mounted, and the state can still be read."""
        self.thaw()
        super().end()
        self.gone()
        self.clear()
        kept = self.folder / "state-kept"
        shutil.copytree(self.state, kept)
        unmount(self._disk)
        self.state.rmdir()
        kept.rename(self.state)


def _tapestry(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tapestryd.cli", *words], capture_output=True, text=True, timeout=600)


def unmount(disk: str) -> None:
    """All mounts of `disk`, also of a test that was killed."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, where, *_ = line.split(" ")
        if source == disk:
            subprocess.run(["umount", "--lazy", where], check=True)
