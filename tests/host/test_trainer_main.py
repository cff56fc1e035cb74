"""What the trainer does on its channel, with the daemon played by hand: order by order, fault by fault."""

import contextlib
import gc
import json
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.rules import Model, Tokenizer
from protocols.trainer import (
    ABI,
    ALL_FRAGMENTS,
    SIZE,
    Base,
    Beat,
    Code,
    Delta,
    Evaluated,
    Fault,
    Optimizer,
    Quit,
    Ready,
    Report,
    Rest,
    Stop,
    Train,
    pack,
)
from tapestryd.host import trainer_main
from tapestryd.host.datasets import declare
from tapestryd.host.manifest import Manifest
from tapestryd.training.model import bytes_tokenizer
from tests.host.home import Daemon, Home
from tests.training.tiny import CONFIGS, rules


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def start(home: Home, daemons: list[Daemon]) -> Daemon:
    daemons.append(Daemon(home))
    return daemons[-1]


def ready(home: Home, daemons: list[Daemon]) -> Daemon:
    daemon = start(home, daemons)
    daemon.hello()
    daemon.next(Ready)
    return daemon


def fault(daemon: Daemon) -> Code:
    while True:
        report = daemon.next(Report)  # type: ignore[type-var, arg-type]
        if isinstance(report, Fault):
            assert daemon.end() == 78
            return Code(report.code)


def nothing(delta: Delta, round: int, fragment: int) -> bool:
    """Whether a delta is of these, and has nothing behind it."""
    return replace(delta, entry=0, chain=bytes(32)) == Delta(round, fragment, 0, 0, 0, 0.0, 0.0, 0, bytes(32))


def test_a_round_by_hand(home: Home, daemons: list[Daemon]) -> None:
    daemon = start(home, daemons)
    daemon.hello()
    assert daemon.next(Ready) == Ready(ABI, home.layout.elements, 0, 0, int(Optimizer.ADAMW8BIT))
    daemon.base()
    first = daemon.next(Evaluated)
    assert (first.height, first.tokens) == (0, 640)
    assert 5 < first.loss < 6
    daemon.send(Train(0, 0))
    beats = [daemon.next(Beat), daemon.next(Beat)]
    while beats[1].steps < 20:  # a slow machine has taken few by now
        beats[1] = daemon.next(Beat)
    assert 0 < beats[0].steps < beats[1].steps
    assert beats[1].tokens == beats[1].steps * 4 * 32
    assert beats[1].loss < first.loss
    assert beats[1].tokens_per_s > 0
    daemon.send(Stop(0, 1))
    delta = daemon.next(Delta)
    a, b = home.layout.bounds[1]
    assert (delta.round, delta.fragment, delta.tokens) == (0, 1, delta.steps * 128)
    assert delta.steps <= delta.examples <= delta.steps * 4
    assert delta.entry == 2
    assert delta.norm == pytest.approx(np.linalg.norm(daemon.delta[a:b].astype(np.float64)))
    assert not daemon.delta[: home.layout.bounds[0][1]].any()
    daemon.params[a:b] -= daemon.delta[a:b]
    daemon.send(Base(1, 1, False))
    assert daemon.next(Evaluated).loss < first.loss - 0.05
    daemon.send(Stop(1, 1))
    assert nothing(daemon.next(Delta), 1, 1)
    assert not daemon.delta[a:b].any()
    daemon.send(Stop(2, ALL_FRAGMENTS))
    assert daemon.next(Delta).norm > 0
    daemon.send(Quit())
    assert daemon.end() == 0
    assert home.saved.exists()


def test_rest_ends_steps_and_writes_nothing(home: Home, daemons: list[Daemon]) -> None:
    """What nobody asked for does not leave; local progress stays for whoever does."""
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    steps = daemon.next(Beat).steps
    daemon.send(Rest())
    daemon.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        daemon.next(Delta)
    assert not daemon.delta.any()
    daemon.socket.settimeout(30)
    daemon.send(Stop(0, 0))
    assert daemon.next(Delta).steps >= steps
    assert daemon.delta.any()


def test_local_progress_survives_a_restart(home: Home, daemons: list[Daemon]) -> None:
    """Stop at once after QUIT's checkpoint, start again: with keep, delta is what it was; totals go on."""
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.send(Quit())
    assert daemon.end() == 0
    again = ready(home, daemons)
    again.base(keep=True)
    again.send(Stop(0, ALL_FRAGMENTS))
    delta = again.next(Delta)
    assert delta.steps > 0
    assert delta.norm > 0.1
    assert 2 < delta.loss < 6
    again.base(keep=False)
    again.send(Stop(1, ALL_FRAGMENTS))
    assert nothing(again.next(Delta), 1, ALL_FRAGMENTS)
    again.send(Train(1, 0))
    assert again.next(Beat).steps > delta.steps


