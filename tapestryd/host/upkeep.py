"""What the control API answers to whoever looks after the daemon itself. On its socket alone: a file's settings are not for everybody
with a login here.

Asks the Operator and words the answer. Knows nothing of runs and peers, nor of who asks.
"""

from dataclasses import asdict

from protocols.control import Setting
from tapestryd.host.fields import Doc
from tapestryd.host.operator import Operator
from tapestryd.host.route import Route


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
        )  # fmt: skip

    async def _config(self) -> Doc:
        return {"files": list(map(str, self._operator.files())), "settings": [asdict(setting) for setting in self._operator.settings()]}

    async def _reload(self) -> Doc:
        return asdict(await self._operator.reload())
