"""Nodes: found over the DHT, late bootstrap, hostile records, ports in use, p2pd's death, verbs under fire."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.utils.timed_storage import get_dht_time

from protocols import limits
from protocols.canonical import dumps
from protocols.refusal import Declined, Reason, Refused
from tapestryd.errors import Unavailable
from tapestryd.swarm import node as node_module
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Busy, Gone, Stream
from tests.lineages import PEOPLE
from tests.swarm.rooms import address, go, identity, nodes, record, refresh, start, until

HEAD = struct.Struct("<IQ")


async def echo(stream: Stream) -> None:
    head, body = await stream.receive(1000)
    await stream.send(head, body)


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_nodes_find_one_another_by_a_bootstrap_peer(tmp_path: Path, uv: bool) -> None:
    async def work() -> None:
        first = await start(PEOPLE[0], tmp_path)
        there = [await address(first)]
        others = await asyncio.gather(*(start(person, tmp_path, bootstrap=there) for person in PEOPLE[1:4]))
        everybody = [first, *others]
        try:

            async def all_known() -> bool:
                found = [await refresh(node, person) for node, person in zip(everybody, PEOPLE, strict=False)]
                return [len(records) for records in found] == [3] * 4

            await until(all_known)
            await others[0].serve("echo", echo)
            assert await others[1].ask(others[0].peer_id, "echo", {"n": 1}, b"body", body_bytes=4) == ({"n": 1}, bytearray(b"body"))
        finally:
            await asyncio.gather(*(node.stop() for node in everybody))

    go(work, uv=uv)


def test_a_bootstrap_peer_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All daemons of a run may have been down: one must be the first to come up, with nobody there. (p2pd itself backs off for 5 s.)"""
    monkeypatch.setattr(node_module, "_ASK_AGAIN_S", 0.1)

    async def work() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        listen = [f"/ip4/127.0.0.1/tcp/{port}"]
        early = await start(PEOPLE[1], tmp_path, bootstrap=[f"{listen[0]}/p2p/{PEOPLE[0].peer}"])
        late = None
        try:
            await early.publish(record(PEOPLE[1]))
            assert await early.look() == {}
            late = await start(PEOPLE[0], tmp_path, listen=listen)

            async def met() -> bool:
                return [*await refresh(early, PEOPLE[1]), *await refresh(late, PEOPLE[0])] == [late.peer_id, early.peer_id]

            await until(met)
        finally:
            await early.stop()
            if late:
                await late.stop()

    go(work)


def test_a_record_that_nobody_takes_is_not_published(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 1) as (one,):
            await one.publish(record(PEOPLE[0]))
            with pytest.raises(Gone, match="takes no record"):
                await one.publish(record(PEOPLE[1]))

    go(work)


