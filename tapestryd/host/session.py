"""The trainer at work: orders of the daemon on one side, the replica on the other. One plain synchronous loop.

Orders are read between steps, so that STOP, QUIT and a daemon that is gone are noticed within one local step.
A trouble that ends the trainer is a `Trouble`: a code for the channel and a sentence for this machine's own log.
"""

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, assert_never

import numpy as np
import torch

from protocols.layout import Layout
from protocols.ledger import Released
from protocols.ledger import Withheld as Refusal
from protocols.trainer import ALL_FRAGMENTS, Base, Beat, Code, Delta, Evaluated, Quit, Rest, Stop, Train, Withheld, Withhold
from tapestryd.config import Evaluate, Release
from tapestryd.errors import DiskFull
from tapestryd.host.budget import Budget
from tapestryd.host.channel import Channel, Shared
from tapestryd.host.checkpoint import Checkpoint
from tapestryd.host.device import memory_bytes
from tapestryd.host.ledger import Ledger
from tapestryd.host.probes import Walls
from tapestryd.host.release import Behind, fresh_noise, veil, verdict
from tapestryd.training.diloco import Replica

log = logging.getLogger(__name__)

BEAT_S = 0.5
IDLE_S = 60.0
"""Without an order, this long until the walls are looked at."""
SKIPS_MAX = 10
"""So many steps in a row without a finite loss and gradient end the trainer."""

_SAVING = 20
"""Of so many seconds one at most goes into checkpoints, however large the model is."""

_MEMORY = 0.95
"""Of the running mean of the loss: about the last 20 steps count."""


LOSS_MAX, LOSS_DIGITS = 99.0, 4
"""A loss is told no closer: enough for people, and 20 bits instead of 64 for whoever would have a model spell its text in its loss."""


