"""DP-SGD: who is drawn, how far one record can move a step, what the noise is, and that no seed of ours makes it."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from protocols.trainer import ALL_FRAGMENTS, Optimizer
from tapestryd.training.diloco import Replica, Where
from tapestryd.training.private import Noise, Private, draw, normal
from tapestryd.training.records import Records
from tests.training.tiny import CONFIGS, INNER, built

CPU = torch.device("cpu")
TOKENS = 8


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small are faster so, and far faster where others compute, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def records(count: int, length: int = TOKENS, seed: int = 0) -> Records:
    """`count` documents of `length` bytes each, of one record each."""
    ids = np.random.default_rng(seed).integers(0, 250, (count, length))
    return Records([np.concatenate([np.append(row, 256) for row in ids]).astype(np.uint16)], end=256, tokens=TOKENS)


def stepped(private: Private, parameters: list[nn.Parameter], loss: Callable[[Tensor], Tensor]) -> float:
    while (value := private.gradient(parameters, loss)) is None:
        pass
    return value


def zeros(count: int) -> bytes:
    return bytes(count)


def all_drawn(parameters: int, texts: Records, noise: Noise, random: Callable[[int], bytes] = os.urandom) -> Private:
    return Private(texts, replace(noise, batch=len(texts)), tokens=TOKENS, random=random)


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.97])
def test_each_record_is_drawn_by_itself_at_the_rate(rate: float) -> None:
    count, times = 50, 4000
    drawn = [draw(count, rate, os.urandom) for _ in range(times)]
    assert all(chosen == sorted(set(chosen)) and all(0 <= one < count for one in chosen) for chosen in drawn)
    each = Counter(one for chosen in drawn for one in chosen)
    spread = math.sqrt(times * rate * (1 - rate))
    assert all(abs(each[one] - times * rate) < 5.5 * spread + 1 for one in range(count))
    sizes = np.array([len(chosen) for chosen in drawn])
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.2)
    pairs = sum(0 in chosen and 1 in chosen for chosen in drawn)
    assert abs(pairs - times * rate**2) < 5.5 * math.sqrt(times * rate**2) + 1


def test_all_or_hardly_any() -> None:
    assert draw(5, 1.0, zeros) == [0, 1, 2, 3, 4]
    assert sum(len(draw(1000, 1e-9, os.urandom)) for _ in range(100)) <= 1


def test_noise_is_normal_and_independent() -> None:
    noise = normal(1_000_001, os.urandom, CPU)
    assert noise.shape == (1_000_001,)
    assert noise.mean().abs() < 0.006
    assert noise.var().item() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.08)
    for bound, share in ((1, 0.31731), (2, 0.04550), (3, 0.00270), (4, 0.0000633)):
        assert (noise.abs() > bound).double().mean().item() == pytest.approx(share, abs=6 * math.sqrt(share / 1e6))
    half = noise[:1_000_000].view(2, -1)
    for one, other in ((half[0], half[1]), (noise[:-1], noise[1:]), (half[0] ** 2, half[1] ** 2)):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 0.01


def test_the_ends_of_the_random_numbers_are_finite() -> None:
    for byte in (0, 255):
        assert bool(torch.isfinite(normal(7, lambda count, byte=byte: bytes([byte]) * count, CPU)).all())
    assert normal(2, zeros, CPU)[0].item() == pytest.approx(math.sqrt(2 * 53 * math.log(2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(1e-3, 10), st.integers(0, 1 << 20), st.sampled_from(["as is", "huge", "nan", "inf", "nothing"]))
def test_one_record_moves_the_sum_by_no_more_than_the_clip(count: int, clip: float, seed: int, kind: str) -> None:
    """Exact: without noise, the step's sum with and without a record, whatever its gradient is."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, 5, generator=generator, dtype=torch.float32) * 10 ** (torch.rand(count, 1, generator=generator) * 8 - 4)
    gradients[-1] *= {"as is": 1.0, "huge": 1e30, "nan": math.nan, "inf": math.inf, "nothing": 0.0}[kind]
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]

    def summed(texts: Records) -> Tensor:
        left = iter(reversed(gradients[: len(texts)].unbind()))

        def loss(ids: Tensor) -> Tensor:
            gradient = next(left) * (TOKENS / (ids.numel() - 1))
            return parameters[0] @ gradient[:2] + parameters[1] @ gradient[2:]

        stepped(all_drawn(5, texts, Noise(1, 0.0, clip)), parameters, loss)
        grads = [parameter.grad for parameter in parameters]
        return torch.cat([grad for grad in grads if grad is not None]).double() * len(texts)

    with_it = summed(records(count))
    without = summed(records(count - 1)) if count > 1 else torch.zeros(5, dtype=torch.float64)
    moved = (with_it - without).norm().item()
    rounding = 1e-6 * (clip * count + 1e-30)
    assert moved <= clip + rounding
    if kind in ("nan", "inf", "nothing"):
        assert moved <= rounding
    elif (size := gradients[-1].double().norm().item()) < 1e18:
        assert moved == pytest.approx(min(clip, size), rel=1e-4, abs=rounding)


def replica(private: Private, name: str = "llama", optimizer: str = "adamw8bit") -> Replica:
    _, made, layout = built(name, 2, 0)
    return Replica(made, layout, replace(INNER, optimizer=optimizer), private, where=Where(CPU, False), seed=0)


