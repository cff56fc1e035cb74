"""What leaves a trainer and what does not: the rules of release and the ledger, with the daemon played by hand."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocols.canonical import digest
from protocols.ledger import Entry, Opened, Released, What, parse
from protocols.ledger import Withheld as Refusal
from protocols.trainer import ALL_FRAGMENTS, Base, Beat, Code, Delta, Evaluated, Ready, Rest, Stop, Train, Withheld, Withhold
from tapestryd.host.ledger import Ledger, read, segments
from tests.host.home import Daemon, Home
from tests.host.test_trainer_main import fault

FIRST = "min_steps = 1\nmin_examples = 1\nmax_per_hour = 1000\n"
"""The least that is a rule at all."""


@pytest.fixture
def begin() -> Iterator[Callable[[Home], Daemon]]:
    """A trainer that has said READY, and has genesis beneath its local progress."""
    begun: list[Daemon] = []

    def begin(home: Home) -> Daemon:
        begun.append(Daemon(home))
        begun[-1].hello()
        begun[-1].next(Ready)
        begun[-1].base(keep=True)
        return begun[-1]

    yield begin
    for daemon in begun:
        daemon.close()


Begin = Callable[[Home], Daemon]


def home_of(folder: Path, rules: str = FIRST) -> Home:
    """No checkpoint but at its end, and no evaluation."""
    return Home(folder, evaluate=0, every="1h", release=rules)


def train(daemon: Daemon, steps: int = 0) -> Beat:
    """Some local steps, more than so many, and what was said about them while they went on."""
    daemon.send(Train(0, 0))
    first = beat = daemon.next(Beat)
    while beat.steps - first.steps < steps:
        beat = daemon.next(Beat)
    daemon.send(Rest())
    return beat


def stop(daemon: Daemon, round: int, fragment: int = 0) -> Delta | Withheld:
    daemon.send(Stop(round, fragment))
    return daemon.next(Delta | Withheld)  # type: ignore[type-var, arg-type]


def released(daemon: Daemon, round: int, fragment: int = 0) -> Delta:
    report = stop(daemon, round, fragment)
    assert isinstance(report, Delta)
    return report


def crash(daemon: Daemon) -> None:
    """Its end without a checkpoint."""
    daemon.socket.send(b"no order")
    assert daemon.end() == 78


def lines(home: Home) -> list[tuple[bytes, Entry]]:
    return [(data, parse(data)) for file in segments(home.checkpoints / "ledger") for data in read(file)[0]]


def written(home: Home) -> list[What]:
    """What the ledger says but for who opened it when."""
    return [entry.what for _, entry in lines(home) if not isinstance(entry.what, Opened)]


def test_what_leaves_is_written_down_as_it_left(tmp_path: Path, begin: Begin) -> None:
    home = home_of(tmp_path)
    daemon = begin(home)
    a, b = home.layout.bounds[1]
    train(daemon)
    delta = released(daemon, 3, 1)
    (_, first), (data, second) = lines(home)
    assert isinstance(first.what, Opened)
    left = daemon.delta[a:b]
    assert second.what == Released(
        home.rules.run_id, 3, 1, delta.steps, delta.tokens, delta.examples, delta.steps, left.nbytes,
        hashlib.sha256(left.tobytes()).hexdigest(), delta.norm, 1.0, 0.0, 0.0,
    )  # fmt: skip
    assert delta.norm == pytest.approx(np.linalg.norm(left.astype(np.float64)))
    assert (delta.entry, delta.chain.hex()) == (2, digest(data))


def test_what_is_behind_a_vector_counts_from_where_the_base_replaced_it(tmp_path: Path, begin: Begin) -> None:
    """Also across the other fragments' turns; DELTA's own steps are those since the last one."""
    home = home_of(tmp_path)
    daemon = begin(home)
    train(daemon)
    first = released(daemon, 0, 0).steps
    train(daemon)
    second = released(daemon, 1, 1).steps
    daemon.send(Base(1, 0, False))
    train(daemon)
    third = released(daemon, 2, 0).steps
    daemon.send(Base(2, 1, False))
    assert stop(daemon, 3, 1) == Withheld(3, 1, Withhold.FEW_STEPS)
    counted = [(what.fragment, what.steps, what.batches) for what in written(home) if isinstance(what, Released)]
    assert counted == [(0, first, first), (1, first + second, first + second), (0, third, first + second + third)]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [("min_steps = 1000000\nmin_examples = 0\n", Withhold.FEW_STEPS), ("min_steps = 0\nmin_examples = 2800\n", Withhold.FEW_EXAMPLES)],
)
def test_what_is_withheld_stays_here_and_is_not_lost(rules: str, reason: Withhold, tmp_path: Path, begin: Begin) -> None:
    home = home_of(tmp_path, rules)
    daemon = begin(home)
    train(daemon)
    assert stop(daemon, 5, 1) == Withheld(5, 1, reason)
    assert train(daemon).withheld == 1
    assert stop(daemon, 6, ALL_FRAGMENTS) == Withheld(6, ALL_FRAGMENTS, reason)
    assert not daemon.delta.any()
    refusals = [what for what in written(home) if isinstance(what, Refusal)]
    assert [(what.round, what.fragment, what.reason, what.unwritten) for what in refusals] == [
        (5, 1, reason.name.lower(), 0),
        (6, ALL_FRAGMENTS, reason.name.lower(), 0),
    ]
    assert 0 < refusals[0].steps < refusals[1].steps
    assert 0 < refusals[0].examples < refusals[1].examples < 2800
    daemon.socket.close()  # an orderly end
    assert daemon.end() == 0
    home.config.write_text(home.config.read_text().replace(rules, FIRST))
    daemon = begin(home)
    assert released(daemon, 7, 1).norm > 0.1
    assert written(home)[-1].steps == refusals[1].steps  # type: ignore[union-attr]


def test_the_same_vector_does_not_leave_twice(tmp_path: Path, begin: Begin) -> None:
    """Nor one that differs from it by fewer steps than the rules say, whatever becomes of the round."""
    daemon = begin(home_of(tmp_path, FIRST.replace("min_steps = 1\n", "min_steps = 3\n")))
    train(daemon, 3)
    assert isinstance(stop(daemon, 0), Delta)
    assert stop(daemon, 1) == Withheld(1, 0, Withhold.FEW_STEPS)
    assert stop(daemon, 2, ALL_FRAGMENTS) == Withheld(2, ALL_FRAGMENTS, Withhold.FEW_STEPS)
    assert isinstance(stop(daemon, 3, 1), Delta)
    daemon.base(1)
    assert stop(daemon, 4, 1) == Withheld(4, 1, Withhold.FEW_STEPS)


def test_no_more_leaves_in_an_hour_than_may_restarts_or_not(tmp_path: Path, begin: Begin) -> None:
    home = home_of(tmp_path, "min_steps = 0\nmin_examples = 0\nmax_per_hour = 2\n")
    daemon = begin(home)
    train(daemon)
    released(daemon, 0, 0)
    released(daemon, 1, 1)
    before = daemon.delta.copy()
    for round in range(2, 7):
        assert stop(daemon, round) == Withheld(round, 0, Withhold.RATE)
    assert np.array_equal(daemon.delta, before)
    assert [what.round for what in written(home) if isinstance(what, Refusal)] == [2, 3], "refusals are written no faster, either"
    crash(daemon)
    daemon = begin(home)
    assert stop(daemon, 7) == Withheld(7, 0, Withhold.RATE)
    assert not daemon.delta.any()
    assert len(written(home)) == 4


def test_a_clipped_vector_leaves_the_rest_here_until_the_base_replaces_it(tmp_path: Path, begin: Begin) -> None:
    home = home_of(tmp_path, "min_steps = 0\nmin_examples = 0\ndelta_clip_norm = 0.125\n")
    daemon = begin(home)
    train(daemon)
    first = released(daemon, 0)
    left = daemon.delta[slice(*home.layout.bounds[0])].copy()
    assert first.norm == pytest.approx(0.125, rel=1e-5)
    assert np.linalg.norm(left.astype(np.float64)) == pytest.approx(first.norm)
    again = released(daemon, 2)  # the round failed; no local step between
    daemon.base(1)
    assert released(daemon, 4).norm == 0
    one, two, three = (what for what in written(home) if isinstance(what, Released))
    assert 0 < one.clip < 1
    assert (again.norm, two.clip) == (first.norm, one.clip), "what was cut off is still there"
    assert three.clip == 1, "what was cut off went when the base took its place"


def test_noise_is_in_what_leaves_and_nowhere_else(tmp_path: Path, begin: Begin) -> None:
    """Two releases of one local model differ by noise alone."""
    home = home_of(tmp_path, "min_steps = 0\nmin_examples = 0\ndelta_clip_norm = 0.5\ndelta_noise_std = 0.5\n")
    daemon = begin(home)
    size = home.layout.bounds[0][1]
    train(daemon)
    left = []
    for round in (0, 2):
        assert released(daemon, round).norm == pytest.approx(np.sqrt(0.25 + 0.25**2 * size), rel=0.05)
        left.append(daemon.delta[:size].copy())
        entry = written(home)[-1]
        assert isinstance(entry, Released)
        assert (entry.noise_std, entry.sha256) == (0.25, hashlib.sha256(left[-1].tobytes()).hexdigest())
    assert float((left[0] - left[1]).std()) == pytest.approx(0.25 * np.sqrt(2), rel=0.05)


def test_on_a_full_disk_nothing_leaves_and_training_goes_on(tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_of(tmp_path)
    daemon = begin(home)
    train(daemon)

    def full(self: Ledger, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", full)
        assert stop(daemon, 0) == Withheld(0, 0, Withhold.DISK_FULL)
        assert not daemon.delta.any()
    train(daemon)
    assert released(daemon, 2).entry == 2
    assert stop(daemon, 4) == Withheld(4, 0, Withhold.FEW_STEPS)
    assert written(home)[-1].unwritten == 1  # type: ignore[union-attr]


def test_a_disk_that_fails_ends_it_before_anything_left(tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = begin(home_of(tmp_path))
    train(daemon)

    def broken(self: Ledger, data: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Ledger, "_append", broken)
    daemon.send(Stop(0, 0))
    assert fault(daemon) == Code.LEDGER
    assert not daemon.delta.any()


def test_after_a_crash_the_ledger_says_what_was_released(tmp_path: Path, begin: Begin) -> None:
    """The checkpoint does not know of it: then the fragment counts anew, and no batch is drawn a second time."""
    home = home_of(tmp_path, FIRST.replace("min_steps = 1\n", "min_steps = 3\n"))
    daemon = begin(home)
    daemon.base(0)  # a checkpoint
    train(daemon, 3)
    assert isinstance(stop(daemon, 0, 0), Delta)
    drawn = written(home)[-1].batches  # type: ignore[union-attr]
    crash(daemon)
    daemon = begin(home)
    assert stop(daemon, 2, 0) == Withheld(2, 0, Withhold.FEW_STEPS)
    train(daemon, 3)
    again = released(daemon, 4, 0)
    entry = written(home)[-1]
    assert isinstance(entry, Released)
    assert (entry.steps, entry.batches) == (again.steps, drawn + again.steps)


def test_losses_are_told_no_closer_than_people_need(tmp_path: Path, begin: Begin) -> None:
    home = Home(tmp_path, evaluate=1, every="1h", release=FIRST)
    daemon = begin(home)
    told = [daemon.next(Evaluated).loss, train(daemon).loss, released(daemon, 0).loss]
    assert all(loss == round(loss, 4) for loss in told)
    for height in (1, 2):
        daemon.params[:] *= 9
        daemon.send(Base(height, ALL_FRAGMENTS, False))
        loss = daemon.next(Evaluated).loss
    assert loss == 99.0


def test_a_round_that_no_ledger_can_hold_is_no_order(tmp_path: Path, begin: Begin) -> None:
    daemon = begin(home_of(tmp_path))
    train(daemon)
    daemon.send(Stop(1 << 60, 0))
    assert fault(daemon) == Code.CHANNEL
    assert not daemon.delta.any()


def started_with(home: Home) -> Code:
    daemon = Daemon(home)
    daemon.hello()
    try:
        return fault(daemon)
    finally:
        daemon.close()


def test_with_a_ledger_that_was_altered_nothing_starts(tmp_path: Path, begin: Begin) -> None:
    home = home_of(tmp_path)
    daemon = begin(home)
    train(daemon)
    released(daemon, 0)
    crash(daemon)
    file = segments(home.checkpoints / "ledger")[0]
    file.write_bytes(file.read_bytes().replace(b'"round":0', b'"round":1'))
    assert started_with(home) == Code.LEDGER


def test_rules_that_the_text_can_never_meet_are_a_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert started_with(home_of(tmp_path, "min_examples = 30000\n")) == Code.CONFIG
    assert "release.min_examples = 30000 can never be met: the training text is" in caplog.text
