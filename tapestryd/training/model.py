"""Hugging Face configuration → model; load a checkpoint; export the Shared Base. Full models, any architecture.

A configuration may come from a stranger (it is part of the run rules), so only plain description passes: what
names code, kernels, files or number formats is dropped, code from a checkpoint is never run, and nothing is ever
fetched. Always float32: mixed precision is the trainer's, by autocast. Knows nothing of rounds or training.
Faults a user can cause are ConfigFault or StateFault sentences.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hub_logging

from protocols.layout import Layout
from tapestryd.errors import ConfigFault, StateFault, in_a_line, out_of_memory
from tapestryd.training.text import END
from tapestryd.training.vector import bind

log = logging.getLogger(__name__)

_END_TEXT = "<|endoftext|>"

_DROPPED = ("auto_map", "dtype", "torch_dtype", "transformers_version", "architectures", "trust_remote_code", "quantization_config")
"""Keys that do not describe the arithmetic. Names beginning with _ and attention choices (which may name a
kernel to download) go too: transformers then takes torch's fused attention, or the plain one where that is unsupported."""


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def read_config(path: Path) -> str:
    """A config.json, or the Hugging Face folder that holds one → its architecture as sorted JSON text.

    Raises ConfigFault: missing, not JSON, no model_type, or quantized weights (which cannot be trained on).
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        body = json.loads(file.read_bytes())
        described = json.dumps(_plain(body, str(file)), sort_keys=True)
    except OSError as error:
        raise ConfigFault(f"{file}: {error.strerror}; a model is described by a Hugging Face config.json") from None
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"{file}: not JSON ({error})") from None
    if "quantization_config" in body:
        raise ConfigFault(f"{file}: quantized weights cannot be trained; use the checkpoint in its full precision")
    return described


def build(config: str) -> nn.Module:
    """JSON text → float32 causal LM on the CPU with freshly initialised weights. Raises ConfigFault for what this
    version of transformers cannot build. Uses torch's global generator: see `fresh`."""
    try:
        body = _plain(json.loads(config), "model.config")
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"model.config: not JSON ({error})") from None
    kind = body.pop("model_type")
    try:
        described = AutoConfig.for_model(kind, **body)
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=False)
    except Exception as error:  # whatever a wrong description runs into inside an architecture
        if out_of_memory(error):
            raise
        raise ConfigFault(f"model.config: model_type {kind!r} cannot be built here: {in_a_line(error)}") from None
    return _full(model)


def fresh(config: str, seed: int) -> nn.Module:
    """`build` with weights that depend on `seed` and on nothing else of this process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


def weighted(folder: Path) -> bool:
    """Whether there are weights in it, of any format: also of one that `load` refuses."""
    return any(file.name.endswith(_WEIGHTS) for file in folder.iterdir())


def load(path: Path) -> nn.Module:
    """A local Hugging Face folder with safetensors → float32 model. What it holds that is not of the model is left out, with a
    warning. Raises ConfigFault: missing folder, file, shard or tensor; numbers that are not finite; a state beside the parameters that a
    fresh model does not have (the bias by which some route to experts): no run could carry it."""
    config = json.loads(read_config(path))
    if not any(path.glob("*.safetensors")):
        raise ConfigFault(f"{path}: no *.safetensors; pickled weights (.bin, .pt) are not read, convert them first")
    hub_logging.disable_progress_bar()
    noise = logging.getLogger("transformers.modeling_utils")
    noise.addFilter(_silent)  # it would print what we say in one sentence
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, config=AutoConfig.for_model(**config), local_files_only=True, trust_remote_code=False, use_safetensors=True,
            dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ConfigFault(f"{path}: cannot be loaded: {in_a_line(error)}") from None
    finally:
        noise.removeFilter(_silent)
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ConfigFault(f"{path}: {len(absent)} tensors are missing or of another shape, the first is {absent[0]}")
    if strange := sorted(report["unexpected_keys"]):
        log.warning(
            "%s: %d tensors are not of the model that config.json describes: left out; the first is %s", path, len(strange), strange[0]
        )
    full = _full(model)
    held = full.state_dict()
    for name, tensor in held.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigFault(f"{path}: {name} holds numbers that are not finite; the checkpoint is damaged, or its training diverged")
    buffers = [name for name, _ in full.named_buffers() if name in held]
    usual = build(json.dumps(config)).state_dict() if buffers else {}
    for name in buffers:
        if not torch.equal(held[name], usual[name]):
            raise ConfigFault(f"{path}: {name} is no parameter, and not what a fresh model has; only parameters are trained and averaged")
    return full


def export(out_dir: Path, *, config: str, theta: Tensor, layout: Layout, tokenizer: Path | None, card: str) -> None:
    """Write theta (n,) float32 as a Hugging Face folder: config.json, safetensors, tokenizer, README.md with `card`.

    `tokenizer`: a tokenizer.json, or None for bytes. Written beside and renamed: the folder is there whole or not at all.
    Needs about twice the vector's memory. Raises StateFault when `out_dir` exists or cannot be written.
    """
    if out_dir.exists():
        raise StateFault(f"{out_dir} exists; choose another folder for the export")
    model: Any = build(config)
    bind(model, layout, "cpu").copy_(theta)
    partial = out_dir.with_name(out_dir.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        hub_logging.disable_progress_bar()
        model.save_pretrained(partial)
        if tokenizer is None:
            bytes_tokenizer().save(str(partial / "tokenizer.json"))
        else:
            shutil.copyfile(tokenizer, partial / "tokenizer.json")
        special = {"eos_token": _END_TEXT} if tokenizer is None else {}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
        (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        (partial / "README.md").write_text(card)
        partial.rename(out_dir)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StateFault(f"{out_dir}: {error.strerror or error}; nothing was exported") from None


def bytes_tokenizer() -> Tokenizer:
    """The bytes tokenizer as a `tokenizers` one: every UTF-8 byte is its own id, 256 ends a document."""
    spelling = _byte_spelling()
    made = Tokenizer(models.BPE(vocab={spelling[byte]: byte for byte in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([_END_TEXT])
    assert made.token_to_id(_END_TEXT) == END
    return made


def _byte_spelling() -> list[str]:
    """GPT-2's printable stand-ins for bytes, which ByteLevel uses: printable Latin-1 is itself, the others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _plain(body: Any, where: str) -> dict[str, Any]:
    if not isinstance(body, dict) or not isinstance(body.get("model_type"), str):
        raise ConfigFault(f"{where}: a JSON object with a model_type is needed")
    cleaned: dict[str, Any] = _described(body)
    return cleaned


