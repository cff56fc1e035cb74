"""What the daemon does for its operator, as the control API asks it. The daemon implements it; nothing here does anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from protocols.control import Ban, Certificate, Reloaded, Setting, Status, Story
from protocols.egress import Egress
from tapestryd.host.logs import Logs
from tapestryd.host.peering import Contacts
from tapestryd.host.will import Mode


class Operator(Protocol):
    """Sentences say what changed and until when; a LocalFault says why nothing did."""

    @property
    def logs(self) -> Logs: ...

    @property
    def contacts(self) -> Contacts: ...

    def status(self) -> Status: ...

    def rounds(self, limit: int) -> list[Story]:
        """At most `limit` of the latest rounds, newest last."""

    async def round(self, number: int) -> tuple[list[Story], Certificate | None]:
        """All that is remembered of one round, oldest first, and what its log entry certifies, if that is here."""

    async def egress(self, since_ms: int) -> Egress:
        """What moved since then (Unix time), or since the beginning of the hour or day that it lies in."""

    def rules_toml(self) -> str | None: ...

    def bans(self) -> Sequence[Ban]: ...

    async def ban(self, peer: str, for_s: float | None, reason: str) -> str:
        """`for_s` None: as long as the configuration says."""

    async def unban(self, peer: str) -> str: ...

    async def pause(self, for_s: float | None) -> str: ...

    async def finish(self) -> str: ...

    async def resume(self) -> str: ...

    async def choose(self, mode: Mode, for_s: float | None) -> str:
        """`for_s` None: until another is chosen."""

    async def active(self, idle_s: float | None, metered: bool | None) -> str:
        """What a desktop's session says: seconds since the latest input, and of the network; None: not known."""

    async def join(self, target: str) -> str:
        """`target`: an invite, or FOUNDED: what lies in the inbox."""

    async def leave(self) -> str: ...

    def files(self) -> Sequence[Path]:
        """Of the configuration."""

    def settings(self) -> Sequence[Setting]: ...

    async def reload(self) -> Reloaded:
        """The configuration as it is now, taken up as far as a running daemon can; a fault leaves everything as it was."""

    async def shutdown(self) -> str: ...

    async def export(self) -> Path:
        """A folder of plain files, which stays until the next export."""
