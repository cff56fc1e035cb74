"""The trainer: reads private text, trains, and speaks to the daemon in fixed structs only.

    python -m tapestryd.host.trainer_main --config trainer.toml --channel FD

FD is an inherited SOCK_SEQPACKET socket. Started by the steward, not by people. What goes wrong crosses the channel as a code; its
sentence goes to standard error here, because a sentence can quote the data. Exit codes: 0 after QUIT, EOF or SIGTERM; 78 after FAULT.
"""

import argparse
import hashlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from protocols import limits
from protocols.canonical import loads
from protocols.refusal import Refused
from protocols.rules import RunRules
from protocols.trainer import ABI, Code, Fault, Precision, Ready
from tapestryd.config import TrainerConfig
from tapestryd.errors import ConfigFault, DiskFull, LocalFault, Unavailable, out_of_memory
from tapestryd.host.accountant import Steps, missing
from tapestryd.host.budget import FILE, Budget, BudgetFault, Limits
from tapestryd.host.channel import Channel, Shared, content, share
from tapestryd.host.clock import now_ms
from tapestryd.host.datasets import Dataset, admitted, hidden
from tapestryd.host.logs import start_trainer
from tapestryd.host.probes import Walls
from tapestryd.training.sources import NoTier

if TYPE_CHECKING:
    from tapestryd.training.private import Private
    from tapestryd.training.records import Records

log = logging.getLogger(__name__)

FAULT_EXIT = 78


class _Over(Exception):
    """The daemon went, or asked us to go, before there was anything to keep."""


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; what it means is the daemon's to say
    parser = argparse.ArgumentParser(prog="trainer_main", description="One trainer; tapestry-trainer starts it.")
    parser.add_argument("--config", type=Path, required=True, help="this machine's trainer.toml")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the socket to the daemon")
    chosen = parser.parse_args()
    start_trainer(os.environ, sys.stderr)
    try:
        channel = Channel(socket.socket(fileno=chosen.channel))
    except OSError:
        log.error("descriptor %d is no socket; tapestry-trainer starts this, people do not", chosen.channel)
        return FAULT_EXIT
    signal.signal(signal.SIGTERM, lambda number, frame: channel.close_inbound())
    return serve(channel, chosen.config)


def serve(channel: Channel, config_file: Path) -> int:
    """The trainer's whole life on an open channel → exit code. Sends FAULT where one ends it."""
    try:
        _run(channel, config_file)
        return 0
    except _Over:
        return 0
    except Exception as error:
        code, sentence = _explain(error)
        log.error("%s: %s", code.name, sentence)
    channel.send(Fault(int(code)))
    return FAULT_EXIT


