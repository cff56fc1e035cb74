"""Three daemons as a partner would start them: join by invite, commit, die, come back, leave."""

import pydoc_data.topics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from protocols.rules import RunRules
from tests.living import Peer, digests_by_height, found
from tests.training.tiny import opened

REGIONS = ("north", "south", "west")


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[list[Peer]]:
    text = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for i, region in enumerate(REGIONS):
        data = tmp_path / "data" / region
        data.mkdir(parents=True)
        (data / "prose.txt").write_text(text[i * 100_000 : (i + 1) * 100_000])
        peers.append(Peer(tmp_path / region, [data]))
    yield peers
    for peer in peers:
        peer.end()


def cli(peer: Peer, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tapestryd.cli", "--socket", str(peer.folder / "api.sock"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.timeout(1800)
def test_a_swarm_commits_survives_and_ends(swarm: list[Peer], tmp_path: Path) -> None:
    one, two, three = swarm
    toml = found(tmp_path / "founder", "--train", "3", "--average", "3")
    rules = RunRules.from_toml(toml.read_text())
    one.start(str(toml))
    invite = one.invite()
    two.start(invite)
    three.start(invite)

    # All commit the same bases; the joiners had nothing but the invite.
    for peer in swarm:
        peer.height(2, 300)
    assert (two.folder / "state/runs" / rules.run_id / "rules.json").read_bytes() == rules.canonical()
    assert cli(two, "wait", "--for", "round=2", "--timeout", "5s").returncode == 0
    assert "held-out loss" in cli(one, "status").stdout

    # kill -9 in the middle of a round: its p2pd and trainer go with it, the others commit on.
    three.wait("averaging", lambda s: s["run"]["phase"] in ("gathering", "reducing", "settling", "stopping"), 300)
    three.kill()
    height = one.status()["run"]["height"]
    one.height(height + 2, 300)
    two.height(height + 2, 300)
    assert three.gone()

    # It comes back by itself, replays what it missed, and takes part again.
    three.start()
    back = three.height(height + 2, 300)
    assert back["run"]["id"] == rules.run_id
    three.wait("a committed round", lambda s: (s["averaging"]["last"] or {}).get("result") == "committed", 60)
    assert "replayed" in {story["result"] for story in three.rounds()}

    # Paused: no more local steps, and no part in rounds. Resumed: both again.
    assert cli(two, "pause").returncode == 0
    paused = two.wait("paused", lambda s: s["state"] == "paused", 300)
    one.height(paused["run"]["height"] + 2, 300)
    two.wait("the trainer let go", lambda s: s["trainer"]["state"] == "released", 300)
    assert cli(two, "resume").returncode == 0
    two.height(paused["run"]["height"] + 2, 300)

    check_export(one, rules, tmp_path)

    # SIGTERM is clean, and nobody waits for who left.
    assert two.term() == 0
    assert two.processes() == []
    gone = one.status()["run"]["height"]
    one.height(gone + 2, 300)
    three.height(gone + 2, 300)

    by_height = digests_by_height([one, three])
    assert len(by_height) >= gone + 2
    assert all(len(digests) == 1 for digests in by_height.values()), by_height
    for peer in (one, three):
        assert cli(peer, "shutdown").returncode == 0
        assert peer.process is not None
        assert peer.process.wait(30) == 0
        assert peer.processes() == []


def check_export(peer: Peer, rules: RunRules, tmp_path: Path) -> None:
    """What transformers loads has the loss that status reports for the same base on the same text."""
    cli(peer, "pause")
    status = peer.wait(
        "paused with its evaluation", lambda s: s["state"] == "paused" and s["trainer"]["heldout"]["height"] == s["run"]["height"], 30
    )
    done = cli(peer, "export", str(tmp_path / "export"))
    assert done.returncode == 0, done.stderr
    cli(peer, "resume")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer.encode("tapestry") == list(b"tapestry")
    card = (tmp_path / "export" / "README.md").read_text()
    assert status["run"]["base_digest"] in card
    assert rules.run_id in card
    assert heldout_loss(model, peer.folder.parent / "data" / peer.folder.name, rules, 2048) == pytest.approx(
        status["trainer"]["heldout"]["loss"], abs=1e-4
    )


def heldout_loss(model: torch.nn.Module, data: Path, rules: RunRules, tokens: int) -> float:
    """Mean loss in nats per token of a Hugging Face model on the text that a trainer holds out of `data`."""
    cache = data.parent / "cache"
    cache.mkdir(exist_ok=True)
    corpus = opened([data], cache, rules.inner.tokens)
    model.eval()
    total, seen = 0.0, 0
    with torch.no_grad():
        for window in corpus.heldout(tokens):
            logits = model(input_ids=window[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits.float(), window[1:], reduction="sum").item()
            seen += window.numel() - 1
    return total / seen
