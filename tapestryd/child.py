"""What a process that we start gets before it executes its program."""

import ctypes
import os
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent(number: int) -> Callable[[], None]:
    """For `preexec_fn`: this signal when we end, however that is, so that no child outlives us."""
    parent = os.getpid()

    def arrange() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # we had ended before it could ask
            os._exit(128 + number)

    return arrange
