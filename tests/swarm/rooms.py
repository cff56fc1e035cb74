"""Real nodes for tests: each with its own p2pd on a port of its own, all in this process and on one event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvloop

from protocols.canonical import loads
from protocols.grouping import Candidate
from protocols.identity import identity_file, public_key
from protocols.lineage import Tip
from protocols.membership import Delegation
from protocols.records import Presence
from protocols.rounds import Committed, Event, Reduced, Rostered, Settled
from protocols.rules import RunRules
from protocols.schedule import Schedule
from tapestryd.averaging import Averaging
from tapestryd.exchange import offer_bytes, part_bytes
from tapestryd.host.store import RunStore
from tapestryd.keeper import Keeper
from tapestryd.roll import Roll
from tapestryd.swarm.gather import Gathering
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.meeting import Meetings, Sizes
from tapestryd.swarm.node import Node
from tapestryd.swarm.reduce import Reduction
from tapestryd.swarm.settle import Settlement
from tests.lineages import PEOPLE, fresh, noise
from tests.people import RATE, Person, in_roster_mode, verify
from tests.people import rules as plain_rules

LISTEN = ["/ip4/127.0.0.1/tcp/0"]


def go(work: Callable[[], Coroutine[Any, Any, None]], *, uv: bool = True, timeout_s: float = 60) -> None:
    """Run `work` on a fresh loop, with a bound."""

    async def main() -> None:
        await asyncio.wait_for(work(), timeout_s)

    (uvloop.run if uv else asyncio.run)(main())


def identity(person: Person, folder: Path) -> Path:
    path = folder / f"{person.name}.key"
    path.write_bytes(identity_file(person.seed, public_key(person.peer)))
    return path


async def start(
    person: Person, folder: Path, prefix: str = "tapestry/1/test", bootstrap: Sequence[str] = (), listen: Sequence[str] = LISTEN
) -> Node:
    node = await Node.start(prefix, identity(person, folder), listen, (), bootstrap, verify)
    assert node.peer_id == person.peer
    return node


def record(person: Person, addrs: Sequence[str] = (), *, name: str = "x", ahead_ms: int = 0) -> bytes:
    """A presence of `person`, made now, by a clock that is `ahead_ms` ahead."""
    return Presence("ab" * 32, person.peer, name, "training", 0, 0, "", tuple(addrs), "0", None, now_ms() + ahead_ms).to_bytes(person.sign)


async def refresh(node: Node, person: Person) -> dict[str, bytes]:
    """Say that we are here, look who else is, and remember where: what the daemon does all the time."""
    await node.publish(record(person, await node.addresses()))
    found = await node.look()
    node.hint({peer: loads(value, 4096)["body"]["addrs"] for peer, value in found.items()})
    return found


async def address(node: Node) -> str:
    return f"{(await node.addresses())[0]}/p2p/{node.peer_id}"


@asynccontextmanager
async def nodes(folder: Path, count: int, prefix: str = "tapestry/1/test") -> AsyncIterator[list[Node]]:
    """`count` nodes that know one another's addresses."""
    made = await asyncio.gather(*(start(person, folder, prefix) for person in PEOPLE[:count]))
    try:
        known = {node.peer_id: await node.addresses() for node in made}
        for node in made:
            node.hint({peer: found for peer, found in known.items() if peer != node.peer_id})
        yield list(made)
    finally:
        await asyncio.gather(*(node.stop() for node in made))


