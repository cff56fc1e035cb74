"""The inner optimizer: AdamW on one machine, its state kept across rounds.

8-bit AdamW from bitsandbytes (arXiv 2110.02861) with block-wise state per tensor; plain torch AdamW where that does
not work, and `kind` and `why` say so. Embeddings have 32-bit state in any case, as that paper advises (§ 2.3): most rows of theirs have
no gradient in most steps, and what rounding makes of such a zero moves words that this peer's text never says. Tensors of one
dimension (norms, biases) have it too, and take no weight decay. The learning rate is a function of committed height alone, so all
peers of a round train at the same rate.
Knows nothing of rounds, deltas or data. Its state never leaves this machine: moments are gradient statistics.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from protocols import rules
from protocols.trainer import Optimizer
from tapestryd.errors import in_a_line

EPS = 1e-8


def rate(height: int, inner: rules.Inner) -> float:
    """Learning rate after `height` commits: linear warm-up over `warmup_rounds` (never 0: training at height 0 is
    1 / warmup_rounds of it), cosine to lr * final_ratio at `decay_rounds`, constant from there."""
    lr, final = float(inner.lr), float(inner.final_ratio)
    if height < inner.warmup_rounds:
        return lr * (height + 1) / inner.warmup_rounds
    length = inner.decay_rounds - inner.warmup_rounds
    progress = min(1.0, (height - inner.warmup_rounds) / length) if length > 0 else 1.0
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


class Inner:
    """AdamW over the parameters of a bound model. `kind`: which implementation; `why`: one sentence on the choice."""

    kind: Optimizer
    why: str

    def __init__(self, model: nn.Module, inner: rules.Inner) -> None:
        self._rules = inner
        self._parameters = list(model.parameters())
        self.kind, self.why = Optimizer.ADAMW, "the run rules ask for plain AdamW"
        if inner.optimizer == "adamw8bit":
            if fault := _fault_of_8bit(self._parameters[0].device):
                self.kind, self.why = Optimizer.ADAMW_FALLBACK, f"bitsandbytes does not work here ({fault}), plain AdamW instead"
            else:
                self.kind, self.why = Optimizer.ADAMW8BIT, "8-bit state by bitsandbytes, 32-bit for embeddings and vectors"
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}

        def eight(parameter: nn.Parameter) -> bool:
            return self.kind == Optimizer.ADAMW8BIT and parameter.dim() >= 2 and id(parameter) not in embeddings

        narrow, wide = [p for p in self._parameters if eight(p)], [p for p in self._parameters if not eight(p)]
        decay = float(inner.weight_decay)
        settings: dict[str, Any] = {"lr": float(inner.lr), "betas": (float(inner.beta1), float(inner.beta2)), "eps": EPS}
        groups = [
            {"params": [p for p in wide if p.dim() >= 2], "weight_decay": decay},
            {"params": [p for p in wide if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW([group for group in groups if group["params"]], **settings)]
        if narrow:
            self._optimizers.append(_adamw8bit()(narrow, weight_decay=decay, **settings))

    def step(self, height: int) -> bool:
        """Clip the gradients to `clip_norm` (L2 over all tensors), step at the rate of `height`, and drop the gradients.

        False, and nothing changed, when a gradient is not finite.
        """
        norm: Tensor = nn.utils.clip_grad_norm_(self._parameters, float(self._rules.clip_norm))
        finite = math.isfinite(norm.item())
        if finite:
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate(height, self._rules)
                optimizer.step()
        self.drop()
        return finite

    def drop(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Tensors and numbers by name; references, not copies. For this machine's own checkpoint only."""
        return {"kind": int(self.kind), "optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises ValueError, or whatever torch does, and changes nothing, when `state` is of another kind of optimizer or another model."""
        if state["kind"] != int(self.kind):
            raise ValueError(f"optimizer state of kind {state['kind']}, where this is {self.kind.name}")
        before = [optimizer.state_dict() for optimizer in self._optimizers]
        try:
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except Exception:
            for optimizer, saved in zip(self._optimizers, before, strict=True):
                optimizer.load_state_dict(saved)
            raise


def _adamw8bit() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a package it misses and we do not need
    import bitsandbytes  # here, because it takes 2 s, fails on some devices, and then there is a way on

    return bitsandbytes.optim.AdamW8bit


def _fault_of_8bit(device: torch.device) -> str:
    """Why bitsandbytes cannot step on `device`, found by trying; "" when it can."""
    try:
        trial = nn.Parameter(torch.ones(8192, device=device))
        trial.grad = torch.ones_like(trial)
        _adamw8bit()([trial], lr=0.1).step()
        return "" if bool((trial < 1).all()) else "a trial step did nothing"
    except Exception as error:  # its failures differ by device and version, and all mean the same
        return in_a_line(error)