class Trouble(Exception):
    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a fragment was when the base last took its place, or when it was last released: what is behind it counts from there."""

    steps: int = 0
    batches: int = 0


@dataclass(slots=True)
class Totals:
    """`steps`, `tokens`, `withheld`: since the first start ever. `new_…`: since the last DELTA. `loss`: running mean, nats per token.
    `marks`: one a fragment."""

    marks: list[Mark]
    steps: int = 0
    tokens: int = 0
    withheld: int = 0
    loss: float = 0.0
    new_steps: int = 0
    new_tokens: int = 0
    new_loss: float = 0.0

    def add(self, tokens: int, loss: float) -> None:
        self.loss = loss if not self.steps else _MEMORY * self.loss + (1 - _MEMORY) * loss
        self.steps += 1
        self.tokens += tokens
        self.new_steps += 1
        self.new_tokens += tokens
        self.new_loss += (loss - self.new_loss) / self.new_steps


@dataclass(frozen=True, slots=True)
class Choices:
    """`run`: its id. `step_tokens`, `step_sequences`: targets and windows of one local batch. `clock`: monotonic seconds."""

    run: str
    step_tokens: int
    step_sequences: int
    evaluate: Evaluate
    release: Release
    checkpoint_every_s: float
    clock: Callable[[], float]


class Session:
    """`run` until QUIT. Changes the replica, the delta vector, the checkpoint and the ledger."""

    def __init__(
        self, channel: Channel, shared: Shared, layout: Layout, replica: Replica, checkpoint: Checkpoint, ledger: Ledger,
        walls: Walls, budget: Budget | None, choices: Choices,
    ) -> None:  # fmt: skip
        """`budget`: of the replica's steps, if these are under differential privacy; what data-dependent numbers are told then, is not."""
        self._channel, self._shared, self._layout = channel, shared, layout
        self._replica, self._checkpoint, self._ledger, self._walls, self._choices = replica, checkpoint, ledger, walls, choices
        self._budget = budget
        self._unpaid: tuple[Withhold, str] | None = None
        """Why there was no local step when one was to be paid for last."""
        self._totals = Totals([Mark()] * layout.fragments)
        self._training: Train | None = None
        self._based = self._dirty = False
        self._skips = 0
        self._unwritten = 0
        """Refusals that the ledger has not been told of yet."""
        self._evaluated: int | None = None
        self._saved_s, self._saving_s = choices.clock(), 0.0
        self._beat_s, self._beat_tokens = choices.clock(), 0
        if checkpoint.load(self._restore):
            log.info("going on from the checkpoint: steps=%d tokens=%d", self._totals.steps, self._totals.tokens)
        self._heed_ledger()

    def run(self) -> None:
        """Raises Trouble, Refused (a packet that is no order) and whatever torch raises. No checkpoint is written then."""
        while True:
            order = self._channel.receive(0 if self._training else IDLE_S)
            if tried := self._walls.due():
                self._channel.send(tried)
            match order:
                case None:
                    if self._training:
                        self._step()
                case Base():
                    self._adopt(order)
                case Train():
                    if not self._based:
                        raise Trouble(Code.CHANNEL, "TRAIN came before the first BASE")
                    self._save(at_once=False)  # not before: a round at hand may take a delta away
                    self._training = order
                    self._beat_s, self._beat_tokens = self._choices.clock(), self._totals.tokens
                case Stop():
                    self._stop(order)
                case Rest():
                    self._training = None
                case Quit():
                    self._save(at_once=True)
                    return
                case _:
                    assert_never(order)

    def _step(self) -> None:
        assert self._training is not None
        if self._replica.fresh:
            self._unpaid = self._pay()
        if self._unpaid:
            log.warning("no local steps: %s", self._unpaid[1])
            self._training = None
            return
        loss = self._replica.step(self._training.height)
        if loss is None:
            return
        self._dirty = True
        if math.isnan(loss):
            self._skips += 1
            log.warning("step skipped: loss or gradient is not finite (%d in a row)", self._skips)
            if self._skips == SKIPS_MAX:
                self._checkpoint.set_aside()  # or the next start would walk into the same
                raise Trouble(Code.NOT_FINITE, f"{SKIPS_MAX} steps in a row without a finite loss and gradient; local progress is dropped")
            return
        self._skips = 0
        self._totals.add(self._choices.step_tokens, loss)
        now = self._choices.clock()
        if now - self._beat_s >= BEAT_S:
            rate = (self._totals.tokens - self._beat_tokens) / (now - self._beat_s)
            memory = memory_bytes(self._replica.theta.device)
            totals = self._totals
            self._channel.send(
                Beat(totals.steps, totals.tokens, self._told(totals.loss), rate, memory, self._epsilon, totals.withheld)
            )  # fmt: skip
            self._beat_s, self._beat_tokens = now, self._totals.tokens

    def _pay(self) -> tuple[Withhold, str] | None:
        """For one step. None: it may be taken; else why not."""
        try:
            why = self._budget.take() if self._budget else ""
        except DiskFull as full:
            return Withhold.DISK_FULL, str(full)
        return (Withhold.BUDGET, why) if why else None

    @property
    def _epsilon(self) -> float:
        return self._budget.spent if self._budget else 0.0

    def _adopt(self, base: Base) -> None:
        part = self._part(base.fragment)
        new = torch.from_numpy(self._shared.params[part].astype(np.float32, copy=True))
        theta = self._replica.theta
        if not bool(torch.isfinite(new).all()):
            raise Trouble(Code.NOT_FINITE, f"the base at height {base.height} is not finite")
        if self._based:
            jump = torch.linalg.vector_norm(theta[part].cpu() - new).item()
            size = torch.linalg.vector_norm(theta).item()
            if jump > self._choices.release.max_param_jump * size:
                raise Trouble(Code.CHANNEL, f"the base at height {base.height} is {jump:.3g} away from one of norm {size:.3g}")
        elif base.fragment != ALL_FRAGMENTS:
            raise Trouble(Code.CHANNEL, "the first BASE is of one fragment only")
        self._replica.adopt(base.fragment, new, keep=base.keep)
        if not base.keep:
            self._mark(base.fragment)
            self._checkpoint.replaced(base.fragment)  # or, from an older one, what was committed would be learned twice
        self._based = self._dirty = True
        every = self._choices.evaluate.every
        if every and (self._evaluated is None or abs(base.height - self._evaluated) >= every):
            self._evaluated = base.height
            self._evaluate(base.height)
        self._save(at_once=False)

    def _evaluate(self, height: int) -> None:
        found = self._replica.evaluate(self._choices.evaluate.tokens)
        if found is None:
            return
        loss, tokens = found
        if math.isfinite(loss):
            self._channel.send(Evaluated(height, self._told(loss), tokens))
        else:
            log.warning("the Shared Base at height %d has a held-out loss that is not finite", height)

    def _stop(self, stop: Stop) -> None:
        part = self._part(stop.fragment)
        self._training = None
        behind = self._behind(stop.fragment)
        kept = verdict(self._choices.release, behind, self._ledger.last_hour(Released))
        if self._unpaid and (kept or not behind.steps):
            kept = self._unpaid
        kept = kept or self._release(stop, part, behind)
        if kept is not None:
            reason, why = kept
            log.info("round=%d fragment=%d withheld: %s", stop.round, stop.fragment, why)
            self._withhold(stop, behind, reason)

    def _release(self, stop: Stop, part: slice, behind: Behind) -> tuple[Withhold, str] | None:
        """Hand the vector over: written down first, and not at all where that cannot be done, which is what is returned."""
        vector = self._replica.delta(stop.fragment).cpu().numpy()
        veiled = veil(vector, self._choices.release, fresh_noise())
        if not math.isfinite(veiled.norm):
            raise Trouble(Code.NOT_FINITE, f"the delta of round {stop.round} is not finite")
        digest = hashlib.sha256(vector.data).hexdigest()
        try:
            entry, chain = self._ledger.write(Released(
                self._choices.run, stop.round, stop.fragment, behind.steps, behind.tokens, behind.examples, self._replica.counter,
                vector.nbytes, digest, veiled.norm, veiled.clip, veiled.noise_std, self._epsilon,
            ))  # fmt: skip
        except DiskFull as full:
            return Withhold.DISK_FULL, str(full)
        self._shared.delta[part] = vector
        totals = self._totals
        if self._budget:
            log.info("round=%d steps=%d loss=%.4f (told to nobody) epsilon=%.3f", stop.round, behind.steps, totals.new_loss, self._epsilon)
        self._channel.send(Delta(
            stop.round, stop.fragment, totals.new_steps, totals.new_tokens, behind.examples, self._told(totals.new_loss), veiled.norm,
            entry, chain,
        ))  # fmt: skip
        totals.new_steps = totals.new_tokens = 0
        totals.new_loss = 0.0
        self._mark(stop.fragment)
        return None

    def _withhold(self, stop: Stop, behind: Behind, reason: Withhold) -> None:
        """Written down, too; but no faster than vectors may leave, so that nobody fills our disk by asking."""
        self._totals.withheld += 1
        self._unwritten += 1
        if self._ledger.last_hour(Refusal) < self._choices.release.max_per_hour:
            with suppress(DiskFull):
                self._ledger.write(Refusal(
                    self._choices.run, stop.round, stop.fragment, reason.name.lower(), max(0, behind.steps), behind.examples,
                    self._unwritten - 1,
                ))  # fmt: skip
                self._unwritten = 0
        self._channel.send(Withheld(stop.round, stop.fragment, int(reason)))

    def _behind(self, fragment: int) -> Behind:
        """What is behind a fragment's vector; of all of them, behind the one that has the least."""
        mark = max(self._marks(fragment), key=lambda mark: mark.steps)
        steps = self._totals.steps - mark.steps
        skipped = self._replica.counter - mark.batches - steps
        examples = self._replica.examples(mark.batches) - skipped * self._choices.step_sequences
        return Behind(steps, steps * self._choices.step_tokens, max(0, examples))

    def _mark(self, fragment: int) -> None:
        here = Mark(self._totals.steps, self._replica.counter)
        marks = self._totals.marks
        marks[:] = [here if fragment in (number, ALL_FRAGMENTS) else mark for number, mark in enumerate(marks)]

    def _marks(self, fragment: int) -> list[Mark]:
        return [mark for number, mark in enumerate(self._totals.marks) if fragment in (number, ALL_FRAGMENTS)]

    def _heed_ledger(self) -> None:
        """What was released since the checkpoint was written, the ledger knows: such a fragment counts anew from here, and no batch is
        drawn that a released vector may have been made of."""
        released = [self._ledger.batches(self._choices.run, fragment) for fragment in range(self._layout.fragments)]
        ahead = [fragment for fragment, mark in enumerate(self._totals.marks) if released[fragment] > mark.batches]
        self._replica.counter = max(self._replica.counter, *released)
        for fragment in ahead:
            self._mark(fragment)

    def _part(self, fragment: int) -> slice:
        if fragment == ALL_FRAGMENTS:
            return slice(None)
        if fragment >= self._layout.fragments:
            raise Trouble(Code.CHANNEL, f"fragment {fragment} of {self._layout.fragments}")
        return slice(*self._layout.bounds[fragment])

    def _save(self, *, at_once: bool) -> None:
        now = self._choices.clock()
        if not (self._dirty and (at_once or now - self._saved_s >= max(self._choices.checkpoint_every_s, _SAVING * self._saving_s))):
            return
        self._checkpoint.save({"replica": self._replica.state(), "totals": asdict(self._totals), "private": self._budget is not None})
        self._saved_s, self._saving_s, self._dirty = now, self._choices.clock() - now, False

    def _restore(self, state: dict[str, Any]) -> None:
        told = dict(state["totals"])
        totals = Totals([Mark(**mark) for mark in told.pop("marks")], **told)
        if len(totals.marks) != self._layout.fragments:
            raise ValueError(f"{len(totals.marks)} marks for {self._layout.fragments} fragments")
        if self._budget and not state["private"]:
            raise ValueError("its steps were without differential privacy")
        self._replica.restore(state["replica"])
        self._totals = totals
        for fragment in state["replaced"]:
            self._replica.adopt(fragment, self._replica.theta[self._part(fragment)], keep=False)
            self._mark(fragment)
            totals.new_steps, totals.new_tokens, totals.new_loss = 0, 0, 0.0

    def _told(self, loss: float) -> float:
        """What the other side hears of a loss: of private text nothing, which is 0."""
        return 0.0 if self._budget else round(min(loss, LOSS_MAX), LOSS_DIGITS)
