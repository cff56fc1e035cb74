"""What a side under foreign control would try: each attack really tries, and changes nothing if it comes through.

An attack is told of its targets (bystander.py, and the other side) and returns what it got, raises OSError, or returns "" where there was
nothing to be had. Standard library only: it runs in the boxes, by itself.
"""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Brief = dict[str, Any]
Attack = Callable[[Brief], str]

DATA: dict[str, Attack] = {}
NETWORK: dict[str, Attack] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
_ZERO = ctypes.c_ulong(0)
_X86 = os.uname().machine == "x86_64"
_ATTACH, _DETACH, _READ_V, _GETFD, _KEYCTL, _IO_SETUP, _IO_ENTER = (
    (16, 17, 310, 438, 250, 425, 426) if _X86 else (16, 17, 270, 438, 219, 425, 426)
)
_PTRACE, _CLONE3, _PIVOT, _BPF, _PERF = (101, 435, 155, 321, 298) if _X86 else (117, 435, 41, 280, 241)
_NEWUSER, _NEWNS = 0x10000000, 0x00020000


def by(*sides: dict[str, Attack]) -> Callable[[Attack], Attack]:
    def enlisted(attack: Attack) -> Attack:
        for side in sides:
            side[attack.__name__] = attack
        return attack

    return enlisted


def call(number: int, *arguments: Any) -> int:
    """A system call by its number. Raises OSError."""
    result = int(LIBC.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def first(things: Iterator[Any], attempt: Callable[[Any], str]) -> str:
    """What the first of many attempts got; if none got anything, the first error."""
    error: OSError | None = None
    for thing in things:
        try:
            if got := attempt(thing):
                return got
        except OSError as failed:
            error = error or failed
    if error:
        raise error
    return ""


def others(brief: Brief) -> Iterator[int]:
    """Process ids of the other side and of its parent, as they are called outside, and of whatever else is to be seen here."""
    ours = {os.getpid(), os.getppid()}
    yield from (pid for pid in brief["pids"] if pid not in ours)
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in {*ours, *brief["pids"]})


# Ways to the network.


@by(DATA)
def ip(brief: Brief) -> str:
    with socket.create_connection(("127.0.0.1", brief["tcp"]), 5) as sock:
        sock.sendall(b"row")
    return "a TCP connection"


@by(DATA)
def dns(brief: Brief) -> str:
    """A datagram carries the row in a name that is looked up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", brief["udp"]))
        sock.send(b"row.example.")
        sock.settimeout(5)
        return "an answer" if sock.recv(16) else ""


@by(DATA, NETWORK)
def families(brief: Brief) -> str:
    usual = brief["families"]
    made = []
    for family in set(range(46)) - set(usual):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            with suppress(OSError):
                socket.socket(family, kind).close()
                made.append(family)
    if not made:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    return f"sockets of the families {sorted(set(made))}"


@by(DATA, NETWORK)
def pathname_socket(brief: Brief) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(brief["unix"])
        return "a connection"


@by(DATA, NETWORK)
def packet_socket(brief: Brief) -> str:
    """The one kind that the data side can make, for CUDA's driver."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(brief["packets"])
        return "a connection"


@by(DATA, NETWORK)
def abstract_socket(brief: Brief) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + brief["abstract"])
        return "a connection"


