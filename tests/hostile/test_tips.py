"""Tips that nobody ever reached, each with a certificate to show for it: whole sessions that average, and a liar that announces."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hivemind.utils.timed_storage import get_dht_time

from protocols import limits
from protocols.canonical import digest, dumps, loads
from protocols.lineage import Tip
from protocols.records import Presence
from protocols.rounds import Trained, TrainerUp
from protocols.settling import Vote, merkle
from protocols.trainer import Order, Stop
from tapestryd import neighbours
from tapestryd.session import Session
from tests.hostile.liar import LENGTHS, Liar, framed, read
from tests.lineages import PEOPLE, Line, noise
from tests.people import Person, certified, roster
from tests.swarm.rooms import go, now_ms, until
from tests.swarm.test_lineage import grown
from tests.test_keeper import begin
from tests.test_session import begun, session


class Announcer:
    """A liar that claims as much weight as nobody would refuse, and proves it by keys of its own. `ahead`: its height above all
    others; 0: at the base that all hold. Of what leads there it gives a byte now and then."""

    def __init__(self, liar: Liar, line: Line, homes: list[str], ahead: int) -> None:
        self.liar = liar
        self.run = line.rules.run_id
        self.homes = homes
        self.ahead = ahead
        self._height = 0
        self._proof = b""

    async def announce(self) -> None:
        told = [Tip(body["height"], body["weight"], body["base"]) for home in self.homes for body in await self.liar.look(home)]
        true = max((tip for tip in told if tip.base and tip.weight < 256 * tip.height), key=lambda tip: tip.weight, default=None)
        if true is None or true.height == 0:
            return
        height, after = (true.height + self.ahead, "ee" * 32) if self.ahead else (true.height, true.base)
        voters, parts = [self.liar.person, Person("mallory")], [b"", b""]
        of = roster(voters, round=height, fragment=height % 2, before=true.base, run=self.run)
        vote = Vote(
            self.run, of.round, of.fragment, of.digest, merkle(list(map(digest, parts))), 1_000_000, true.base, after, height, 256 * height
        )
        made = certified(of, parts, voters, vote)
        self._height, self._proof = height, made.head()
        addresses = ("/ip4/127.0.0.1/tcp/1",)
        record = Presence(self.run, self.liar.peer, "liar", "training", height, vote.weight, after, addresses, "0", None, now_ms())
        for home in self.homes:
            await self.liar.store(home, [(self.liar.peer, record.to_bytes(self.liar.person.sign), get_dht_time() + 15)])

    async def answer(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await read(reader)
        if loads(head, 1000)["height"] == self._height:
            writer.write(framed({"size": len(self._proof)}, self._proof))
            await writer.drain()
            return
        said = dumps({"size": 1 << 20})
        writer.write(LENGTHS.pack(len(said), 1 << 20) + said)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.2)


def trains(here: Session, seed: int) -> None:
    """In place of a trainer: a delta at each boundary."""

    def ordered(order: Order) -> None:
        base = here.keeper.base
        if isinstance(order, Stop) and base.tip is not None:
            here.averaging.begin(order.round, noise(base.layout.size(order.fragment), seed), here.neighbours.on_base(base.tip), 10)
            asyncio.get_running_loop().call_soon(here.feed, Trained(order.round))

    here._order = ordered  # type: ignore[method-assign]
    here.feed(TrainerUp())


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_nothing_leads_to_costs_no_rounds(tmp_path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer tries once, the liar loses its credit, and they train on."""
    monkeypatch.setattr(limits, "IO_BYTES", 1)
    monkeypatch.setattr(neighbours, "_PATIENCE_S", 1.0)  # so two periods, 12 s, are the longest

    async def work() -> None:
        line = grown(2)
        stores = [begin(line, tmp_path / name) for name in ("there", "here")]
        for store in stores:
            for entry, parts in line.entries:
                store.write_entry(entry, *parts)
        liar = await Liar.start(PEOPLE[-1], tmp_path, f"tapestry/1/{line.rules.run_id}")
        try:
            async with session(PEOPLE[0], tmp_path, stores[0]) as there, session(PEOPLE[1], tmp_path, stores[1], there.node) as here:
                await begun(there, here)
                tried: Counter[Session] = Counter()
                for number, one in enumerate((there, here)):
                    catch_up = one.keeper.catch_up

                    async def counting(target: Tip, donors: list[str], one: Session = one, catch_up: Any = catch_up) -> Tip:
                        tried[one] += liar.peer in donors
                        return await catch_up(target, donors)

                    monkeypatch.setattr(one.keeper, "catch_up", counting)
                    trains(one, number)
                homes = {one.node.peer_id: await one.node.addresses() for one in (there, here)}
                await liar.meet(homes)
                announcer = Announcer(liar, line, list(homes), ahead)
                await liar.serve("entry")
                liar.answer("entry", announcer.answer)

                async def both_tried() -> bool:
                    await announcer.announce()
                    return all(tried[one] for one in (there, here))

                await until(both_tried)
                reached = there.keeper.base.tip
                assert reached is not None

                async def went_on() -> bool:
                    await announcer.announce()
                    return all(one.keeper.base.tip and one.keeper.base.tip.height >= reached.height + 1 for one in (there, here))

                await until(went_on, 60)
                assert max(tried.values()) <= 3
                assert all(one.neighbours._doubts.times(liar.peer) for one in (there, here))
        finally:
            await liar.stop()

    go(work, timeout_s=120)
