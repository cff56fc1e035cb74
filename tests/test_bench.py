"""`tapestry bench` as its operator runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.rules import RunRules
from tapestryd.bench import shown
from tapestryd.exchange import offer_bytes, part_bytes
from tests.living import found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found(tmp_path_factory.mktemp("run"))


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tapestryd.cli", "bench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def settings(folder: Path, device: str) -> Path:
    (folder / "trainer.toml").write_text(f'schema_version = 1\n[compute]\nthreads = 1\ndevice = "{device}"\n')
    return folder / "trainer.toml"


def test_what_this_machine_would_bring(run: Path, tmp_path: Path) -> None:
    done = bench(run, "--config", settings(tmp_path, "cpu"), "--seconds", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    said, rules = json.loads(done.stdout), RunRules.from_toml(run.read_text())
    assert (said["schema"], said["run"], said["elements"]) == (1, rules.run_id, rules.layout().elements)
    assert said["device"].startswith("compute.device = cpu")
    assert 0 < said["step_s"]["min"] <= said["step_s"]["median"] <= said["step_s"]["max"]
    assert said["step_s"]["min"] * said["steps"] < 60
    tokens = rules.inner.sequences * rules.inner.tokens
    assert said["tokens_per_second"] == pytest.approx(tokens / said["step_s"]["median"])
    assert said["steps_per_round"] == int(rules.schedule.train_ms / 1000 / said["step_s"]["median"])
    largest = max(stop - start for start, stop in rules.layout().bounds)
    assert said["round_bytes"] == {"up": offer_bytes(rules, largest), "down": part_bytes(rules, largest)}
    assert said["memory_bytes"] > 4 * 3 * said["elements"]


def test_on_a_screen() -> None:
    assert shown(
        {
            "name": "first", "run": "ab" * 32, "elements": 10_000_000, "device": "auto: cuda (a card); bf16", "optimizer": "8-bit AdamW",
            "steps": 40, "step_s": {"median": 0.5, "min": 0.49, "max": 0.61}, "tokens_per_second": 16_384.0, "steps_per_round": 600,
            "memory_bytes": 3 << 30, "offer_s": 0.25, "round_bytes": {"up": 2_500_000, "down": 2_500_000}, "train_s": 300, "average_s": 60,
        }
    ) == [
        "Run        first   abababababab   10M parameters",
        "Device     auto: cuda (a card); bf16   8-bit AdamW",
        "Trains     16.4k tokens/s   0.5 s a step, 0.49 to 0.61 over 40   600 steps in the 5m of a round",
        "Memory     3.0 GiB",
        "Averages   encoded in 0.25 s   at most 4.8 MiB each way in 1m: 0.667 Mbit/s or more",
    ]  # fmt: skip


def test_mistakes_are_a_sentence(run: Path, tmp_path: Path) -> None:
    for words, said in [
        (["nowhere.toml"], "nowhere.toml: No such file or directory; write it with: tapestry run show > run.toml"),
        ([run, "--seconds", "0"], "'0': must be a number of seconds above 0"),
        ([run, "--config", settings(tmp_path, "warp")], "compute.device = 'warp': must be auto, cpu, cuda, cuda:N or mps"),
    ]:
        done = bench(*words)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
