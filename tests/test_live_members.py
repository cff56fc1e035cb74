"""Daemons of a run of named Members, as partners would start them: undelegated they wait and say why; delegated they commit."""

import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.rules import RunRules
from tests.living import PLAIN, Peer, digests_by_height, found


def member(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "tapestryd.cli", "member", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_who_is_delegated_while_running_begins_to_train(tmp_path: Path) -> None:
    """North and south; a third machine has the invite and nobody's word for it."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for i, name in enumerate(("north", "south", "stranger")):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "prose.txt").write_text(text[i * 100_000 : (i + 1) * 100_000])
        peers.append(Peer(tmp_path / name, [tmp_path / "data" / name]))
    north, south, stranger = peers
    ids = [member(tmp_path, "new", f"{peer.folder.name}.key").strip() for peer in (north, south)]
    toml = found(tmp_path / "founder", *PLAIN, "--train", "3", "--average", "4", "--member", ids[0], "--member", ids[1])
    rules = RunRules.from_toml(toml.read_text())
    assert rules.members == tuple(sorted(ids))
    try:
        north.start(str(toml), f"run.delegation={north.folder / 'delegation.json'}")
        invite = north.invite()
        south.start(invite, f"run.delegation={south.folder / 'delegation.json'}")
        stranger.start(invite)
        for peer in peers:
            status = peer.wait("not_delegated", lambda s: "not_delegated" in s["reasons"], 60)
            node = status["self"]["peer_id"]
            (told,) = [line for line in status["health"] if "delegate" in line]
            assert f"tapestry member delegate --key KEY --run {rules.run_id} --node {node} " in told
        for peer in (north, south):
            node, key, out = peer.status()["self"]["peer_id"], f"{peer.folder.name}.key", str(peer.folder / "delegation.json")
            member(tmp_path, "delegate", "--key", key, "--run", str(toml), "--node", node, "-o", out)
        for peer in (north, south):
            status = peer.height(2, 120)
            assert status["health"] == []
        assert all(len(digests) == 1 for digests in digests_by_height([north, south]).values())
        status = stranger.status()
        assert "not_delegated" in status["reasons"]
        assert [(peer["peer_id"], peer["member"]) for peer in north.status()["peers"]] == [(south.status()["self"]["peer_id"], ids[1])]
    finally:
        for peer in peers:
            peer.end()
