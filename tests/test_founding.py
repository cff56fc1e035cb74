"""What a run is founded with when nobody says otherwise, and that a founder can say otherwise."""

import json
from pathlib import Path

import pytest

from protocols.rules import Averaging, Codec, RunRules
from tapestryd.founding import found, parser
from tests.living import CONFIG


def founded(folder: Path, *options: str) -> RunRules:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    made = found(parser().parse_args([str(folder / "run"), "--model", str(folder / "config.json"), "--name", "test", *options]))
    assert RunRules.from_toml((folder / "run" / "run.toml").read_text()) == made
    return made


def test_a_run_clips_and_sends_8_bits(tmp_path: Path) -> None:
    made = founded(tmp_path)
    assert made.codec == Codec(8, 8, 256)
    assert made.averaging == Averaging(4, "clipped", "uniform", 2, "0.5")


def test_the_founder_chooses(tmp_path: Path) -> None:
    made = founded(tmp_path, "--up", "4", "--down", "4", "--aggregation", "median", "--weighting", "steps")
    assert made.codec == Codec(4, 4, 256)
    assert (made.averaging.aggregation, made.averaging.weighting) == ("median", "steps")


@pytest.mark.parametrize("option", [("--up", "2"), ("--aggregation", "krum"), ("--weighting", "tokens")])
def test_what_is_not_offered_is_refused_at_once(tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        founded(tmp_path, *option)
    assert "invalid choice" in capsys.readouterr().err
