"""The unix socket on which the operator's commands arrive: made without displacing a living daemon, and who is on its other end.

Knows nothing of HTTP.
"""

import grp
import os
import pwd
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

from tapestryd.errors import ConfigFault, Unavailable
from tapestryd.settings import SOCKET_PATH_BYTES

ADMINS = "tapestry-admin"
"""Members of this group, where it exists, may change things, as root and the daemon's own user may."""
_ANSWER_S = 1.0


def claim(path: Path, key: str = "api.socket", kind: int = socket.SOCK_STREAM, mode: int = 0o660) -> socket.socket:
    """A socket bound to `path`, which the setting `key` names, not yet listening. Replaces a socket on which nobody answers.

    The folder is made 0700 where it is missing. Raises ConfigFault or Unavailable.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ConfigFault(f"{key} = {str(path)!r}: longer than {SOCKET_PATH_BYTES} bytes, a bound of unix sockets; choose a shorter path")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path, key, kind)
        bound = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            bound.bind(str(path))
            path.chmod(mode)  # before anybody can connect: it does not listen yet
            if mode & 0o060:
                with suppress(KeyError, PermissionError):
                    os.chown(path, -1, grp.getgrnam(ADMINS).gr_gid)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigFault(f"{key} = {str(path)!r}: cannot be made ({error.strerror}); choose a folder that this user may write") from None
    return bound


def _clear(path: Path, key: str, kind: int) -> None:
    """Remove a socket that a dead daemon left; refuse to touch anything else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigFault(f"{key} = {str(path)!r}: a file that is no socket lies there; move it away or choose another path")
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.settimeout(_ANSWER_S)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink()
        return
    except TimeoutError:
        pass  # alive, and busy
    raise Unavailable(f"another daemon answers on {path}; stop it, or give this one another {key}")


def release(bound: socket.socket, path: Path, inode: int) -> None:
    """Close; unlink the path only while it is still ours."""
    bound.close()
    with suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(uid, gid) of the process that opened this connection, as the kernel says (unix(7), SO_PEERCRED)."""
    _pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid, gid


def may_change(uid: int, gid: int) -> bool:
    """Whether this peer may do more than read. Asks the user database, which may be on a network."""
    if uid in (0, os.geteuid()):
        return True
    try:
        admins = grp.getgrnam(ADMINS).gr_gid
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return admins in (gid, *os.getgrouplist(user.pw_name, user.pw_gid))
