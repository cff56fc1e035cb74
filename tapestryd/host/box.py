"""A box for one process and all that it starts: only these files, no other process, and a network or none. For good.

Made of what Linux gives everybody, root or not: user, mount, IPC (and network) namespaces with a root of their own, no capability and
none to be had, Landlock's scopes (abstract sockets, signals) where the kernel has them, a seccomp filter. Two boxes are in sibling
user namespaces, so neither may look into the other although both run as one user. Knows nothing of what is boxed, or why.

Under systemd the units do all this, with two users besides; this is for everywhere else.
"""

import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import protocols
import tapestryd
from tapestryd.host import seccomp

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _AT_RECURSIVE, _AT_FDCWD = 442, 0x8000, -100
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT, _LANDLOCK_VERSION = 444, 446, 1
_SCOPES_ABI, _SCOPES = 6, 0b11
"""From this ABI on a domain can be kept from the abstract sockets of others (bit 0), and from sending them signals (bit 1)."""

_KERNEL = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "asound", "mtrr")
"""In /proc: settings of the whole machine, which root could write without any capability."""

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sys", "/opt/rocm", "/opt/cuda",
    *(f"/etc/{name}" for name in (
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "passwd", "group",
        "localtime", "timezone", "ssl", "pki", "ca-certificates", "crypto-policies", "protocols", "services", "os-release", "alternatives",
        "OpenCL", "nvidia", "mime.types",
    )),
)  # fmt: skip
"""What a program needs of any Linux: nothing here is anybody's own."""

_STAGE = "/tmp"
"""Where the new root is put together; covered in our own mount namespace only."""


@dataclass(frozen=True, slots=True)
class Box:
    """All paths are absolute; what is not there is left out. `readable`, `writable`: files or folders, with all beneath. `hidden`:
    what of these stays out after all. `devices`: nodes. `families`: AF_… that may be used; without any there is no network at all."""

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    hidden: tuple[Path, ...]
    devices: tuple[Path, ...]
    families: tuple[int, ...]


class NoBox(Exception):
    """What this kernel, or its administrator, does not let us do: one sentence, with the way on."""


