"""`tapestry audit canary`: plant made-up secrets in a copy of this machine's text, train a model on it, and measure how well it knows them.

Everything happens here: no daemon is asked, nothing is contributed, neither the run nor the privacy budget is touched, no file is
written. For whoever may read the data.
"""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from protocols.control import SCHEMA, Exit
from protocols.refusal import Refused
from protocols.rules import RunRules
from protocols.trainer import Precision
from tapestryd.config import TrainerChoice, TrainerConfig
from tapestryd.errors import ConfigFault, Unavailable
from tapestryd.host.accountant import Steps, epsilon, missing
from tapestryd.host.datasets import admitted
from tapestryd.layers import trainer_at, usual
from tapestryd.program import rules_at, whole

if TYPE_CHECKING:
    from tapestryd.training.canaries import Canary
    from tapestryd.training.text import Ids, Tokenizer

Doc = dict[str, Any]

HELP = "what a model that is trained on this machine's text remembers of it"
TIMES = (0, 1, 4, 16, 64)
EACH = 8
CANDIDATES = 2047
"""With the canary itself a power of two: the highest exposure is 11 bits."""


def add(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    p = verbs.add_parser(
        "canary",
        help=HELP,
        description="Plant made-up secrets in a copy of this machine's text, train a model on it here, and measure how well it knows "
        f"each, by how often it was planted ({', '.join(map(str, TIMES))} times): without and with the differential privacy of [privacy]. "
        "Nothing of it leaves this machine.",
    )
    p.add_argument("--run", type=Path, required=True, metavar="run.toml", help="the run's rules: tapestry run show > run.toml")
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="the Shared Base: tapestry export DIR")
    p.add_argument("--config", type=Path, metavar="FILE", help=f"trainer.toml ({TrainerChoice().config}, or your own daemon's)")
    p.add_argument("--tokens", type=whole(1000, 1 << 40), default=500_000, metavar="N", help="of this machine's text at most (%(default)s)")
    p.add_argument("--passes", type=whole(1, 1000), default=4, metavar="N", help="how often the text is gone through (%(default)s)")
    p.add_argument("--only", choices=("plain", "private"), help="one of the two (default: both)")
    p.add_argument("--json", action="store_true", help="print one document")
    p.set_defaults(verb=canary)


@dataclass(frozen=True, slots=True)
class Way:
    """One training. `exposures`: how often planted → each canary's, in bits. `epsilon`: None without differential privacy."""

    name: str
    steps: int
    exposures: Mapping[int, Sequence[float]]
    epsilon: float | None


def canary(options: argparse.Namespace) -> int:
    rules = rules_at(options.run)
    config = trainer_at(options.config or usual(os.environ, "trainer.toml"), os.environ)
    ways = (options.only,) if options.only else ("plain", "private")
    if "private" in ways and (fault := missing()):
        raise Unavailable(f"differential privacy needs an accountant: {fault}; or give --only plain")
    threads = config.compute.cores
    os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    from tapestryd.training.canaries import make, planted, shows_from
    from tapestryd.training.exclusion import Exclusion
    from tapestryd.training.text import tokens_of

    rng = SystemRandom()
    canaries, others = make(TIMES, EACH, CANDIDATES, rng)
    tokenizer = _tokenizer(options.model, rules)
    data = admitted(
        config.data.paths, require_manifest=config.data.require_manifest, volunteer=rules.membership == "open", budget=True
    )  # fmt: skip
    exclusion = Exclusion.load(Path(config.data.exclude)) if config.data.exclude else Exclusion(())
    files = [tokens_of(file, config.data.text_field, tokenizer, exclusion) for dataset in data for file in dataset.files]
    text = planted(sample(files, options.tokens, tokenizer.end, rng), canaries, tokenizer, rng)
    found = [_trained(way, options, rules, config, text, (canaries, others), tokenizer) for way in ways]
    document = {
        "schema": SCHEMA,
        "tokens": sum(ids.size for ids in text),
        "passes": options.passes,
        "candidates": CANDIDATES,
        "delta": config.privacy.delta,
        "ways": {
            way.name: {
                "steps": way.steps,
                "epsilon": way.epsilon,
                "exposures": dict(way.exposures),
                "shows_from": shows_from(way.exposures),
            }
            for way in found
        },
    }
    print(json.dumps(document, indent=2) if options.json else "\n".join(shown(document)))
    return Exit.OK


def sample(files: Iterable[Iterator["Ids"]], tokens: int, end: int, rng: Random) -> "list[Ids]":
    """Documents of files of ids, an even share of each from its beginning, about `tokens` in all; the last of a file may be cut."""
    import numpy as np

    left = list(files)
    rng.shuffle(left)
    documents: list[Ids] = []
    while left:
        file, share = left.pop(), tokens // (len(left) + 1)
        pieces, count = [np.zeros(0, np.uint32)], 0
        while count < share and (piece := next(file, None)) is not None:
            pieces.append(piece)
            count += piece.size
        ids = np.concatenate(pieces)[:share]
        tokens -= ids.size
        documents += [part[part != end] for part in np.split(ids, np.flatnonzero(ids == end)) if part.size > 1]
    return documents


