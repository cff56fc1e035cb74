"""Real daemons whose trainers let nothing go, and then do: what people see of it, and what the ledger and its witness say."""

import json
import pydoc_data.topics
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.living import PLAIN, Peer, found

STRICT = {"TAPESTRY_TRAINER_RELEASE__MIN_STEPS": "1000000"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Peer]]:
    text = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for i, name in enumerate(("open", "strict")):
        data = tmp_path / "data" / name
        data.mkdir(parents=True)
        (data / "prose.txt").write_text(text[i * 100_000 : (i + 1) * 100_000])
        peers.append(Peer(tmp_path / name, [data], environment=STRICT if name == "strict" else None))
    yield peers
    for peer in peers:
        peer.end()


def tapestry(*words: str) -> str:
    command = [sys.executable, "-m", "tapestryd.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def audit(peer: Peer) -> dict[str, Any]:
    words = ["audit", "--verify", "--json", "--ledger", str(peer.folder / "trainer" / "ledger")]
    witness = peer.folder / "state" / "witness.json"
    return dict(json.loads(tapestry(*words, *(["--witness", str(witness)] if witness.exists() else []))))


@pytest.mark.timeout(600)
def test_what_is_withheld_is_seen_and_what_leaves_is_written_down(pair: list[Peer], tmp_path: Path) -> None:
    free, strict = pair
    toml = found(tmp_path / "founder", *PLAIN, "--train", "3", "--average", "3")
    free.start(str(toml))
    strict.start(free.invite())

    seen = strict.wait("two withheld deltas", lambda s: s["trainer"]["withheld"] >= 2, 90)
    kept = "the last delta was withheld: fewer local steps behind it than release.min_steps of trainer.toml"
    assert kept in seen["health"]
    socket = str(strict.folder / "api.sock")
    assert re.search(r"discarded .* withheld$", tapestry("--socket", socket, "rounds"), re.MULTILINE)
    assert re.search(r"   \d+ withheld", tapestry("--socket", socket, "status"))
    assert strict.term() == 0
    books = audit(strict)
    assert (books["released"], books["verified"]) == ([], True)
    assert books["totals"]["withheld"] == {"few_steps": len(books["withheld"])}
    assert not (strict.folder / "state" / "witness.json").exists()

    strict.environment = {name: value for name, value in strict.environment.items() if name not in STRICT}
    strict.start()
    strict.height(2, 90)
    assert kept not in strict.status()["health"]
    for peer in pair:
        assert peer.term() == 0
        books = audit(peer)
        (stories,) = (peer.folder / "state" / "runs").glob("*/rounds.jsonl")
        told = map(json.loads, stories.read_text().splitlines())
        committed = {story["round"] for story in told if story["result"] == "committed"}
        assert committed <= {one["round"] for one in books["released"]}
        assert "agrees" in books["witness"]