@by(DATA, NETWORK)
def paired_socket(brief: Brief) -> str:
    """socketpair(2) is no socket(2), but a datagram socket of a pair can be sent to anybody."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(b"row", brief["datagrams"])
        return "a datagram"


@by(DATA, NETWORK)
def io_uring(brief: Brief) -> str:
    """IORING_OP_SOCKET, which no filter of socket(2) sees."""
    parameters = bytearray(120)
    ring = call(_IO_SETUP, 4, (ctypes.c_char * 120).from_buffer(parameters))
    try:
        entries = struct.unpack_from("<10I", parameters, 40)
        queue = mmap.mmap(ring, entries[6] + 4 * 4, offset=0)
        requests = mmap.mmap(ring, 64 * 4, offset=0x10000000)
        done = struct.unpack_from("<8I", parameters, 80)
        answers = mmap.mmap(ring, done[5] + 16 * 8, offset=0x8000000)
        requests[:64] = struct.pack("<BBHiQQIIQHHiQQ", 45, 0, 0, socket.AF_INET, socket.SOCK_STREAM, 0, 0, 0, 7, 0, 0, 0, 0, 0)
        queue[entries[6] : entries[6] + 4] = struct.pack("<I", 0)
        queue[entries[1] : entries[1] + 4] = struct.pack("<I", 1)
        call(_IO_ENTER, ring, 1, 1, 1, None, 0)
        user, result, _ = struct.unpack_from("<QiI", answers, done[5])
        if user != 7 or result < 0:
            raise OSError(-result, os.strerror(-result))
        with socket.socket(fileno=result) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", brief["tcp"]))
        return "a TCP connection"
    finally:
        os.close(ring)


# Ways into other processes.


@by(DATA, NETWORK)
def memory_file(brief: Brief) -> str:
    def read(pid: int) -> str:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(brief["address"] if pid in brief["pids"] else 0)
            return f"the memory of {pid}"

    return first(others(brief), read)


@by(DATA, NETWORK)
def memory_call(brief: Brief) -> str:
    """process_vm_readv(2)"""

    def read(pid: int) -> str:
        here = ctypes.create_string_buffer(len(brief["secret"]))
        local = struct.pack("PN", ctypes.addressof(here), len(brief["secret"]))
        remote = struct.pack("PN", brief["address"], len(brief["secret"]))
        call(_READ_V, pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), _ZERO)
        return f"{here.raw.decode(errors='replace')}"

    return first(iter(brief["pids"]), read)


@by(DATA, NETWORK)
def ptrace(brief: Brief) -> str:
    def attach(pid: int) -> str:
        call(_PTRACE, _ATTACH, pid, None, None)
        os.waitpid(pid, 0x40000000)
        call(_PTRACE, _DETACH, pid, None, None)
        return f"{pid} traced"

    return first(iter(brief["pids"]), attach)


@by(DATA, NETWORK)
def descriptor_of_another(brief: Brief) -> str:
    """pidfd_getfd(2)"""

    def taken(pid: int) -> str:
        pidfd = os.pidfd_open(pid)
        try:
            got = call(_GETFD, pidfd, 0, 0)
            os.close(got)
            return f"a descriptor of {pid}"
        finally:
            os.close(pidfd)

    return first(others(brief), taken)


@by(DATA, NETWORK)
def files_of_processes(brief: Brief) -> str:
    """/proc/PID/root, cwd, fd, environ, maps, exe"""

    def read(pid: int) -> str:
        got = []
        for name in ("root", "cwd", "fd"):
            with suppress(OSError):
                inside = os.listdir(f"/proc/{pid}/{name}")
                if name != "fd" or any(_readable(f"/proc/{pid}/fd/{number}") for number in inside):
                    got.append(name)
        got += [name for name in ("environ", "maps") if _readable(f"/proc/{pid}/{name}")]
        with suppress(OSError):
            os.readlink(f"/proc/{pid}/exe")
            got.append("exe")
        if not got:
            os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY))
        return f"of {pid}: {', '.join(got)}"

    return first(others(brief), read)


@by(DATA, NETWORK)
def signals(brief: Brief) -> str:
    def sent(pid: int) -> str:
        os.kill(pid, 0)
        return f"{pid} can be sent signals"

    return first(iter(brief["pids"]), sent)


@by(DATA, NETWORK)
def limits(brief: Brief) -> str:
    """prlimit(2)"""
    import resource

    def read(pid: int) -> str:
        return f"limits of {pid}: {resource.prlimit(pid, resource.RLIMIT_NOFILE)}"

    return first(iter(brief["pids"]), read)


# Shared memory and other ways around.


@by(DATA, NETWORK)
def shared_memory(brief: Brief) -> str:
    """System V"""
    LIBC.shmat.restype = ctypes.c_void_p
    found = checked(LIBC.shmget(brief["shm"], 16, 0o444))
    where = LIBC.shmat(found, None, 0o10000)
    if where == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.string_at(where, 6).decode()


@by(DATA, NETWORK)
def shared_files(brief: Brief) -> str:
    """/dev/shm"""
    return Path(brief["devshm"]).read_text()


@by(DATA, NETWORK)
def keyring(brief: Brief) -> str:
    """The session keyring, which processes hand on to their children."""
    found = call(_KEYCTL, 10, -3, b"user", brief["key"].encode(), 0)
    here = ctypes.create_string_buffer(16)
    call(_KEYCTL, 11, found, here, 16)
    return here.value.decode()


@by(DATA, NETWORK)
def inherited_descriptors(brief: Brief) -> str:
    open_here = []
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            os.fstat(number)
            open_here.append(number)
    strange = set(open_here) - {0, 1, 2, *brief["channel"]}
    return f"open: {[os.readlink(f'/proc/self/fd/{number}') for number in strange]}" if strange else ""


@by(DATA, NETWORK)
def what_others_print(brief: Brief) -> str:
    """Standard output and error, opened anew to be read: a log that others write to, a terminal that somebody types on."""

    def read(number: int) -> str:
        again = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
        try:
            said = os.pread(again, 1 << 16, 0) if os.fstat(again).st_mode & 0o100000 else b""
            return said.decode(errors="replace") if b"printed by" in said else ""
        finally:
            os.close(again)

    return first(iter((1, 2)), read)


@by(DATA, NETWORK)
def terminal(brief: Brief) -> str:
    """Reading what is typed on it."""

    def read(number: int) -> str:
        return os.read(number, 64).decode() if os.isatty(number) else ""

    return first(iter((1, 2)), read)


# Ways out of the box.


@by(DATA, NETWORK)
def namespaces(brief: Brief) -> str:
    """unshare, clone, clone3, setns"""
    got = []
    for name, attempt in (
        ("unshare", lambda: call(272 if _X86 else 97, ctypes.c_ulong(_NEWUSER))),
        ("setns", lambda: call(308 if _X86 else 268, os.open("/proc/self/ns/user", os.O_RDONLY), 0)),
        ("clone3", lambda: _forked(_CLONE3, struct.pack("<8Q", _NEWUSER, 0, 0, 0, 17, 0, 0, 0), ctypes.c_size_t(64))),
        ("clone", lambda: _forked(56 if _X86 else 220, ctypes.c_ulong(_NEWUSER | 17), None, None, None, None)),
    ):
        child = os.fork()
        if child == 0:
            try:
                attempt()
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            got.append(name)
    if not got:
        raise OSError(status, os.strerror(status))
    return ", ".join(got)


@by(DATA, NETWORK)
def mounts(brief: Brief) -> str:
    """Uncovering what is covered, covering anew, pivot_root, chroot"""
    attempts = {
        "umount": lambda: checked(LIBC.umount2(b"/tmp", 2)),
        "mount": lambda: checked(LIBC.mount(b"tapestry", b"/tmp", b"tmpfs", 0, None)),
        "pivot_root": lambda: call(_PIVOT, b"/tmp", b"/tmp"),
        "chroot": lambda: checked(LIBC.chroot(b"/")),
    }

    def tried(name: str) -> str:
        attempts[name]()
        return name

    return first(iter(attempts), tried)


@by(DATA, NETWORK)
def device_nodes(brief: Brief) -> str:
    """Making one (of /dev/full, say), and opening any that is there beside what everybody may have."""

    def opened(path: str) -> str:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return path

    def made(folder: str) -> str:
        path = f"{folder}/node"
        os.mknod(path, 0o20600, os.makedev(1, 7))
        try:
            return opened(path)
        finally:
            os.unlink(path)

    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "shm", "pts", "mqueue", "hugepages", "core", "fd", "log"}
    harmless |= {"stdin", "stdout", "stderr", "initctl", "console", "char", "block", "disk"}
    nodes = [f"/dev/{name}" for name in os.listdir("/dev") if name not in harmless]
    return first(iter([*nodes]), opened) or first(iter([brief["folder"], "/tmp"]), made)


@by(DATA, NETWORK)
def kernel_settings(brief: Brief) -> str:
    """Writing back what is there."""

    def written(path: str) -> str:
        value = Path(path).read_bytes()
        Path(path).write_bytes(value)
        return path

    return first(iter(("/proc/sys/vm/swappiness", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory")), written)


@by(DATA, NETWORK)
def kernel_programs(brief: Brief) -> str:
    """bpf(2), perf_event_open(2)"""
    attempts = {
        "bpf": lambda: call(_BPF, 0, struct.pack("<IIII", 2, 4, 8, 1).ljust(72, b"\0"), 72),
        "perf": lambda: call(_PERF, struct.pack("<IIQ", 1, 64, 0).ljust(64, b"\0"), -1, 0, -1, 0),
    }

    def tried(name: str) -> str:
        os.close(attempts[name]())
        return name

    return first(iter(attempts), tried)


# Files.


@by(DATA, NETWORK)
def files_of_the_other(brief: Brief) -> str:
    """Everything that is the other side's: for the network side data folder, configuration, checkpoint, tokenised text and their names."""

    def read(path: str) -> str:
        if os.path.isdir(path):
            return f"{path}: {os.listdir(path)}" if os.listdir(path) else ""
        return Path(path).read_text()

    return first(iter(brief["theirs"]), read)


@by(DATA)
def writes_to_the_data(brief: Brief) -> str:
    path = Path(brief["data"], "written")
    path.write_text("x")
    path.unlink()
    return str(path)


@by(DATA, NETWORK)
def writes_elsewhere(brief: Brief) -> str:
    def written(folder: str) -> str:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
        return folder

    return first(iter(("/", "/usr", "/etc", "/usr/lib", "/var")), written)


@by(DATA, NETWORK)
def environment(brief: Brief) -> str:
    """What the other side, or anybody, was told in variables."""
    return ", ".join(name for name in brief["variables"] if name in os.environ)


def _readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def _forked(number: int, *arguments: Any) -> None:
    child = call(number, *arguments)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
