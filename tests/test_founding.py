"""What a run is founded with when nobody says otherwise, and that a founder can say otherwise."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from protocols.rules import Averaging, Codec, RunRules
from tapestryd.errors import ConfigFault
from tapestryd.founding import adopt, found, main, parser
from tapestryd.host.state import StateDir
from tests.living import CONFIG


def founded(folder: Path, *options: str, config: dict[str, Any] = CONFIG) -> RunRules:
    (folder / "config.json").write_text(json.dumps(config))
    words = [str(folder / "run"), "--model", str(folder / "config.json"), "--name", "test", "--tokens", "128", *options]
    made = found(parser().parse_args(words))
    assert RunRules.from_toml((folder / "run" / "run.toml").read_text()) == made
    return made


def test_a_run_clips_and_sends_8_bits(tmp_path: Path) -> None:
    made = founded(tmp_path)
    assert made.codec == Codec(8, 8, 256)
    assert made.averaging == Averaging(4, "clipped", "uniform", 2, "0.5")


def test_what_was_founded_is_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    out = tmp_path / "run"
    assert main([str(out), "--model", str(tmp_path / "config.json"), "--name", "bär", "--tokens", "128", "--train", "20", "--json"]) == 0
    said = capsys.readouterr().out
    made = RunRules.from_toml((out / "run.toml").read_text())
    assert "bär" in said
    assert json.loads(said) == {
        "schema": 1, "run": made.run_id, "name": "bär", "rules": str(out / "run.toml"), "elements": made.layout().elements, "fragments": 4,
        "period_s": made.schedule.period_ms / 1000,
    }  # fmt: skip


def test_the_founder_chooses(tmp_path: Path) -> None:
    made = founded(tmp_path, "--up", "4", "--down", "4", "--aggregation", "median", "--weighting", "steps")
    assert made.codec == Codec(4, 4, 256)
    assert (made.averaging.aggregation, made.averaging.weighting) == ("median", "steps")


@pytest.mark.parametrize("option", [("--up", "2"), ("--aggregation", "krum"), ("--weighting", "tokens")])
def test_what_is_not_offered_is_refused_at_once(tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        founded(tmp_path, *option)
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--tokens", "129"), "at most 128"),
        (("--train", "nan"), "seconds above 0"),
        (("--average", "inf"), "seconds above 0"),
        (("--train", "-1"), "seconds above 0"),
        (("--seed", "9" * 30), "whole number"),
        (("--tokenizer", "absent.json"), "absent.json: No such file"),
        (("--fragments", "0"), "no such run can be"),
        (("--member", "x"), "no such run can be"),
    ],
)
def test_what_cannot_be_founded_is_one_sentence(
    tmp_path: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    words = [str(tmp_path / "run"), "--model", str(tmp_path / "config.json"), "--name", "test", "--tokens", "128", *options]
    try:
        code = main(words)
    except SystemExit as usage:
        code = usage.code
    assert code in (1, 2)
    assert sentence in capsys.readouterr().err


def test_no_run_is_founded_with_words_that_not_all_text_has(tmp_path: Path) -> None:
    few = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="[UNK]"))
    few.save(str(tmp_path / "few.json"))
    with pytest.raises(ConfigFault, match=r"few\.json: this tokenizer\.json cannot encode all text"):
        founded(tmp_path, "--tokenizer", str(tmp_path / "few.json"))


def test_weights_of_another_format_are_not_passed_over(tmp_path: Path) -> None:
    """A run from a random model instead would be a surprise."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigFault, match=r"no \*\.safetensors; pickled weights"):
        founded(tmp_path, "--model", str(tmp_path))


def test_weights_need_the_tokenizer_that_they_were_trained_with(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigFault, match=r"tokenizer\.json is missing"):
        founded(tmp_path, "--model", str(tmp_path))


def test_the_end_of_a_document_is_the_configurations(tmp_path: Path) -> None:
    """As every trainer takes it: an id that nobody could guess, or one that the tokenizer does not have."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "the end": 1}, merges=[]))
    words.save(str(tmp_path / "words.json"))
    tokenizer = ("--tokenizer", str(tmp_path / "words.json"))
    with pytest.raises(ConfigFault, match="no end-of-document token"):
        founded(tmp_path, *tokenizer)
    with pytest.raises(ConfigFault, match="no end-of-document token"):
        founded(tmp_path, *tokenizer, config=CONFIG | {"eos_token_id": 2})
    assert founded(tmp_path, *tokenizer, config=CONFIG | {"eos_token_id": 1}).tokenizer.kind == "file"


def test_a_folder_that_may_not_be_made_is_said_before_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert main([str(tmp_path / "file" / "run"), "--model", str(tmp_path / "config.json"), "--name", "test"]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_founders_folder_without_its_genesis_is_said(tmp_path: Path) -> None:
    founded(tmp_path)
    (tmp_path / "run" / "genesis.base").unlink()
    with closing(StateDir(tmp_path / "state")) as state, pytest.raises(ConfigFault, match=r"genesis\.base is missing"):
        adopt(tmp_path / "run" / "run.toml", state)
