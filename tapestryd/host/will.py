"""What the operator asked for: a pause, a finish, a mode for a time. Said once, it holds until it is over or unsaid.

Pure: each method gives the will as it is afterwards. The caller keeps it over restarts (`to_json`), and says when a round is over.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from tapestryd.host.policy import Hold, Reason


class Mode(StrEnum):
    ALWAYS = "always"
    """Whoever is at this machine, and whatever the hours: COURTESIES are left aside."""
    AUTO = "auto"
    NEVER = "never"


COURTESIES = (
    Reason.SCHEDULE,
    Reason.USER_ACTIVE,
    Reason.EXCLUSIVE_APP,
    Reason.OTHER_GPU_PROCESS,
    Reason.CPU_LOAD,
    Reason.BATTERY,
)
"""What spares people. The other reasons spare the machine, its disk and its purse, and hold in every mode."""


@dataclass(frozen=True, slots=True)
class Will:
    """`mode_until_s`, `pause_until_s`: Unix time; None: until somebody says otherwise. `finishing`: pause when the round at hand
    is over."""

    mode: Mode = Mode.AUTO
    mode_until_s: float | None = None
    paused: bool = False
    pause_until_s: float | None = None
    finishing: bool = False

    def at(self, now_s: float) -> "Will":
        """Without what is over by `now_s`."""
        will = self
        if will.mode_until_s is not None and now_s >= will.mode_until_s:
            will = replace(will, mode=Mode.AUTO, mode_until_s=None)
        if will.pause_until_s is not None and now_s >= will.pause_until_s:
            will = replace(will, paused=False, pause_until_s=None)
        return will

    def pause(self, until_s: float | None) -> "Will":
        return replace(self, paused=True, pause_until_s=until_s, finishing=False)

    def finish(self) -> "Will":
        """Pause behind the round at hand; who is paused already stays so, for good."""
        return self.pause(None) if self.paused else replace(self, finishing=True)

    def round_over(self) -> "Will":
        return self.pause(None) if self.finishing else self

    def resume(self) -> "Will":
        """Train again as the rules have it: ends a pause, a finish and the mode never."""
        never = self.mode is Mode.NEVER
        return replace(
            self, paused=False, pause_until_s=None, finishing=False,
            mode=Mode.AUTO if never else self.mode, mode_until_s=None if never else self.mode_until_s,
        )  # fmt: skip

    def choose(self, mode: Mode, until_s: float | None) -> "Will":
        return replace(self, mode=mode, mode_until_s=None if mode is Mode.AUTO else until_s)

    def judge(self, holds: Iterable[Hold]) -> tuple[Hold, ...]:
        """What of `holds` counts, and the will's own reason. Ask `at` before."""
        own = []
        if self.paused or self.finishing or self.mode is Mode.NEVER:
            pause_s = self.pause_until_s if self.paused or self.finishing else 0.0
            never_s = self.mode_until_s if self.mode is Mode.NEVER else 0.0
            until_s = None if pause_s is None or never_s is None else max(pause_s, never_s)
            own.append(Hold(Reason.USER, until_s))
        return (*own, *(hold for hold in holds if self.mode is not Mode.ALWAYS or hold.reason not in COURTESIES))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: object) -> "Will":
        """Raises ValueError for what `to_json` never gives."""
        if not isinstance(raw, Mapping) or set(raw) != {"mode", "mode_until_s", "paused", "pause_until_s", "finishing"}:
            raise ValueError("no will of the operator")
        if type(raw["paused"]) is not bool or type(raw["finishing"]) is not bool:
            raise ValueError("paused and finishing are true or false")
        for name in ("mode_until_s", "pause_until_s"):
            until_s = raw[name]
            if until_s is not None and (type(until_s) not in (int, float) or not math.isfinite(until_s)):
                raise ValueError(f"{name} is no time")
        return cls(Mode(raw["mode"]), raw["mode_until_s"], raw["paused"], raw["pause_until_s"], raw["finishing"])
