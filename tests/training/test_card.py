"""The training side on a CUDA device beside the same on the CPU: the same algorithm, apart from rounding."""

import io
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from protocols.trainer import ALL_FRAGMENTS, Device, Optimizer, Precision
from tapestryd.host.device import choose, memory_bytes
from tapestryd.training.data import Corpus
from tapestryd.training.diloco import Replica, Where
from tapestryd.training.private import Noise, Private, normal
from tapestryd.training.records import Records
from tests.training.tiny import CONFIGS, INNER, built, opened, write_text

pytestmark = pytest.mark.gpu

CPU, CARD = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return opened([write_text(folder / "d")], folder / "c", INNER.tokens)


def replica(
    text: Corpus | Private, device: torch.device, *, name: str = "llama", bf16: bool = False, optimizer: str = "adamw8bit"
) -> Replica:
    _, made, layout = built(name)
    return Replica(made, layout, replace(INNER, optimizer=optimizer), text, where=Where(device, bf16), seed=0)


def test_the_card_is_chosen_and_named() -> None:
    for asked in ("auto", "cuda", "cuda:0"):
        found = choose(asked, "auto")
        assert (found.device.type, found.kind) == ("cuda", Device.CUDA)
        assert torch.cuda.get_device_name(0) in found.why
        assert found.precision == (Precision.BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP32)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one card")
