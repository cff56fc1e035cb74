"""What keeps this node from training: what its operator asked for, and the policy of this machine, of both sides together.

Looks every other second, and at once when the operator speaks; tells `hold` when the reasons change, or how much haste they have.
What the operator asked for outlives a restart. Everything that is decided is decided by host/policy.py and host/will.py.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence

from protocols import control
from protocols.rounds import Haste, Held
from tapestryd.config import DaemonConfig
from tapestryd.errors import DiskFull, StateFault
from tapestryd.host.files import unwritten
from tapestryd.host.policy import Hold, Moved, Policy, Readings, Reason, Verdict
from tapestryd.host.state import StateDir
from tapestryd.host.will import Mode, Will
from tapestryd.screen import duration

log = logging.getLogger(__name__)

LOOK_S = 2.0
METERED_S = 900.0
"""So long it counts what a session said of the network; it says so again and again (desktop.py)."""


class Pauses:
    """`busy()`: a round is at hand, local steps included. `moved()`: bytes of this month. `hold` is told what the Member is to be told."""

    def __init__(
        self, config: DaemonConfig, state: StateDir, now_s: Callable[[], float], busy: Callable[[], bool],
        moved: Callable[[], Moved | None], hold: Callable[[Held], None],
    ) -> None:  # fmt: skip
        self.amend(config)
        self._state = state
        self._now_s, self._busy, self._moved, self._hold = now_s, busy, moved, hold
        self._will = self._written = state.will()
        self._writing = asyncio.Lock()
        self._verdict = Verdict()
        self._holds: tuple[Hold, ...] = ()
        self._there: tuple[Hold, ...] = ()
        self._there_changes_s: float | None = None
        self._metered: bool | None = None
        self._metered_s = 0.0
        self.input_s: float | None = None
        """Unix time at which somebody last was at a desktop of this machine, as its session said."""
        self.held = Held(())

    def amend(self, config: DaemonConfig) -> None:
        """Another policy from the next look on."""
        network = config.network
        self._policy = Policy(
            metered=network.metered, transfer_cap_bytes=network.transfer_cap_bytes, min_free_bytes=config.storage.min_free_bytes
        )

    async def run(self) -> None:
        said = ""
        while True:
            self.look()
            try:
                await self._keep()
                said = ""
            except StateFault as fault:
                if str(fault) != said:
                    log.error("%s", fault)
                said = str(fault)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        now_s = self._now_s()
        self._will = self._will.at(now_s)
        if not self._busy():
            self._will = self._will.round_over()
        metered = self._metered if now_s < self._metered_s + METERED_S else None
        readings = Readings(metered=metered, free_bytes=shutil.disk_usage(self._state.path).free, moved=self._moved())
        self._verdict = self._policy.decide(now_s, readings, self._verdict.memory)
        holds = sorted((*self._verdict.holds, *self._there), key=lambda hold: list(Reason).index(hold.reason))
        self._holds = self._will.judge(holds)
        held = Held(tuple(hold.reason.value for hold in self._holds), _haste(self._will, self._holds)) if self._holds else Held(())
        if held != self.held:
            self.held = held
            self._hold(held)

    def seen(self, holds: tuple[Hold, ...], changes_s: float | None) -> None:
        """What holds training on the data side, and when that is something else."""
        self._there, self._there_changes_s = holds, changes_s
        self.look()

    def active(self, idle_s: float | None, metered: bool | None) -> None:
        """What a session of a desktop says. Of several the latest input counts."""
        now_s = self._now_s()
        if idle_s is not None:
            self.input_s = max(now_s - idle_s, self.input_s or 0.0)
        self._metered, self._metered_s = metered, now_s
        self.look()

    def status(self) -> control.Policy:
        now_s, will = self._now_s(), self._will
        changes = [self._verdict.changes_s, self._there_changes_s, will.mode_until_s, will.pause_until_s]
        return control.Policy(
            mode=will.mode.value,
            mode_left_s=_left(will.mode_until_s, now_s),
            finishing=will.finishing,
            holds=tuple(control.Hold(hold.reason.value, hold.sentence, _left(hold.until_s, now_s)) for hold in self._holds),
            changes_in_s=_left(min((change for change in changes if change is not None), default=None), now_s),
        )

    # What the operator asks. Raises StateFault where it holds, but would not survive a restart.

    async def pause(self, for_s: float | None) -> str:
        await self._ask(self._will.pause(self._until(for_s)))
        return f"Paused for {duration(for_s)}." if for_s else "Paused until `tapestry resume`."

    async def finish(self) -> str:
        await self._ask(self._will.finish())
        return "Pausing behind the round at hand, until `tapestry resume`." if self._will.finishing else "Paused until `tapestry resume`."

    async def resume(self) -> str:
        await self._ask(self._will.resume())
        return "Resumed." if not self._holds else f"Resumed, but {'; '.join(hold.sentence for hold in self._holds)}."

    async def choose(self, mode: Mode, for_s: float | None) -> str:
        await self._ask(self._will.choose(mode, self._until(for_s)))
        for_so_long = f" for {duration(for_s)}, then auto" if for_s and mode is not Mode.AUTO else ""
        return f"Mode {mode}{for_so_long}: {_MODES[mode]}."

    def _until(self, for_s: float | None) -> float | None:
        return None if for_s is None else self._now_s() + for_s

    async def _ask(self, will: Will) -> None:
        self._will = will
        wanted = "paused" if will.paused else "finishing" if will.finishing else "training"
        log.info("asked to be %s, mode %s", wanted, will.mode)
        self.look()
        await self._keep()

    async def _keep(self) -> None:
        """Until the file holds what is asked for."""
        async with self._writing:
            while (will := self._will) != self._written:
                try:
                    await asyncio.to_thread(self._state.keep_will, will)
                except (DiskFull, OSError) as error:
                    raise StateFault(f"done, but it cannot be written to {self._state.path}: {unwritten(error)}") from None
                self._written = will


_MODES = {
    Mode.ALWAYS: "hours, users, other programs and batteries do not matter; heat, disk and costs do",
    Mode.AUTO: "as the configuration has it",
    Mode.NEVER: "nothing is trained",
}


def _haste(will: Will, holds: Sequence[Hold]) -> Haste:
    if will.paused:
        return Haste.NOW
    finishing = will.finishing and will.mode is not Mode.NEVER and all(hold.reason is Reason.USER for hold in holds)
    return Haste.ROUND if finishing else Haste.STEPS


def _left(until_s: float | None, now_s: float) -> float | None:
    return None if until_s is None else round(max(0.0, until_s - now_s), 1)
