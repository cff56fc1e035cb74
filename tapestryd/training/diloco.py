"""The inner half of DiLoCo (arXiv 2311.08105), with fragments as in Streaming DiLoCo (arXiv 2501.18512):

    theta            the Shared Base as this node last heard of it
    local            the running model; after an adoption: theta, plus the progress that was kept
    step             local <- AdamW(local, next batch)                      many times, on local text
    delta(f)         theta[f] - local[f]                                    the only thing that leaves
    adopt(f, new)    local[f] <- new, or new + (local[f] - theta[f]);       then theta[f] <- new

The other half, delta → mean → theta, is the swarm's (`outer.py`). Knows nothing of channels, files or time.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from protocols import rules
from protocols.layout import Layout
from protocols.trainer import ALL_FRAGMENTS
from tapestryd.training.data import Corpus
from tapestryd.training.inner import Inner
from tapestryd.training.private import Private
from tapestryd.training.vector import bind, views


@dataclass(frozen=True, slots=True)
class Where:
    """`bf16`: forward and backward under autocast; parameters, gradients and optimizer stay float32."""

    device: torch.device
    bf16: bool


class Replica:
    """One node's model in training. Invariant: `theta` and `local` are (n,) float32 on one device, in the layout's order,
    and the model's parameters are views of `local`."""

    def __init__(self, model: nn.Module, layout: Layout, inner: rules.Inner, text: Corpus | Private, *, where: Where, seed: int) -> None:
        """Binds `model` (changed in place). `text` Private: all steps are under differential privacy. `seed` is dropout's. Raises
        Refused when the model is not of the layout."""
        self.local: Tensor = bind(model, layout, where.device)
        self.theta: Tensor = self.local.clone()
        self.optimizer = Inner(model, inner)
        self.counter = 0
        """Batches drawn so far."""
        self._model, self._layout, self._inner, self._text, self._where, self._seed = model, layout, inner, text, where, seed
        self._parameters = list(model.parameters())
        self._windows = inner.sequences
        """So many at a time: half as many whenever the device's memory was too small for them."""

    def step(self, height: int) -> float | None:
        """One local step at the learning rate of `height` → loss before it, in nats per token; nan when loss or gradient was not
        finite: then the batch was skipped and nothing else changed. None: under differential privacy a step is of many calls."""
        if self.fresh:
            torch.manual_seed(_mix(self._seed, self.counter))  # dropout, like open data, is a function of the counter
        self._model.train()
        value = self._gradient()
        if value is None:
            return None
        self.counter += 1
        if math.isfinite(value):
            return value if self.optimizer.step(height) else math.nan
        self.optimizer.drop()
        return math.nan

    @property
    def fresh(self) -> bool:
        """Between two steps."""
        return not isinstance(self._text, Private) or self._text.idle

    def _gradient(self) -> float | None:
        if isinstance(self._text, Private):
            return self._text.gradient(self._parameters, lambda ids: self._loss(ids, None))
        return self._mean(self._text.batch(self.counter, self._inner.sequences), None)

    def delta(self, fragment: int) -> Tensor:
        """theta - local of one fragment, or ALL_FRAGMENTS → new (fragment's size,) float32 on the device."""
        part = self._part(fragment)
        return self.theta[part] - self.local[part]

    def adopt(self, fragment: int, new: Tensor, *, keep: bool) -> None:
        """`new` (fragment's size,) float32 becomes theta there. `keep` False: local becomes it too; True: local keeps
        its difference to the old theta. Optimizer state stays as it is (a reset costs 3 % of loss)."""
        part = self._part(fragment)
        new = new.to(self._where.device)
        if keep:
            self.local[part].sub_(self.theta[part]).add_(new)
        else:
            self.local[part].copy_(new)
        self.theta[part].copy_(new)

    def examples(self, since: int) -> int:
        """Distinct windows' worth of text in the batches drawn from number `since` on."""
        return self._text.distinct(since, self.counter, self._inner.sequences)

    def evaluate(self, tokens: int) -> tuple[float, int] | None:
        """Mean loss of theta itself (not local) on at most `tokens` held-out tokens, in nats per token, and how many; always
        the same ones. None when the text is too small to hold any out, or private. The loss may be non-finite: theta is not ours."""
        if isinstance(self._text, Private) or not self._text.heldout_tokens:
            return None
        windows = self._text.heldout(tokens)
        parameters = views(self.theta, self._layout)
        self._model.eval()
        total, seen = 0.0, 0
        with torch.no_grad():
            for batch in torch.split(windows, self._inner.sequences):
                targets = batch[:, 1:].numel()
                total += self._mean(batch, parameters) * targets
                seen += targets
        return total / seen, seen

    def state(self) -> dict[str, Any]:
        """All that a bit-exact resume needs; references, not copies. For this machine's own checkpoint only."""
        return {"theta": self.theta, "local": self.local, "optimizer": self.optimizer.state(), "counter": self.counter}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises ValueError, KeyError or TypeError, with nothing changed, when it is not one of this replica."""
        for name in ("theta", "local"):
            found = state[name]
            if found.shape != self.theta.shape or found.dtype != torch.float32 or not bool(torch.isfinite(found).all()):
                raise ValueError(f"{name} is of shape {tuple(found.shape)}, or not finite")
        if type(state["counter"]) is not int or state["counter"] < 0:
            raise ValueError("the batch counter is no count")
        self.optimizer.restore(state["optimizer"])
        self.theta.copy_(state["theta"])
        self.local.copy_(state["local"])
        self.counter = state["counter"]

    def _part(self, fragment: int) -> slice:
        return slice(None) if fragment == ALL_FRAGMENTS else slice(*self._layout.bounds[fragment])

    def _mean(self, batch: Tensor, parameters: dict[str, Tensor] | None) -> float:
        """`_loss` of a batch; without `parameters` its gradient, too, unless that loss is not finite. In pieces, if it has to be."""
        while True:
            try:
                return self._in_pieces(batch, parameters)
            except torch.OutOfMemoryError:
                if self._windows == 1:
                    raise
            self._windows = (self._windows + 1) // 2  # out here nothing of the attempt is held any more
            self.optimizer.drop()

    def _in_pieces(self, batch: Tensor, parameters: dict[str, Tensor] | None) -> float:
        total = 0.0
        for piece in torch.split(batch, self._windows):
            loss = self._loss(piece, parameters) * (len(piece) / len(batch))
            total += loss.item()
            if not math.isfinite(total):
                break
            if parameters is None:
                loss.backward()  # type: ignore[no-untyped-call]
        return total

    def _loss(self, batch: Tensor, parameters: dict[str, Tensor] | None) -> Tensor:
        """batch (b, t + 1) int64 → mean cross-entropy over b * t targets; `parameters` in place of the model's own."""
        batch = batch.to(self._where.device)
        inputs = {"input_ids": batch[:, :-1], "use_cache": False}
        with torch.autocast(self._where.device.type, torch.bfloat16, enabled=self._where.bf16):
            out = self._model(**inputs) if parameters is None else functional_call(self._model, parameters, kwargs=inputs)
        return F.cross_entropy(out.logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def _mix(seed: int, counter: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {counter}".encode()).digest()[:8], "little") >> 1
