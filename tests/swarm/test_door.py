"""The door of real nodes: who sends garbage is banned and heard no more, until unbanned; who declines us is not blamed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.lineage import Tip
from protocols.records import Presence
from protocols.refusal import Declined, Reason, Refused
from tapestryd.config import Trust
from tapestryd.doorkeeper import Doorkeeper
from tapestryd.host.state import StateDir
from tapestryd.neighbours import Neighbours
from tapestryd.swarm import streams as streams_module
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Gone, Stream
from tests.lineages import PEOPLE
from tests.people import RULES, verify
from tests.swarm.rooms import LISTEN, go, identity, now_ms, until
from tests.swarm.test_node import HEAD, echo, raw


@asynccontextmanager
async def guarded(folder: Path, others: int = 1, **terms: object) -> AsyncIterator[tuple[Node, Doorkeeper, list[Node]]]:
    """A node with a doorkeeper and a store, and `others` that know where it is, and it where they are."""
    state = StateDir(folder / "state")
    door = Doorkeeper(Trust(**terms), state, now_ms)  # type: ignore[arg-type]
    made = [
        await Node.start("tapestry/1/test", identity(person, folder), LISTEN, (), (), verify, *([door] if number == 0 else []))
        for number, person in enumerate(PEOPLE[: others + 1])
    ]
    try:
        known = {node.peer_id: await node.addresses() for node in made}
        for node in made:
            node.hint({peer: found for peer, found in known.items() if peer != node.peer_id})
        await made[0].serve("echo", echo)
        yield made[0], door, made[1:]
    finally:
        await asyncio.gather(*(node.stop() for node in made))
        await door.close()
        state.close()


async def banned(node: Node, evil: Node) -> None:
    """Garbage until the door is shut; how much that takes is in tests/test_standing.py."""
    async with asyncio.timeout(20):
        while not node.door.shut(evil.peer_id):
            with suppress(Gone, OSError):  # its connection is dropped under it
                await raw(evil, node.peer_id, "echo", HEAD.pack(3, 0) + b"{]}")


async def answer(evil: Node, node: Node) -> bytes:
    """What an honest question of a peer is answered; dialling again where the connection was dropped."""

    async def asked() -> bytes:
        try:
            return await raw(evil, node.peer_id, "echo", HEAD.pack(2, 0) + b"{}")
        except (Gone, OSError):
            return b""

    found: bytes = await until(asked)
    return found


def test_who_sends_garbage_is_banned_and_served_again_when_unbanned(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path, 2) as (node, door, (evil, good)):
            await good.ask(node.peer_id, "echo", {})
            await banned(node, evil)
            assert node.refusals["malformed"] >= 5
            [ban] = door.bans()
            assert (ban.peer_id, ban.by, ban.reason) == (evil.peer_id, "faults", f"malformed ×{node.refusals['malformed']}")
            assert b'"refused":"banned"' in await answer(evil, node)
            assert node.refusals["banned"] >= 1
            assert evil.declined == {}
            with pytest.raises(Declined) as declined:
                await evil.ask(node.peer_id, "echo", {})
            assert declined.value.reason is Reason.BANNED
            stream = await evil.open(node.peer_id, "echo")
            await stream.send({})
            with pytest.raises(Declined):
                await stream.answer()
            with pytest.raises(TimeoutError):  # who says so stays until it was read
                await asyncio.wait_for(stream._reader.read(), 0.3)
            stream.close()
            with pytest.raises(Gone, match="is banned here"):
                await node.open(evil.peer_id, "echo")
            await good.ask(node.peer_id, "echo", {})
            await door.unban(evil.peer_id)
            assert HEAD.pack(2, 0) + b"{}" == await answer(evil, node)

    go(work)


def test_a_ban_holds_over_a_restart(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path) as (node, door, (evil,)):
            await banned(node, evil)
            held = door.bans()
        async with guarded(tmp_path) as (node, door, (evil,)):
            assert door.bans() == held
            assert b"banned" in await answer(evil, node)
            assert node.refusals == {"banned": node.refusals["banned"]}

    go(work)


def test_a_denied_peer_never_comes_in(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path, deny=(PEOPLE[1].peer,)) as (node, _, (evil,)):
            assert b"banned" in await answer(evil, node)

    go(work)


def test_a_ban_ends_what_the_peer_has_open(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path) as (node, _, (evil,)):
            waiting = asyncio.Event()

            async def listens(stream: Stream) -> None:
                waiting.set()
                await stream.receive(0)

            await node.serve("listens", listens)
            held = await evil.open(node.peer_id, "listens")
            held._writer.write(b"\x01")  # libp2p opens a stream for good with its first byte
            await asyncio.wait_for(waiting.wait(), 5)
            await banned(node, evil)
            assert await asyncio.wait_for(held._reader.read(), 5) == b""

            async def nothing_open() -> bool:
                return not node._open

            await until(nothing_open)
            assert node.refusals["stalled"] == 0

    go(work)


def test_who_declines_us_is_counted_and_not_blamed(tmp_path: Path) -> None:
    async def refuses(stream: Stream) -> None:
        await stream.receive(0)
        raise Refused(Reason.MALFORMED, "we do not like it")

    async def work() -> None:
        async with guarded(tmp_path) as (node, door, (other,)):
            await other.serve("refuses", refuses)
            for _ in range(12):
                with pytest.raises(Declined) as declined:
                    await node.ask(other.peer_id, "refuses", {})
                node.refused(declined.value, "refuses", other.peer_id)
            assert (dict(node.declined), dict(node.refusals)) == ({"malformed": 12}, {})
            assert (door.score(other.peer_id), door.bans()) == (0, ())
            node.refused(Refused(Reason.MALFORMED, "found lying about"), "presence", other.peer_id, proven=False)
            assert (node.refusals["malformed"], door.score(other.peer_id)) == (1, 0)

    go(work)


def test_drip_feeding_and_too_many_streams_cost_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module.limits, "IO_S", 2.0)

    async def work() -> None:
        async with guarded(tmp_path) as (node, door, (evil,)):

            async def receives(stream: Stream) -> None:
                await stream.receive(0, 0.5)

            await node.serve("receives", receives)
            held = []
            for data in (HEAD.pack(100, 0) + b"{", HEAD.pack(2, 0)):
                stream = await evil.open(node.peer_id, "receives")
                stream._writer.write(data)
                held.append(stream)

            async def counted() -> bool:
                return node.refusals["stalled"] == 2

            await until(counted)
            assert -2 <= door.score(evil.peer_id) <= -1.9
            for stream in held:
                stream.close()

            async def waits(stream: Stream) -> None:
                await asyncio.sleep(30)

            await node.serve("waits", waits)
            held = [await evil.open(node.peer_id, "waits") for _ in range(35)]

            async def too_many() -> bool:
                return node.refusals["too_many_streams"] == 3

            await until(too_many)
            assert -5 <= door.score(evil.peer_id) <= -4.9
            for stream in held:
                stream.close()

    go(work)


def test_a_banned_peers_presence_is_not_read_and_a_doubtful_ones_tip_is_not_followed(tmp_path: Path) -> None:
    async def work() -> None:
        async with guarded(tmp_path, 2) as (node, door, (evil, good)):
            fetcher, tip = Fetcher(node, "ab" * 32, verify), Tip(0, 0, "cd" * 32)
            fetcher.agreed = replace(RULES, model=replace(RULES.model, genesis=tip.base))
            await fetcher.prove(evil.peer_id, tip)
            neighbours = Neighbours(node, "ab" * 32, verify, fetcher, lambda: None)
            for other in (evil, good):
                await other._connect(node.peer_id)
                await other._dht.protocol.call_ping(node._libp2p.p2p.peer_id)

            async def seen() -> set[str]:
                for person, other in zip(PEOPLE[1:3], (evil, good), strict=True):
                    made = Presence("ab" * 32, person.peer, "x", "training", tip.height, tip.weight, tip.base, (), "0", None, now_ms())
                    await other.publish(made.to_bytes(person.sign))
                await neighbours.refresh()
                return {found.peer for found in neighbours.seen()}

            async def both() -> bool:
                return await seen() == {evil.peer_id, good.peer_id}

            await until(both)
            assert all(found.tip for found in neighbours.seen())
            for _ in range(5):
                door.fault(evil.peer_id, Reason.BAD_DIGEST)
            assert {found.peer: bool(found.tip) for found in neighbours.seen()} == {evil.peer_id: False, good.peer_id: True}
            assert set(neighbours.on_base(tip)) == {evil.peer_id, good.peer_id}
            await door.ban(evil.peer_id, None, "")
            assert await seen() == {good.peer_id}
            assert set(neighbours.on_base(tip)) == {good.peer_id}
            shown = {peer.peer_id: (peer.state, peer.score) for peer in neighbours.status("", door.score)}
            assert shown[good.peer_id] == ("training", 0)
            assert shown[evil.peer_id][0] == "banned"
            assert shown[evil.peer_id][1] == pytest.approx(-25, abs=1)
            assert neighbours.count() == 1
            assert node.refusals == {}

    go(work)
