"""Sockets that somebody made for us and that we hold from the start: systemd's way (sd_listen_fds(3)), and our own warden's."""

import socket
from collections.abc import MutableMapping, Sequence

FIRST = 3


def inherited(environ: MutableMapping[str, str], pid: int) -> dict[str, socket.socket]:
    """name → listening socket, if they are meant for the process `pid`. Takes the variables out of `environ`, so that no child takes
    them for its own. Raises OSError if what was announced is not there."""
    count, meant = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if meant != str(pid) or not (count.isascii() and count.isdigit()):
        return {}
    found = {}
    for place in range(min(int(count), len(names))):
        found[names[place]] = socket.socket(fileno=FIRST + place)
        found[names[place]].set_inheritable(False)
    return found


def announced(environ: MutableMapping[str, str], pid: int, names: Sequence[str]) -> None:
    """Say in `environ` that the process `pid` holds sockets of these names, as descriptors from FIRST on."""
    environ.update(LISTEN_FDS=str(len(names)), LISTEN_PID=str(pid), LISTEN_FDNAMES=":".join(names))
