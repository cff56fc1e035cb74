"""Files of settings brought to a boxed daemon: whole, as they are when it asks, and nobody waits for anybody."""

import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapestryd import errand
from tapestryd.errors import Unavailable
from tapestryd.layers import Source, files_at


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The warden's end, which does not block, and the network side's."""
    warden, network = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warden.setblocking(False)
    with warden, network:
        yield warden, network


def asked(warden: socket.socket, network: socket.socket, files: Sequence[Source]) -> tuple[Source, ...]:
    """What `ask` gets, with `files` for an answer to the latest question."""

    def serve() -> None:
        select.select([warden], [], [], 5)
        assert warden.recv(1) == b"?"
        errand.answer(warden, files)

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        return errand.ask(network)
    finally:
        serving.join()


def test_what_is_asked_for_arrives_as_it_is_then(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    (tmp_path / "t.toml.d").mkdir()
    (tmp_path / "t.toml.d" / "a.toml").write_bytes(bytes(range(256)) * 5000)
    with pair() as (warden, network):
        for content in (b"schema_version = 1\n", "é".encode()):
            path.write_bytes(content)
            files = asked(warden, network, files_at(path))
            assert files == files_at(path)
            assert files[0].data == content


def test_nobody_waits_for_long_nor_gets_the_answer_to_an_earlier_question(monkeypatch: pytest.MonkeyPatch) -> None:
    late, right = (Source(Path("/late")),), (Source(Path("/right")),)
    with pair() as (warden, network):
        with monkeypatch.context() as patch:
            patch.setattr(errand, "_ANSWER_S", 0.05)
            with pytest.raises(Unavailable, match="the warden does not bring"):
                errand.ask(network)
        assert warden.recv(1) == b"?"
        for _ in range(2000):  # more than there is room for
            errand.answer(warden, late)
        assert asked(warden, network, right) == right


def test_the_warden_is_gone() -> None:
    with pair() as (warden, network):
        warden.close()
        with pytest.raises(Unavailable, match="restart tapestryd"):
            errand.ask(network)
