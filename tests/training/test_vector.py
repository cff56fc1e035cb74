"""Binding real models to a vector and back."""

import hashlib
import struct

import pytest
import torch

from protocols.layout import Layout, parse_tensor
from protocols.refusal import Refused
from tapestryd.training import model, vector
from tests.training.tiny import CONFIGS, built


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fragments", [1, 4])
def test_model_and_vector_are_one_memory(name: str, fragments: int) -> None:
    config, made, layout = built(name, fragments)
    before = {key: value.detach().clone() for key, value in made.named_parameters()}
    flat = vector.bind(made, layout, "cpu")
    assert (flat.shape, flat.dtype) == ((layout.elements,), torch.float32)
    for key, value in vector.views(flat, layout).items():
        assert torch.equal(value, before[key])
    ids = torch.arange(20)[None]
    made.eval()
    with torch.no_grad():
        first = made(input_ids=ids).logits
        flat.mul_(1.1)
        assert not torch.equal(first, made(input_ids=ids).logits)
        other = model.build(config).eval()
        vector.bind(other, layout, "cpu").copy_(flat)
        assert torch.equal(made(input_ids=ids).logits, other(input_ids=ids).logits)
        for parameter in made.parameters():
            parameter.zero_()
    assert not flat.any()


def test_tied_weights_appear_once() -> None:
    _, tied, _ = built("qwen2")
    assert not any(line.startswith("lm_head") for line in vector.tensors(tied))
    assert vector.tensors(tied)[0] == "model.embed_tokens.weight 264x32"


def test_a_layout_of_another_model_is_refused() -> None:
    _, made, layout = built("llama")
    lines = vector.tensors(made)
    for wrong in (lines[:-1], [*lines, "extra 3"], [lines[0].replace("264", "265"), *lines[1:]]):
        with pytest.raises(Refused, match="tensor "):
            vector.bind(made, Layout.of([parse_tensor(line) for line in wrong], 1), "cpu")
    vector.bind(made, layout, "cpu")


def test_digest_is_of_the_little_endian_bytes() -> None:
    values = [0.0, -0.0, 1.5, -2.25]
    assert vector.digest(torch.tensor(values)) == hashlib.sha256(struct.pack("<4f", *values)).hexdigest()
    assert vector.digest(torch.tensor(values).view(2, 2).T) == hashlib.sha256(struct.pack("<4f", 0.0, 1.5, -0.0, -2.25)).hexdigest()
    assert vector.digest(torch.zeros(0)) == hashlib.sha256(b"").hexdigest()
