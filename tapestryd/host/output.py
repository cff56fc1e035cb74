"""What a process prints, by way of a pipe: so that it holds no descriptor of the terminal or the file that ours goes to.

Whoever holds one can read it, too: what is typed there, and what others print. Lines are passed on whole, and nothing but text: a
terminal obeys some of what is printed on it.
"""

import os
from collections.abc import Mapping
from contextlib import suppress

_LINE_BYTES = 1 << 13
"""A longer line is cut in two."""
_READS = 16
"""At a time, of 64 KiB: who prints without end holds nobody up."""


class Output:
    """`theirs` is for the other process's standard output and error."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        self._begun = b""

    def fileno(self) -> int:
        """Readable when there is something to pass on."""
        return self._ours

    def pass_on(self, where: int) -> None:
        """What has been printed so far, to the descriptor `where`; what cannot be written there is lost."""
        with suppress(BlockingIOError):
            for _ in range(_READS):
                *whole, self._begun = (self._begun + os.read(self._ours, 1 << 16)).split(b"\n")
                if len(self._begun) > _LINE_BYTES:
                    whole, self._begun = [*whole, self._begun], b""
                with suppress(OSError):
                    _write(where, b"".join(map(_text, whole)))

    def journal(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What tells the other process that its words go to the journal, if ours do (JOURNAL_STREAM, systemd.exec(5))."""
        ours, theirs = os.fstat(2), os.fstat(self.theirs)
        is_journal = environ.get("JOURNAL_STREAM") == f"{ours.st_dev}:{ours.st_ino}"
        return {"JOURNAL_STREAM": f"{theirs.st_dev}:{theirs.st_ino}"} if is_journal else {}


def _text(line: bytes) -> bytes:
    """One line that a terminal shows as it is."""
    shown = (letter if letter.isprintable() or letter == "\t" else "\N{REPLACEMENT CHARACTER}" for letter in line.decode(errors="replace"))
    return "".join(shown).encode() + b"\n"


def _write(where: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(where, view) :]
