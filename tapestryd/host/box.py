"""A box for one process and all that it starts: only these files, and a network and other processes or none. For good.

Made of what Linux gives everybody, root or not: user, mount, IPC (network, PID) namespaces with a root of their own, no capability and
none to be had, Landlock's scopes (abstract sockets, signals) where the kernel has them, a seccomp filter. Two boxes are in sibling
user namespaces, so neither may look into the other although both run as one user. Knows nothing of what is boxed, or why.

    uid, gid = os.getuid(), os.getgid()
    child = fork(box)
    if child == 0:
        enter(box, uid, gid)    # ends if that raises NoBox
        if box.alone:
            second()
        os.execve(…)

Under systemd the units do all this, with two users besides; this is for everywhere else.
"""

import ctypes
import os
import resource
import signal
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import protocols
import tapestryd
from tapestryd.child import close_all_but
from tapestryd.host import seccomp

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
_MOUNT_SETATTR, _AT_RECURSIVE, _AT_FDCWD = 442, 0x8000, -100
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT, _LANDLOCK_VERSION = 444, 446, 1
_SCOPES_ABI, _SCOPES = 6, 0b11
"""From this ABI on a domain can be kept from the abstract sockets of others (bit 0), and from sending them signals (bit 1)."""

_NO_CORE = 1
"""For RLIMIT_CORE. Unlike 0 it also keeps our memory from programs that the system feeds with it (core(5), a pattern with "|")."""

_LEFT_S = 25
"""For what is left in a box of processes that are alone, when its program has ended."""

_KERNEL = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "asound", "mtrr")
"""In /proc: settings of the whole machine, which root could write without any capability."""

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/rocm", "/opt/cuda", "/sys/devices/system",
    *(f"/etc/{name}" for name in (
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "passwd", "group",
        "localtime", "timezone", "ssl/openssl.cnf", "pki/tls/openssl.cnf", "crypto-policies", "protocols", "services", "os-release",
        "alternatives", "OpenCL", "nvidia", "mime.types",
    )),
)  # fmt: skip
"""What a program needs of any Linux: nothing here is anybody's own, nor for root only."""

_STAGE = "/tmp"
"""Where the new root is put together; covered in our own mount namespace only."""


@dataclass(frozen=True, slots=True)
class Box:
    """All paths are absolute; what is not there is left out. `readable`, `writable`: files or folders, with all beneath. `hidden`:
    what of these stays out after all. `devices`: nodes. `families`: AF_… that may be used; without any there is no network at all. `alone`:
    no process outside is to be seen, or to be sent a signal."""

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    hidden: tuple[Path, ...]
    devices: tuple[Path, ...]
    families: tuple[int, ...]
    alone: bool


class NoBox(Exception):
    """What this kernel, or its administrator, does not let us do: one sentence, with the way on."""


