"""`tapestry run new`: write a run's rules and its genesis, from a model that is there.

Runs as a program of its own, because the operator's CLI never imports torch. Writes a folder with `run.toml`,
`genesis.json`, `genesis.base` and, where it names one, `tokenizer.json`; whoever joins with that folder is the first donor.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from protocols import TREATY
from protocols.canonical import digest
from protocols.control import SCHEMA
from protocols.layout import Layout, parse_tensor
from protocols.lineage import Snapshot, Tip, base_digest
from protocols.refusal import Refused
from protocols.rules import Averaging, Codec, Inner, Model, Outer, RunRules, Tokenizer
from protocols.schedule import Schedule
from protocols.weighting import AGGREGATIONS, WEIGHTINGS
from tapestryd.errors import ConfigFault
from tapestryd.host.clock import now_ms
from tapestryd.host.files import write
from tapestryd.host.state import StateDir
from tapestryd.program import ended, seconds, whole

_ODD = "No word of this, \U000107d7 织物\x00\U0010fffd, need be known"
"""What few vocabularies have: a run's tokenizer must make something of it, too, for its peers' texts are all sorts of things."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tapestry run new", description="Write the rules and the genesis of a new run into a folder.")
    p.add_argument("out", type=Path, metavar="DIR", help="folder to write; must not exist yet or be empty")
    p.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR|config.json",
        help="Hugging Face model folder, or a config to initialise from --seed",
    )
    p.add_argument(
        "--tokenizer",
        metavar="bytes|tokenizer.json",
        help="default: the model folder's tokenizer.json; bytes, where there are no weights either",
    )
    p.add_argument("--name", required=True, help="public name of the run, 1 to 64 characters")
    p.add_argument("--seed", type=whole(0, (1 << 63) - 1), default=0, help="of the initialisation, if there are no weights")
    p.add_argument("--train", type=seconds, default=300, metavar="SECONDS", help="local steps between averagings (default 300)")
    p.add_argument("--average", type=seconds, default=60, metavar="SECONDS", help="window for averaging (default 60)")
    p.add_argument("--fragments", type=int, default=4, help="the vector is averaged one fragment a round (default 4)")
    p.add_argument("--min-peers", type=int, default=2)
    p.add_argument(
        "--member", action="append", default=[], metavar="ID",
        help="once for each Member: only nodes that they delegate take part (default: whoever has the invite)",
    )  # fmt: skip
    p.add_argument("--coverage", default="0.5", help="least share of contributions in a mean (default 0.5)")
    p.add_argument(
        "--aggregation",
        default="clipped",
        choices=AGGREGATIONS,
        help="how deltas become one (default clipped: none longer than the median)",
    )
    p.add_argument(
        "--weighting",
        default="uniform",
        choices=WEIGHTINGS,
        help="uniform, or steps: each delta is first scaled to the median number of local steps",
    )
    p.add_argument("--optimizer", default="adamw8bit", choices=["adamw8bit", "adamw"])
    p.add_argument("--lr", default="0.0004", help="peak rate of the local optimizer")
    p.add_argument("--weight-decay", default="0.1")
    p.add_argument("--clip-norm", default="1.0", help="of a local step's gradient")
    p.add_argument("--sequences", type=int, default=8, help="windows in one local batch")
    p.add_argument("--tokens", type=int, default=1024, help="tokens in one window")
    p.add_argument("--warmup-rounds", type=int, default=10)
    p.add_argument("--decay-rounds", type=int, default=1000)
    p.add_argument("--final-ratio", default="0.1")
    p.add_argument("--outer-lr", default="1.0")
    p.add_argument("--outer-momentum", default="0.5")
    p.add_argument("--up", type=int, default=8, choices=[4, 8, 32], help="bits an element, delta to reducer (default 8)")
    p.add_argument("--down", type=int, default=8, choices=[4, 8, 32], help="bits an element, mean to everybody (default 8)")
    p.add_argument("--block", type=int, default=256, help="elements that share a scale")
    p.add_argument("--json", action="store_true", help="print one document")
    return p


