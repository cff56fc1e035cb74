"""Real daemons and trainers on real text, and a liar among them through whole rounds, each round with another lie."""

import asyncio
import math
import pydoc_data.topics
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError, P2PHandlerError
from hivemind.utils.timed_storage import get_dht_time

from protocols.canonical import loads
from protocols.grouping import Roster, order
from protocols.lineage import Tip
from protocols.records import Presence
from protocols.rules import RunRules
from tapestryd.exchange import Offer
from tests.hostile.liar import Liar
from tests.lineages import noise
from tests.living import Peer, digests_by_height, found
from tests.people import Person, verify
from tests.swarm.rooms import now_ms

LIES = ("sign-flipped x10", "NaN", "huge, claimed small", "silent")
GONE = (OSError, EOFError, TimeoutError, KeyError, ControlFailure, P2PDaemonError, P2PHandlerError)
"""What becomes of a liar's words when nobody listens any more."""


class Lying(threading.Thread):
    """A liar at work, on a loop of its own. `told`: how often it went through with each lie."""

    def __init__(self, rules: RunRules, homes: Mapping[str, Sequence[str]], folder: Path) -> None:
        super().__init__()
        self.rules = rules
        self.homes = homes
        self.folder = folder
        self.told: Counter[str] = Counter()
        self.fault: BaseException | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as fault:
            self.fault = fault

    def end(self) -> None:
        self._ended.set()
        self.join(60)
        assert self.fault is None, self.fault

    async def _work(self) -> None:
        prefix = f"tapestry/1/{self.rules.run_id}"
        liar = await Liar.start(Person("liar"), self.folder, prefix)
        schedule = self.rules.schedule
        try:
            await liar.meet(self.homes)
            await liar.serve("call", "reduce", "vote", "hello")  # and never answers
            lied = -1
            while not self._ended.is_set():
                try:
                    tip = await self._announce(liar)
                    number = schedule.round_at(now_ms())
                    if tip and number > lied and now_ms() > schedule.boundary(number):
                        lied = number
                        await asyncio.wait_for(self._lie(liar, number, tip), schedule.average_ms / 1000)
                except GONE:
                    pass
                await asyncio.sleep(0.2)
        finally:
            await liar.stop()

    async def _announce(self, liar: Liar) -> Tip | None:
        """Say that we are where the others are, to all who still listen; where that is."""
        tip: Tip | None = None
        for home in self.homes:
            with suppress(*GONE):
                for body in await liar.look(home):
                    there = Tip(body["height"], body["weight"], body["base"])
                    tip = there if there.base and (tip is None or there.better_than(tip)) else tip
        if tip is not None:
            told = Presence(self.rules.run_id, liar.peer, "liar", "training", *_fields(tip), ("/ip4/127.0.0.1/tcp/1",), "0", None, now_ms())
            for home in self.homes:
                with suppress(*GONE):
                    await liar.store(home, [(liar.peer, told.to_bytes(liar.person.sign), get_dht_time() + 15)])
        return tip

    async def _lie(self, liar: Liar, number: int, tip: Tip) -> None:
        lie = LIES[number % len(LIES)]
        fragment = number % self.rules.averaging.fragments
        small = noise(self.rules.layout().size(fragment), number)
        large = Offer(self.rules, small * (-10.0 if lie == "sign-flipped x10" else 1e20))
        claimed = large if lie == "sign-flipped x10" else Offer(self.rules, small)
        leaders = order(self.rules.run_id, number, [*self.homes, liar.peer])
        if leaders[0] == liar.peer:
            return  # as a leader it is silent
        answer = loads(await liar.call(leaders[0], number, tip.base, liar.claim(claimed)), 1 << 20)
        roster = Roster.from_body(answer["roster"]["body"], verify)
        self.told[lie] += 1
        if lie == "silent":
            return
        sent = claimed if lie == "NaN" else large
        parts = [sent.part(*here) for here in roster.slices(small.numel(), self.rules.codec.block)]
        if lie == "NaN":
            parts = [struct.pack("<f", math.nan) + part[4:] for part in parts]
        offers = zip(roster.reducers, parts, strict=True)
        await asyncio.gather(*(liar.offer(peer, roster.digest, part) for peer, part in offers), return_exceptions=True)


def _fields(tip: Tip) -> tuple[int, int, str]:
    return tip.height, tip.weight, tip.base


@contextmanager
def swarm(folder: Path) -> Iterator[list[Peer]]:
    prose = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for number, name in enumerate(("north", "south", "west")):
        data = folder / "data" / name
        data.mkdir(parents=True)
        (data / "prose.txt").write_text(prose[number * 100_000 : (number + 1) * 100_000])
        peers.append(Peer(folder / name, [data]))
    try:
        yield peers
    finally:
        for peer in peers:
            peer.end()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_liar_among_real_daemons(tmp_path: Path) -> None:
    """They commit on, hold the same bases, learn, log no traceback, and in the end do not listen to it any more. What it costs
    them is measured in test_loss: here nobody takes the same number of steps twice."""
    toml = found(tmp_path / "founder", "--train", "4", "--average", "8")
    rules = RunRules.from_toml(toml.read_text())
    with swarm(tmp_path) as peers:
        peers[0].start(str(toml))
        invite = peers[0].invite()
        for peer in peers[1:]:
            peer.start(invite)
        for peer in peers:
            peer.height(1, 180)
        homes = {}
        for peer in peers:
            address, _, peer_id = peer.invite().partition("?peer=")[2].partition("&")[0].partition("/p2p/")
            homes[peer_id] = [address]
        assert len(homes) == 3
        lying = Lying(rules, homes, tmp_path)
        lying.start()
        try:
            start = max(peer.status()["run"]["height"] for peer in peers)
            for peer in peers:
                peer.wait("the liar is banned", lambda status: status["bans"] > 0, 600)
                banned = {ban["peer_id"] for ban in peer.client.ask("GET", "/v1/bans")["bans"]}
                assert not banned & set(homes), banned
            for peer in peers:
                peer.height(start + 8, 300)
        finally:
            lying.end()
        print(f"\nlies told {dict(lying.told)}")
        for peer in peers:
            status = peer.status()
            heldout = status["trainer"]["heldout"]
            print(f"{peer.folder.name}: refused {status['refusals']}, held-out loss {heldout['first_loss']:.3f} → {heldout['loss']:.3f}")
            assert heldout["loss"] < heldout["first_loss"]
            assert "Traceback" not in peer.log()
        assert all(len(found) == 1 for found in digests_by_height(peers).values())
        assert sum(lying.told.values()) >= 4
