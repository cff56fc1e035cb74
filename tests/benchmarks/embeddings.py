"""What 8-bit optimizer state does to an embedding, by device: `python -m tests.benchmarks.embeddings [steps]` prints a table.

A Llama of 0.1M parameters with an embedding of its own, real prose, the same batches for all; one line for each device and each choice
of what has 8-bit state. "cosine": to the embedding's delta under 32-bit AdamW on the CPU.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from protocols.trainer import ALL_FRAGMENTS
from tapestryd.training.diloco import Replica, Where
from tapestryd.training.vector import views
from tests.training.tiny import INNER, built, opened, write_text

EMBEDDING = "model.embed_tokens.weight"
CHOICES = {"nothing": "adamw", "all but embeddings": "adamw8bit", "everything": "adamw8bit"}


def everything(replica: Replica) -> None:
    """8-bit state for embeddings, too."""
    import bitsandbytes

    kind: Any = bitsandbytes.optim.AdamW8bit
    decay, rest = ([p for p in replica._parameters if (p.dim() >= 2) is matrix] for matrix in (True, False))
    groups = [{"params": decay, "weight_decay": float(INNER.weight_decay)}, {"params": rest, "weight_decay": 0.0}]
    replica.optimizer._optimizers = [kind(groups, lr=float(INNER.lr), betas=(float(INNER.beta1), float(INNER.beta2)), eps=1e-8)]


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    folder = Path(tempfile.mkdtemp())
    corpus = opened([write_text(folder / "data")], folder / "cache", INNER.tokens)
    exact: torch.Tensor | None = None
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for choice, optimizer in CHOICES.items():
            _, model, layout = built("llama")
            replica = Replica(model, layout, replace(INNER, optimizer=optimizer), corpus, where=Where(torch.device(device), False), seed=0)
            if choice == "everything":
                everything(replica)
            loss = [replica.step(height) for height in range(steps)][-1]
            delta = views(replica.delta(ALL_FRAGMENTS).cpu(), layout)[EMBEDDING].flatten()
            exact = delta if exact is None else exact
            cosine = torch.nn.functional.cosine_similarity(delta, exact, dim=0)
            print(f"{device:5} 8-bit: {choice:19} loss {loss:.3f}  embedding's delta: norm {delta.norm():.3f}  cosine {cosine:.3f}")


if __name__ == "__main__":
    main()
