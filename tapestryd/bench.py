"""`tapestry bench`: what this machine would bring to a run: local steps of its model, on made-up tokens, and what a round moves.

Everything happens here: no daemon is asked, no data is read, nothing is sent or kept.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocols.control import SCHEMA, Exit
from protocols.rules import RunRules
from protocols.trainer import Precision
from tapestryd.config import Compute
from tapestryd.errors import Unavailable, in_a_line
from tapestryd.layers import trainer_at, trainer_at_hand
from tapestryd.program import ended, rules_at, seconds
from tapestryd.screen import duration, labelled, number, size

Doc = dict[str, Any]

_WARM_UP = 2
"""Steps that are not counted: the first ones make the optimizer's state, and choose kernels."""

_WIDTH = 100


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tapestry bench",
        description="Measure what this machine would bring to a run: local steps of its model with its optimizer, on made-up tokens, and "
        "what a round of it moves. Nothing is sent or kept; a trainer that is at work on the same GPU makes it slower.",
    )
    p.add_argument(
        "run", type=Path, metavar="run.toml", help="the run's rules, as `tapestry run new` wrote them, or: tapestry run show > run.toml"
    )
    p.add_argument("--config", type=Path, metavar="FILE", help="trainer.toml, for its [compute], if it is not the usual one")
    p.add_argument("--seconds", type=seconds, default=20.0, help="for so long (default %(default)g)")
    p.add_argument("--json", action="store_true", help="print one document")
    return p


def bench(options: argparse.Namespace) -> int:
    rules = rules_at(options.run)
    config = trainer_at(options.config, os.environ) if options.config else trainer_at_hand(os.environ)
    found = measured(rules, config.compute, options.seconds)
    print(json.dumps(found, indent=2) if options.json else "\n".join(shown(found)))
    return Exit.OK


def measured(rules: RunRules, compute: Compute, seconds: float) -> Doc:
    """Raises LocalFault where this machine cannot: no such device, not enough memory."""
    threads = compute.cores
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    import torch
    from transformers.utils import logging as hub_logging

    from tapestryd.exchange import Offer, offer_bytes, part_bytes
    from tapestryd.host.device import choose, memory_bytes

    torch.set_num_threads(threads)
    hub_logging.set_verbosity_error()
    choice = choose(compute.device, compute.precision)
    inner, layout = rules.inner, rules.layout()
    try:
        replica = _replica(rules, choice.device, choice.precision == Precision.BF16)
        for _ in range(_WARM_UP):
            replica.step(0)
        took: list[float] = []
        began = time.perf_counter()
        while not took or time.perf_counter() - began < seconds:
            before = time.perf_counter()
            replica.step(0)  # its loss is brought to the CPU, so it is over
            took.append(time.perf_counter() - before)
        before = time.perf_counter()
        Offer(rules, replica.delta(0).cpu())
        offered_s = time.perf_counter() - before
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        batch = f"batches of {inner.sequences} times {inner.tokens} tokens"
        raise Unavailable(f"this model with {batch} does not run here: {in_a_line(error)}") from None
    largest = max(stop - start for start, stop in layout.bounds)
    step_s = statistics.median(took)
    return {
        "schema": SCHEMA,
        "run": rules.run_id,
        "name": rules.name,
        "elements": layout.elements,
        "device": choice.why,
        "optimizer": replica.optimizer.why,
        "steps": len(took),
        "step_s": {"median": step_s, "min": min(took), "max": max(took)},
        "tokens_per_second": inner.sequences * inner.tokens / step_s,
        "steps_per_round": int(rules.schedule.train_ms / 1000 / step_s),
        "memory_bytes": memory_bytes(choice.device),
        "offer_s": offered_s,
        "round_bytes": {"up": offer_bytes(rules, largest), "down": part_bytes(rules, largest)},
        "train_s": rules.schedule.train_ms / 1000,
        "average_s": rules.schedule.average_ms / 1000,
    }


def _replica(rules: RunRules, device: Any, bf16: bool) -> Any:
    import numpy as np

    from tapestryd.training.data import Corpus, Stream
    from tapestryd.training.diloco import Replica, Where
    from tapestryd.training.model import fresh

    model: Any = fresh(rules.model.config, 0)
    inner = rules.inner
    words = np.random.default_rng(0).integers(0, model.get_input_embeddings().num_embeddings, 8 * inner.sequences * inner.tokens + 1)
    text = Corpus(Stream([words.astype(np.uint32)]), Stream([]), tokens=inner.tokens, seed=0)
    return Replica(model, rules.layout(), inner, text, where=Where(device, bf16), seed=0)


def shown(found: Doc) -> list[str]:
    """The document as text."""
    step, moves = found["step_s"], found["round_bytes"]["up"] + found["round_bytes"]["down"]
    trains = [
        f"{number(found['tokens_per_second'])} tokens/s",
        f"{step['median']:.3g} s a step, {step['min']:.3g} to {step['max']:.3g} over {found['steps']}",
        f"{found['steps_per_round']} steps in the {duration(found['train_s'])} of a round",
    ]
    averages = [
        f"encoded in {found['offer_s']:.3g} s",
        f"at most {size(moves)} each way in {duration(found['average_s'])}: {8e-6 * moves / found['average_s']:.3g} Mbit/s or more",
    ]
    sections = [
        ("Run", [found["name"], found["run"][:12], f"{number(found['elements'])} parameters"]),
        ("Device", [found["device"], found["optimizer"]]),
        ("Trains", trains),
        ("Memory", [size(found["memory_bytes"])]),
        ("Averages", averages),
    ]
    return labelled(sections, _WIDTH)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    return ended(lambda: bench(options), "tapestry bench")


if __name__ == "__main__":
    sys.exit(main())
