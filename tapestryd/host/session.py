"""The trainer at work: orders of the daemon on one side, the replica on the other. One plain synchronous loop.

Orders are read between steps, so that STOP, QUIT and a daemon that is gone are noticed within one local step.
A trouble that ends the trainer is a `Trouble`: a code for the channel and a sentence for this machine's own log.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, assert_never

import numpy as np
import torch

from protocols.layout import Layout
from protocols.trainer import ALL_FRAGMENTS, Base, Beat, Code, Delta, Evaluated, Quit, Rest, Stop, Train
from tapestryd.config import Evaluate
from tapestryd.host.channel import Channel, Shared
from tapestryd.host.checkpoint import Checkpoint
from tapestryd.host.device import memory_bytes
from tapestryd.training.diloco import Replica

log = logging.getLogger(__name__)

BEAT_S = 0.5
SKIPS_MAX = 10
"""So many steps in a row without a finite loss and gradient end the trainer."""

JUMP_MAX = 10.0
"""A base further than this many norms of the last one from it is refused: no outer step does that."""

_MEMORY = 0.95
"""Of the running mean of the loss: about the last 20 steps count."""


class Trouble(Exception):
    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(slots=True)
class Totals:
    """`steps`, `tokens`: since the first start ever. `new_…`: since the last DELTA. `loss`: running mean, nats per token."""

    steps: int = 0
    tokens: int = 0
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
    """`step_tokens`, `step_sequences`: targets and windows of one local batch. `clock`: monotonic seconds."""

    step_tokens: int
    step_sequences: int
    evaluate: Evaluate
    checkpoint_every_s: float
    clock: Callable[[], float]


class Session:
    """`run` until QUIT. Changes the replica, the delta vector and the checkpoint."""

    def __init__(
        self, channel: Channel, shared: Shared, layout: Layout, replica: Replica, checkpoint: Checkpoint, choices: Choices
    ) -> None:
        self._channel, self._shared, self._layout = channel, shared, layout
        self._replica, self._checkpoint, self._choices = replica, checkpoint, choices
        self._totals = Totals()
        self._training: Train | None = None
        self._based = self._dirty = False
        self._skips = 0
        self._evaluated: int | None = None
        self._saved_s = choices.clock()
        self._beat_s, self._beat_tokens = choices.clock(), 0
        if checkpoint.load(self._restore):
            log.info("going on from the checkpoint: steps=%d tokens=%d", self._totals.steps, self._totals.tokens)

    def run(self) -> None:
        """Raises Trouble, Refused (a packet that is no order) and whatever torch raises. No checkpoint is written then."""
        while True:
            order = self._channel.receive(block=self._training is None)
            match order:
                case None:
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
        loss = self._replica.step(self._training.height)
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
            self._channel.send(Beat(self._totals.steps, self._totals.tokens, self._totals.loss, rate, memory, 0.0, 0))
            self._beat_s, self._beat_tokens = now, self._totals.tokens

    def _adopt(self, base: Base) -> None:
        part = self._part(base.fragment)
        new = torch.from_numpy(self._shared.params[part].astype(np.float32, copy=True))
        theta = self._replica.theta
        if not bool(torch.isfinite(new).all()):
            raise Trouble(Code.NOT_FINITE, f"the base at height {base.height} is not finite")
        if self._based:
            jump = torch.linalg.vector_norm(theta[part].cpu() - new).item()
            size = torch.linalg.vector_norm(theta).item()
            if jump > JUMP_MAX * size:
                raise Trouble(Code.CHANNEL, f"the base at height {base.height} is {jump:.3g} away from one of norm {size:.3g}")
        elif base.fragment != ALL_FRAGMENTS:
            raise Trouble(Code.CHANNEL, "the first BASE is of one fragment only")
        self._replica.adopt(base.fragment, new, keep=base.keep)
        self._based = self._dirty = True
        every = self._choices.evaluate.every
        if every and (self._evaluated is None or abs(base.height - self._evaluated) >= every):
            self._evaluated = base.height
            self._evaluate(base.height)
        self._save(at_once=not base.keep)  # from an older one, what was committed would be learned twice

    def _evaluate(self, height: int) -> None:
        found = self._replica.evaluate(self._choices.evaluate.tokens)
        if found is None:
            return
        loss, tokens = found
        if math.isfinite(loss):
            self._channel.send(Evaluated(height, loss, tokens))
        else:
            log.warning("the Shared Base at height %d has a held-out loss that is not finite", height)

    def _stop(self, stop: Stop) -> None:
        part = self._part(stop.fragment)
        self._training = None
        delta = self._replica.delta(stop.fragment).cpu()
        norm = torch.linalg.vector_norm(delta, dtype=torch.float64).item()
        if not math.isfinite(norm):
            raise Trouble(Code.NOT_FINITE, f"the delta of round {stop.round} is not finite")
        self._shared.delta[part] = delta.numpy()
        totals = self._totals
        examples = totals.new_steps * self._choices.step_sequences
        self._channel.send(
            Delta(stop.round, stop.fragment, totals.new_steps, totals.new_tokens, examples, totals.new_loss, norm, 0, bytes(32))
        )
        totals.new_steps = totals.new_tokens = 0
        totals.new_loss = 0.0

    def _part(self, fragment: int) -> slice:
        if fragment == ALL_FRAGMENTS:
            return slice(None)
        if fragment >= self._layout.fragments:
            raise Trouble(Code.CHANNEL, f"fragment {fragment} of {self._layout.fragments}")
        return slice(*self._layout.bounds[fragment])

    def _save(self, *, at_once: bool) -> None:
        now = self._choices.clock()
        if not (self._dirty and (at_once or now - self._saved_s >= self._choices.checkpoint_every_s)):
            return
        self._checkpoint.save({"replica": self._replica.state(), "totals": asdict(self._totals)})
        self._saved_s, self._dirty = now, False

    def _restore(self, state: dict[str, Any]) -> None:
        totals = Totals(**state["totals"])
        self._replica.restore(state["replica"])
        self._totals = totals