def test_checkpoints_are_written_no_oftener_than_asked(tmp_path: Path, daemons: list[Daemon]) -> None:
    home = Home(tmp_path, every="1h")
    daemon = ready(home, daemons)
    daemon.base(keep=True)
    daemon.send(Stop(0, 0))
    daemon.next(Delta)
    assert not home.saved.exists()
    daemon.socket.close()
    assert daemon.end() == 0
    assert home.saved.exists()


def test_what_was_committed_since_a_checkpoint_is_not_learned_again(tmp_path: Path, daemons: list[Daemon]) -> None:
    """It is not written anew for that; of the other fragment it keeps what it had."""
    home = Home(tmp_path, every="1h")
    daemon = ready(home, daemons)
    daemon.base(keep=True)
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.send(Quit())
    assert daemon.end() == 0
    saved = home.saved.stat()
    second = ready(home, daemons)
    second.base(keep=True)
    second.send(Stop(0, 1))
    before = second.next(Delta)
    assert before.norm > 0
    second.send(Base(1, 1, False))
    second.send(Stop(1, 1))
    assert nothing(second.next(Delta), 1, 1)
    assert home.saved.stat().st_mtime_ns == saved.st_mtime_ns
    second.socket.send(b"no order")
    assert second.end() != 0
    third = ready(home, daemons)
    third.base(1, keep=True)
    third.send(Stop(2, 1))
    assert nothing(third.next(Delta), 2, 1)
    third.send(Stop(3, 0))
    assert third.next(Delta).norm > 0


def test_what_was_committed_is_not_learned_again_after_a_crash(tmp_path: Path, daemons: list[Daemon]) -> None:
    """Before there is a checkpoint at all."""
    home = Home(tmp_path, every="1h")
    daemon = ready(home, daemons)
    daemon.base(keep=True)
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.send(Stop(0, ALL_FRAGMENTS))
    assert daemon.next(Delta).norm > 0
    daemon.base(1)
    daemon.send(Stop(1, ALL_FRAGMENTS))
    assert daemon.next(Delta).norm == 0
    daemon.socket.send(b"no order")
    assert daemon.end() != 0
    again = ready(home, daemons)
    again.base(1, keep=True)
    again.send(Stop(2, ALL_FRAGMENTS))
    assert again.next(Delta).norm == 0


def test_a_daemon_that_is_gone_is_noticed_while_training(home: Home, daemons: list[Daemon]) -> None:
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.socket.close()
    assert daemon.end() == 0
    assert home.saved.exists()


def test_a_daemon_that_does_not_listen_is_gone(home: Home, daemons: list[Daemon]) -> None:
    """It cannot hold a trainer, with its checkpoint unwritten, by leaving its reports where they are."""
    daemon = ready(home, daemons)
    daemon.base()
    with contextlib.suppress(ConnectionError):
        for round in range(2000):
            daemon.send(Stop(round, 0))
    assert daemon.end() == 0
    assert home.saved.exists()


def test_a_daemon_that_goes_before_hello_leaves_nothing(home: Home, daemons: list[Daemon]) -> None:
    daemon = start(home, daemons)
    daemon.socket.close()
    assert daemon.end() == 0
    assert not home.checkpoints.exists()


def test_a_daemon_that_goes_during_tokenisation_is_noticed(home: Home, daemons: list[Daemon]) -> None:
    (home.data / "large.txt").write_text("some more text\n" * 1_000_000)
    daemon = start(home, daemons)
    daemon.hello()
    daemon.socket.close()
    assert daemon.end() == 0
    assert not home.saved.exists()


@pytest.mark.parametrize(("every", "expected"), [(0, []), (2, [0, 2, 5])])
def test_the_base_is_evaluated_as_often_as_asked(every: int, expected: list[int], tmp_path: Path, daemons: list[Daemon]) -> None:
    daemon = ready(Home(tmp_path, evaluate=every), daemons)
    for height in (0, 1, 2, 3, 5):
        daemon.base(height)
    daemon.send(Stop(0, 0))
    found = []
    while isinstance(report := daemon.next(Report), Evaluated):  # type: ignore[type-var, arg-type]
        found.append(report.height)
    assert found == expected


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"short", Code.CHANNEL),
        (bytes([99]) + bytes(SIZE - 1), Code.CHANNEL),
        (bytes(SIZE + 1), Code.CHANNEL),
        (pack(Ready(ABI, 1, 0, 0, 0)), Code.CHANNEL),
        (pack(Train(0, 0)), Code.CHANNEL),
        (pack(Base(0, 0, False)), Code.CHANNEL),
        (pack(Stop(0, 2)), Code.CHANNEL),
    ],
    ids=["short", "no kind", "long", "a report", "TRAIN before BASE", "one fragment first", "a fragment that is none"],
)
def test_what_is_no_order_ends_it(packet: bytes, code: Code, home: Home, daemons: list[Daemon]) -> None:
    daemon = ready(home, daemons)
    daemon.socket.send(packet)
    assert fault(daemon) == code


