"""One joined run: the rooms around a Member, events to it, its effects performed.

Everything that is decided is decided by `Member.handle`; here is only the doing. One round's stages run as one task at
a time; a Discard cancels it. Nothing in here writes the base but through the Keeper.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, assert_never

from protocols import limits, rounds
from protocols.lineage import Entry, Tip
from protocols.records import ACTIVE, Presence
from protocols.refusal import Refused
from protocols.rules import Invite, RunRules
from protocols.trainer import Checks, Delta, Order, Rest, Stop, Train, Withheld
from tapestryd import __version__
from tapestryd.arrival import fetched
from tapestryd.averaging import Averaging
from tapestryd.beside import Beside
from tapestryd.config import DaemonConfig
from tapestryd.errors import DiskFull, LocalFault
from tapestryd.exchange import entry_bytes, offer_bytes, part_bytes
from tapestryd.history import History
from tapestryd.host.clock import now_ms
from tapestryd.host.keys import Identity, verify
from tapestryd.host.store import RunStore
from tapestryd.host.trainer import Work
from tapestryd.host.watch import Watch
from tapestryd.isolation import Isolation
from tapestryd.keeper import Keeper
from tapestryd.neighbours import Neighbours, look_s
from tapestryd.roll import Roll
from tapestryd.supervisor import Supervisor
from tapestryd.swarm.donor import Donor
from tapestryd.swarm.gather import Gathering
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.meeting import Meetings, Sizes
from tapestryd.swarm.node import Node
from tapestryd.swarm.reach import Reach
from tapestryd.swarm.reduce import Reduction
from tapestryd.swarm.settle import Settlement
from tapestryd.swarm.streams import Gone

log = logging.getLogger(__name__)

_PRESENCES = {
    rounds.State.SYNCING: "syncing", rounds.State.TRAINING: "training", rounds.State.PAUSED: "paused", rounds.State.LEFT: "left",
    **dict.fromkeys(rounds.IN_ROUND, "averaging"),
}  # fmt: skip

_FOLLOWING = (rounds.State.JOINING, rounds.State.SYNCING, rounds.State.TRAINING)
"""States that a better tip would move, or would as soon as they have what they fetch."""

_ROOM_S = 30.0
"""A catch-up after one that the disk had no room for waits this long, and asks nobody: only the operator makes room."""


class Session:
    """Starts with a run id and addresses to ask; the rules may still have to be fetched. `watch` is told of every change;
    `keep_peers(addresses)`, where the run can be found again; `failed(error)` is called once if the session cannot go on."""

    def __init__(
        self, config: DaemonConfig, identity: Identity, store: RunStore, node: Node, isolation: Isolation, watch: Watch,
        keep_peers: Callable[[Sequence[str]], None], failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self.config = config
        self.identity = identity
        self.store = store
        self.node = node
        self.isolation = isolation
        self.rules: RunRules | None = None
        self._fetcher = Fetcher(node, store.run_id, verify)
        self.neighbours = Neighbours(node, store.run_id, verify, self._fetcher, self._look)
        self.reach = Reach(node)
        self.history = History(store, node.peer_id, node.meter, node.refusals, watch.told)
        self.addresses: list[str] = []
        self.member: rounds.Member | None = None
        self.roll: Roll | None = None
        self.supervisor: Supervisor | None = None
        self._changed: Callable[[], object] = watch.look
        self._keep_peers = keep_peers
        self._failed = failed
        self._beside = Beside(failed)
        self._stage: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._published = 0.0
        self._kept = 0.0
        self._held = rounds.Held(())
        self._reasons: tuple[str, ...] = ()
        self._trained: Delta | None = None
        self._left = asyncio.Event()

    # Life.

    async def start(self) -> None:
        await self.neighbours.serve()
        self.addresses = await self.node.addresses()
        self._beside.run(self._begin())

    async def stop(self, timeout_s: float) -> None:
        """Leave the group: the round at hand is dropped or, if it is being committed, finished; then everything ends."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._leave(timeout_s / 4)
        except TimeoutError:
            log.error("leaving took longer than %.0f s; ending without it", timeout_s)
        finally:
            await self.node.stop()

    async def _leave(self, stage_s: float) -> None:
        if self.member is not None:
            self.feed(rounds.LeaveAsked())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), stage_s)
        if self._timer:
            self._timer.cancel()
        self._beside.cancel()
        if self.member is not None:  # side by side: none of them is cut off for what another took
            trainer = [self.supervisor.stop(stage_s)] if self.supervisor is not None else []
            await asyncio.gather(self._announce(), self.keeper.stop(), *trainer)

    async def _begin(self) -> None:
        """Rules, then base from disk, then everything else."""
        rules = self.store.load_rules()
        if rules is None:
            rules, tokenizer = await fetched(self._fetcher, self._refresh, self._donors)
            await asyncio.to_thread(self.store.keep_rules, rules, tokenizer)
        self.rules = rules
        self.roll = Roll(rules, self.store, self.node.peer_id, self.config.run.delegation, verify)
        self.neighbours.admit = self.roll.admit
        layout = rules.layout()
        self._fetcher.agreed, self._fetcher.entry_bytes = rules, entry_bytes(rules)
        self._fetcher.round_now = lambda: rules.schedule.round_at(now_ms())
        self._fetcher.patience_s = lambda: self.neighbours.patience_s(self.keeper.base.tip, rules)
        self.keeper = Keeper(
            rules, layout, self.store, self._fetcher, verify,
            self.config.storage.snapshot_every, self.config.storage.keep_snapshots, self._replayed, self._replaced,
        )  # fmt: skip
        tip = await self.keeper.open()
        await self._furnish(rules)
        self.member = rounds.Member(rules.schedule, rules.averaging.min_peers)
        self.feed(self._held)
        if tip:
            log.info("base height=%d digest=%s from disk", tip.height, tip.base[:12])
            self.feed(rounds.BaseLoaded(tip))
        if self.config.trainer.enabled:
            self.supervisor = Supervisor(
                Work(layout, rules.canonical(), self.store.tokenizer()), self.config.trainer.socket,
                self.config.node.state_dir / "witness.json", self._checked, self._trainer_ready, self._stopped, self._down,
                self._failed,
            )  # fmt: skip
            self.supervisor.want(self.member.state is not rounds.State.PAUSED)
            self.supervisor.start()
        self._beside.run(self._watch())

    def _donors(self) -> list[str]:
        """Those of the invite first: somebody named them, and in roster mode a founder whom nobody has delegated yet has no presence."""
        return [*self.node.bootstrap, *(seen.peer for seen in self.neighbours.seen())]

    async def _furnish(self, rules: RunRules) -> None:
        assert self.roll is not None
        meetings = Meetings()
        sizes = Sizes(lambda n: offer_bytes(rules, n), lambda n: part_bytes(rules, n))
        hold_s = rules.schedule.average_ms / 1000
        gathering = Gathering(
            self.node, rules.run_id, rules.averaging.min_peers, self.identity.sign, verify,
            lambda: rules.schedule.round_at(now_ms()), lambda: self.keeper.base.tip.base if self.keeper.base.tip else "", hold_s, self.roll,
        )  # fmt: skip
        reduction = Reduction(self.node, meetings, sizes, self.identity.sign, verify)
        settlement = Settlement(self.node, meetings, sizes, self.identity.sign, verify, self.store.keep_proof, rules.members)
        donor = Donor(self.node, self.store, lambda: self.config.network.max_serve_bytes, self._averaging)
        self.averaging = Averaging(rules, self.keeper, self.node, gathering, reduction, settlement, now_ms)
        for room in (gathering, reduction, settlement, donor, self.reach):
            await room.serve()

    async def _watch(self) -> None:
        """Look around, say that we are here, and notice what hinders us; until the session ends."""
        assert self.rules is not None
        assert self.roll is not None
        schedule = self.rules.schedule
        while True:
            interval = look_s(schedule, now_ms(), self.member)
            self.roll.look(schedule.boundary(schedule.round_at(now_ms())))
            try:
                await self._refresh()
            except Gone as gone:
                log.warning("%s", gone)
            if time.monotonic() + interval - self._published > limits.PRESENCE_MS / 3000:  # the next look would be too late
                await self._announce()
            self.feed(rounds.Hindered(tuple(self._hindrances())))
            self._look()
            if time.monotonic() - self._kept > 60 and self.neighbours.count():
                self._kept = time.monotonic()
                self.addresses = await self.node.addresses()
                self._keep_peers(self.neighbours.addresses())
                self._beside.run(self.reach.ask(self.neighbours.some(), self.addresses))
            await asyncio.sleep(interval)

    async def _refresh(self) -> None:
        """Raises Gone if the DHT does not answer this time."""
        if not self.node.alive:
            raise ConnectionError("p2pd, the libp2p process, ended by itself")
        await self.neighbours.refresh()

    def _averaging(self) -> bool:
        return self.member is not None and self.member.state in rounds.IN_ROUND

    def _look(self) -> None:
        if self.member is not None:
            self.feed(rounds.PeersSeen(self.neighbours.seen()))

    def _hindrances(self) -> list[str]:
        found = [] if self.neighbours.clock()[0] else ["clock"]
        if self.roll and self.roll.trouble:
            found.append("not_delegated")
        if self.neighbours.twin():
            found.append("twin")
        return found

    async def _announce(self) -> None:
        """Publish our presence. If nobody takes it, the next look tries again."""
        member = self.member
        if member is None or self.roll is None or self.roll.trouble:  # undelegated, we would only be refused
            return
        tip = self.keeper.base.tip
        state = _PRESENCES.get(member.state) or ("joining" if set(member.reasons) <= {"no_peers"} else "waiting")
        if state in ACTIVE and not member.counts:
            state = "waiting"
        record = Presence(
            self.store.run_id, self.node.peer_id, self.config.node.name, state, tip.height if tip else 0, tip.weight if tip else 0,
            tip.base if tip else "", () if self.reach.reachable is False else tuple(self.addresses), __version__, self.roll.own, now_ms(),
        )  # fmt: skip
        self.neighbours.own_ms = max(self.neighbours.own_ms, record.made_ms)
        made = time.monotonic()
        try:
            await self.node.publish(record.to_bytes(self.identity.sign))
            self._published = made
        except Gone as gone:
            log.warning("%s", gone)

    # Events in, effects out.

    def hold(self, held: rounds.Held) -> None:
        self._held = held
        if self.member is not None:
            self.feed(held)

    def feed(self, event: rounds.Event) -> None:
        """Whoever calls: a task of ours, the loop's timer, the trainer's channel. Half of an event's effects are no state to go on from."""
        try:
            self._handle(event)
        except Exception as error:
            self._failed(error)

    def _handle(self, event: rounds.Event) -> None:
        member = self.member
        assert member is not None
        was = member.state
        effects = member.handle(event, now_ms())
        if member.state is not was:
            self.history.enter(member.state)
            if self.supervisor is not None:
                self.supervisor.want(member.state is not rounds.State.PAUSED)
        if member.state is not was or member.reasons != self._reasons:
            self._reasons = member.reasons
            why = f" ({', '.join(member.reasons)})" if member.reasons else ""
            log.info("round=%d %s→%s%s", member.round, was.value, member.state.value, why)
            self._changed()
        for effect in effects:
            self._perform(effect)
        if member.state in _FOLLOWING:
            self.neighbours.scout(self.keeper.base.tip)
        if member.state is rounds.State.LEFT:
            self._left.set()
        if self._timer:
            self._timer.cancel()
        wake = member.wake_ms
        if wake is not None and not self._left.is_set():
            self._timer = asyncio.get_running_loop().call_later(max(0.001, (wake - now_ms()) / 1000), self.feed, rounds.Tick())

    def _perform(self, effect: rounds.Effect) -> None:
        assert self.rules is not None
        member = self.member
        assert member is not None
        match effect:
            case rounds.Train(round):
                self._order(Train(round, self.keeper.base.tip.height if self.keeper.base.tip else 0))
            case rounds.Stop(round):
                self._trained = None
                self._order(Stop(round, round % self.keeper.base.layout.fragments))
            case rounds.Rest():
                self._order(Rest())
            case rounds.Gather(round):
                assert self.roll is not None
                rate = self.node.meter.rate() if self.reach.reachable is not False else 0
                self._stage_is(round, self.averaging.gather(rate, self.roll.own))
            case rounds.Reduce(roster):
                self._stage_is(roster.round, self.averaging.reduce(roster))
            case rounds.Settle(round):
                self._stage_is(round, self.averaging.settle())
            case rounds.Commit(round):
                self._stage_is(round, self.averaging.commit())
            case rounds.Discard(round, reason):
                if self._stage:
                    self._stage.cancel()
                self._over(round, reason)
            case rounds.CatchUp(tip, donors):
                self._beside.run(self._catch_up(tip, donors))
            case rounds.Announce():
                self._beside.run(self._announce())
            case _:
                assert_never(effect)

    def _order(self, order: Order) -> None:
        if self.supervisor is not None:
            self.supervisor.send(order)

    # The trainer.

    def _checked(self, checks: Checks) -> None:
        try:
            self.isolation.heard(checks)
        except LocalFault as fault:
            self._failed(fault)

    def _trainer_ready(self) -> None:
        if self.isolation.required and not self.isolation.proven:
            assert self.supervisor is not None
            self.supervisor.refuse("the data side does not prove its box, and tapestryd.toml requires it ([sandbox])")
        else:
            self._beside.run(self._hand())

    async def _hand(self) -> None:
        """Hand the trainer the base; with that it can begin."""
        assert self.member is not None
        if self.supervisor is not None and await self.supervisor.hand(self.keeper.base) and not self.member.trainer:
            self.feed(rounds.TrainerUp())

    def _stopped(self, report: Delta | Withheld) -> None:
        member = self.member
        if member is None or member.state is not rounds.State.STOPPING or report.round != member.round:
            return
        if isinstance(report, Withheld):
            self.feed(rounds.Failed(report.round, "withheld"))
        else:
            self._beside.run(self._take(report))

    async def _take(self, report: Delta) -> None:
        base, member = self.keeper.base, self.member
        assert member is not None
        if self.supervisor is None or base.tip is None or report.fragment != report.round % base.layout.fragments:
            return
        delta = await self.supervisor.take(base.slice(report.fragment))
        if member.state is not rounds.State.STOPPING or report.round != member.round:
            return
        self._trained = report
        if delta is None:
            self.feed(rounds.Failed(report.round, "not_finite"))
            return
        self.averaging.begin(report.round, delta, self.neighbours.on_base(base.tip), report.steps)
        self.feed(rounds.Trained(report.round))

    def _down(self) -> None:
        self.isolation.forget()
        self.feed(rounds.TrainerDown())

    # Rounds.

    def _stage_is(self, round: int, work: Coroutine[Any, Any, rounds.Event]) -> None:
        async def run() -> None:
            event = await self.averaging.run(work, round)
            if isinstance(event, rounds.Committed):
                fragment = round % self.keeper.base.layout.fragments
                if self.supervisor is not None:
                    await self.supervisor.committed(self.keeper.base, fragment)
                self._over(round, "")
            self.feed(event)

        self._stage = self._beside.run(run())

    def _replayed(self, entry: Entry, parts: list[bytes]) -> None:
        assert self.roll is not None
        self.roll.heard(entry.roster)
        self.history.replayed(entry)
        self.averaging.followed(entry, parts)

    def _replaced(self, entries: Sequence[Entry]) -> None:
        assert self.roll is not None
        for entry in entries:
            self.roll.heard(entry.roster)
        self.averaging.forget()

    def _over(self, number: int, reason: str) -> None:
        """A round ended: committed, or discarded for `reason`."""
        round = self.averaging.round if self.averaging.round and self.averaging.round.number == number else None
        fragment = number % self.keeper.base.layout.fragments
        self.history.end(number, fragment, self.keeper.base.tip, reason=reason, round=round, trained=self._trained)
        self.averaging.drop()

    # Catching up.

    async def _catch_up(self, tip: Tip, donors: Sequence[str]) -> None:
        assert self.rules is not None
        assert self.member is not None
        if self.member.trouble == "disk_full":
            await asyncio.sleep(_ROOM_S)
        before, began = self.keeper.base.tip, self.history.mark()
        trouble = why = ""
        try:
            await self.keeper.catch_up(tip, donors)
            self.neighbours.trust(donors)
        except (Gone, Refused) as error:
            self.neighbours.doubt(donors)
            trouble, why = "no_donor", f"no_donor: {error}"
        except DiskFull as full:
            log.error("catch-up to height %d: %s", tip.height, full)
            trouble = why = "disk_full"
        reached = self.keeper.base.tip
        self.history.caught_up(self.rules.schedule.round_at(now_ms()), before, reached, tip, donors, why, began)
        if reached is None or (trouble and reached == before):
            self.feed(rounds.CatchUpFailed(trouble))
            self._look()
            return
        if reached != before:
            await self._hand()
        self.feed(rounds.BaseLoaded(reached))

    # What others see.

    def invite(self) -> str:
        own = [f"{address}/p2p/{self.node.peer_id}" for address in self.addresses]
        return str(Invite(self.store.run_id, tuple([*own, *self.neighbours.addresses()][: limits.ADDRESSES])))
