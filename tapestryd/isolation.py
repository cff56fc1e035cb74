"""How far this machine keeps the data from the network, as both sides have found by trying (host/probes.py).

Knows nothing of how a box is made.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from protocols import control
from protocols.trainer import Check, Checks
from tapestryd.errors import ConfigFault
from tapestryd.host import probes

log = logging.getLogger(__name__)


class Isolation:
    """`method`: who makes the boxes. `config`: the data side's file. `needed`: what the network side may see. `required`: whether an
    open wall ends the daemon."""

    def __init__(self, method: str, config: Path, needed: Sequence[Path], *, required: bool) -> None:
        self.method, self.required = method, required
        self._config = config
        self._needed = needed
        self._network: probes.Verdicts = {}
        self._data: Checks | None = None

    def look(self) -> None:
        """Try the network side's walls. Raises ConfigFault if one that is required is open."""
        self._network = probes.network_side(self._config, self._needed)
        faults = [name for name, held in self._network.items() if not held]
        if faults:
            sentence = f"the network side's box is open ({', '.join(faults)}); use the systemd units, or see `tapestry doctor`"
            if self.required:
                raise ConfigFault(f"{sentence}. To go on all the same: [sandbox] require = false in tapestryd.toml")
            log.warning("%s", sentence)

    def heard(self, checks: Checks) -> None:
        """What the data side has found of its own. With the first there is somebody to be looked into, too: raises ConfigFault as `look`.
        Later ones cost nothing, however many it sends."""
        first, self._data = self._data is None, checks
        if first:
            self.look()

    def forget(self) -> None:
        """The trainer that was heard has ended."""
        self._data = None

    @property
    def proven(self) -> bool:
        """Whether the data side has shown that nothing of it is open."""
        return self._data is not None and not self._data.open

    def trouble(self) -> list[str]:
        """A sentence, where something is open that is not required to be shut."""
        found = [name for name, verdict in self.status().checks.items() if verdict == "open"]
        return [f"data and network are not kept apart here, open: {', '.join(found)}; `tapestry doctor` says how"] if found else []

    def status(self) -> control.Isolation:
        checks = {f"network.{name}": "held" if held else "open" for name, held in self._network.items()}
        if (data := self._data) is not None:
            for check in Check:
                verdict = "held" if data.held >> check & 1 else "open" if data.open >> check & 1 else "untried"
                checks[f"data.{check.name.lower()}"] = verdict
        return control.Isolation("open" not in checks.values() and self.proven, self.method, checks)
