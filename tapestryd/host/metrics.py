"""The metrics of this peer, as Prometheus scrapes them; control.md lists them.

All come from the `Status` of that moment, but for rounds and catch-ups, which are counted as their stories are told. Labels hold
words of ours; peer ids, which are many and come from others, only where `per_peer` asks for them.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from ipaddress import ip_address
from statistics import median_low

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from protocols import TREATY
from protocols.control import READY, ROUND_RESULTS, STATES, Status, Story
from protocols.refusal import Reason
from tapestryd.config import Metrics as Choices
from tapestryd.host.route import Route
from tapestryd.host.web import Web
from tapestryd.settings import endpoint

Labelled = Mapping[str, float]

_REFUSED = {reason.value for reason in Reason}
_ROUND_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_800)


class Metrics:
    """`status` makes a picture of this moment, once a scrape."""

    def __init__(self, status: Callable[[], Status], per_peer: bool) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
        registry = self._registry = CollectorRegistry()
        self._rounds = Counter(
            "tapestry_averaging_rounds", "Rounds by result, and why they were discarded.", ("result", "reason"), registry=registry
        )
        self._took = Histogram(
            "tapestry_averaging_round_duration_seconds", "From a round's boundary to its end.", buckets=_ROUND_S, registry=registry
        )
        self._passed_over = Counter(
            "tapestry_averaging_leaders_passed_over", "Leaders that gave no roster, and why.", ("reason",), registry=registry
        )
        self._repaired = Counter(
            "tapestry_averaging_parts_repaired", "Parts that came from a voter, and not from their reducer.", registry=registry
        )
        self._catch_ups = Counter(
            "tapestry_catch_ups", "Attempts to catch up, by result, and why they ended early.", ("result", "reason"), registry=registry
        )
        GCCollector(registry)
        ProcessCollector(registry=registry)
        registry.register(_Picture(status, per_peer))

    def told(self, story: Story) -> None:
        if story.result not in ROUND_RESULTS:
            self._catch_ups.labels(story.result, story.reason.partition(":")[0]).inc()
            return
        self._rounds.labels(story.result, story.reason).inc()
        for leader in story.silent:
            word = leader.why.partition(":")[0]  # what is refused begins so; else it is a line that failed, in many words
            self._passed_over.labels(word if word in _REFUSED else "gone").inc()
        self._repaired.inc(len(story.repaired))
        if story.took_ms and story.result != "replayed":
            self._took.observe(story.took_ms / 1000)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All of them, in the format that `accept` asks for, and its media type."""
        encode, media = choose_encoder(accept)
        return encode(self._registry), media


def scraped(choices: Choices, route: Route) -> Web:
    """A listener of their own. On loopback a name that was pointed at us is refused; elsewhere Prometheus may use any."""
    address = endpoint(choices.listen) if choices.listen else None
    alone = address is not None and ip_address(address[0]).is_loopback
    return Web("metrics.listen", address, ("localhost",) if alone else None, [web.get(route.path, route.serve)])


class _Picture(Collector):
    def __init__(self, status: Callable[[], Status], per_peer: bool) -> None:
        self._status = status
        self._per_peer = per_peer

    def describe(self) -> Iterable[Metric]:
        return ()  # asked once, at registration, when there may be no status yet

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield from _node(status)
        yield from _training(status)
        yield from _swarm(status)
        if self._per_peer:
            yield from _peers(status)


def _node(status: Status) -> Iterator[Metric]:
    yield InfoMetricFamily("tapestry_build", "What runs here.", _versions() | {"version": status.version})
    ready = status.run is not None and status.state in READY
    yield _gauge("ready", "Whether this node is a member of a run: /readyz.", ready)
    yield _gauges("state", "1 for the state that the node is in.", "state", {state: state == status.state for state in STATES})
    yield _gauges("reason", "1 for each reason of that state.", "reason", dict.fromkeys(status.reasons, 1))
    yield _gauge("health_messages", "Sentences about what is not well; 0 is good.", len(status.health))
    isolation = status.isolation
    yield _gauge("isolation_enforced", "Whether data side and network side are kept apart by the system.", isolation.enforced)
    held = {name: verdict == "held" for name, verdict in isolation.checks.items() if verdict != "untried"}
    yield _gauges("isolation_check", "1 for each wall between them that held when it was last tried.", "check", held)
    if status.disk:
        yield _gauge("disk_free_bytes", "Free on the disk of the state directory.", status.disk.free_bytes)
        yield _gauge("disk_min_free_bytes", "With less, no round is begun.", status.disk.min_free_bytes)


