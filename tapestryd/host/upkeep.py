"""What the control API answers to whoever looks after the daemon itself. On its socket alone: a file's settings are not for everybody
with a login here.

Asks the Operator and words the answer. Knows nothing of runs and peers, nor of who asks.
"""

from dataclasses import asdict

from protocols import limits
from protocols.control import Setting
from tapestryd.host import logs
from tapestryd.host.fields import Choice, Doc, Line, Whole
from tapestryd.host.operator import Operator
from tapestryd.host.route import SAID, Route

LEVELS = ("error", "warning", "info", "debug")


class Upkeep:
    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self.routes = (
            Route(
                "GET", "/v1/config", "The settings in force, and where each comes from.", self._config,
                {"files": list[str], "settings": list[Setting]},
            ),
            Route(
                "POST", "/v1/reload", "Read the configuration again, and take up what can be without a restart.", self._reload,
                {"said": str, "changed": list[str], "restart": list[str]},
            ),
            Route(
                "GET", "/v1/log", "The latest log lines, and which there are.", self._log,
                {"levels": dict[str, str], "lines": list[logs.Line]}, {"since": Whole(0, limits.INTEGER, 0)},
            ),
            Route(
                "PUT", "/v1/log/level", "Log more of everything, or of one subsystem, or less, until the next start.", self._log_level,
                SAID, body={"level": Choice(LEVELS), "subsystem": Line(80)},
            ),
        )  # fmt: skip

    async def _config(self) -> Doc:
        return {"files": list(map(str, self._operator.files())), "settings": [asdict(setting) for setting in self._operator.settings()]}

    async def _reload(self) -> Doc:
        return asdict(await self._operator.reload())

    async def _log(self, since: int) -> Doc:
        held = self._operator.logs
        return {"levels": held.levels(), "lines": [asdict(line) for line in held.lines(since)]}

    async def _log_level(self, level: str, subsystem: str) -> Doc:
        self._operator.logs.set(level, subsystem)
        return {"said": f"The log level{f' of {subsystem}' if subsystem else ''} is {level} until tapestryd is started again."}
