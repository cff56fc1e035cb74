"""No stretch of the training text is in anything that real daemons send: to peers, the DHT, whoever asks; nor in what trainers say; nor,
where this is root, in any packet that leaves their machine. And that it would be found there.

    pytest tests/isolation/test_text_stays.py                         what is sent, before it is encrypted
    pytest -m 'slow and root' tests/isolation/test_text_stays.py    packets as well
"""

import os
import pydoc_data.topics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.chaos.namespaces import Lan
from tests.isolation.recorded import API, DELTAS, LIBP2P, ORDERS, REPORTS, recorded
from tests.isolation.wire import Wire
from tests.living import Peer, corpora, found

WINDOW = 16
_PLAIN = 6
"""Windows of fewer different bytes than this are no text: a line of dashes is found anywhere."""
_MIX = np.uint64(0x9E3779B97F4A7C15)

PLANTED = "Hallo, Frau Nachbarin"
"""What the daemons are called: sent and answered, so a check that does not find it in their records is none."""

Hashes = NDArray[np.uint64]


def hashes(data: bytes) -> Hashes:
    """One for each window of WINDOW bytes in `data`, at every place: (max(0, len - 15),) uint64."""
    if len(data) < WINDOW:
        return np.empty(0, np.uint64)
    raw = np.frombuffer(data, np.uint8)
    words = np.zeros(len(raw) - 7, np.uint64)
    for place in range(8):
        words |= raw[place : len(raw) - 7 + place].astype(np.uint64) << np.uint64(8 * place)
    mixed: Hashes = words[:-8] * _MIX ^ (words[8:] * np.uint64(0xC2B2AE3D27D4EB4F) >> np.uint64(1))
    return mixed


class Secret:
    """Training text as it must not be found: itself, and as the numbers that a model reads, in 16 and in 32 bits."""

    def __init__(self, text: bytes) -> None:
        tokens = np.frombuffer(text, np.uint8)
        self.forms = {"text": text, "uint16": tokens.astype("<u2").tobytes(), "uint32": tokens.astype("<u4").tobytes()}
        self._hashes = {name: np.unique(hashes(form)) for name, form in self.forms.items()}

    def found_in(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """(form, window) for each that is there."""
        here = hashes(data)
        for name, known in self._hashes.items():
            places = np.minimum(np.searchsorted(known, here), len(known) - 1)
            for at in np.flatnonzero(known[places] == here):
                window = data[at : at + WINDOW]
                if len(set(window)) >= _PLAIN - 3 * (name == "uint32") and window in self.forms[name]:
                    yield name, window


def texts() -> list[bytes]:
    if here := corpora():
        return [b"".join(sorted(path.read_bytes() for path in (here / name).rglob("*.txt")))[:300_000] for name in ("basque", "wolof")]
    prose = "\n\n".join(pydoc_data.topics.topics.values()).swapcase().encode()  # as it is, the API's own English says the same
    return [prose[:300_000], prose[300_000:600_000]]


def peer(folder: Path, text: bytes, **where: str) -> Peer:
    data = folder.with_name(f"{folder.name}-data")
    data.mkdir()
    (data / "text.txt").write_bytes(text)
    environment = {"TAPESTRY_RECORD": str(folder / "state" / "record"), "PYTHONPATH": str(Path(__file__).parents[2])}
    made = Peer(folder, [data], environment=environment, program="tests.isolation.recorded", **where)
    with (folder / "tapestryd.toml").open("a") as config:  # its last section is [sandbox]
        config.write(f'read = ["{Path(__file__).parents[1]}"]\n')
    return made


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def trained(peers: list[Peer], folder: Path) -> list[int]:
    """Two rounds, everything asked that can be asked, and an orderly end: how many bytes each says it sent."""
    one, *others = peers
    one.start(str(found(folder, "--train", "3", "--average", "4")), f"node.name={PLANTED}")
    for other in others:
        other.start(one.invite(), f"node.name={PLANTED}")
    for each in peers:
        each.height(2, 180)
        for path in ("/v1/peers", "/v1/run", "/v1/rounds?limit=9", "/v1/health", "/v1/log", "/metrics"):
            list(each.client.lines("GET", path))
    sent = [each.status()["traffic"]["sent_bytes"] for each in peers]
    assert [each.term() for each in peers] == [0] * len(peers)
    return sent


def leaks(secret: Secret, pieces: Iterable[tuple[str, bytes]]) -> list[tuple[str, str, bytes]]:
    """(where, form, window)"""
    return [(where, *leak) for where, data in pieces for leak in secret.found_in(data)]


def clean(peers: list[Peer], sent: list[int]) -> None:
    """Nothing of a peer's text is in its record, and nothing that it counted as sent is missing there."""
    for each, text, least in zip(peers, texts(), sent, strict=True):
        record, seen = list(recorded(each.folder / "state" / "record")), Counter[str]()
        for kind, data in record:
            seen[kind] += len(data)
        assert leaks(Secret(text), record) == []
        assert {where for where, *_ in leaks(Secret(PLANTED.encode()), record)} == {LIBP2P, API}
        assert seen[LIBP2P] >= least > 100_000
        assert all(seen[kind] > 0 for kind in (API, ORDERS, REPORTS, DELTAS)), seen


@pytest.mark.timeout(600)
def test_no_window_of_the_text_is_in_anything_sent(tmp_path: Path, ends: ExitStack) -> None:
    peers = [peer(tmp_path / f"peer{number}", text) for number, text in enumerate(texts())]
    for each in peers:
        ends.callback(each.end)
    clean(peers, trained(peers, tmp_path / "founder"))


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and packet sockets need root")
def test_nor_in_any_packet(tmp_path: Path, ends: ExitStack) -> None:
    lan = ends.enter_context(Lan(2, 67))
    peers = []
    for number, text in enumerate(texts(), start=1):
        where = {"listen": f"/ip4/{lan.address(number)}/tcp/31700", "namespace": lan.namespace(number)}
        peers.append(peer(tmp_path / f"peer{number}", text, **where))
        ends.callback(peers[-1].end)
    with Wire(lan.plug(1)) as wire:
        sent = trained(peers, tmp_path / "founder")
    clean(peers, sent)
    secrets = [Secret(text) for text in texts()]
    payload = [("stream", stream) for stream in wire.streams()]
    assert sum(len(stream) for _, stream in payload) >= sum(sent)
    for secret in secrets:
        assert leaks(secret, [*payload, ("frames", b"".join(wire.frames))]) == []

    with Wire(lan.plug(1)) as wire:  # sent in the clear it is found, if only one byte goes in a packet
        send = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 4001))\n"
        send += f"for byte in {PLANTED.encode()!r}: s.sendto(bytes([byte]), ('{lan.address(2)}', 4000))"
        subprocess.run(["ip", "netns", "exec", lan.namespace(1), sys.executable, "-c", send], check=True, timeout=30)
    assert leaks(Secret(PLANTED.encode()), [("stream", stream) for stream in wire.streams()])


def test_a_window_would_be_found() -> None:
    text = texts()[0]
    secret = Secret(text)
    rng = np.random.default_rng(0)
    for form, name in ((text, "text"), (secret.forms["uint16"], "uint16"), (secret.forms["uint32"], "uint32")):
        for at in rng.integers(0, len(form) - WINDOW, 20):
            window = form[at : at + WINDOW]
            if len(set(window)) >= _PLAIN:
                noise = rng.bytes(50_000)
                assert (name, window) in set(secret.found_in(noise[:20_001] + window + noise[20_001:]))
    assert list(secret.found_in(rng.bytes(1 << 20))) == []
