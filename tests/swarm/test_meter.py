import asyncio
import re
from collections import Counter
from pathlib import Path

import protocols
from protocols.canonical import dumps
from tapestryd.swarm.meter import KINDS, Meter
from tapestryd.swarm.node import Node
from tapestryd.swarm.streams import Stream
from tests.lineages import PEOPLE
from tests.people import verify
from tests.swarm.rooms import LISTEN, go, identity, record, until

LENGTHS = 12


class Told(Counter[tuple[str, str, str]]):
    """(kind, peer, "sent" | "received") → bytes."""

    def __call__(self, kind: str, peer: str, sent: int, received: int) -> None:
        self[kind, peer, "sent"] += sent
        self[kind, peer, "received"] += received

    def of(self, peer: str, way: str) -> dict[str, int]:
        return {kind: size for (kind, who, direction), size in self.items() if (who, direction) == (peer, way) and size}


def test_every_verb_of_the_treaty_has_its_kind() -> None:
    document = (Path(protocols.__file__).parent / "streams.md").read_text()
    table = document.partition("## Verbs")[2].partition("\n\n**")[0]
    verbs = set(re.findall(r"^\| ([a-z]+) \| →", table, re.MULTILINE))
    assert len(verbs) > 8
    assert verbs | {"rpc_ping", "rpc_store", "rpc_find"} == set(KINDS)


def test_questions_and_answers_are_told_apart() -> None:
    told = Told()
    meter = Meter(told)
    meter.sends(5, "reduce", "a", asks=True)
    meter.receives(6, "reduce", "a", asks=True)
    meter.sends(7, "reduce", "b", asks=False)
    meter.receives(8, "reduce", "b", asks=False)
    meter.sends(1, "new verb", "b", asks=False)
    assert told.of("a", "sent") == {"delta": 5}
    assert told.of("a", "received") == {"mean": 6}
    assert told.of("b", "sent") == {"mean": 7, "new verb": 1}
    assert told.of("b", "received") == {"delta": 8}
    assert meter.sent == {"reduce": 12, "new verb": 1}
    assert meter.received == {"reduce": 14}


def test_what_one_sends_the_other_receives_to_the_byte(tmp_path: Path) -> None:
    """Streams and DHT calls alike, of each kind."""

    async def work() -> None:
        tolds = [Told(), Told()]
        made = [
            await Node.start("tapestry/1/test", identity(person, tmp_path), LISTEN, (), (), verify, meter=Meter(told))
            for person, told in zip(PEOPLE[:2], tolds, strict=True)
        ]
        one, two = made
        try:

            async def reduce(stream: Stream) -> None:
                await stream.receive(1000)
                await stream.send({"made": 1}, b"m" * 70_000)

            async def count() -> bool:
                return len(two._dht.protocol.routing_table.peer_id_to_uid) > 0

            await two.serve("reduce", reduce)
            one.hint({two.peer_id: await two.addresses()})
            one._bootstrap[two.peer_id] = f"{(await two.addresses())[0]}/p2p/{two.peer_id}"
            await one.look()
            await until(count)
            await one.publish(record(PEOPLE[0]))
            await two.look()
            await one.ask(two.peer_id, "reduce", {}, b"d" * 900, body_bytes=100_000)
            assert tolds[0].of(two.peer_id, "sent")["delta"] == LENGTHS + len(dumps({})) + 900
            assert tolds[1].of(one.peer_id, "sent")["mean"] == LENGTHS + len(dumps({"made": 1})) + 70_000

            async def alike() -> bool:  # what is on its way is counted at one end only
                here, there = (
                    (told.of(peer.peer_id, "sent"), told.of(peer.peer_id, "received")) for told, peer in ((tolds[0], two), (tolds[1], one))
                )
                return here == there[::-1]

            await until(alike)
            assert set(tolds[0].of(two.peer_id, "sent")) == {"delta", "record"}
            assert tolds[0].of(two.peer_id, "sent")["record"] > len(record(PEOPLE[0]))
            assert one.meter.totals() == (
                sum(tolds[0].of(two.peer_id, "sent").values()),
                sum(tolds[0].of(two.peer_id, "received").values()),
            )
            assert set((await one.connections()).values()) == {two.peer_id}
        finally:
            await asyncio.gather(*(node.stop() for node in made))

    go(work)
