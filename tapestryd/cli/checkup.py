"""What may be wrong with this machine or with its daemon, found from outside, before anybody files it as a bug.

Each check looks, changes nothing, and gives its findings; what cannot be told here it leaves out.
"""

import ctypes
import errno
import re
import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from tapestryd import __version__
from tapestryd.cli.finding import GOOD, WARNING, Finding
from tapestryd.client import Doc

_FILES = 4096
"""p2pd holds a socket or two for each peer, and hivemind's DHT as many again."""
_UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2)."""

_machine, _daemon = partial(Finding, "machine"), partial(Finding, "daemon")


def clock(status: int | None = None) -> Iterator[Finding]:
    """`status`: the kernel's, of adjtimex(2)."""
    if status is None:
        buffer = ctypes.create_string_buffer(512)
        if ctypes.CDLL(None).adjtimex(buffer) < 0:
            return
        status = int(struct.unpack_from("@Illlli", buffer)[5])
    if status & _UNSYNCHRONISED:
        yield _machine("clock", WARNING, "nothing keeps its clock right", "timedatectl set-ntp true, or install chrony")
    else:
        yield _machine("clock", GOOD, "its clock is kept by NTP")


def disk(folder: Path, min_free_bytes: int) -> Iterator[Finding]:
    here = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(here).free
    says = f"{free / 2**30:.1f} GiB are free at {folder}"
    if free < min_free_bytes:
        yield _machine("disk", WARNING, f"{says}, less than storage.min_free", "make room, or lower it")
    else:
        yield _machine("disk", GOOD, says)


def ports(listen: Sequence[str]) -> Iterator[Finding]:
    """Whether what is to be listened at can be; for when no daemon runs."""
    for address in listen:
        match address.split("/"):
            case ["", "ip4" | "ip6" as family, host, "tcp", port, *_]:
                try:
                    with socket.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET) as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        if family == "ip6":
                            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                        probe.bind((host, int(port)))
                    yield _machine("port", GOOD, f"{address} is free")
                except OSError as error:
                    fix = f"ss -ltnp 'sport = :{port}' shows who has it" if error.errno == errno.EADDRINUSE else "correct network.listen"
                    yield _machine("port", WARNING, f"{address}: {error.strerror}", fix)


def gpu(root: Path = Path("/")) -> Iterator[Finding]:
    build = torch_version()
    if (root / "proc/driver/nvidia/version").exists():
        missing = [name for name in ("nvidiactl", "nvidia0", "nvidia-uvm") if not (root / "dev" / name).exists()]
        if missing:
            says = f"the NVIDIA driver is loaded, but /dev/{missing[0]} is missing"
            yield _machine("gpu", WARNING, says, "systemctl start tapestry-gpu, or once as root: nvidia-modprobe -u -c 0")
        elif "+cpu" in build or "+rocm" in build:
            yield _machine("gpu", WARNING, f"torch {build} cannot use its NVIDIA GPU", "install torch's build for CUDA")
        else:
            yield _machine("gpu", GOOD, f"NVIDIA's driver and device nodes are there (torch {build})")
    elif (root / "dev/kfd").exists() and "+rocm" not in build:
        yield _machine("gpu", WARNING, f"torch {build} cannot use its AMD GPU", "install torch's build for ROCm")
    elif (root / "dev/kfd").exists():
        yield _machine("gpu", GOOD, f"an AMD GPU is there (torch {build})")


def unused_gpu(device: str, asked: str, root: Path = Path("/")) -> Iterator[Finding]:
    """`device`: what the trainer computes on; `asked`: compute.device. Only torch knows whether it can use a driver that is there."""
    if device == "cpu" and asked == "auto" and (root / "proc/driver/nvidia/version").exists():
        says = "the trainer computes on the CPU, although NVIDIA's driver is here"
        yield _machine("gpu", WARNING, says, "its log says why; often a newer driver, or torch's build for this one (deploy/README.md)")


def torch_version() -> str:
    """Without importing it, which takes seconds."""
    try:
        return version_of("torch")
    except PackageNotFoundError:
        return "(none)"


def units(systemctl: Sequence[str] = ("systemctl",)) -> Iterator[Finding]:
    """The services, where they are installed."""
    for unit in ("tapestryd.service", "tapestry-trainer.socket"):
        words = [*systemctl, "show", unit, "-p", "LoadState,ActiveState,UnitFileState,ExecMainStatus,Result"]
        try:
            shown = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return
        state = dict(line.partition("=")[::2] for line in shown.splitlines())
        active = state.get("ActiveState", "")
        if state.get("LoadState") != "loaded":
            continue
        if active == "failed":
            status = f"{state.get('Result', '')}, exit {state.get('ExecMainStatus', '')}"
            yield _machine("service", WARNING, f"{unit} has failed ({status})", f"journalctl -u {unit} -n 30")
        elif active != "active":
            fix = f"journalctl -u {unit} -n 30" if active == "activating" else f"systemctl start {unit}"
            yield _machine("service", WARNING, f"{unit} is {active}", fix)
        elif state.get("UnitFileState") == "disabled":
            yield _machine("service", WARNING, f"{unit} does not start with the machine", f"systemctl enable {unit}")
        else:
            yield _machine("service", GOOD, f"{unit} is active")


def daemon(status: Doc, process: Path) -> Iterator[Finding]:
    """Of one that answers. `process`: its folder in /proc."""
    version, peers = status["version"], status["peers"]
    yield _daemon("answers", GOOD, f"version {version}, {status['state']}")
    if version != __version__:
        yield _daemon("version", WARNING, f"it is {version}, this command {__version__}", "systemctl restart tapestryd")
    newer = [peer["version"] for peer in peers if _number(peer["version"]) > _number(version)]
    if newer:
        says = f"{len(newer)} of {len(peers)} peers run a newer version, up to {max(newer, key=_number)}"
        yield _daemon("newer", WARNING, says, "upgrade when it suits you")
    with suppress(OSError, ValueError):
        limit = re.search(r"^Max open files +(\d+)", (process / "limits").read_text(), re.M)
        if limit and int(limit[1]) < min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
            yield _daemon("files", WARNING, f"it may open only {limit[1]} files", "LimitNOFILE=65536 in its unit, or ulimit -n 65536")
    for sentence in status["health"]:
        yield _daemon("health", WARNING, sentence)
    if status["run"] is None:
        yield _daemon("run", WARNING, "no run is joined", "tapestry run join INVITE")
    if status["network"]["reachable"] == "no":
        yield _daemon("reachable", WARNING, "others cannot dial this node", "tapestry netcheck has the fix")
    offset_ms = status["network"]["clock_offset_ms"]
    if offset_ms is not None and abs(offset_ms) > 500:
        yield _daemon("clock", WARNING, f"{offset_ms:+d} ms from the swarm's median; beyond 2 s it averages with nobody", "set it by NTP")


def _number(version: str) -> tuple[int, ...]:
    """For comparing; what is no version comes first. Peers say of themselves what they like."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version)
    return tuple(int(part or 0) for part in match.groups()) if match else ()