def interpreter(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """What any program of ours needs to read: the system's libraries, this interpreter's, and our own packages."""
    found = [*map(Path, _SYSTEM), Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("stdlib"))]
    found += [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages", "lib-dynload")]
    found += [Path(package) for module in (tapestryd, protocols) for package in module.__path__]
    found += [Path(entry) for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry.startswith("/")]
    return tuple(found)


def fork(box: Box) -> int:
    """fork(2), with the child in namespaces of its own, which has to `enter` the box then. Raises NoBox. Single-threaded processes only.

    unshare(2) would leave the child in our PID namespace, and Python has no clone(2): so it is prepared for one as os.fork() does it.
    """
    if fault := seccomp.fault():
        raise NoBox(f"there is no seccomp filter for this machine ({fault}); use the systemd units")
    wanted = _NEWUSER | _NEWNS | _NEWIPC | (0 if box.families else _NEWNET) | (_NEWPID if box.alone else 0)
    python = ctypes.PyDLL(None, use_errno=True)
    python.PyOS_BeforeFork()
    child: int = python.syscall(seccomp.number("clone"), ctypes.c_ulong(wanted | signal.SIGCHLD), None, None, None, None)
    error = ctypes.get_errno()
    if child == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if child < 0:
        raise NoBox(f"user namespaces are not to be had here ({os.strerror(error)}); {obstacle() or 'use the systemd units'}")
    return child


def enter(box: Box, uid: int, gid: int) -> None:
    """Shut this process in, a child of `fork`, as whom it was before. It executes its program next. Raises NoBox; then it must end."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _same_user(uid, gid)
        _root(libc, box)
        os.umask(0o077)
        no_core = min(_NO_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1] % (1 << 64))  # unlimited is -1
        resource.setrlimit(resource.RLIMIT_CORE, (no_core, no_core))
        _powerless(libc)
        _scopes(libc)
        seccomp.load(box.families)
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise NoBox(f"the box cannot be closed ({error.strerror}{where}); {obstacle() or 'use the systemd units'}") from None


def shut(families: Sequence[int]) -> None:
    """What any process can do to itself, on top of what whoever started it has done (systemd, a container's engine): scopes and filter,
    where this machine has them. Single-threaded processes only. Raises OSError."""
    _scopes(ctypes.CDLL(None, use_errno=True))
    if not seccomp.fault():
        seccomp.load(families)


def trouble() -> str:
    """Why no box can be made here, by making one; "" if one was. Single-threaded processes only."""
    box, uid, gid = Box(tuple(map(Path, _SYSTEM)), (), (), (), (), alone=True), os.getuid(), os.getgid()
    told, tell = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(told, "rb") as pipe:
        try:
            child = fork(box)
        except NoBox as fault:
            os.close(tell)
            return str(fault)
        if child == 0:
            try:
                enter(box, uid, gid)
            except BaseException as fault:
                os.write(tell, str(fault).encode()[:4000])
            finally:
                os._exit(0)
        os.close(tell)
        os.waitpid(child, 0)
        return pipe.read().decode(errors="replace")


def scoped() -> bool:
    """Whether this kernel has Landlock's scopes."""
    abi: int = ctypes.CDLL(None).syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    return abi >= _SCOPES_ABI


def obstacle() -> str:
    """What the administrator of this machine has set against user namespaces, and the way on; "" if nothing is known."""
    for name, refuses in (
        ("user/max_user_namespaces", "0"), ("kernel/unprivileged_userns_clone", "0"), ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):  # fmt: skip
        with suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == refuses:
                return f"sysctl {name.replace('/', '.')} is {refuses}: use the systemd units, or change it"
    return ""


def second() -> None:
    """Go on as the second process of a box in which processes are alone. The first, which cannot be without, passes signals on to it, and
    ends as it did; with it ends all that is left in there. (A first process hears no signal but those that it handles.)"""
    program = os.fork()
    if program == 0:
        return
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *[ctypes.c_ulong(0)] * 4)  # what we were forked from may know more than the box shows
    result = 0

    def passed_on(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(program, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, passed_on)
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(result))
    close_all_but()
    while True:
        try:
            child, status = os.wait()
        except ChildProcessError:
            os._exit(result)
        if child == program:
            code = os.waitstatus_to_exitcode(status)
            result = code if code >= 0 else 128 - code
            signal.alarm(_LEFT_S)


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


def _same_user(uid: int, gid: int) -> None:
    """Be in the new user namespace who we were outside. Raises OSError."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)


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

    def bind(path: Path, attributes: int, old: str = "/old") -> None:
        source, target = Path(f"{old}{path}"), path
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
    if box.alone:
        os.mkdir("/proc")
        mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    else:
        bind(Path("/proc"), _ATTR_NOSUID | _ATTR_NODEV)
    for name in _KERNEL:
        if os.path.exists(f"/proc/{name}"):
            bind(Path("/proc", name), _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, old="")
    for path in (*hidden, *_for_root_only("/proc")):
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


def _for_root_only(folder: str) -> list[Path]:
    """Files right in `folder` that not everybody may read. (Root without any capability could.)"""
    with os.scandir(folder) as found:
        return [Path(entry.path) for entry in found if entry.is_file(follow_symlinks=False) and not entry.stat().st_mode & stat.S_IROTH]


def _powerless(libc: ctypes.CDLL) -> None:
    """No capability in this user namespace either, and none to be had there. Raises OSError."""
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), *[ctypes.c_ulong(0)] * 3) == 0:
        capability += 1
    header, nothing = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    if libc.capset(header, nothing):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _scopes(libc: ctypes.CDLL) -> None:
    """Landlock's scopes, where this kernel has them (6.12). What else Landlock can do, the root does already."""
    if not scoped():
        return
    wanted = struct.pack("QQQ", 0, 0, _SCOPES)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
    rules = libc.syscall(_LANDLOCK_CREATE, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0 or libc.syscall(_LANDLOCK_RESTRICT, rules, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(rules)