def test_a_base_that_is_absurd_ends_it(home: Home, daemons: list[Daemon]) -> None:
    daemon = ready(home, daemons)
    daemon.base()
    daemon.next(Evaluated)
    daemon.params[:] *= 100
    daemon.send(Base(1, ALL_FRAGMENTS, False))
    assert fault(daemon) == Code.CHANNEL
    other = ready(home, daemons)
    other.base()
    other.next(Evaluated)
    other.params[7] = math.nan
    other.send(Base(1, 0, False))
    assert fault(other) == Code.NOT_FINITE


def test_ten_steps_that_are_not_finite_end_it(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    daemon = ready(home, daemons)
    daemon.params[:] = 1e30
    daemon.send(Base(0, ALL_FRAGMENTS, False), Train(0, 0))
    assert fault(daemon) == Code.NOT_FINITE
    assert "loss or gradient is not finite (10 in a row)" in caplog.text
    assert not home.saved.exists()


@pytest.mark.parametrize(
    "wrong", ["abi", "elements", "fragments", "layout", "none", "three", "five", "unsealed", "short", "open rules", "rules"]
)
def test_hello_is_checked(wrong: str, home: Home, daemons: list[Daemon]) -> None:
    gc.collect()  # what others left to it
    before = len(os.listdir("/proc/self/fd"))
    daemon = start(home, daemons)
    good, changed = home.hello(), {"abi": 1, "elements": 7, "fragments": 3, "layout": bytes(32)}
    count = {"none": 0, "three": 3, "five": 5}.get(wrong, 4)
    daemon.hello(
        replace(good, **{wrong: changed[wrong]}) if wrong in changed else good,
        count=count,
        rules=b"{}" if wrong == "rules" else None,
        final=6 | 1 if wrong == "open rules" else 6 | 1 | 8,
        seals=0 if wrong == "unsealed" else 6 | 1,
        elements=5 if wrong == "short" else None,
    )
    assert fault(daemon) == (Code.CHANNEL if wrong in ("abi", "rules", "open rules") or count != 4 else Code.LAYOUT)
    daemon.close()
    daemon.params = daemon.delta = np.zeros(0, np.float32)
    assert len(os.listdir("/proc/self/fd")) == before


def started_with_fault(home: Home, daemons: list[Daemon]) -> Code:
    daemon = start(home, daemons)
    daemon.hello()
    return fault(daemon)


def test_every_trouble_with_data_has_its_code(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    (home.data / "topics.txt").write_text("secret")
    assert started_with_fault(home, daemons) == Code.DATA_TOO_SMALL
    (home.data / "topics.txt").write_text("")
    assert started_with_fault(home, daemons) == Code.DATA_EMPTY
    (home.data / "topics.txt").rename(home.data / "topics.parquet")
    assert started_with_fault(home, daemons) == Code.DATA_UNREADABLE
    (home.data / "topics.parquet").unlink()
    home.data.rmdir()
    assert started_with_fault(home, daemons) == Code.DATA_MISSING
    assert f"{home.data}: no such file or folder; set data.paths in trainer.toml" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"data_class": "private"}, Code.DATA_FORBIDDEN),
        ({"data_class": "sovereign"}, Code.DATA_FORBIDDEN),
        ({"data_class": "fully-open", "use_constraints": ("no-training",)}, Code.DATA_FORBIDDEN),
        ({"data_class": "fully-open", "tier": 1}, Code.DATA_FORBIDDEN),
        ({"data_class": "fully-open", "tier": 2, "rights": "CC0-1.0"}, Code.TIER),
        ({"data_class": "fully-open", "tier": 3, "rights": "CC0-1.0"}, Code.TIER),
        ({"data_class": "fully-open", "tier": 4, "rights": "CC0-1.0"}, Code.TIER),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else " ".join(map(str, value.values())),
)
def test_what_may_not_be_contributed_is_not_opened(said: dict[str, Any], code: Code, home: Home, daemons: list[Daemon]) -> None:
    declare(home.data, Manifest(artifact_id="x", **said))
    (home.data / "topics.txt").write_bytes(b"\xff" * 99)  # opened, it would be found to be another file than was recorded
    assert started_with_fault(home, daemons) == code
    assert not (home.checkpoints / "tokens").exists()


