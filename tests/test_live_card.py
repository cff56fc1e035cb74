"""Daemons whose trainers are on a CUDA device, in their boxes, beside one on the CPU: one base, and a card that is given back."""

import json
import pydoc_data.topics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapestryd.host.box import trouble
from tests.living import CONFIG, Peer, digests_by_height, found

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(280)]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[list[Peer]]:
    text = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for i, device in enumerate(("auto", "cuda:0", "cpu")):
        data = tmp_path / "data" / str(i)
        data.mkdir(parents=True)
        (data / "prose.txt").write_text(text[i * 100_000 : (i + 1) * 100_000])
        peers.append(Peer(tmp_path / f"peer{i}", [data], device=device))
    yield peers
    for peer in peers:
        peer.end()


def on_the_card() -> set[int]:
    """Processes that hold memory of it, as the driver says."""
    words = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    return {int(line) for line in subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split()}


def share(peer: Peer) -> None:
    """Each is the other's "other GPU process"."""
    with (peer.folder / "trainer.toml").open("a") as file:
        file.write('[schedule]\nother_gpu_process = "run"\n')


def within(seconds: float, good: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := bool(good())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return met


def test_cards_and_processors_train_one_base(swarm: list[Peer], tmp_path: Path) -> None:
    one, two, three = swarm
    before = on_the_card()
    toml = found(tmp_path / "founder", "--train", "3", "--average", "3")
    for peer in (one, two):
        share(peer)
    one.start(str(toml))
    invite = one.invite()
    two.start(invite)
    three.start(invite)
    for peer in swarm:
        peer.height(3, 180)
        peer.wait("a round of its own", lambda s: s["averaging"]["last"] and s["averaging"]["last"]["steps"] > 0, 60)
    trainers = [peer.status()["trainer"] for peer in swarm]
    assert [trainer["device"] for trainer in trainers] == ["cuda", "cuda", "cpu"]
    assert {trainer["optimizer"] for trainer in trainers} == {"adamw8bit"}
    assert [trainer["precision"] for trainer in trainers] == ["bf16", "bf16", "fp32"]
    digests = digests_by_height(swarm)
    assert len(digests) >= 3
    assert all(len(found) == 1 for found in digests.values()), digests
    if not trouble():
        for peer in swarm:
            isolation = peer.status()["isolation"]
            assert isolation["method"] == "namespaces"
            assert set(isolation["checks"].values()) <= {"held", "untried"}, isolation
    assert len(on_the_card() - before) == 2

    # Paused, the card is another's: no process of ours, none of its memory.
    command = [sys.executable, "-m", "tapestryd.cli", "--socket", str(two.folder / "api.sock")]
    assert subprocess.run([*command, "pause"], timeout=60).returncode == 0
    two.wait("the trainer let go", lambda s: s["trainer"]["state"] == "released", 60)
    assert within(20, lambda: len(on_the_card() - before) == 1)
    assert subprocess.run([*command, "resume"], timeout=60).returncode == 0
    two.wait("training", lambda s: s["trainer"]["state"] == "training", 60)
    assert within(20, lambda: len(on_the_card() - before) == 2)
    checked = subprocess.run(
        [*command, "--json", "doctor", "--config", str(two.folder / "tapestryd.toml")], capture_output=True, timeout=120
    )
    assert [each["verdict"] for each in json.loads(checked.stdout)["findings"] if each["name"] == "gpu"] == ["good"], checked.stdout

    # Killed, and ended: nothing is left on it.
    one.kill()
    assert one.gone()
    assert two.term() == 0
    assert two.gone()
    assert within(20, lambda: on_the_card() <= before)


def test_a_card_too_small_is_one_sentence(tmp_path: Path, swarm: list[Peer]) -> None:
    """Not even one window fits, for what it says of a million tokens: each trainer says so, and the daemons live."""
    two = swarm[:2]
    config = {**CONFIG, "max_position_embeddings": 65_536, "vocab_size": 1_000_000, "tie_word_embeddings": True}
    toml = found(tmp_path / "founder", "--train", "3", "--average", "3", "--sequences", "2", "--tokens", "65536", config=config)
    for peer in two:
        share(peer)
    two[0].start(str(toml))
    two[1].start(two[0].invite())
    for peer in two:
        peer.wait("its sentence", lambda s: any("not enough memory" in said for said in s["health"]), 120)
    for peer in two:
        assert "out of memory" in peer.log()
        assert "Traceback" not in peer.log()
        assert peer.term() == 0
