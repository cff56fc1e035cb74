"""How the operator's programs end, and what stands on their command lines: one sentence and an exit code, never a traceback."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from protocols.canonical import is_digest
from protocols.control import Exit
from protocols.refusal import Refused
from protocols.rules import RunRules
from tapestryd.errors import ConfigFault, LocalFault, NotAllowed, NotRunning, out_of_memory


def ended(work: Callable[[], int], name: str = "") -> int:
    """`work`'s exit code, or that of what ended it (protocols/control.md). `name` goes before the sentence."""
    before = f"{name}: " if name else ""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without "●" gets "?"
    try:
        code = work()
        sys.stdout.flush()
        return code
    except LocalFault as fault:
        print(f"{before}{fault}", file=sys.stderr)
        return fault.exit_code if isinstance(fault, (NotRunning, NotAllowed)) else Exit.FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output went away
        _say_no_more()
        return 141
    except PermissionError as error:
        print(f"{before}{error.filename}: only root and whoever it belongs to may do that; use sudo", file=sys.stderr)
        return Exit.NO_PERMISSION
    except OSError as error:
        if error.filename is None:
            _say_no_more()
        print(f"{before}{error.filename or 'what it says cannot be written'}: {error.strerror}", file=sys.stderr)
        return Exit.FAILED
    except (MemoryError, RuntimeError) as error:
        if not (said := out_of_memory(error)):
            raise
        print(f"{before}out of memory; other programs must make room, or a larger machine is needed ({said})", file=sys.stderr)
        return Exit.FAILED


def _say_no_more() -> None:
    """Or Python tries, and complains, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def rules_at(path: Path) -> RunRules:
    """Of a run.toml. Raises ConfigFault."""
    try:
        return RunRules.from_toml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFault(f"{path}: {getattr(error, 'strerror', error)}; write it with: tapestry run show > run.toml") from None
    except Refused as refused:
        raise ConfigFault(f"{path}: {refused.detail}") from None


def whole(low: int, high: int) -> Callable[[str], int]:
    """For argparse: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: must be a whole number from {low} to {high}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """For argparse: a time above 0, of at most a year."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 366 * 86_400:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: must be a number of seconds above 0")
    return found


def run_id(text: str) -> str:
    """For argparse."""
    if not is_digest(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: must be 64 hexadecimal digits, as after tapestry: in an invite")
    return text
