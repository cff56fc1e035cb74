"""Tiny real models, rules and text for the tests of the data side."""

import json
import pydoc_data.topics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from protocols import TREATY
from protocols.layout import Layout, parse_tensor
from protocols.rules import Averaging, Codec, Inner, Model, Outer, RunRules, Tokenizer
from protocols.schedule import Schedule
from tapestryd.training import model, vector
from tapestryd.training.data import Corpus, open_corpus
from tapestryd.training.exclusion import Exclusion
from tapestryd.training.sources import find
from tapestryd.training.text import Bytes
from tapestryd.training.tokens import Reader

CONFIGS: dict[str, dict[str, object]] = {
    "llama": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 264, "max_position_embeddings": 256,
    },
    "qwen2": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 264, "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 264, "n_positions": 256, "bos_token_id": 256,
        "eos_token_id": 256,
    },
    "gemma": {
        "model_type": "gemma", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 264,
    },
}  # fmt: skip

INNER = Inner(
    optimizer="adamw8bit", lr="0.003", beta1="0.9", beta2="0.95", weight_decay="0.1", clip_norm="1.0", sequences=4, tokens=32,
    warmup_rounds=2, decay_rounds=100, final_ratio="0.1",
)  # fmt: skip


def built(name: str = "llama", fragments: int = 2, seed: int = 0) -> tuple[str, nn.Module, Layout]:
    """(config, fresh model, its layout)."""
    config = json.dumps(CONFIGS[name])
    made = model.fresh(config, seed)
    return config, made, Layout.of([parse_tensor(line) for line in vector.tensors(made)], fragments)


def rules(name: str = "llama", fragments: int = 2, **inner: object) -> RunRules:
    config, made, layout = built(name, fragments)
    theta = vector.bind(made, layout, "cpu")
    return RunRules(
        treaty=TREATY, name="tiny", membership="open", members=(),
        model=Model(config, tuple(vector.tensors(made)), vector.digest(theta)),
        tokenizer=Tokenizer("bytes", ""), schedule=Schedule(0, 3000, 3000), inner=replace(INNER, **inner),
        outer=Outer("1.0", "0.5"), codec=Codec(8, 8, 256), averaging=Averaging(fragments, "mean", "uniform", 2, "0.5"),
    )  # fmt: skip


def genesis(name: str = "llama", fragments: int = 2) -> torch.Tensor:
    _, made, layout = built(name, fragments)
    return vector.bind(made, layout, "cpu")


def opened(
    paths: Iterable[Path], cache: Path, tokens: int = 32, seed: int = 0, alive: Callable[[], None] = lambda: None
) -> Corpus:  # fmt: skip
    """The corpus of all text under `paths`, as bytes; nothing of it declared or excluded."""
    reader = Reader(Bytes(), "text", Exclusion(()), cache, alive)
    return open_corpus(dict.fromkeys(find(paths), ""), reader, tokens=tokens, seed=seed)


def write_text(folder: Path, characters: int = 100_000) -> Path:
    """Real prose that comes with Python, as one .txt file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    prose = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    (folder / "topics.txt").write_text(prose[:characters])
    return folder
