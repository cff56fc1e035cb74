"""A running daemon, boxed where this machine can, takes up another configuration; a wrong one costs nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd.errors import LocalFault
from tests.living import Peer


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    (tmp_path / "data").mkdir()
    peer = Peer(tmp_path / "peer", [tmp_path / "data"])
    yield peer
    peer.end()


def test_another_file_is_taken_up_and_a_wrong_one_is_not(peer: Peer) -> None:
    peer.start()
    peer.wait("idle", lambda s: s["state"] == "idle", 60)
    file = peer.folder / "tapestryd.toml"
    first = file.read_text()
    assert peer.process is not None

    def replaced(text: str) -> None:
        """As editors do: another file under the same name."""
        (peer.folder / "new").write_text(text)
        (peer.folder / "new").rename(file)

    replaced(first.replace('name = "peer"', 'name = "aspen"'))
    peer.process.send_signal(signal.SIGHUP)
    peer.wait("another name", lambda s: s["self"]["name"] == "aspen", 30)
    replaced(first.replace('name = "peer"', 'name = "birch"').replace("snapshot_every = 4", "snapshot_every = 0"))
    peer.process.send_signal(signal.SIGHUP)
    health = peer.wait("a sentence", lambda s: s["health"], 30)["health"]
    assert any("the old one holds" in said and "storage.snapshot_every = 0: must be from 1" in said for said in health)
    with pytest.raises(LocalFault, match="snapshot_every = 0"):
        peer.client.ask("POST", "/v1/reload", {})
    assert peer.status()["self"]["name"] == "aspen"
    replaced(first.replace('name = "peer"', 'name = "birch"'))
    (peer.folder / "tapestryd.toml.d").mkdir()
    (peer.folder / "tapestryd.toml.d" / "a.toml").write_text("[storage]\nsnapshot_every = 9\n")
    said = peer.client.ask("POST", "/v1/reload", {})
    assert (said["changed"], said["restart"]) == (["node.name"], ["storage.snapshot_every"])
    assert peer.wait("all well", lambda s: not any("the old one" in said for said in s["health"]), 30)["self"]["name"] == "birch"
    settings = {one["key"]: one for one in peer.client.ask("GET", "/v1/config")["settings"]}
    assert settings["node.name"]["origin"] == str(file)
    assert settings["storage.snapshot_every"]["value"] == 4
    assert peer.term() == 0
