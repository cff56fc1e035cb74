"""The inner optimizer on a real model, with real bitsandbytes."""

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from protocols.trainer import Optimizer
from tapestryd.training import vector
from tapestryd.training.inner import Inner, rate
from tests.training.tiny import INNER, built

KINDS = {"adamw8bit": Optimizer.ADAMW8BIT, "adamw": Optimizer.ADAMW}


def gradients(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


@pytest.mark.parametrize(
    ("height", "expected"),
    [(0, 0.5), (1, 1.0), (2, 1.0), (51, 0.55), (100, 0.1), (10_000, 0.1)],
)
def test_the_rate_follows_the_height(height: int, expected: float) -> None:
    assert rate(height, replace(INNER, lr="1")) == pytest.approx(expected)


def test_the_rate_needs_no_warm_up_and_survives_a_decay_before_it() -> None:
    assert rate(0, replace(INNER, lr="1", warmup_rounds=0)) == 1.0
    short = replace(INNER, lr="1", warmup_rounds=10, decay_rounds=5)
    assert [rate(height, short) for height in (0, 9, 10)] == [0.1, 1.0, 0.1]


@pytest.mark.parametrize("kind", KINDS)
def test_restored_state_goes_on_bit_for_bit(kind: str) -> None:
    """Through a file that is read back without pickle, as a checkpoint is."""
    _, model, layout = built("llama")
    flat = vector.bind(model, layout, "cpu")
    optimizer = Inner(model, replace(INNER, optimizer=kind))
    assert optimizer.kind == KINDS[kind]
    for seed in range(3):
        gradients(model, seed)
        assert optimizer.step(seed)
    file = io.BytesIO()
    torch.save({"flat": flat, "state": optimizer.state()}, file)
    for seed in (3, 4):
        gradients(model, seed)
        optimizer.step(seed)
    expected = flat.clone()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    _, other, _ = built("llama", seed=9)
    again = vector.bind(other, layout, "cpu")
    again.copy_(saved["flat"])
    second = Inner(other, replace(INNER, optimizer=kind))
    second.restore(saved["state"])
    for seed in (3, 4):
        gradients(other, seed)
        second.step(seed)
    assert torch.equal(again, expected)


def test_state_of_another_kind_is_refused() -> None:
    _, model, _ = built("llama")
    state = Inner(model, replace(INNER, optimizer="adamw")).state()
    with pytest.raises(ValueError, match="kind 1"):
        Inner(model, INNER).restore(copy.deepcopy(state))


def test_8_bit_state_is_of_matrices_in_blocks_per_tensor() -> None:
    """The head's 8,448 elements have uint8 state in their own blocks of 256; the embedding, as large, and small tensors have float32."""
    _, model, layout = built("llama")
    vector.bind(model, layout, "cpu")
    optimizer = Inner(model, INNER)
    gradients(model, 0)
    optimizer.step(0)
    wide, narrow = (each.state for each in optimizer._optimizers)
    head = narrow[model.get_parameter("lm_head.weight")]
    assert head["state1"].dtype == torch.uint8
    assert head["absmax1"].numel() == 8448 // 256
    assert {name for name, parameter in model.named_parameters() if parameter in wide} == {
        name for name, _ in model.named_parameters() if "norm" in name or "embed" in name
    }
    assert all(state["exp_avg"].dtype == torch.float32 for state in wide.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_a_gradient_does_not_move(kind: str) -> None:
    """A word that this peer's text never says: only weight decay may change it, or many peers' noise of it is what all get."""
    _, model, layout = built("llama")
    vector.bind(model, layout, "cpu")
    optimizer = Inner(model, replace(INNER, optimizer=kind, weight_decay="0", clip_norm="100"))
    embedding = model.get_parameter("model.embed_tokens.weight")
    before = embedding.detach().clone()
    for seed in range(20):
        gradients(model, seed, 1e-3)
        assert embedding.grad is not None
        embedding.grad[1::2] = -0.0 if seed % 2 else 0.0
        optimizer.step(5)
    assert torch.equal(embedding[1::2], before[1::2])
    assert not torch.isclose(embedding[::2], before[::2]).any(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_dimension_takes_no_weight_decay(kind: str) -> None:
    _, model, _ = built("llama")
    matrix, norm = model.get_parameter("model.embed_tokens.weight"), model.get_parameter("model.norm.weight")
    before = matrix.detach().clone(), norm.detach().clone()
    optimizer = Inner(model, replace(INNER, optimizer=kind, weight_decay="0.5", lr="0.1", warmup_rounds=0))
    gradients(model, 0, scale=0.0)
    assert optimizer.step(0)
    torch.testing.assert_close(matrix.detach(), before[0] * 0.95)
    assert torch.equal(norm, before[1])


def test_gradients_are_clipped_together() -> None:
    """With Adam's scale-freeness a clipped gradient gives the step of the same gradient made shorter."""
    found = []
    for scale in (1.0, 1e-3):
        _, model, layout = built("llama")
        flat = vector.bind(model, layout, "cpu")
        gradients(model, 0, scale)
        norm = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in model.parameters() if parameter.grad is not None))
        optimizer = Inner(model, replace(INNER, optimizer="adamw", clip_norm="0.05"))
        assert norm > 0.05
        assert optimizer.step(0)
        found.append(flat.clone())
        assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    _, model, layout = built("llama")
    flat = vector.bind(model, layout, "cpu")
    optimizer = Inner(model, INNER)
    before = flat.clone()
    gradients(model, 0)
    model.get_parameter("model.norm.weight").grad[3] = bad  # type: ignore[index]
    assert not optimizer.step(0)
    assert torch.equal(flat, before)
    assert all(parameter.grad is None for parameter in model.parameters())