def _described(value: Any) -> Any:
    """`value` without the keys that do not describe arithmetic, at every depth (multimodal configurations nest)."""
    if isinstance(value, dict):
        return {
            key: _described(item)
            for key, item in value.items()
            if not key.startswith("_") and key not in _DROPPED and "attn_impl" not in key
        }
    return [_described(item) for item in value] if isinstance(value, list) else value


def _full(model: nn.Module) -> nn.Module:
    model.requires_grad_(True)
    return model.float()


def _silent(record: logging.LogRecord) -> bool:
    return False


def fits(model: Any, vocabulary: int, tokens: int) -> None:
    """Raises ConfigFault where the tokenizer's ids or a window's places are more than the model has."""
    rows = model.get_input_embeddings().num_embeddings
    if rows < vocabulary:
        raise ConfigFault(f"the model has {rows} token embeddings, the tokenizer {vocabulary} tokens")
    places = getattr(model.config, "max_position_embeddings", None)
    if isinstance(places, int) and places < tokens:
        raise ConfigFault(f"inner.tokens = {tokens}, but the model sees at most {places} tokens")


def causal(model: Any) -> None:
    """Raises ConfigFault where the model cannot be run, or what it says at a place depends on what follows (BERT's kind, unless its
    configuration says is_decoder): it would learn to copy; or where running it changes it (RWKV's, with rescale_every). Leaves it in
    eval mode."""
    ids = torch.arange(16)[None] % model.get_input_embeddings().num_embeddings
    changed = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    model.eval()
    versions = [parameter._version for parameter in model.parameters()]
    try:
        with torch.no_grad():
            told, other = (model(input_ids=line, use_cache=False).logits[:, :-1] for line in (ids, changed))
    except Exception as error:  # whatever an architecture misses in ids alone
        if out_of_memory(error):
            raise
        raise ConfigFault(f"a {model.config.model_type} model cannot be trained on text alone: {in_a_line(error)}") from None
    if versions != [parameter._version for parameter in model.parameters()]:
        raise ConfigFault(f"this {model.config.model_type} model changes its own parameters when it is run; a base has to stay as it is")
    if bool((told - other).abs().max() > 1e-4 * told.std()):
        raise ConfigFault(f"this {model.config.model_type} model sees the token that it is to tell: no causal language model")


def end_of(config: str) -> int | None:
    """The model configuration's end-of-document id; the first where it lists several."""
    end = json.loads(config).get("eos_token_id")
    first = end[0] if isinstance(end, list) and end else end
    return first if type(first) is int else None
