"""Hugging Face configurations and checkpoints: real tiny architectures, made here."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tapestryd.errors import ConfigFault, StateFault
from tapestryd.training import model, vector
from tests.training.tiny import CONFIGS, built


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    config, made, layout = built("llama")
    model.export(tmp_path / "out", config=config, theta=vector.bind(made, layout, "cpu"), layout=layout, tokenizer=None, card="# Tiny\n")
    return tmp_path / "out"


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_loads_with_transformers_and_with_us(name: str, tmp_path: Path) -> None:
    config, made, layout = built(name)
    theta = vector.bind(made, layout, "cpu")
    model.export(tmp_path / "out", config=config, theta=theta, layout=layout, tokenizer=None, card="# Tiny\n")
    ours = model.load(tmp_path / "out")
    assert torch.equal(vector.bind(ours, layout, "cpu"), theta)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(made.eval()(ids).logits, theirs.eval()(ids).logits)
    assert (tmp_path / "out" / "README.md").read_text() == "# Tiny\n"
    assert not (tmp_path / "out.partial").exists()
    read = model.read_config(tmp_path / "out")
    assert read == model.read_config(tmp_path / "out" / "config.json")
    assert vector.tensors(model.build(read)) == vector.tensors(made)


def test_the_bytes_tokenizer_gives_bytes(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    text = "Grüße, 世界!\n  two\ttabs \x00 and 🎉"
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer("a<|endoftext|>b").input_ids == [97, 256, 98]
    assert tokenizer.eos_token_id == model.END == 256
    assert model.bytes_tokenizer().encode("".join(map(chr, range(256)))).ids == list("".join(map(chr, range(256))).encode())


def test_a_tokenizer_file_is_copied(tmp_path: Path) -> None:
    config, made, layout = built("llama")
    model.bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    theta = vector.bind(made, layout, "cpu")
    model.export(tmp_path / "out", config=config, theta=theta, layout=layout, tokenizer=tmp_path / "tokenizer.json", card="")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)("ab").input_ids == [97, 98]


def test_an_export_never_overwrites(exported: Path) -> None:
    config, made, layout = built("llama")
    with pytest.raises(StateFault, match="exists"):
        model.export(exported, config=config, theta=vector.bind(made, layout, "cpu"), layout=layout, tokenizer=None, card="")


def test_fresh_depends_on_the_seed_alone() -> None:
    a, b, c = (built("llama", seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    digests = [vector.digest(vector.bind(made, layout, "cpu")) for _, made, layout in (a, b, c)]
    assert digests[0] == digests[1] != digests[2]
    model.fresh(a[0], 3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "not JSON"),
        ("[]", "model_type is needed"),
        ('{"hidden_size": 8}', "model_type is needed"),
        ('{"model_type": "no-such-model"}', "'no-such-model' cannot be built here"),
        ('{"model_type": "llama", "hidden_size": "many"}', "cannot be built here"),
        ('{"model_type": "vit"}', "cannot be built here"),
    ],
)
def test_a_config_that_cannot_be_built_is_a_sentence(config: str, says: str) -> None:
    with pytest.raises(ConfigFault, match=says):
        model.build(config)


def test_a_model_that_memory_is_too_small_for_is_no_fault_of_its_configuration() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        model.build(json.dumps(CONFIGS["llama"] | {"vocab_size": 10**13}))


def test_what_names_code_or_formats_is_dropped(tmp_path: Path) -> None:
    described = CONFIGS["llama"] | {
        "auto_map": {"AutoModelForCausalLM": "evil.Model"}, "_attn_implementation": "somebody/kernel", "attn_implementation": "x",
        "dtype": "bfloat16", "torch_dtype": "float16", "transformers_version": "9", "_name_or_path": "/home/me",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert json.loads(model.read_config(tmp_path)) == CONFIGS["llama"]
    made = model.build(json.dumps(described))
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"quantization_config": {}}))
    with pytest.raises(ConfigFault, match="quantized"):
        model.read_config(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_a_sentence(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="No such file"):
        model.load(tmp_path / "nowhere")
    half = tmp_path / "half"
    shutil.copytree(exported, half)
    (half / "model.safetensors").write_bytes((exported / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigFault, match="cannot be loaded"):
        model.load(half)
    (half / "model.safetensors").unlink()
    with pytest.raises(ConfigFault, match=r"no \*\.safetensors"):
        model.load(half)
    deeper = json.loads((exported / "config.json").read_text()) | {"num_hidden_layers": 3}
    (exported / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ConfigFault, match="tensors are missing"):
        model.load(exported)


def test_tensors_that_the_configuration_has_no_place_for_are_said(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where it says fewer layers than there are."""
    shallower = json.loads((exported / "config.json").read_text()) | {"num_hidden_layers": 1}
    (exported / "config.json").write_text(json.dumps(shallower))
    with caplog.at_level(logging.WARNING):
        model.load(exported)
    assert "9 tensors are not of the model that config.json describes: left out; the first is model.layers.1." in caplog.text


def test_weights_that_are_not_finite_are_a_sentence(exported: Path) -> None:
    tensors = load_file(exported / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, exported / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigFault, match=r"model\.norm\.weight holds numbers that are not finite"):
        model.load(exported)


def test_a_state_that_no_run_could_carry_is_a_sentence(tmp_path: Path) -> None:
    """DeepSeek's bias by which tokens are sent to experts is not learned from gradients: a buffer."""
    config = json.dumps(CONFIGS["llama"] | {
        "model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
        "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
        "first_k_dense_replace": 1,
    })  # fmt: skip
    made = model.fresh(config, 0)
    made.save_pretrained(tmp_path)  # type: ignore[operator]
    model.load(tmp_path)
    made.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias")[2] = 0.5
    made.save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ConfigFault, match="e_score_correction_bias is no parameter"):
        model.load(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_causal_model_is_one(name: str) -> None:
    model.causal(built(name)[1])


def test_a_model_that_sees_what_it_is_to_tell_is_a_sentence() -> None:
    bert = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 264,
    }
    model.causal(model.fresh(json.dumps(bert | {"is_decoder": True}), 0))
    with pytest.raises(ConfigFault, match="this bert model sees the token that it is to tell"):
        model.causal(model.fresh(json.dumps(bert), 0))


def test_a_model_that_changes_by_being_run_is_a_sentence() -> None:
    """RWKV halves its weights from the sixth layer on while it is evaluated, and would do so to the base."""
    rwkv = {"model_type": "rwkv", "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 7, "vocab_size": 264}
    model.causal(model.fresh(json.dumps(rwkv | {"rescale_every": 0}), 0))
    with pytest.raises(ConfigFault, match="this rwkv model changes its own parameters"):
        model.causal(model.fresh(json.dumps(rwkv), 0))


def test_a_model_that_needs_more_than_text_is_a_sentence() -> None:
    made = built("llama")[1]
    made.register_forward_pre_hook(lambda *given: torch.zeros(1)[2])
    with pytest.raises(ConfigFault, match="a llama model cannot be trained on text alone: index 2 is out of bounds"):
        model.causal(made)
