"""What a process that we start gets before it executes its program."""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent(number: int) -> Callable[[], None]:
    """For `preexec_fn`: this signal when we end, however that is, so that no child outlives us."""
    parent = os.getpid()

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() not in (parent, 0):  # we had ended before it could ask; 0: we are not to be seen from there
            os._exit(128 + number)

    return arrange


def close_all_but(*kept: int) -> None:
    """Whatever else is open here, however it came to be."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(number)