def _run(channel: Channel, config_file: Path) -> None:
    with ExitStack() as held:
        with _blame(Code.CHANNEL):
            greeting = channel.hello()
            if greeting is None:
                raise _Over
            hello, descriptors = greeting
            for descriptor in descriptors:
                held.callback(os.close, descriptor)
            rules = RunRules.from_json(loads(content(descriptors[2], limits.RULES_BYTES), limits.RULES_BYTES))
            vocabulary = content(descriptors[3], limits.TOKENIZER_BYTES)
        with _blame(Code.CONFIG):
            from tapestryd.layers import trainer_at

            config = trainer_at(config_file, os.environ)
        with _blame(Code.ISOLATION):
            walls = Walls(channel.fileno(), frozenset(descriptors), config.data.paths, config.sandbox.require, time.monotonic)
            if tried := walls.due():
                channel.send(tried)
        with _blame(Code.DATA_UNREADABLE):
            # A node of a run in roster mode speaks for a Member, or is let into no round (not_delegated).
            found = admitted(
                config.data.paths, require_manifest=config.data.require_manifest, volunteer=rules.membership == "open",
                budget=config.privacy.epsilon > 0,
            )  # fmt: skip
        with _blame(Code.LAYOUT):
            shared = share(hello, descriptors[:2], rules.layout())
        threads = config.compute.cores
        # Both are read when the libraries are first imported, which is below.
        os.environ.update(OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
        _train(channel, shared, config, rules, vocabulary, found, walls, threads, held)


def _train(
    channel: Channel, shared: Shared, config: TrainerConfig, rules: RunRules, vocabulary: bytes, found: list[Dataset], walls: Walls,
    threads: int, held: ExitStack,
) -> None:  # fmt: skip
    """Build everything, say READY, and follow orders. `found`: data that may be used. `held` gets what must be let go at the end."""
    import torch
    from transformers.utils import logging as hub_logging

    from tapestryd.host.checkpoint import Checkpoint
    from tapestryd.host.device import choose
    from tapestryd.host.ledger import Ledger
    from tapestryd.host.session import Choices, Session
    from tapestryd.training.data import Corpus, open_corpus
    from tapestryd.training.diloco import Replica, Where
    from tapestryd.training.exclusion import Exclusion
    from tapestryd.training.model import end_of, fits, fresh
    from tapestryd.training.private import Private
    from tapestryd.training.records import open_records
    from tapestryd.training.text import Bytes, FromJson
    from tapestryd.training.tokens import Reader

    def alive() -> None:
        if channel.closing():
            raise _Over

    torch.set_num_threads(threads)
    hub_logging.set_verbosity_error()
    inner, layout = rules.inner, rules.layout()
    alive()
    with _blame(Code.DEVICE):
        choice = choose(config.compute.device, config.compute.precision)
    log.info("device: %s; threads=%d", choice.why, threads)
    with _blame(Code.TOKENIZER):
        if hashlib.sha256(vocabulary).hexdigest() != (rules.tokenizer.digest or hashlib.sha256(b"").hexdigest()):
            raise ConfigFault("the tokenizer that came from the network side is not the run rules'")
        tokenizer = FromJson(vocabulary, end_of(rules.model.config)) if vocabulary else Bytes()
    with _blame(Code.CONFIG):
        checkpoint = Checkpoint(config.checkpoint.dir, rules.run_id, waiting=alive)
        held.callback(checkpoint.close)
        exclusion = Exclusion.load(Path(config.data.exclude)) if config.data.exclude else Exclusion(())
    with _blame(Code.LEDGER):
        ledger = Ledger(config.checkpoint.dir / "ledger", config.release, now_ms=now_ms, waiting=alive)
        held.callback(ledger.close)
        seed = order(config.data.seed, ledger.name)
    with _blame(Code.DATA_UNREADABLE):
        reader = Reader(tokenizer, config.data.text_field, exclusion, config.checkpoint.dir / "tokens", alive)
        files = {file: digest for dataset in found for file, digest in dataset.files.items()}
        text: Corpus | Private
        budget = None
        if private := hidden(found):  # data that is not of tier 2 is hidden along with it: one step is of all records
            text, budget = _private(config, open_records(files, reader, tokens=inner.tokens), inner.tokens, private)
        else:
            text = open_corpus(files, reader, tokens=inner.tokens, seed=seed)
    with _blame(Code.CONFIG):
        if text.examples < config.release.min_examples:
            raise ConfigFault(
                f"release.min_examples = {config.release.min_examples} can never be met: the training text is {text.examples} windows of "
                f"{inner.tokens} tokens; add text, or ask for fewer"
            )
    with _blame(Code.MODEL):
        model = fresh(rules.model.config, 0)
        fits(model, tokenizer.size, inner.tokens)
    with _blame(Code.LAYOUT):
        where = Where(choice.device, choice.precision == Precision.BF16)
        replica = Replica(model, layout, inner, text, where=where, seed=seed)
    log.info("optimizer: %s", replica.optimizer.why)
    sequences = config.privacy.batch if budget else inner.sequences  # of private text never how many were drawn, but how many are expected
    choices = Choices(
        rules.run_id, sequences * inner.tokens, sequences, config.evaluate, config.release, config.checkpoint.every_s,
        time.monotonic,
    )  # fmt: skip
    session = Session(channel, shared, layout, replica, checkpoint, ledger, walls, budget, choices)
    channel.send(Ready(ABI, layout.elements, int(choice.kind), int(choice.precision), int(replica.optimizer.kind)))
    session.run()


def order(seed: int, machine: str) -> int:
    """Of text and dropout. No two machines have the same, or those that hold the same text would all learn the same of it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {machine}".encode()).digest()[:8], "little")


def _private(config: TrainerConfig, records: "Records", tokens: int, names: dict[str, float]) -> "tuple[Private, Budget]":
    """Differential privacy over all records, paid for from the budget of these data sets: `datasets.hidden`. Raises NoTier, BudgetFault."""
    from tapestryd.training.private import Noise, Private

    asked = config.privacy
    if fault := missing():
        raise NoTier(f"tier 2, which {', '.join(names)} asks for, needs an accountant: {fault}")
    if asked.delta * len(records) >= 1:
        raise NoTier(f"privacy.delta = {asked.delta} must be below one in {len(records)} records, or it may give one of them away whole")
    text = Private(records, Noise(asked.batch, asked.noise_multiplier, asked.max_grad_norm), tokens=tokens, random=os.urandom)
    limits = Limits(asked.epsilon, asked.delta, names)
    budget = Budget(config.checkpoint.dir / FILE, limits, Steps(text.rate, asked.noise_multiplier, 0))
    if why := budget.refusal():
        raise BudgetFault(why)
    log.info(
        "differential privacy: rate=%.3g noise_multiplier=%g max_grad_norm=%g; epsilon=%.3f of %g is spent, at delta=%g",
        text.rate, asked.noise_multiplier, asked.max_grad_norm, budget.spent, asked.epsilon, asked.delta,
    )  # fmt: skip
    return text, budget


class _Blamed(Exception):
    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@contextmanager
def _blame(code: Code) -> Iterator[None]:
    """A local or a peer's fault inside becomes `code`, unless it carries one of its own."""
    try:
        yield
    except DiskFull as fault:
        raise _Blamed(Code.DISK_FULL, str(fault)) from None
    except Unavailable as fault:
        raise _Blamed(Code.DEVICE, str(fault)) from None
    except LocalFault as fault:
        raise _Blamed(getattr(fault, "code", code), str(fault)) from None
    except Refused as refused:
        raise _Blamed(code, refused.detail) from None


def _explain(error: Exception) -> tuple[Code, str]:
    """Which code, and the sentence for this machine's log."""
    code = getattr(error, "code", None)
    if isinstance(code, Code):
        return code, str(error)
    if isinstance(error, Refused):
        return Code.CHANNEL, error.detail
    text = " ".join(str(error).split())
    if said := out_of_memory(error):
        return Code.MEMORY, f"out of memory; other programs must make room, or another compute.device is needed ({said})"
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in text:
        return Code.DEVICE, text[:500]
    return Code.INTERNAL, "a bug:\n" + "".join(traceback.format_exception(error))


if __name__ == "__main__":
    sys.exit(main())
