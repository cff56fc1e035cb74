"""A seccomp filter (seccomp(2), BPF): system calls that neither side of a peer has any use for, and the address families it may use.

A list of what is refused, not of what is allowed: torch, CUDA and libp2p use some 200 calls that differ by version. Refused are
the ways around the box: other address families, io_uring (its sockets pass by any filter of socket()), namespaces, mounts, looking
into other processes, their limits, loading code into the kernel, keyrings, clocks. Refusals are errors, so that a library takes its
other way. Knows nothing of files or who is boxed. It holds for this process and all that it starts, for good.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Sequence

_NUMBERS = {
    # name: (x86_64, every architecture of the generic table); None: not there
    "socket": (41, 198), "connect": (42, 203), "socketpair": (53, 199), "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29),
    "prlimit64": (302, 261),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "vhangup": (153, 58), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "io_submit": (209, 2), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
}  # fmt: skip

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""machine → (column of _NUMBERS, AUDIT_ARCH)."""

NETWORK = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""What the network side needs; the last lists interfaces."""

_SPECIAL = ("socket", "connect", "socketpair", "clone", "clone3", "ioctl", "prlimit64")
_DATAGRAMS = 2
"""The bit of socketpair's type that SOCK_DGRAM and SOCK_RAW have in common: these may be sent to any address after all (unix(7))."""
_SEQPACKET = 4
"""The bit of socket's type that only SOCK_SEQPACKET has, of all that AF_UNIX knows."""
_NAMESPACES = 0x7E020000
"""Every CLONE_NEW… flag."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
"""ioctls that type on the terminal that we were started from."""

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_X32 = 0x40000000

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def fault() -> str:
    """Why there can be no filter here; "" if there can."""
    if platform.machine() not in _ARCHITECTURES:
        return f"no table of system calls for {platform.machine()}"
    return ""


def number(name: str) -> int:
    """Of a system call on this machine. Raises KeyError for one that is not in the table, or a machine that is not."""
    found = _NUMBERS[name][_ARCHITECTURES[platform.machine()][0]]
    if found is None:
        raise KeyError(name)
    return found


def program(machine: str, families: Sequence[int]) -> bytes:
    """The filter for `machine` as struct sock_filter[]: `families` are the AF_… that socket(2) may still make. Without AF_UNIX it may
    make one that listens for packets, as CUDA's driver must (decisions/0019): such a socket sends nothing to anybody but who connects
    to it, and connect(2) is refused."""
    column, architecture = _ARCHITECTURES[machine]
    numbers = {name: found for name, columns in _NUMBERS.items() if (found := columns[column]) is not None}
    lines = [
        *_if(_JEQ, 4, architecture, otherwise=_ERRNO | errno.ENOSYS),
        *_if(_JGE, 0, _X32, then=_ERRNO | errno.ENOSYS),
    ]
    for name, call in numbers.items():
        if name not in _SPECIAL:
            lines += _if(_JEQ, 0, call, then=_ERRNO | errno.EPERM)
    lines += _if(_JEQ, 0, numbers["clone3"], then=_ERRNO | errno.ENOSYS)  # its flags are in memory; glibc goes on with clone
    lines += _of(numbers["clone"], [*_if(_JSET, _argument(0), _NAMESPACES, then=_ERRNO | errno.EPERM)])
    typing = [line for ioctl in (_TIOCSTI, _TIOCLINUX) for line in _if(_JEQ, _argument(1), ioctl, then=_ERRNO | errno.EPERM)]
    lines += _of(numbers["ioctl"], typing)
    lines += _of(numbers["prlimit64"], _if(_JEQ, _argument(0), 0, otherwise=_ERRNO | errno.EPERM))  # 0: ourselves
    allowed = [line for family in families for line in _if(_JEQ, _argument(0), family, then=_ALLOW)]
    if socket.AF_UNIX not in families:
        lines += _of(numbers["socketpair"], _if(_JSET, _argument(1), _DATAGRAMS, then=_ERRNO | errno.EAFNOSUPPORT))
        lines += _if(_JEQ, 0, numbers["connect"], then=_ERRNO | errno.EPERM)
        allowed += _if(_JEQ, _argument(0), socket.AF_UNIX, otherwise=_ERRNO | errno.EAFNOSUPPORT)
        allowed += _if(_JSET, _argument(1), _SEQPACKET, then=_ALLOW)
    lines += _of(numbers["socket"], [*allowed, (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT)])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def load(families: Sequence[int]) -> None:
    """From now on, for good. Single-threaded processes only. Raises OSError."""
    body = program(platform.machine(), families)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(body, len(body))
    descriptor = struct.pack("HxxxxxxP", len(body) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1)), (_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), descriptor)):
        if libc.prctl(*arguments, *[zero] * (5 - len(arguments))):
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


_Line = tuple[int, int, int, int]


def _argument(index: int) -> int:
    """Where the low half of an argument lies in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * index


def _if(test: int, offset: int, value: int, *, then: int | None = None, otherwise: int | None = None) -> list[_Line]:
    """Load the word at `offset`; return `then` if the test holds, `otherwise` if it does not; go on if that is None."""
    verdict = then if then is not None else otherwise
    assert verdict is not None
    jumps = (0, 1) if then is not None else (1, 0)
    return [(_LOAD, 0, 0, offset), (test, *jumps, value), (_RETURN, 0, 0, verdict)]


def _of(call: int, lines: list[_Line]) -> list[_Line]:
    """`lines`, which only calls of this number come to."""
    return [(_LOAD, 0, 0, 0), (_JEQ, 0, len(lines), call), *lines]