def _trained(
    way: str, options: argparse.Namespace, rules: RunRules, config: TrainerConfig, text: "list[Ids]",
    canaries: "tuple[list[Canary], list[Canary]]", tokenizer: "Tokenizer",
) -> Way:  # fmt: skip
    """Train the model on `text` in one of the two ways, at the rules' highest learning rate, and ask it for the canaries."""
    import numpy as np

    from tapestryd.host.device import choose
    from tapestryd.training.canaries import exposures, surprise
    from tapestryd.training.data import Corpus, Stream
    from tapestryd.training.diloco import Replica, Where
    from tapestryd.training.model import load
    from tapestryd.training.private import Noise, Private
    from tapestryd.training.records import Records

    inner, asked = rules.inner, config.privacy
    part = np.concatenate(text)
    source: Corpus | Private
    if way == "private":
        records = Records([part], end=tokenizer.end, tokens=inner.tokens)
        source = Private(records, Noise(asked.batch, asked.noise_multiplier, asked.max_grad_norm), tokens=inner.tokens, random=os.urandom)
        steps = math.ceil(options.passes / source.rate)
        spent = epsilon([Steps(source.rate, asked.noise_multiplier, steps)], asked.delta)
    else:
        source = Corpus(Stream([part]), Stream([]), tokens=inner.tokens, seed=config.data.seed)
        steps, spent = math.ceil(options.passes * part.size / (inner.sequences * inner.tokens)), None
    choice = choose(config.compute.device, config.compute.precision)
    model = load(options.model)
    try:
        where = Where(choice.device, choice.precision == Precision.BF16)
        replica = Replica(model, rules.layout(), inner, source, where=where, seed=config.data.seed)
    except Refused as refused:
        raise ConfigFault(f"{options.model} is not of the run's model: {refused.detail}") from None
    told = sys.stderr.isatty()
    while replica.counter < steps:
        if replica.step(inner.warmup_rounds) is not None and told:
            print(f"\r\x1b[K{way}: step {replica.counter} of {steps}", end="", file=sys.stderr, flush=True)
    if told:
        print("\r\x1b[K", end="", file=sys.stderr)
    own, others = (surprise(model, some, tokenizer, choice.device) for some in canaries)
    return Way(way, steps, exposures(canaries[0], own, others), spent)


def shown(found: Doc) -> list[str]:
    """The document as text."""
    from tapestryd.training.canaries import chance

    ways, highest = found["ways"], math.log2(found["candidates"] + 1)
    steps = ", ".join(f"{way['steps']} steps {name}" for name, way in ways.items())
    lines = [f"{found['tokens']:,} tokens, {found['passes']} times over: {steps}", "", _row("planted", ways)]
    for times in TIMES:
        cells = [_cell(way["exposures"][times], highest) for way in ways.values()]
        lines.append(_row(_often(times), cells))
    what = f"Exposure in bits, mean and highest of {EACH}: by chance {chance(found['candidates']):.2f}, known by heart {highest:.0f}."
    return [*lines, "", what, *(sentence(name, way, found["delta"]) for name, way in ways.items())]


def sentence(name: str, way: Doc, delta: float) -> str:
    how = "Without differential privacy" if name == "plain" else f"With it (epsilon {way['epsilon']:.3g} at delta {delta:g})"
    if way["shows_from"] is None:
        return f"{how}, nothing that was planted shows in the model, up to {max(TIMES)} times."
    return f"{how}, a secret that stands in the text {_often(way['shows_from'])} or more shows in the model."


def _often(times: int) -> str:
    return {0: "never", 1: "once"}.get(times, f"{times} times")


def _row(label: str, cells: Iterable[str]) -> str:
    return f"{label:<12}" + "".join(f"{cell:<31}" for cell in cells).rstrip()


def _cell(values: Sequence[float], highest: float) -> str:
    known = sum(value == highest for value in values)
    return f"{sum(values) / len(values):5.2f}  ≤ {max(values):5.2f}" + (f"  {known} by heart" if known else "")


def _tokenizer(folder: Path, rules: RunRules) -> "Tokenizer":
    from tapestryd.training.model import end_of
    from tapestryd.training.text import Bytes, FromJson

    if rules.tokenizer.kind == "bytes":
        return Bytes()
    file = folder / "tokenizer.json"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigFault(f"{file}: {error.strerror}; --model is a folder that `tapestry export` wrote") from None
    if hashlib.sha256(content).hexdigest() != rules.tokenizer.digest:
        raise ConfigFault(f"{file} is not the run's tokenizer; --model is a folder that `tapestry export` wrote")
    return FromJson(content, end_of(rules.model.config))
