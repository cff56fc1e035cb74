"""Whose text each peer of a demo has."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd.demo import regions
from tapestryd.demo.regions import LEAST_BYTES, TEXT_BYTES, Region
from tapestryd.demo.swarm import Swarm, invite_of, last_words
from tapestryd.errors import LocalFault
from tapestryd.layers import files_at, load_daemon, load_trainer
from tapestryd.settings import SOCKET_PATH_BYTES


@pytest.mark.parametrize(("peers", "names"), [
    (2, ["prose", "library"]),
    (3, ["prose", "library", "headers"]),
    (5, ["prose-1", "prose-2", "library-1", "library-2", "headers"]),
])  # fmt: skip
def test_every_peer_has_text_of_its_own(peers: int, names: list[str], tmp_path: Path) -> None:
    found = regions.from_python(peers, tmp_path)
    assert [region.name.replace("notices", "headers") for region in found] == names
    texts = [(region.data / "text.txt").read_bytes() for region in found]
    assert all(LEAST_BYTES <= len(text) <= TEXT_BYTES for text in texts)
    openings = [text[: len(text) // 20].split(b"\n\n") for text in texts]
    for place, text in enumerate(texts):
        others = [part for other, parts in enumerate(openings) if other != place for part in parts if len(part) > 600]
        assert others
        assert not any(part in text for part in others)


def test_as_many_peers_as_are_allowed_have_text(tmp_path: Path) -> None:
    found = regions.from_python(regions.PEERS, tmp_path)
    assert len({region.name for region in found}) == regions.PEERS


def test_without_headers_there_are_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_headers", lambda most: [b"#define NOTHING"])
    *_, last = regions.from_python(3, tmp_path)
    assert last.name == "notices"
    assert b"License" in (last.data / "text.txt").read_bytes()


def test_a_python_without_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_source", lambda most: [])
    with pytest.raises(LocalFault, match="holds too little text for 2 peers"):
        regions.from_python(2, tmp_path)


def test_folders_keep_their_names_and_same_names_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/Kiswahili", "b/Kiswahili", "հայերեն", "two words; rm -rf")]
    for folder in folders:
        folder.mkdir(parents=True)
    found = regions.from_folders(folders)
    assert [region.name for region in found] == ["Kiswahili-1", "Kiswahili-2", "հայերեն", "two-words-rm-rf"]
    assert [region.data for region in found] == folders


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's, however deep pytest's own lie."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("deep", [1, 100])
def test_the_configurations_are_good_wherever_they_lie(deep: int, short: Path, tmp_path: Path) -> None:
    data = tmp_path / 'text "of" mine\\'
    data.mkdir()
    folder = short / ("d" * deep)
    swarm = Swarm(folder, [Region("հայերեն", data), Region("b", data)])
    listens = set()
    for daemon in swarm.daemons:
        config = load_daemon(files_at(daemon.folder / "tapestryd.toml"), {}, {}).config
        assert config.node.name == daemon.name
        assert config.node.state_dir == daemon.folder / "state"
        assert config.api.socket == daemon.client.path
        assert len(str(config.api.socket).encode()) <= SOCKET_PATH_BYTES
        assert load_trainer(files_at(config.trainer.config), {}, {}).config.data.paths == (data,)
        listens.update(config.network.listen)
    assert len(listens) == 2
    assert all(listen.startswith("/ip4/127.0.0.1/tcp/") for listen in listens)
    sockets = {daemon.client.path.parent for daemon in swarm.daemons} - {daemon.folder for daemon in swarm.daemons}
    assert bool(sockets) == (deep == 100)
    swarm.stop(lambda: False)
    assert not any(path.exists() for path in sockets)


def test_an_invite_is_one_only_when_it_names_a_peer() -> None:
    run_id, peer = "ab" * 32, "/ip4/127.0.0.1/tcp/4/p2p/12D3KooWCHzx2Xxb6Fv58HAeiWRKTMSz8A5N64UDfofcWYsyGxvf"
    assert invite_of(None) is None
    assert invite_of({"invite": ""}) is None
    assert invite_of({"invite": f"tapestry:{run_id}"}) is None
    assert invite_of({"invite": f"tapestry:{run_id}?peer={peer}"}) == f"tapestry:{run_id}?peer={peer}"


def test_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == "no log"
    log.write_text("\n")
    assert last_words(log) == "it said nothing"
    log.write_bytes(b"a\nb\n\n  c\xff\nd\ne\n")
    assert last_words(log) == "b | c\ufffd | d | e"
