"""systemd as PID 1 in namespaces of its own, with the units of deploy/ as they are installed: for tests, which must be root.

The root is made of this machine's /usr and a new /etc, /var and /run (boot.sh); only what is in it can be touched from there. It
has a network of its own, with nothing in it but loopback.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_ENVIRONMENT = ("PATH=/opt/tapestry/bin:/usr/bin:/usr/sbin", "PYTHONPATH=/opt/tapestry/source", "LD_LIBRARY_PATH=/opt/python/lib")
_SYSTEMD = Path("/usr/lib/systemd/systemd")


def why_not() -> str:
    """A sentence, where there can be no such machine; "" where there can."""
    if os.geteuid() != 0:
        return "systemd can be PID 1 of new namespaces only for root"
    if missing := [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed"
    if not _SYSTEMD.exists():
        return "systemd is not installed"
    if not _cgroup2():
        return "no cgroup2 is mounted"
    return ""


def _cgroup2() -> Path | None:
    found = re.search(r"^\S+ (\S+) cgroup2 \S*\brw\b", Path("/proc/mounts").read_text(), re.M)
    return Path(found[1]) if found else None


class Machine:
    """`folder`: an empty one. Running from `start` until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.root, self._said = folder / "root", folder / "said"
        self.root.mkdir()
        cgroups = _cgroup2()
        assert cgroups is not None
        self._cgroup = cgroups / f"tapestry-test-{os.getpid()}"

    def start(self) -> None:
        """Raises AssertionError when it does not come up."""
        self._cgroup.mkdir(exist_ok=True)
        flags = ["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                ["unshare", *flags, *self._boot()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                preexec_fn=self._enter_cgroup,
            )
        try:
            done = None
            for _ in range(300):
                assert self._process.poll() is None, self._said.read_text()
                if self.first and Path(f"/proc/{self.first}/comm").read_text() == "systemd\n":
                    done = self.run("systemctl", "is-system-running", "--wait", check=False)
                    if done.stdout.strip() in ("running", "degraded"):
                        break
                _pause()
            else:
                raise AssertionError(f"systemd did not start: {done}")
            self._furnish()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with (self._cgroup / "cgroup.kill").open("w") as kill:
            kill.write("1")
        for _ in range(300):
            try:
                for inner in sorted(self._cgroup.rglob("*/"), reverse=True):
                    inner.rmdir()
                self._cgroup.rmdir()
                break
            except OSError:
                _pause()

    def run(self, *words: str, check: bool = True, timeout_s: float = 60, give: str | None = None) -> "subprocess.CompletedProcess[str]":
        """A command in there, as root."""
        done = subprocess.run([*self._enter, *words], capture_output=True, text=True, timeout=timeout_s, check=False, input=give)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*self._enter, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_for(self, good: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any]:
        """The first status of the daemon in there that is good."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            done = self.run("tapestry", "status", "--json", check=False)
            if done.returncode == 0 and good(status := json.loads(done.stdout)):
                return dict(status)
            time.sleep(1)
        raise AssertionError(f"{done.stdout}{done.stderr}\n{self.journal('tapestryd', 'tapestry-trainer')}")

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", f"mkdir -p {os.path.dirname(path)} && cat > {path}", give=text)

    def journal(self, *units: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", *[f"--unit={unit}" for unit in units]).stdout

    def _boot(self) -> list[str]:
        """The command that makes the root, and ends as its systemd."""
        return ["sh", str(HERE / "boot.sh"), str(self.root), str(HERE.parents[1]), sys.prefix, str(Path(sys.executable).resolve())]

    def _furnish(self) -> None:
        """What a package would have done."""
        self.run("systemd-sysusers", "/etc/sysusers.d/tapestry.conf")
        self.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/tapestry.conf")

    @property
    def inside(self) -> Path:
        """Its root, as it is seen from outside."""
        return Path(f"/proc/{self.first}/root")

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.first), "--all", "--root", "--wd", "env", "-i", *_ENVIRONMENT]

    @property
    def first(self) -> int:
        """The machine's first process, as it is called outside; 0: there is none yet."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _enter_cgroup(self) -> None:
        (self._cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _pause() -> None:
    import time

    time.sleep(0.1)