def found(arguments: argparse.Namespace) -> RunRules:
    """Write the folder. Raises LocalFault for whatever the user can put right."""
    from tapestryd.base import describe
    from tapestryd.training import model as models
    from tapestryd.training import vector
    from tapestryd.training.text import Bytes, FromJson, TokenizerFault

    out: Path = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigFault(f"{out} is there already; name a folder that is not, or an empty one")
    out.mkdir(parents=True, exist_ok=True)  # before the model, which may take minutes
    source: Path = arguments.model
    if not source.exists():
        raise ConfigFault(f"--model {source}: no such file or folder")
    config = models.read_config(source)
    weights = source.is_dir() and models.weighted(source)
    beside = source / "tokenizer.json"
    if weights and not arguments.tokenizer and not beside.exists():
        raise ConfigFault(f"{beside} is missing; name the tokenizer that the weights were trained with: --tokenizer")
    network = models.load(source) if weights else models.fresh(config, arguments.seed)
    tensors = tuple(vector.tensors(network))
    named = arguments.tokenizer or (str(beside) if beside.exists() else "bytes")
    tokenizer = b"" if named == "bytes" else _read(Path(named))
    try:
        words = Bytes() if named == "bytes" else FromJson(tokenizer, models.end_of(config))
        words.encode(_ODD)
    except TokenizerFault as fault:
        raise ConfigFault(f"{named}: {fault}") from None
    models.fits(network, words.size, arguments.tokens)
    models.causal(network)
    try:
        layout = Layout.of([parse_tensor(line) for line in tensors], arguments.fragments)
        theta = vector.bind(network, layout, "cpu")
        velocity = theta.new_zeros(theta.shape)
        bounds = [slice(*bound) for bound in layout.bounds]
        pairs = [(vector.digest(theta[here]), vector.digest(velocity[here])) for here in bounds]
        genesis = base_digest(pairs)
        rules = RunRules.from_json(_rules(arguments, config, tensors, genesis, tokenizer))
    except Refused as refused:
        raise ConfigFault(f"no such run can be: {refused.detail}") from None
    snapshot, first, second = describe(rules.run_id, Tip(0, 0, genesis), pairs, theta.detach(), velocity)
    if tokenizer:
        write(out / "tokenizer.json", tokenizer)
    write(out / "genesis.base", first, second)
    write(out / "genesis.json", snapshot.to_bytes())
    write(out / "run.toml", rules.to_toml().encode())
    return rules


def adopt(toml: Path, state: StateDir) -> RunRules:
    """Take a founder's folder into the state directory. Raises ConfigFault naming what is missing or does not fit."""
    folder = toml.parent
    try:
        rules = RunRules.from_toml(toml.read_text("utf-8"))
        layout = rules.layout()
        snapshot = Snapshot.parse(_read(folder / "genesis.json"), run=rules.run_id, elements=layout.elements, fragments=layout.fragments)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFault(
            f"{toml}: {getattr(error, 'strerror', error)}; join with the run.toml that `tapestry run new` wrote, or with an invite"
        ) from None
    except Refused as refused:
        raise ConfigFault(f"{toml}: {refused.detail}") from None
    tokenizer = _read(folder / "tokenizer.json") if rules.tokenizer.kind == "file" else b""
    if snapshot.tip != Tip(0, 0, rules.model.genesis) or digest(tokenizer) != (rules.tokenizer.digest or digest(b"")):
        raise ConfigFault(f"{folder}: genesis or tokenizer is not what {toml.name} names; they were written together, keep them together")
    store = state.run(rules.run_id)
    store.keep_rules(rules, tokenizer)
    if not any(kept.tip.height == 0 for kept in store.snapshots()):
        download = store.download(snapshot)
        try:
            shutil.copyfile(folder / "genesis.base", download.path)
        except FileNotFoundError:
            raise ConfigFault(f"{folder / 'genesis.base'} is missing; it was written beside {toml.name}, keep them together") from None
        store.keep_download(snapshot)
    return rules


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigFault(f"{path}: {error.strerror}") from None


def _rules(a: argparse.Namespace, config: str, tensors: tuple[str, ...], genesis: str, tokenizer: bytes) -> dict[str, object]:
    rules = RunRules(
        treaty=TREATY,
        name=a.name,
        membership="roster" if a.member else "open",
        members=tuple(sorted(a.member)),
        model=Model(config, tensors, genesis),
        tokenizer=Tokenizer("file", digest(tokenizer)) if tokenizer else Tokenizer("bytes", ""),
        schedule=Schedule(now_ms(), round(a.train * 1000), round(a.average * 1000)),
        inner=Inner(
            a.optimizer, a.lr, "0.9", "0.95", a.weight_decay, a.clip_norm, a.sequences, a.tokens,
            a.warmup_rounds, a.decay_rounds, a.final_ratio,
        ),
        outer=Outer(a.outer_lr, a.outer_momentum),
        codec=Codec(a.up, a.down, a.block),
        averaging=Averaging(a.fragments, a.aggregation, a.weighting, a.min_peers, a.coverage),
    )  # fmt: skip
    return rules.to_json()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return ended(lambda: _found(arguments), "tapestry run new")


def _found(arguments: argparse.Namespace) -> int:
    rules = found(arguments)
    layout = rules.layout()
    toml, period_s = arguments.out / "run.toml", rules.schedule.period_ms / 1000
    if arguments.json:
        told = {"schema": SCHEMA, "run": rules.run_id, "name": rules.name, "rules": str(toml)}
        print(json.dumps(told | {"elements": layout.elements, "fragments": layout.fragments, "period_s": period_s}, ensure_ascii=False))
        return 0
    print(f"run {rules.name!r}  {rules.run_id}")
    print(f"{layout.elements:,} elements in {layout.fragments} fragments; rounds of {period_s:g} s")
    print(f"start it: tapestry run join {toml}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