def test_declared_data_is_what_was_recorded(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    declare(home.data, Manifest("fully-open", artifact_id="topics", tier=1, rights="PSF-2.0"))
    with caplog.at_level(logging.INFO):
        daemon = ready(home, daemons)
    assert "topics version 1, fully-open, tier 1, PSF-2.0, files=1" in caplog.text
    daemon.send(Quit())
    assert daemon.end() == 0
    (home.data / "topics.txt").write_text("other text " * 1000)
    assert started_with_fault(home, daemons) == Code.DATA_FORBIDDEN
    assert "changed since its manifest was made" in caplog.text


def test_undeclared_data_can_be_refused(home: Home, daemons: list[Daemon]) -> None:
    home.config.write_text(home.config.read_text().replace("[data]", "[data]\nrequire_manifest = true"))
    assert started_with_fault(home, daemons) == Code.DATA_FORBIDDEN


def test_trouble_with_the_settings_has_its_code(home: Home, daemons: list[Daemon]) -> None:
    good = home.config.read_text()
    home.config.write_text(good.replace('device = "cpu"', 'device = "cuda:99"'))
    assert started_with_fault(home, daemons) == Code.DEVICE
    home.config.write_text(good + "nonsense = 1\n")
    assert started_with_fault(home, daemons) == Code.CONFIG
    home.config.unlink()
    assert started_with_fault(home, daemons) == Code.CONFIG
    home.config.write_text(good.replace("require = false", "require = true"))
    assert started_with_fault(home, daemons) == Code.ISOLATION


@pytest.mark.parametrize(
    "change",
    [{"model_type": "no-such"}, {"vocab_size": 200}, {"max_position_embeddings": 16}, {"hidden_size": 64}],
    ids=["unknown", "vocabulary", "places", "layout"],
)
def test_a_model_that_does_not_fit_is_a_fault(change: dict[str, object], tmp_path: Path, daemons: list[Daemon]) -> None:
    good = rules()
    config = json.dumps(CONFIGS["llama"] | change)
    home = Home(tmp_path, replace(good, model=Model(config, good.model.tensors, good.model.genesis)))
    assert started_with_fault(home, daemons) == (Code.LAYOUT if "hidden_size" in change else Code.MODEL)


def test_a_tokenizer_file_is_used_and_checked(tmp_path: Path, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    from protocols.canonical import digest

    made = bytes_tokenizer().to_str().encode()
    home = Home(tmp_path, replace(rules(), tokenizer=Tokenizer("file", digest(made))))
    assert started_with_fault(home, daemons) == Code.TOKENIZER
    home.tokenizer = made + b"\n"
    assert started_with_fault(home, daemons) == Code.TOKENIZER
    assert "is not the run rules'" in caplog.text
    home.tokenizer = made
    daemon = ready(home, daemons)
    daemon.base()
    assert daemon.next(Evaluated).loss < 6


def test_a_damaged_checkpoint_is_set_aside(home: Home, daemons: list[Daemon], caplog: pytest.LogCaptureFixture) -> None:
    daemon = ready(home, daemons)
    daemon.base()
    daemon.send(Train(0, 0))
    daemon.next(Beat)
    daemon.send(Quit())
    assert daemon.end() == 0
    data = bytearray(home.saved.read_bytes())
    data[len(data) // 2] ^= 1
    home.saved.write_bytes(data)
    again = ready(home, daemons)
    with caplog.at_level(logging.WARNING):
        again.base(keep=True)
        again.send(Stop(0, ALL_FRAGMENTS))
        assert again.next(Delta).norm == 0
    assert "set aside, training starts from the Shared Base" in caplog.text


def test_two_trainers_do_not_share_a_checkpoint(home: Home, daemons: list[Daemon]) -> None:
    """The second waits for the first to end."""
    first = ready(home, daemons)
    second = start(home, daemons)
    second.hello()
    first.send(Quit())
    assert first.end() == 0
    second.next(Ready)


def test_machines_with_the_same_text_read_it_in_orders_of_their_own() -> None:
    names = [f"{seed} {machine}" for seed in (0, 1, 10) for machine in ("a", "b")]
    assert len({trainer_main.order(int(seed), machine) for seed, machine in map(str.split, names)}) == len(names)
    assert trainer_main.order(0, "a") == trainer_main.order(0, "a") < 1 << 64


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", Code.MEMORY),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", Code.MEMORY),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Code.MEMORY),
        ("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", Code.MEMORY),
        ("CUDA error: unspecified launch failure", Code.DEVICE),
        ("mat1 and mat2 shapes cannot be multiplied", Code.INTERNAL),
    ],
)
def test_what_a_device_says_has_its_code(said: str, code: Code) -> None:
    """A full card is noticed by whoever wants memory first: torch's allocator, a library, or the driver."""
    assert trainer_main._explain(RuntimeError(said))[0] == code