def test_another_run_is_another_world(tmp_path: Path) -> None:
    async def work() -> None:
        ours = await start(PEOPLE[0], tmp_path, "tapestry/1/ours")
        theirs = await start(PEOPLE[1], tmp_path, "tapestry/1/theirs", bootstrap=[await address(ours)])
        try:
            await ours.serve("echo", echo)
            await ours.publish(record(PEOPLE[0]))
            await theirs.publish(record(PEOPLE[1]))
            assert await ours.look() == {}
            assert await theirs.look() == {}
            with pytest.raises(Gone):
                await theirs.ask(ours.peer_id, "echo", {})
        finally:
            await ours.stop()
            await theirs.stop()

    go(work)


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_who_cannot_be_reached_costs_no_descriptor(tmp_path: Path, uv: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether p2pd refuses, or is not waited for any longer. From 3.11.5 on Python closes what nobody holds."""
    monkeypatch.delattr(asyncio.StreamWriter, "__del__", raising=False)
    monkeypatch.setattr(node_module, "_GREET_S", 0.05)

    def descriptors(node: Node) -> int:
        return sum(len(os.listdir(f"/proc/{process}/fd")) for process in (os.getpid(), node.p2pd))

    async def work() -> None:
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            async with nodes(tmp_path, 1) as (one,):
                before = descriptors(one)
                for _ in range(5):
                    with pytest.raises(Gone, match="cannot dial"):
                        await one.open(PEOPLE[1].peer, "echo")
                    with pytest.raises(Gone, match="no answer"):
                        await one.greet(f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{PEOPLE[2].peer}")

                async def as_before() -> bool:
                    return descriptors(one) <= before

                await until(as_before)

    go(work, uv=uv)


# Starting and ending.


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    async def work() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
            with pytest.raises(Unavailable, match="the port is in use") as said:
                await start(PEOPLE[0], tmp_path, listen=[listen])
            assert listen in str(said.value)
            assert "\n" not in str(said.value)

    go(work)


@pytest.mark.parametrize("bad", ["/ip4/127.0.0.1/tcp/nonsense", "garbage"])
def test_an_address_that_p2pd_does_not_read_is_a_sentence(tmp_path: Path, bad: str) -> None:
    async def work() -> None:
        with pytest.raises(Unavailable):
            await start(PEOPLE[0], tmp_path, listen=[bad])

    go(work)


def test_no_identity_file_is_said(tmp_path: Path) -> None:
    async def work() -> None:
        from tapestryd.swarm.libp2p import Libp2p
        from tapestryd.swarm.line import OPEN_LINE
        from tapestryd.swarm.meter import Meter
        from tapestryd.swarm.node import OPEN

        (tmp_path / "broken.key").write_bytes(b"x" * 68)
        with pytest.raises(Unavailable):
            await Libp2p.start(tmp_path / "broken.key", ["/ip4/127.0.0.1/tcp/0"], (), Meter(), OPEN_LINE, OPEN.shut)

    go(work)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    async def work() -> None:
        node = await start(PEOPLE[0], tmp_path)
        folder, process = node._libp2p._folder, node._libp2p.process
        assert folder.stat().st_mode & 0o777 == 0o700
        assert node.alive
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"PATH" not in environment
        await node.stop()
        assert not node.alive
        assert not folder.exists()

    go(work)


_CHILD = """
import asyncio, sys
from pathlib import Path
from tapestryd.host.keys import verify
from tapestryd.swarm.node import Node
async def main():
    node = await Node.start("tapestry/1/x", Path(sys.argv[1]), ["/ip4/127.0.0.1/tcp/0"], (), (), verify)
    print(node._libp2p.process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_p2pd_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    path = identity(PEOPLE[0], tmp_path)
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _CHILD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    watched = os.pidfd_open(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    async def work() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched, ended.set)
        await asyncio.wait_for(ended.wait(), 5)
        asyncio.get_running_loop().remove_reader(watched)

    go(work)
    os.close(watched)


def test_when_p2pd_dies_everything_is_gone_and_nothing_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            await two.serve("echo", echo)
            await one.ask(two.peer_id, "echo", {})
            one._libp2p.process.kill()
            await one._libp2p.process.wait()
            assert not one.alive
            with pytest.raises(Gone):
                await one.ask(two.peer_id, "echo", {})
            with pytest.raises(Gone):
                await two.ask(one.peer_id, "echo", {})
            for _ in range(2):
                try:
                    await one.look()
                    await one.publish(record(PEOPLE[0]))
                except Gone:
                    pass
        (said,) = [record.message for record in caplog.records if record.name == "tapestryd.swarm.libp2p"]
        assert said.startswith("p2pd ended by itself: ")

    go(work)


# Hostile records.


_GARBAGE = [
    b"", b"\xc1", b"\xd9", b"\xc7\xff\x50", b"\xde\xff\xff", b"\xff" * 100,
    *map(msgpack.packb, (7, [1], None, "text", b"x" * 9000, b"{}", b"not json", {"a": 1})),
]  # fmt: skip


def test_hostile_records_in_the_dht_hide_nobody_and_hurt_nothing(tmp_path: Path) -> None:
    """The one who stores talks to the DHT of another node by itself: nothing of ours is between them but that node's own checks."""

    async def work() -> None:
        async with nodes(tmp_path, 3) as (one, two, evil):
            there, source = one._libp2p.p2p.peer_id, DHTID.generate(source=f"{one._prefix}/presence")
            for node in (two, evil):
                await node._connect(one.peer_id)
                await node._dht.protocol.call_ping(there)
            true = record(PEOPLE[1])
            await two.publish(true)

            async def seen() -> bool:
                return await one.look() == {two.peer_id: true}

            await until(seen)
            now = get_dht_time()

            async def store(value: bytes, expiration: float, subkey: object) -> None:
                kept = await evil._dht.protocol.call_store(there, [source], [value], [expiration], subkeys=[subkey])
                assert kept in (None, [False]), (value[:20], expiration - now, subkey)  # the call refused, or what was in it
                assert await asyncio.wait_for(one.look(), 5) == {two.peer_id: true}

            for value in _GARBAGE:
                await store(value, now + 15, "garbage")
                await store(value, now + 300, two.peer_id)
                await store(value, now + 400, None)
            await store(msgpack.packb(record(PEOPLE[2])), now + 15, two.peer_id)  # another's record
            await store(msgpack.packb(record(PEOPLE[2])), now + 15, 7)
            await store(msgpack.packb(record(PEOPLE[2])), now + 400, PEOPLE[2].peer)  # for longer than it lives
            await store(msgpack.packb(true), now + 60, two.peer_id)  # an old one, to outlive the next
            await store(msgpack.packb(record(PEOPLE[1], ahead_ms=60_000)), now + 75, two.peer_id)  # its own, when its clock was wrong
            await evil.publish(record(PEOPLE[2]))
            later = record(PEOPLE[1], name="later")
            await two.publish(later)

            async def both() -> bool:
                found = await one.look()
                return set(found) == {two.peer_id, evil.peer_id} and found[two.peer_id] == later

            await until(both)

    go(work)


# Verbs under fire.


async def raw(node: object, peer: str, verb: str, data: bytes, *, eof: bool = False) -> bytes:
    """Write bytes as they are; what comes back until the other closes."""
    stream = await node.open(peer, verb)  # type: ignore[attr-defined]
    stream._writer.write(data)
    if eof:
        stream._writer.close()
        return b""
    try:
        return await asyncio.wait_for(stream._reader.read(1 << 16), 5)
    finally:
        stream.close()


def test_garbage_is_refused_counted_and_survived(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            await two.serve("echo", echo)
            for data, reason in (
                (b"\xff" * 64, Reason.TOO_LARGE),
                (HEAD.pack(limits.HEAD_BYTES + 1, 0), Reason.TOO_LARGE),
                (HEAD.pack(2, 1001) + b"{}", Reason.TOO_LARGE),
                (HEAD.pack(2, 1 << 63) + b"{}", Reason.TOO_LARGE),
                (HEAD.pack(3, 0) + b"{]}", Reason.MALFORMED),
                (HEAD.pack(8, 0) + b'{"a": 1}', Reason.MALFORMED),
                (HEAD.pack(0, 0), Reason.MALFORMED),
                (HEAD.pack(1000, 0) + b"[" * 1000, Reason.MALFORMED),
                (HEAD.pack(2, 0) + b"[]", Reason.WRONG_TYPE),
            ):
                before = two.refusals[reason.value]
                answer = await raw(one, two.peer_id, "echo", data)
                assert reason.value.encode() in answer, data
                assert two.refusals[reason.value] == before + 1
            for cut in (b"", b"\x01", HEAD.pack(100, 0) + b"{", HEAD.pack(2, 500) + b"{}" + b"x" * 10):
                await raw(one, two.peer_id, "echo", cut, eof=True)
            assert await one.ask(two.peer_id, "echo", {"still": "here"}) == ({"still": "here"}, bytearray())

    go(work)


def test_a_verb_that_nobody_serves(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            with pytest.raises(Gone):
                await one.ask(two.peer_id, "nothing", {})
            with pytest.raises(Gone):
                await one.ask(PEOPLE[5].peer, "echo", {})  # nobody knows where it lives

    go(work)


def test_a_handler_that_breaks_breaks_only_its_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(stream: Stream) -> None:
        raise RuntimeError("a bug")

    async def refuses(stream: Stream) -> None:
        await stream.receive(0)
        raise Refused(Reason.STALE, "x" * 5000)

    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            await two.serve("broken", broken)
            await two.serve("refuses", refuses)
            await two.serve("echo", echo)
            with pytest.raises(Gone):
                await one.ask(two.peer_id, "broken", {})
            with pytest.raises(Refused) as refused:
                await one.ask(two.peer_id, "refuses", {})
            assert refused.value.reason is Reason.STALE
            assert len(refused.value.detail) < 300
            await one.ask(two.peer_id, "echo", {})

            async def nothing_open() -> bool:
                return not two._open

            await until(nothing_open)

    go(work)
    assert "a bug" in caplog.text


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_a_handler_that_still_waits_at_the_end_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture, uv: bool) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            waits = asyncio.Event()

            async def forever(stream: Stream) -> None:
                waits.set()
                await asyncio.Event().wait()

            await two.serve("forever", forever)
            await one.open(two.peer_id, "forever")
            await waits.wait()
        assert not two._serving

    go(work, uv=uv)
    assert "Exception in callback" not in caplog.text


def test_one_peer_cannot_hold_all_streams(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 3) as (one, two, three):
            waiting = asyncio.Event()

            async def waits(stream: Stream) -> None:
                await waiting.wait()
                await stream.send({})

            await two.serve("waits", waits)
            await two.serve("echo", echo)
            held = [await one.open(two.peer_id, "waits") for _ in range(40)]

            async def counted() -> bool:
                return two.refusals["too_many_streams"] >= 8

            await until(counted)
            await three.ask(two.peer_id, "echo", {})
            waiting.set()
            for stream in held:
                stream.close()

            async def free() -> bool:
                return not two._open

            await until(free)
            await one.ask(two.peer_id, "echo", {})

    go(work)


def test_who_answered_stays_until_it_was_read(tmp_path: Path) -> None:
    """To close sooner would now and then reset the stream, and what the asker has not read by then would be lost."""

    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):

            async def much(stream: Stream) -> None:
                await stream.receive(0)
                await stream.send({}, bytes(limits.PIECE_BYTES))

            await two.serve("much", much)
            stream = await one.open(two.peer_id, "much")
            await stream.send({})
            await asyncio.sleep(1)
            _, body = await stream.answer(limits.PIECE_BYTES)
            assert len(body) == limits.PIECE_BYTES
            await asyncio.sleep(0.2)
            assert len(two._serving) == 1
            stream.close()

            async def over() -> bool:
                return not two._serving

            await until(over)

    go(work)


@pytest.mark.parametrize("said", [Refused(Reason.STALE, "gone by"), Busy("", 1)], ids=["refused", "busy"])
def test_who_refuses_stays_until_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Exception) -> None:
    """And for so long at most: who never closes holds no more than one of its streams, as with any question."""

    async def refuses(stream: Stream) -> None:
        await stream.receive(0)
        raise said

    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):
            await two.serve("refuses", refuses)

            async def over() -> bool:
                return not two._serving

            async def refused() -> Stream:
                stream = await one.open(two.peer_id, "refuses")
                await stream.send({})
                with pytest.raises((Declined, Busy)):
                    await stream.answer()
                return stream

            read = await refused()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read._reader.read(), 0.3)
            read.close()
            await until(over, 5)
            monkeypatch.setattr(limits, "IO_S", 0.5)
            await refused()
            await until(over, 5)
            assert two.refusals["stalled"] == 0

    go(work)


def test_large_bodies_come_whole(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 2) as (one, two):

            async def back(stream: Stream) -> None:
                head, body = await stream.receive(limits.PIECE_BYTES)
                await stream.send(head, body)

            await two.serve("back", back)
            body = bytes(range(256)) * (limits.PIECE_BYTES // 256)
            answers = await asyncio.gather(*(one.ask(two.peer_id, "back", {"n": n}, body, body_bytes=limits.PIECE_BYTES) for n in range(4)))
            assert [head["n"] for head, _ in answers] == list(range(4))
            assert all(bytes(got) == body for _, got in answers)
            assert one.meter.sent["back"] == one.meter.received["back"] == 4 * (HEAD.size + len(dumps({"n": 0})) + len(body))

    go(work)