async def until(good: Callable[[], Coroutine[Any, Any, Any]], timeout_s: float = 20) -> Any:
    """The first result of `good` that is true. For what only asking again can show, as with a DHT."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await good()
            if found:
                return found
            await asyncio.sleep(0.05)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Peer:
    """One member with everything that a round needs: node, rooms, keeper and base, but no trainer and no Member."""

    def __init__(
        self, node: Node, person: Person, rules: RunRules, store: RunStore, delegation: Delegation | None = None,
        clock: Callable[[], int] = now_ms,
    ) -> None:  # fmt: skip
        self.node, self.person, self.rules, self.clock = node, person, rules, clock
        self.rate = RATE
        self.owners: dict[str, str] = {}
        """Of the peers that have another owner than themselves."""
        self.undialled: set[str] = set()
        """Peers that announce no address."""
        self.roll = Roll(rules, store, person.peer, "", verify)
        self.roll.own = delegation
        self.meetings = Meetings()
        sizes = Sizes(lambda n: offer_bytes(rules, n), lambda n: part_bytes(rules, n))
        self.gathering = Gathering(
            node, rules.run_id, rules.averaging.min_peers, person.sign, verify,
            lambda: rules.schedule.round_at(clock()), lambda: self.keeper.base.tip.base if self.keeper.base.tip else "",
            rules.schedule.average_ms / 1000, self.roll,
        )  # fmt: skip
        self.reduction = Reduction(node, self.meetings, sizes, person.sign, verify)
        self.settlement = Settlement(node, self.meetings, sizes, person.sign, verify, store.keep_proof, rules.members)
        fetcher = Fetcher(node, rules.run_id, verify)
        fetcher.agreed = rules
        self.keeper = Keeper(rules, rules.layout(), store, fetcher, verify, 100, 3, lambda *_: None, lambda _: None)
        self.averaging = Averaging(rules, self.keeper, node, self.gathering, self.reduction, self.settlement, clock)

    async def serve(self) -> None:
        for room in (self.gathering, self.reduction, self.settlement):
            await room.serve()

    def begin(self, others: Sequence[str], number: int = 0) -> None:
        fragment = number % self.keeper.base.layout.fragments
        delta = noise(self.keeper.base.layout.size(fragment), hash(self.person.name) % 1000)
        self.averaging.begin(number, delta, self.candidates(others), 10)

    def candidates(self, peers: Sequence[str]) -> dict[str, Candidate]:
        return {peer: Candidate(self.owners.get(peer, peer), dialled=peer not in self.undialled) for peer in peers}

    async def round(self, others: Sequence[str], number: int = 0) -> Event:
        """From a delta to Committed, or the Failed that it ends in."""
        self.begin(others, number)
        event = await self.averaging.run(self.averaging.gather(self.rate, self.roll.own), number)
        if isinstance(event, Rostered):
            event = await self.averaging.run(self.averaging.reduce(event.roster), number)
        if isinstance(event, Reduced):
            event = await self.averaging.run(self.averaging.settle(), number)
        if isinstance(event, Settled):
            event = await self.averaging.run(self.averaging.commit(), number)
        self.averaging.drop()
        return event

    @property
    def theta(self) -> torch.Tensor:
        return self.keeper.base.theta

    def refused(self) -> dict[str, int]:
        return dict(self.node.refusals)


class Clock:
    """The machine's, set ahead or back."""

    ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


Delegate = Callable[[RunRules], Sequence[Delegation]]
"""What the Members of a run with these rules sign."""


@asynccontextmanager
async def peers(
    folder: Path, count: int, *, average_ms: int = 3000, fragments: int = 2, bits: int = 8, delegate: Delegate | None = None,
    **averaging: object,
) -> AsyncIterator[list[Peer]]:  # fmt: skip
    """`count` members of one run at genesis, with round 0's boundary now: a third of `average_ms` to gather in, and so on.
    With `delegate` the run is in roster mode, of tests.people.MEMBERS."""
    made, base = fresh(plain_rules(fragments, bits, **averaging))
    prefix = f"tapestry/1/{count}"
    async with nodes(folder, count, prefix) as started:
        made = replace(made, schedule=Schedule(now_ms(), 1000, average_ms))
        made = in_roster_mode(made) if delegate else made
        shown = {delegation.node: delegation for delegation in delegate(made)} if delegate else {}
        clock, found = Clock(), []
        for node, person in zip(started, PEOPLE, strict=False):
            store = RunStore(folder / person.name, made.run_id)
            store.keep_rules(made, b"")
            peer = Peer(node, person, made, store, shown.get(person.peer), clock)
            peer.owners = {node: delegation.member for node, delegation in shown.items()}
            peer.keeper.base.theta.copy_(base.theta)
            peer.keeper.base.pairs = list(base.pairs)
            peer.keeper.base.tip = Tip(0, 0, made.model.genesis)
            await peer.serve()
            found.append(peer)
        at_boundary(found)
        yield found


def at_boundary(found: Sequence[Peer]) -> None:
    """Now is round 0's boundary, however long it took to come to this."""
    clock = found[0].clock
    assert isinstance(clock, Clock)
    clock.ahead_ms += found[0].rules.schedule.boundary(0) - clock()


def others(of: Peer, all_: Sequence[Peer]) -> list[str]:
    return [peer.node.peer_id for peer in all_ if peer is not of]


def agreed(found: Sequence[Peer], events: Sequence[Event]) -> None:
    """All committed, to the same bits, and each log entry, whoever wrote it, proves the same result."""
    assert all(isinstance(event, Committed) for event in events), events
    assert len({peer.keeper.base.tip for peer in found}) == 1
    for peer in found[1:]:
        assert torch.equal(peer.theta, found[0].theta)
    whole = [peer.keeper.store.load_entry(1, verify) for peer in found]
    assert all(whole)
    assert len({entry[0].vote for entry in whole if entry}) == 1
    assert len({tuple(entry[1]) for entry in whole if entry}) == 1