def test_another_card_is_left_alone() -> None:
    found = choose("cuda:1", "auto")
    assert torch.cuda.current_device() == found.device.index == 1
    torch.cuda.set_device(0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw"])
def test_it_learns_what_a_processor_learns(name: str, bf16: bool, optimizer: str, corpus: Corpus) -> None:
    """30 steps on the same batches. gpt2 has dropout, whose draws differ from device to device."""
    found = {}
    for device in (CPU, CARD):
        ours = replica(corpus, device, name=name, bf16=bf16, optimizer=optimizer)
        assert ours.optimizer.kind == (Optimizer.ADAMW8BIT if optimizer == "adamw8bit" else Optimizer.ADAMW)
        losses = [ours.step(height) for height in range(30)]
        assert ours.local.device.type == device.type
        assert ours.local.dtype == torch.float32
        found[device] = np.array(losses), ours.delta(ALL_FRAGMENTS).cpu()
    (slow, theirs), (fast, ours_) = found[CPU], found[CARD]
    assert np.abs(slow - fast)[0] < (0.02 if bf16 else 1e-4) or name == "gpt2"
    assert np.abs(slow - fast).max() < 0.15
    assert fast[-1] < fast[0] - 0.3
    if name != "gpt2":
        assert torch.nn.functional.cosine_similarity(theirs, ours_, dim=0) > 0.95


@pytest.mark.parametrize(("first", "second"), [(CARD, CARD), (CARD, CPU), (CPU, CARD)])
@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw"])
def test_a_state_saved_on_one_device_goes_on_on_another(first: torch.device, second: torch.device, optimizer: str, corpus: Corpus) -> None:
    ours = replica(corpus, first, optimizer=optimizer)
    for height in range(4):
        ours.step(height)
    file = io.BytesIO()
    torch.save(ours.state(), file)
    expected = [ours.step(height) for height in range(4, 8)]
    file.seek(0)
    again = replica(corpus, second, optimizer=optimizer)
    again.restore(torch.load(file, map_location="cpu", weights_only=True))
    assert again.local.device.type == second.type
    assert [again.step(height) for height in range(4, 8)] == pytest.approx(expected, abs=0.02)


def test_a_base_is_taken_bit_for_bit(corpus: Corpus) -> None:
    ours = replica(corpus, CARD)
    ours.step(0)
    base = torch.randn(ours.theta.shape, generator=torch.Generator().manual_seed(1))
    ours.adopt(ALL_FRAGMENTS, base, keep=False)
    assert torch.equal(ours.theta.cpu(), base)
    assert torch.equal(ours.local.cpu(), base)
    assert not ours.delta(ALL_FRAGMENTS).any()


def test_the_base_has_the_same_heldout_loss(corpus: Corpus) -> None:
    slow, fast, half = (replica(corpus, device, bf16=bf16).evaluate(2000) for device, bf16 in ((CPU, False), (CARD, False), (CARD, True)))
    assert slow is not None
    assert fast is not None
    assert half is not None
    assert slow[1] == fast[1] == half[1]
    assert fast[0] == pytest.approx(slow[0], abs=1e-4)
    assert half[0] == pytest.approx(slow[0], abs=0.01)


def test_8_bit_state_is_a_fourth(corpus: Corpus) -> None:
    """bitsandbytes on the card: uint8 moments where a matrix has 4,096 elements or more."""
    ours = replica(corpus, CARD)
    ours.step(0)
    head = ours.optimizer._optimizers[-1].state[ours._model.get_parameter("lm_head.weight")]
    assert (head["state1"].dtype, head["state2"].dtype) == (torch.uint8, torch.uint8)
    assert head["state1"].is_cuda


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adamw"])
def test_words_that_the_text_never_says_stay_where_they_are(optimizer: str, corpus: Corpus) -> None:
    """Of ids beyond those of bytes only weight decay changes the embeddings, by 1 - lr * decay a step."""
    ours = replica(corpus, CARD, optimizer=optimizer)
    embedding = ours._model.get_parameter("model.embed_tokens.weight")
    before = embedding.detach()[257:].clone()
    for height in range(10):
        ours.step(height)
    shrunk = (embedding.detach()[257:] / before).flatten()
    assert shrunk.std() < 1e-5
    assert 0.99 < shrunk.mean() < 1


def test_a_step_that_is_not_finite_is_skipped(corpus: Corpus) -> None:
    ours = replica(corpus, CARD, bf16=True)
    ours.step(0)
    ours.local[:] = math.nan
    assert math.isnan(ours.step(1) or 0.0)
    ours.adopt(ALL_FRAGMENTS, ours.theta.clone(), keep=False)
    assert math.isfinite(ours.step(2) or math.nan)


def test_private_steps_clip_and_hide_as_on_a_processor() -> None:
    noise = normal(1_000_001, os.urandom, CARD)
    assert noise.is_cuda
    assert noise.mean().abs() < 0.006
    assert noise.var().item() == pytest.approx(1, abs=0.01)
    deltas = []
    for device in (CPU, CARD):
        ids = np.random.default_rng(0).integers(0, 250, (6, 32))
        texts = Records([np.concatenate([np.append(row, 256) for row in ids]).astype(np.uint16)], end=256, tokens=32)
        ours = replica(Private(texts, Noise(6, 0.0, 0.05), tokens=32, random=os.urandom), device, optimizer="adamw")
        while ours.step(5) is None:
            pass
        assert ours.local.device.type == device.type
        deltas.append(ours.delta(ALL_FRAGMENTS).cpu())
    assert torch.nn.functional.cosine_similarity(*deltas, dim=0) > 0.99


def test_memory_is_counted(corpus: Corpus) -> None:
    ours = replica(corpus, CARD)
    ours.step(0)
    assert memory_bytes(CARD) >= 4 * 2 * ours.theta.numel()


def test_out_of_memory_is_an_error_of_torchs_own() -> None:
    """What the trainer's sentence for it goes by."""
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 42, dtype=torch.uint8, device=CARD)


def test_a_batch_too_large_for_the_card_is_taken_in_pieces(corpus: Corpus) -> None:
    """2,048 windows, in what a few hundred of them take."""
    _, total = torch.cuda.mem_get_info()
    found = []
    for room in (total, 192 << 20):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + room) / total))
        try:
            _, made, layout = built()
            ours = Replica(made, layout, replace(INNER, sequences=2048), corpus, where=Where(CARD, False), seed=0)
            found.append([ours.step(height) for height in range(3)])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert ours._windows < 2048
    assert found[1] == pytest.approx(found[0], rel=1e-3)
