"""Where log lines go and what they look like: journald with priorities, plain text with the time, or JSON.

Knows nothing of what is logged.
"""

import json
import logging
import os
from collections.abc import Mapping
from typing import IO

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


def set_up(level: str, form: str, environ: Mapping[str, str], stream: IO[str]) -> None:
    """Send every log line to `stream`. `level`, `form`: as [log] in tapestryd.toml.

    Call it after hivemind is imported: on import hivemind gives its loggers a handler of its own, in colour, and cuts
    them off from ours. Both are undone here, and its INFO, several lines a second, is left out.
    """
    journal = form == "auto" and _is_journal(environ.get("JOURNAL_STREAM", ""), stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Json() if form == "json" else Journal() if journal else Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    hivemind = logging.getLogger("hivemind")
    hivemind.handlers.clear()
    hivemind.propagate = True
    logging.captureWarnings(True)
    set_level(level)


def set_level(level: str) -> None:
    root = logging.getLogger()
    root.setLevel(level.upper())
    logging.getLogger("hivemind").setLevel(max(root.level, logging.WARNING))


def _is_journal(journal_stream: str, stream: IO[str]) -> bool:
    """Whether `stream` is the one that systemd connected to journald: "device:inode" (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        where = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{where.st_dev}:{where.st_ino}"
