"""Dialling back: a listener answers, a closed port and a silent one do not, and nobody is made to knock elsewhere often."""

import asyncio
from pathlib import Path

import pytest

from protocols.refusal import Reason, Refused
from tapestryd.swarm import reach
from tapestryd.swarm.reach import Reach
from tests.swarm.rooms import go, nodes


async def _listener(words: bytes) -> tuple[asyncio.Server, str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"


def test_who_can_be_dialled_finds_out(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            mine, theirs = Reach(one), Reach(two)
            await theirs.serve()
            assert mine.reachable is None

            await mine.ask([two.peer_id], [])  # nowhere
            assert mine.reachable is False

            addresses = await one.addresses()
            with pytest.raises(Refused) as refused:
                await one.ask(two.peer_id, "dialback", {"addrs": addresses})
            assert refused.value.reason is Reason.TOO_SOON
            await mine.ask([two.peer_id], addresses)  # refused, so we know what we knew
            assert mine.reachable is False

            theirs._served.clear()
            await mine.ask(["12D3KooWJnQhDnQTWYymsGmPtFgEM3aiZoXCf44aD2qVERBBvyw6", two.peer_id], addresses)
            assert mine.reachable is True
            assert mine.reached == dict.fromkeys(addresses, True)
            assert mine.seen[two.peer_id].startswith("/ip4/127.0.0.1/tcp/")

    go(work)


@pytest.mark.parametrize("addrs", [["/ip4/127.0.0.1/tcp/1"] * 9, [7], ["no address"]])
def test_nobody_is_made_to_knock_at_many_doors(tmp_path: Path, addrs: list[object]) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            await Reach(two).serve()
            with pytest.raises(Refused) as refused:
                await one.ask(two.peer_id, "dialback", {"addrs": addrs})
            assert refused.value.reason is Reason.OUT_OF_RANGE

    go(work)


@pytest.mark.parametrize("words", [b"", b"\x13/multistream/1.0.1\n", b"SSH-2.0-OpenSSH_9.9 and more"])
def test_what_is_no_libp2p_listener_does_not_count(tmp_path: Path, words: bytes) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            server, address = await _listener(words)
            closed, gone = await _listener(b"")
            closed.close()
            addresses = [address, gone, "/dns4/localhost/tcp/1", "/ip4/127.0.0.1/udp/1/quic", "/nonsense", "/ip4/127.0.0.1/tcp/0"]
            mine, theirs = Reach(one), Reach(two)
            await theirs.serve()
            await mine.ask([two.peer_id], addresses)
            assert mine.reachable is False
            server.close()

    go(work)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"reachable": True}, Reason.UNKNOWN_FIELD), ({"reached": [True]}, Reason.MALFORMED),
        ({"reached": True, "seen": ""}, Reason.WRONG_TYPE), ({"reached": [], "seen": ""}, Reason.OUT_OF_RANGE),
        ({"reached": [1], "seen": ""}, Reason.OUT_OF_RANGE), ({"reached": [True, True], "seen": ""}, Reason.OUT_OF_RANGE),
        ({"reached": [True], "seen": "x\x1b"}, Reason.OUT_OF_RANGE),
    ],
)  # fmt: skip
def test_answers_that_are_none(answer: dict[str, object], reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        reach._parsed(answer, 1)
    assert refused.value.reason is reason