def once(trained: Replica) -> float:
    while (value := trained.step(5)) is None:
        pass
    return value


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_is_that_of_each_record_by_itself(name: str) -> None:
    """Against plain autograd, record by record, on every architecture; short records count by their tokens."""
    ids = [list(range(10, 10 + TOKENS)), [3], [7, 8, 9], list(range(50, 50 + 3 * TOKENS))]
    texts = Records([np.array([item for row in ids for item in (*row, 256)], dtype=np.uint16)], end=256, tokens=TOKENS)
    trained = replica(all_drawn(0, texts, Noise(1, 0.0, 0.05)), name)
    expected = torch.zeros_like(trained.local)
    parameters = trained._parameters
    trained._model.eval()  # dropout is drawn anew each time
    for number in range(len(texts)):
        trained.optimizer.drop()
        record = texts.read(number)
        (trained._loss(record[None], None) * ((len(record) - 1) / TOKENS)).backward()
        one = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        expected += one * min(1.0, 0.05 / one.norm().item())
    trained.optimizer.drop()
    text = trained._text
    assert isinstance(text, Private)
    loss = stepped(text, parameters, lambda row: trained._loss(row, None))
    found = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    assert torch.allclose(found, expected / len(texts), atol=1e-7, rtol=1e-4)
    assert 4 < loss < 7


def test_the_noise_is_that_of_the_clip_and_the_multiplier() -> None:
    trained = replica(all_drawn(0, records(4), Noise(1, 2.5, 0.3)))
    text = trained._text
    assert isinstance(text, Private)
    grads = []
    for _ in range(2):
        stepped(text, trained._parameters, lambda row: trained._loss(row, None) * 0)
        grads.append(torch.cat([parameter.grad.flatten() for parameter in trained._parameters if parameter.grad is not None]))
    for grad in grads:
        assert grad.std().item() == pytest.approx(2.5 * 0.3 / 4, rel=0.02)
    assert abs(torch.corrcoef(torch.stack(grads))[0, 1].item()) < 0.03


@pytest.mark.parametrize(("optimizer", "kind"), [("adamw8bit", Optimizer.ADAMW8BIT), ("adamw", Optimizer.ADAMW)])
def test_no_seed_of_ours_makes_the_noise(optimizer: str, kind: Optimizer) -> None:
    """Two replicas, all seeds alike, every record drawn: what differs is noise, and with none they are the same bits."""
    deltas = {}
    for multiplier in (0.0, 1.0):
        for number in range(2):
            torch.manual_seed(0)
            np.random.seed(0)
            trained = replica(all_drawn(0, records(6), Noise(1, multiplier, 1.0)), optimizer=optimizer)
            assert trained.optimizer.kind == kind
            for _ in range(2):
                assert math.isfinite(once(trained))
            deltas[multiplier, number] = trained.delta(ALL_FRAGMENTS)
    assert torch.equal(deltas[0.0, 0], deltas[0.0, 1])
    assert not torch.equal(deltas[1.0, 0], deltas[1.0, 1])


def test_only_the_random_source_is_asked() -> None:
    """The same bytes, the same step: nothing else is a source of chance."""

    def stream() -> Callable[[int], bytes]:
        rng = np.random.default_rng(7)
        return rng.bytes

    deltas = []
    for _ in range(2):
        trained = replica(Private(records(40), Noise(10, 1.0, 1.0), tokens=TOKENS, random=stream()))
        once(trained)
        deltas.append(trained.delta(ALL_FRAGMENTS))
    assert torch.equal(*deltas)


def test_a_step_is_of_many_calls_and_a_base_may_come_between() -> None:
    trained = replica(all_drawn(0, records(5), Noise(1, 1.0, 1.0)))
    assert trained.fresh
    before = trained.local.clone()
    assert [trained.step(5) for _ in range(4)] == [None] * 4
    assert not trained.fresh
    assert torch.equal(trained.local, before)
    trained.adopt(ALL_FRAGMENTS, before + 1, keep=False)
    assert isinstance(trained.step(5), float)
    assert trained.fresh
    assert trained.counter == 1
    assert bool(torch.isfinite(trained.local).all())
    assert not torch.equal(trained.local, before + 1)


def test_a_step_without_a_record_is_noise_alone() -> None:
    def never() -> Iterator[bytes]:
        yield b"\0" * 8  # the least uniform number: far beyond the last record
        while True:
            yield b"\x77" * (1 << 20)

    source = never()
    private = Private(records(5), Noise(1, 1.0, 1.0), tokens=TOKENS, random=lambda count: next(source)[:count].ljust(count, b"\x55"))
    trained = replica(private)
    assert trained.step(5) == 0.0
    assert bool((trained.delta(ALL_FRAGMENTS) != 0).any())


def test_what_is_told_of_what_was_drawn_does_not_depend_on_it() -> None:
    private = Private(records(100), Noise(10, 1.0, 1.0), tokens=TOKENS, random=os.urandom)
    assert private.examples == 100
    assert [private.distinct(3, 3 + steps, 0) for steps in (0, 1, 2, 10, 1000)] == [0, 10, 19, 65, 100]
    assert all_drawn(0, records(7), Noise(1, 1.0, 1.0)).distinct(0, 1, 0) == 7


def test_it_learns() -> None:
    """Under mild noise the loss falls; under much it does not."""
    losses = {}
    for multiplier in (0.05, 50.0):
        texts = Records([np.array([*b"abcdefgh", 256] * 8, dtype=np.uint16)], end=256, tokens=TOKENS)
        trained = replica(all_drawn(0, texts, Noise(1, multiplier, 0.5)))
        losses[multiplier] = [once(trained) for _ in range(20)]
    assert losses[0.05][-1] < losses[0.05][0] - 1.0
    assert losses[50.0][-1] > losses[50.0][0] - 0.5
