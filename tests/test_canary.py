"""`tapestry audit canary` as its operator runs it: on a real model and real text, with and without differential privacy."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import pytest

from protocols.rules import RunRules
from tapestryd import canary
from tapestryd.canary import CANDIDATES, EACH, TIMES, sample, sentence
from tapestryd.training import model
from tests.living import found
from tests.training.tiny import write_text

END = 256


class Operator:
    """A run, its base exported, and text."""

    def __init__(self, root: Path) -> None:
        self.rules = found(root)
        self.base = root / "base"
        rules = RunRules.from_toml(self.rules.read_text())
        model.fresh(rules.model.config, 0).save_pretrained(self.base)  # type: ignore[operator]
        write_text(root / "data", 20_000)
        self.config = root / "trainer.toml"
        self.config.write_text(
            'schema_version = 1\n[data]\npaths = ["data"]\n[compute]\nthreads = 1\ndevice = "cpu"\n'
            "[privacy]\nbatch = 64\nnoise_multiplier = 4.0\n"
        )

    def ask(self, *more: str) -> subprocess.CompletedProcess[str]:
        words = ["--run", str(self.rules), "--model", str(self.base), "--config", str(self.config), *more]
        return subprocess.run(
            [sys.executable, "-m", "tapestryd.cli", "audit", "canary", *words], capture_output=True, text=True, timeout=280, check=False
        )


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    return Operator(tmp_path_factory.mktemp("operator"))


def files(*documents: list[list[int]]) -> list[Iterator[Any]]:
    """Files of documents of ids, which come a document at a time."""
    return [iter([np.array([*ids, END], np.uint32) for ids in file]) for file in documents]


def test_a_sample_is_an_even_share_of_each_file() -> None:
    long, short = [[1] * 9] * 100, [[2] * 4]
    documents = sample(files(long, short, long), 205, END, Random(0))
    assert sum(ids.size for ids in documents) == pytest.approx(205 - len(documents), abs=2)
    assert sum(ids.size for ids in documents if ids[0] == 2) == 4
    assert not any((ids == END).any() for ids in documents)


def test_of_less_text_than_asked_for_a_sample_is_all() -> None:
    documents = sample(files([[1, 2], [3]], [], [[4, 5, 6]]), 10**9, END, Random(0))
    assert sorted(map(list, documents)) == [[1, 2], [3], [4, 5, 6]]


@pytest.mark.slow
def test_secrets_show_without_differential_privacy_and_not_with_it(operator: Operator) -> None:
    before = {path: path.stat().st_mtime_ns for path in operator.config.parent.rglob("*")}
    done = operator.ask("--json", "--tokens", "5000", "--passes", "6")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in operator.config.parent.rglob("*")} == before
    plain, private = (json.loads(done.stdout)["ways"][way] for way in ("plain", "private"))
    assert {len(values) for way in (plain, private) for values in way["exposures"].values()} == {EACH}
    known, hidden = ([mean(way["exposures"][str(times)]) for times in TIMES] for way in (plain, private))
    assert known[-1] > 10 > 4.5 > known[0]
    assert max(hidden[:-1]) < 4.5  # what stands there 64 times is 64 records, and one is what is hidden
    assert hidden[-1] < known[-1] - 3
    assert (plain["epsilon"], private["epsilon"]) == (None, pytest.approx(1, abs=0.9))
    assert plain["shows_from"] in TIMES[1:]
    assert private["shows_from"] in (None, 16, 64)


def test_what_is_said() -> None:
    ways = {"plain": way(None, 4, 11.0), "private": way(1.2345, None, 1.5)}
    found = {"tokens": 48_000, "passes": 4, "candidates": CANDIDATES, "delta": 1e-6, "ways": ways}
    assert "\n".join(canary.shown(found)) == (
        "48,000 tokens, 4 times over: 100 steps plain, 100 steps private\n"
        "\n"
        "planted     plain                          private\n"
        + "".join(
            f"{label:<12}11.00  ≤ 11.00  8 by heart      1.50  ≤  1.50\n"
            for label in ("never", "once", "4 times", "16 times", "64 times")
        )
        + "\nExposure in bits, mean and highest of 8: by chance 1.44, known by heart 11.\n"
        "Without differential privacy, a secret that stands in the text 4 times or more shows in the model.\n"
        "With it (epsilon 1.23 at delta 1e-06), nothing that was planted shows in the model, up to 64 times."
    )  # fmt: skip


def way(epsilon: float | None, shows_from: int | None, bits: float) -> dict[str, Any]:
    return {"steps": 100, "epsilon": epsilon, "shows_from": shows_from, "exposures": {times: [bits] * EACH for times in TIMES}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere.toml"], "nowhere.toml: No such file or directory; write it with: tapestry run show > run.toml"),
        (["--model", "nowhere"], "nowhere: "),
        (["--tokens", "many"], "argument --tokens: 'many': must be a whole number from 1000 to "),
    ],
)  # fmt: skip
def test_mistakes_are_a_sentence(operator: Operator, words: list[str], said: str) -> None:
    done = operator.ask(*words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_private_data_is_not_tried(operator: Operator, tmp_path: Path) -> None:
    write_text(tmp_path / "data", 2000)
    (tmp_path / "data" / "tapestry-data.toml").write_text('schema_version = 1\nclass = "private"\n')
    config = tmp_path / "trainer.toml"
    config.write_text(operator.config.read_text())
    done = operator.ask("--config", str(config))
    assert (done.returncode, done.stdout) == (1, "")
    assert "private" in done.stderr


def test_once_is_a_word() -> None:
    assert sentence("plain", way(None, 1, 3.0), 1e-6).endswith("stands in the text once or more shows in the model.")
