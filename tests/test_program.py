"""How the operator's programs end: a sentence and an exit code for whatever ends them, and bounds of what is typed."""

import argparse
import errno
from collections.abc import Callable
from typing import NoReturn

import pytest

from protocols.control import Exit
from tapestryd.errors import LocalFault, NotAllowed, NotRunning
from tapestryd.program import ended, run_id, seconds, whole

MEMORY = "out of memory; other programs must make room, or a larger machine is needed"
DENIED = "only root and whoever it belongs to may do that; use sudo"


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        (LocalFault("It is so."), Exit.FAILED, "x: It is so.\n"),
        (NotRunning("Nobody."), Exit.NOT_RUNNING, "x: Nobody.\n"),
        (NotAllowed("Not you."), Exit.NO_PERMISSION, "x: Not you.\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/f"), Exit.NO_PERMISSION, f"x: /f: {DENIED}\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/f"), Exit.FAILED, "x: /f: No such file\n"),
        (MemoryError(), Exit.FAILED, f"x: {MEMORY} (MemoryError)\n"),
        (RuntimeError("CUDA out of memory. Tried"), Exit.FAILED, f"x: {MEMORY} (CUDA out of memory. Tried)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_whatever_ends_it(ends: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> NoReturn:
        raise ends

    assert ended(work, "x") == code
    assert capsys.readouterr() == ("", says)
    assert ended(lambda: 5) == 5


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (whole(1, 9), {"1": 1, "9": 9}, ["0", "10", "-1", "1.0", "", "٣", "9" * 30]),
        (seconds, {"1": 1.0, "0.5": 0.5}, ["0", "-1", "nan", "inf", "x", ""]),
        (run_id, {"ab" * 32: "ab" * 32}, ["ab" * 31, "AB" * 32, "xy" * 32, ""]),
    ],
)
def test_what_is_typed(read: Callable[[str], object], good: dict[str, object], bad: list[str]) -> None:
    assert {text: read(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)
