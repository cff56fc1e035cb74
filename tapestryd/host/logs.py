"""Where log lines go, which of them, and what they look like: journald with priorities, plain text with the time, or JSON.

Knows nothing of what is logged.
"""

import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from tapestryd.errors import LocalFault

LINES = 1_000
_LINE_CHARS = 8_000
_PLAIN = logging.Formatter()

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""syslog(3)'s, which journald reads from a "<N>" before each line."""
_WORD = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "critical"}
"""Not logging's own names, which libraries rename at will (hivemind makes WARNING "WARN")."""


class Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(word)s %(name)s: %(message)s")
        self.default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        record.word = _WORD.get(record.levelno, str(record.levelno))
        return super().format(record)


class Journal(logging.Formatter):
    """Every line has the priority before it, or journald would take a traceback's lines for information."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in super().format(record).splitlines())


class Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": _WORD.get(record.levelno, str(record.levelno)),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One of the latest. `number` counts all since the start, from 1."""

    number: int
    at_ms: int
    level: str
    subsystem: str
    message: str


class Logs:
    """Where this process's log lines go, from `start` on, which of them, and the latest LINES, kept for whoever asks.

    A subsystem is a room or a module of ours, without `tapestryd.`, or hivemind; "" is everything.
    """

    def __init__(self) -> None:
        self._level = logging.INFO
        self._own: dict[str, int] = {}
        self._debug = False
        self._recent = _Recent()

    def start(self, level: str, form: str, environ: Mapping[str, str], stream: IO[str]) -> None:
        """Send every log line to `stream`. `level`, `form`: as [log] in tapestryd.toml.

        Call it after hivemind is imported: on import hivemind gives its loggers a handler of its own, in colour, and cuts
        them off from ours. Both are undone here, and its INFO, several lines a second, is left out.
        """
        handler = logging.StreamHandler(stream)
        journal = form == "auto" and is_journal(environ, stream)
        handler.setFormatter(Json() if form == "json" else Journal() if journal else Text())
        logging.getLogger().handlers[:] = [handler, self._recent]
        hivemind = logging.getLogger("hivemind")
        hivemind.handlers.clear()
        hivemind.propagate = True
        logging.captureWarnings(True)
        self.set(level)

    def set(self, level: str, subsystem: str = "") -> None:
        """Everything but what has a level of its own; or one subsystem. Raises LocalFault for one that is not there."""
        number = logging.getLevelNamesMapping()[level.upper()]
        if subsystem and subsystem not in _subsystems():
            raise LocalFault(f"{subsystem[:80]}: no such subsystem; there are {', '.join(sorted(_subsystems()))}")
        if subsystem:
            self._own[subsystem] = number
        else:
            self._level, self._debug = number, False
        self._apply()

    def toggle_debug(self) -> None:
        """Everything, or again what was asked for."""
        self._debug = not self._debug
        self._apply()

    def _apply(self) -> None:
        level = logging.DEBUG if self._debug else self._level
        logging.getLogger().setLevel(level)
        for subsystem, number in {"hivemind": max(level, logging.WARNING), **self._own}.items():
            logging.getLogger(_logger(subsystem)).setLevel(number)

    def levels(self) -> dict[str, str]:
        """Subsystem → level; "": all others."""
        level = logging.DEBUG if self._debug else self._level
        return {subsystem: _WORD[number] for subsystem, number in {"": level, **self._own}.items()}

    def lines(self, since: int) -> list[Line]:
        """Those behind line number `since`, of the latest LINES."""
        return [line for line in self._recent.lines if line.number > since]


class _Recent(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[Line] = deque(maxlen=LINES)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        message = record.getMessage() + (f"\n{_PLAIN.formatException(record.exc_info)}" if record.exc_info else "")
        level = _WORD.get(record.levelno, str(record.levelno))
        self.lines.append(Line(self._count, round(record.created * 1000), level, _subsystem(record.name), message[:_LINE_CHARS]))


def _logger(subsystem: str) -> str:
    return subsystem if subsystem.split(".")[0] == "hivemind" else f"tapestryd.{subsystem}"


def _subsystem(logger: str) -> str:
    return logger.removeprefix("tapestryd.")


def _subsystems() -> set[str]:
    """Those that have spoken, or can, and the rooms that they are in."""
    names = [_subsystem(name) for name in logging.root.manager.loggerDict if name.startswith("tapestryd.")]
    return {".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)} | {"hivemind"}


def start_trainer(environ: Mapping[str, str], stream: IO[str]) -> None:
    """The data side's: what it says stays on this machine, and nobody asks for it but by the journal."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Journal() if is_journal(environ, stream) else logging.Formatter("trainer: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def is_journal(environ: Mapping[str, str], stream: IO[str]) -> bool:
    """Whether `stream` is the one that systemd connected to journald: "device:inode" (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        where = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{where.st_dev}:{where.st_ino}"