def interpreter(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """What any program of ours needs to read: the system's libraries, this interpreter's, and our own packages."""
    found = [*map(Path, _SYSTEM), Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))]
    found += [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages", "lib-dynload")]
    found += [Path(package) for module in (tapestryd, protocols) for package in module.__path__]
    found += [Path(entry) for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry.startswith("/")]
    return tuple(found)


def enter(box: Box) -> None:
    """Shut this process in. Only for a single-threaded child that executes its program next. Raises NoBox; then it must end."""
    if fault := seccomp.fault():
        raise NoBox(f"there is no seccomp filter for this machine ({fault}); use the systemd units")
    libc = ctypes.CDLL(None, use_errno=True)
    _namespaces(libc, network=bool(box.families))
    try:
        _root(libc, box)
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _powerless(libc)
        _scopes(libc)
        seccomp.load(box.families)
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise NoBox(f"the box cannot be closed ({error.strerror}{where}); use the systemd units") from None


def links_to(path: Path) -> list[tuple[str, str]]:
    """The symbolic links on the way to `path`, each with what it says, so that the way is the same in another root."""
    found: dict[str, str] = {}
    todo = [str(path)]
    while todo:
        words = todo.pop().split("/")
        for end in range(2, len(words) + 1):
            here = "/".join(words[:end])
            if os.path.islink(here):
                if here not in found:
                    found[here] = os.readlink(here)
                    todo.append(os.path.normpath(os.path.join(os.path.dirname(here), found[here], *words[end:])))
                break
    return list(found.items())


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that are there, resolved, shortest first, without those that lie in another."""
    kept: list[Path] = []
    for path in sorted({path.resolve() for path in paths if path.exists()}, key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(outer) for outer in kept):
            kept.append(path)
    return kept


def _namespaces(libc: ctypes.CDLL, *, network: bool) -> None:
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(ctypes.c_int(_NEWUSER | _NEWNS | _NEWIPC | (0 if network else _NEWNET))):
        raise NoBox(
            f"user namespaces are not allowed here ({os.strerror(ctypes.get_errno())}); allow them (sysctl "
            "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or use the systemd units"
        )
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise NoBox(f"a user namespace cannot be set up here ({error.strerror}); use the systemd units") from None


def _root(libc: ctypes.CDLL, box: Box) -> None:
    """A root of nothing but what is in the box. Raises OSError."""

    def check(failed: int, what: str) -> None:
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        check(libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()), target)

    def restrict(target: str, attributes: int, how: int = _AT_RECURSIVE) -> None:
        wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
        check(libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), how, wanted, ctypes.c_size_t(len(wanted))), target)

    def bind(path: Path, attributes: int) -> None:
        source, target = Path(f"/old{path}"), path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir() if source.is_dir() else target.touch()
        mount(str(source), str(target), "", _BIND | _REC)
        restrict(str(target), attributes)

    readable, writable, devices = outermost(box.readable), outermost(box.writable), outermost(box.devices)
    hidden = [path for path in outermost(box.hidden) if any(path.is_relative_to(outer) for outer in readable + writable)]
    links = [link for path in (*box.readable, *box.writable, *box.devices) if path.exists() for link in links_to(path)]
    mount("none", "/", "", _REC | _PRIVATE)
    mount("tapestry", _STAGE, "tmpfs", _NOSUID | _NODEV, "mode=0755,size=4m")
    os.mkdir(f"{_STAGE}/old")
    standing = os.getcwd()
    check(libc.pivot_root(_STAGE.encode(), f"{_STAGE}/old".encode()), "pivot_root")
    os.chdir("/")
    for name in ("/tmp", "/dev/shm"):
        os.makedirs(name, exist_ok=True)
        mount("tapestry", name, "tmpfs", _NOSUID | _NODEV, "mode=1777,size=50%")
    for path in readable:
        bind(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in writable:
        bind(path, _ATTR_NOSUID | _ATTR_NODEV)
    for path in devices:
        bind(path, _ATTR_NOSUID)
    bind(Path("/proc"), _ATTR_NOSUID | _ATTR_NODEV)
    for name in _KERNEL:
        if os.path.exists(f"/proc/{name}"):
            bind(Path("/proc", name), _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
    for path in hidden:
        if path.is_dir():
            mount("tapestry", str(path), "tmpfs", _NOSUID | _NODEV, "mode=0000,size=4k")
        else:
            mount("/old/dev/null", str(path), "", _BIND)  # on a mount without devices it cannot be opened
        restrict(str(path), _ATTR_RDONLY | _ATTR_NODEV)
    for here, said in links:
        if not os.path.lexists(here):
            os.makedirs(os.path.dirname(here), exist_ok=True)
            os.symlink(said, here)
    check(libc.umount2(b"/old", _DETACH), "umount")
    os.rmdir("/old")
    os.makedirs(standing, exist_ok=True)  # so that relative paths mean what they meant
    os.chdir(standing)
    restrict("/", _ATTR_RDONLY, 0)


def _powerless(libc: ctypes.CDLL) -> None:
    """No capability in this user namespace either, and none by executing anything. Raises OSError."""
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), *[ctypes.c_ulong(0)] * 3) == 0:
        capability += 1
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    if libc.capset(header, nothing) or libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _scopes(libc: ctypes.CDLL) -> None:
    """Landlock's scopes, where this kernel has them (6.12). What else Landlock can do, the root does already."""
    if libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION) < _SCOPES_ABI:
        return
    wanted = struct.pack("QQQ", 0, 0, _SCOPES)
    rules = libc.syscall(_LANDLOCK_CREATE, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0 or libc.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(rules)
