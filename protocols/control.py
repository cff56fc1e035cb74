"""The local control API: what `tapestry`, the dashboard and scripts may ask of a daemon, and what it answers.

HTTP/1.1 and JSON over a unix socket; errors are RFC 9457 problem details. `Status` is one frozen picture that feeds
the CLI, sd_notify and the log, so they cannot disagree. Documents carry "schema": 1; only additions are made to them.
Specified in control.md.
"""

from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

SCHEMA = 1


class Exit(IntEnum):
    """Exit codes of `tapestry`; the daemons add 75 (temporary), 78 (configuration) and 143 (SIGTERM)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NO_PERMISSION = 4
    DEGRADED = 5
    TIMED_OUT = 124


STATES = ("idle", "starting", "joining", "syncing", "training", "averaging", "paused", "stopping")
"""What the daemon is doing. idle: no run joined. joining: no peers or no base yet. syncing: catching up.
averaging: gathering, reducing, settling or committing (`run.phase` says which)."""


@dataclass(frozen=True, slots=True)
class Self:
    peer_id: str
    name: str
    addrs: tuple[str, ...]
    pid: int


@dataclass(frozen=True, slots=True)
class Run:
    """`height`: commits since genesis. `round`: by the swarm clock.
    `boundary_in_s`: seconds until local steps end; negative inside the average window."""

    id: str
    name: str
    phase: str
    round: int
    height: int
    base_digest: str
    boundary_in_s: float
    invite: str
    elements: int
    fragments: int
    min_peers: int


@dataclass(frozen=True, slots=True)
class Heldout:
    """Held-out loss (nats per token) of the Shared Base on this node's own text: the first one measured, and the latest."""

    first_height: int
    first_loss: float
    height: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Trainer:
    """`state`: off, starting, waiting, training, failed. `steps` and `tokens` since its first start."""

    state: str
    device: str = ""
    precision: str = ""
    optimizer: str = ""
    steps: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    memory_bytes: int = 0
    restarts: int = 0
    heldout: Heldout | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """One round as this node lived it. `result`: committed, replayed or discarded; `reason` says why it was discarded."""

    round: int
    fragment: int
    result: str
    reason: str
    members: tuple[str, ...]
    coverage: float
    height: int
    base_digest: str
    sent_bytes: int
    received_bytes: int
    took_ms: int
    steps: int
    tokens: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Averaging:
    """`last`: the latest round of any result. `rounds` and `committed`: over the last 60 rounds."""

    last: Story | None
    rounds: int
    committed: int


@dataclass(frozen=True, slots=True)
class Network:
    """`present`: peers with a live presence record in this run; `reachable`: others can dial us: yes, no, unknown."""

    present: int
    reachable: str
    clock_offset_ms: int | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes of our own streams since start, by kind of message."""

    sent_bytes: int
    received_bytes: int
    by_kind: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """`rtt_ms` and `skew_ms` are measured by us, `score` is what we think of it: from 0 down to -100. The rest is what the
    peer's signed presence says; of a banned one, whose presence is not read, only that it is there (`state` banned)."""

    peer_id: str
    name: str
    state: str
    height: int
    base_digest: str
    same_base: bool
    addrs: tuple[str, ...]
    rtt_ms: float | None
    skew_ms: int | None
    seen_s: float
    version: str
    score: float


@dataclass(frozen=True, slots=True)
class Ban:
    """`by`: faults, operator, configuration. `until_ms`: swarm time; None: as long as the configuration says so."""

    peer_id: str
    by: str
    reason: str
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """`refusals`: what we refused; `declined`: what others refused of ours; both since start, by reason. `bans`: in force."""

    version: str
    self: Self
    uptime_s: float
    state: str
    reasons: tuple[str, ...]
    health: tuple[str, ...]
    run: Run | None
    trainer: Trainer
    network: Network
    averaging: Averaging
    traffic: Traffic
    refusals: dict[str, int]
    isolation: dict[str, Any]
    peers: tuple[Peer, ...] = ()
    declined: dict[str, int] = field(default_factory=dict)
    bans: int = 0
    schema: int = field(default=SCHEMA)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
