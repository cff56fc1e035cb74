"""Keeps a trainer running, passes it bases, takes its deltas, and remembers what it last said.

A trainer that ends is started again after 1, 2, 4 … seconds, ten minutes at most; one that ran well for ten minutes
starts the count anew. One that is not wanted writes its checkpoint and ends, so that the GPU's memory is anybody's. Faults
arrive as codes; the sentences for them are here, the details in the trainer's own log.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protocols import control
from protocols.trainer import (
    ALL_FRAGMENTS,
    Base,
    Beat,
    Checks,
    Code,
    Delta,
    Device,
    Evaluated,
    Fault,
    Optimizer,
    Order,
    Precision,
    Ready,
    Report,
    Stop,
    Withheld,
    Withhold,
)  # fmt: skip
from tapestryd.base import SharedBase
from tapestryd.beside import Beside
from tapestryd.host.trainer import Trainer, Work
from tapestryd.host.witness import Witness

log = logging.getLogger(__name__)

_PAUSE_MAX_S = 600.0
_LET_GO_S = 120.0
"""For a large model's checkpoint; then the channel closes, and the data side's steward ends it."""

SENTENCES = {
    Code.INTERNAL: "the trainer failed; its log says why",
    Code.CONFIG: "the trainer's configuration is wrong; its log says where",
    Code.DATA_MISSING: "data.paths names a file or folder that is not there",
    Code.DATA_UNREADABLE: "data.paths names something that the trainer may not read, or that is damaged",
    Code.DATA_EMPTY: "data.paths holds no text; put .txt, .md, .jsonl or .parquet files there",
    Code.DATA_TOO_SMALL: "data.paths holds less text than one training window",
    Code.MODEL: "the run's model cannot be built on this machine; the trainer's log says why",
    Code.TOKENIZER: "the run's tokenizer cannot be loaded",
    Code.LAYOUT: "the trainer's model has other tensors than the run rules; are the versions the same?",
    Code.MEMORY: "not enough memory for the run's model on this device",
    Code.DEVICE: "the device of [compute] is not there or does not work",
    Code.DISK_FULL: "the trainer's disk is full",
    Code.NOT_FINITE: "local training diverged: ten steps in a row were not finite",
    Code.CHANNEL: "the trainer received something that is not of the channel",
    Code.ISOLATION: "the trainer's box does not hold, and trainer.toml requires it ([sandbox]); its log says what is open, and the fix",
    Code.DATA_FORBIDDEN: "a data set may not be contributed (its class or licence); the trainer's log says which",
    Code.TIER: "a data set asks for a tier of protection that is not available here; the trainer's log says which",
    Code.BUDGET: "the privacy budget of the data is spent; the trainer's log says of which data set",
    Code.LEDGER: "the ledger of what left this machine is damaged or cannot be written; `tapestry audit --verify` says where",
}

KEPT = {
    Withhold.FEW_STEPS: "fewer local steps behind it than release.min_steps of trainer.toml",
    Withhold.FEW_EXAMPLES: "less distinct text behind it than release.min_examples of trainer.toml",
    Withhold.RATE: "release.max_per_hour of trainer.toml have left in the last hour",
    Withhold.BUDGET: "the privacy budget of the data is spent",
    Withhold.DISK_FULL: "it could not be written down in the ledger, the trainer's disk is full",
}


class Supervisor:
    """`witness`: the file that remembers where the trainer's ledger is. `on_checks`: what the data side's box holds. `on_ready`: the
    trainer waits for a base. `on_stopped`: a delta lies in `trainer.delta`, or was withheld. `on_down`: it is gone. `failed(error)`: no
    trainer is kept running any more."""

    def __init__(
        self, work: Work, where: Path, witness: Path,
        on_checks: Callable[[Checks], None], on_ready: Callable[[], None], on_stopped: Callable[[Delta | Withheld], None],
        on_down: Callable[[], None], failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._work = work
        self._where = where
        self._on_checks = on_checks
        self._on_ready = on_ready
        self._on_stopped = on_stopped
        self._on_down = on_down
        self._ended = asyncio.Event()
        self._witness = Witness(witness)
        self._beside = Beside(failed)
        self._sharing = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._letting_go: asyncio.Task[None] | None = None
        self.trainer: Trainer | None = None
        self._asked: deque[tuple[int, int]] = deque()
        """(round, fragment) of each STOP that this trainer has not answered yet; it answers in order."""
        self.ready: Ready | None = None
        self._based = False
        """This trainer was handed the whole base."""
        self._unheard: set[int] = set()
        """Fragments that were committed while there was no trainer: its checkpoint still counts their progress as its own."""
        self.beat: Beat | None = None
        self.heldout: control.Heldout | None = None
        self.fault = ""
        self.withheld = 0
        self._kept = ""
        """Why the latest vector was withheld; "": it was not."""
        self.restarts = 0

    def start(self) -> None:
        self._loop_task = self._beside.run(self._run())

    async def hand(self, base: SharedBase) -> bool:
        """Share the whole base, beneath the trainer's local progress; then, without it, what was committed while nobody was there
        to hear of it. False: there is nobody to take it, or not any more, or nothing to share."""
        async with self._sharing:
            whole = await self._share(base, ALL_FRAGMENTS, keep=True)
            while whole and self._unheard:
                fragment = min(self._unheard)
                if not await self._share(base, fragment, keep=False):
                    return False
                self._unheard.remove(fragment)
            return whole

    async def committed(self, base: SharedBase, fragment: int) -> None:
        """Share a fragment in the place of local progress, at once or when there is somebody to take it."""
        async with self._sharing:
            if not await self._share(base, fragment, keep=False):
                self._unheard.add(fragment)

    async def _share(self, base: SharedBase, fragment: int, *, keep: bool) -> bool:
        """One at a time, so that the last word in shared memory is that of the last BASE. A trainer's first BASE is of all."""
        whole, trainer = fragment == ALL_FRAGMENTS, self.trainer
        if trainer is None or self.ready is None or base.tip is None or not (whole or self._based):
            return False
        here = slice(None) if whole else base.slice(fragment)
        await asyncio.to_thread(np.copyto, trainer.params[here], base.theta[here].numpy())
        if self.trainer is not trainer:  # it ended meanwhile; the next one has vectors of its own
            return False
        self.send(Base(base.tip.height, fragment, keep))
        self._based = True
        return True

    async def take(self, here: slice) -> Tensor | None:
        """Our own copy of a slice of the trainer's delta, (n_f,) float32; None if it is not finite, or the trainer is gone."""
        if self.trainer is None:
            return None
        shared = self.trainer.delta[here]

        def copied() -> Tensor | None:
            copy = torch.from_numpy(shared.copy())
            return copy if bool(torch.isfinite(copy).all()) else None

        return await asyncio.to_thread(copied)

    def want(self, wanted: bool) -> None:
        """Whether there is to be a trainer."""
        if wanted:
            self._wanted.set()
        elif self._wanted.is_set():
            self._wanted.clear()
            if self.trainer is not None:
                # One that is not ready has nothing to write, and is to be off before it takes the GPU.
                self._letting_go = self._beside.run(self.trainer.stop(_LET_GO_S if self.ready else 0))

    def refuse(self, why: str) -> None:
        """Not this trainer; the next one may be better."""
        self.fault = why
        if self.trainer is not None:
            self.trainer.close()

    def send(self, order: Order) -> None:
        if self.trainer is not None:
            if isinstance(order, Stop):
                self._asked.append((order.round, order.fragment))
            self.trainer.send(order)

    async def stop(self, timeout_s: float) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
        if self.trainer is not None:
            await self.trainer.stop(timeout_s)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 1.0
        while True:
            await self._wanted.wait()
            self._ended.clear()
            self._letting_go = None
            began = loop.time()
            try:
                self.trainer = Trainer.start(self._work, self._where, on_report=self._report, on_exit=self._exited)
                await self._ended.wait()
            except OSError as error:
                self.fault = f"the data side does not listen at {self._where} ({error.strerror}); is tapestry-trainer.socket started?"
            if self._letting_go is not None:
                log.info("trainer let go")
                continue
            pause = 1.0 if loop.time() - began > _PAUSE_MAX_S else pause
            log.warning("trainer ended: %s; again in %.0f s", self.fault or "no reason given", pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)
            self.restarts += 1

    def _exited(self, status: int | None) -> None:
        if status is None and not self.fault and self._letting_go is None:
            self.fault = "the data side is gone, or no longer to be believed; its log may say why"
        elif status and not self.fault:
            how = f"was killed by signal {-status}; out of memory?" if status < 0 else f"ended with status {status}; its log says why"
            self.fault = f"the trainer {how}"
        self.trainer = None
        self.ready = None
        self._based = False
        self._asked.clear()
        self._ended.set()
        self._on_down()

    def _report(self, report: Report) -> None:
        if not self._due(report):
            self.refuse("the data side said what nobody had asked for, and is no longer believed; its log may say why")
            return
        match report:
            case Ready():
                self.ready, self.fault = report, ""
                self._on_ready()
            case Beat():
                self.beat, self.withheld = report, report.withheld
            case Evaluated():
                first = self.heldout or control.Heldout(report.height, report.loss, report.height, report.loss, report.tokens)
                self.heldout = control.Heldout(first.first_height, first.first_loss, report.height, report.loss, report.tokens)
            case Delta():
                self._kept = ""
                self._witness.saw(report.entry, report.chain)
                self._beside.run(asyncio.to_thread(self._witness.keep))
                self._on_stopped(report)
            case Withheld():
                self.withheld += 1
                self._kept = f"the last delta was withheld: {KEPT[Withhold(report.reason)]}"
                self._on_stopped(report)
            case Checks():
                self._on_checks(report)
            case Fault():
                self.fault = SENTENCES[Code(report.code)]

    def _due(self, report: Report) -> bool:
        """What costs us something is taken once for each time that it is due: a flood of it would be work without end."""
        if isinstance(report, Delta | Withheld):
            return bool(self._asked) and self._asked.popleft() == (report.round, report.fragment)
        return not isinstance(report, Ready) or self.ready is None

    @property
    def health(self) -> list[str]:
        """Sentences about what is not as it should be."""
        return [said for said in (self.fault, self._kept, self._witness.trouble) if said]

    def status(self, training: bool) -> control.Trainer:
        if self.ready is None:
            state = "failed" if self.fault else "starting" if self._wanted.is_set() else "released"
            return control.Trainer(state=state, restarts=self.restarts, heldout=self.heldout, withheld=self.withheld)
        beat = self.beat
        return control.Trainer(
            state="training" if training else "waiting",
            device=Device(self.ready.device).name.lower(),
            precision=Precision(self.ready.precision).name.lower(),
            optimizer=Optimizer(self.ready.optimizer).name.lower(),
            steps=beat.steps if beat else 0,
            tokens=beat.tokens if beat else 0,
            tokens_per_s=beat.tokens_per_s if beat and training else 0.0,
            loss=(beat.loss or None) if beat else None,
            epsilon=beat.epsilon if beat else 0.0,
            memory_bytes=beat.memory_bytes if beat else 0,
            restarts=self.restarts,
            heldout=self.heldout,
            withheld=self.withheld,
        )