def _training(status: Status) -> Iterator[Metric]:
    trainer = status.trainer
    about = {"device": trainer.device, "precision": trainer.precision, "optimizer": trainer.optimizer}
    yield InfoMetricFamily("tapestry_trainer", "What trains here.", about)
    if trainer.steps:  # one that is starting does not know yet; 0 in between would look like a new beginning
        yield _counter("local_steps", "Local steps since the trainer's first start.", trainer.steps)
        yield _counter("tokens", "Tokens trained on since the trainer's first start.", trainer.tokens)
    given = status.contribution
    yield _counter("contributed_rounds", "Committed rounds that this node was in, since its start.", given.rounds)
    yield _counter("contributed_tokens", "Tokens that it trained on for them.", given.tokens)
    yield _counter("withheld", "Vectors that this machine's rules of release kept.", trainer.withheld)
    yield _gauge("epsilon", "Privacy spent of this machine's data, ever.", trainer.epsilon)
    yield _counter("trainer_restarts", "Times that the trainer was started again.", trainer.restarts)
    yield _gauge("trainer_memory_bytes", "Memory of the trainer's device in use.", trainer.memory_bytes)
    if trainer.loss is not None:
        yield _gauge("loss", "Local training loss, nats per token.", trainer.loss)
    if trainer.heldout:
        yield _gauge("heldout_loss", "Loss of the Shared Base on held-out text of this node, nats per token.", trainer.heldout.loss)


def _swarm(status: Status) -> Iterator[Metric]:
    run, network, last = status.run, status.network, status.averaging.last
    if run:
        yield InfoMetricFamily("tapestry_run", "The joined run.", {"run": run.id, "name": run.name})
        yield _gauge("round", "The round of this moment, by the swarm's clock.", run.round)
        yield _gauge("height", "Commits of the base that this node holds, since genesis.", run.height)
    if status.peers:
        heights = [peer.height for peer in status.peers if peer.state != "banned"]
        if heights:
            yield _gauge("swarm_height", "The median height that the peers present announce.", median_low(heights))
    yield _gauge("peers", "Peers present in the run.", network.present)
    yield _gauge("peers_banned", "Bans in force.", status.bans)
    if network.reachable != "unknown":
        yield _gauge("reachable", "Whether other peers can dial this one.", network.reachable == "yes")
    if network.clock_offset_ms is not None:
        yield _gauge("clock_offset_seconds", "Median of the others' clocks minus ours.", network.clock_offset_ms / 1000)
    if last:
        yield _gauge("averaging_group_size", "Members of the last round's roster.", len(last.members))
        yield _gauge("averaging_coverage", "Share of the last round's parts and offers that are in its mean.", last.coverage)
    kinds = status.traffic.by_kind
    sent, received = ({kind: moved[way] for kind, moved in kinds.items()} for way in ("sent", "received"))
    yield _counters("network_transmit_bytes", "Payload bytes to peers, by kind of message.", "kind", sent)
    yield _counters("network_receive_bytes", "Payload bytes from peers, by kind of message.", "kind", received)
    yield _counters("refusals", "What was refused of others, by reason.", "reason", status.refusals)
    yield _counters("declined", "What others refused of ours, by reason.", "reason", status.declined)


def _peers(status: Status) -> Iterator[Metric]:
    known = {peer.peer_id: peer for peer in status.peers}
    yield _gauges("peer_score", "What we think of a peer, from 0 down to -100.", "peer", {id: peer.score for id, peer in known.items()})
    yield _gauges("peer_height", "The height that a peer announces.", "peer", {id: peer.height for id, peer in known.items()})
    rtt = {id: peer.rtt_ms / 1000 for id, peer in known.items() if peer.rtt_ms is not None}
    yield _gauges("peer_round_trip_seconds", "The round trip to a peer.", "peer", rtt)


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tapestry_{name}", says, value=value)


def _gauges(name: str, says: str, label: str, values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"tapestry_{name}", says, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"tapestry_{name}", says, value=value)


def _counters(name: str, says: str, label: str, values: Labelled) -> Metric:
    family = CounterMetricFamily(f"tapestry_{name}", says, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family


@cache
def _versions() -> dict[str, str]:
    return {
        "treaty": str(TREATY), "python": platform.python_version(), "torch": version("torch"), "hivemind": version("hivemind"),
    }  # fmt: skip
