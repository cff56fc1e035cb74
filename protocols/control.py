"""The local control API: what `tapestry`, the dashboard and scripts may ask of a daemon, and what it answers.

HTTP/1.1 and JSON over a unix socket; errors are RFC 9457 problem details. `Status` is one frozen picture that feeds
the CLI, sd_notify and the log, so they cannot disagree. Documents carry "schema": 1; only additions are made to them.
Specified in control.md.
"""

from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from enum import IntEnum
from types import UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from protocols import limits

SCHEMA = 1


class Exit(IntEnum):
    """Exit codes of `tapestry`; the daemons add 75 (temporary) and 78 (configuration, state)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NO_PERMISSION = 4
    DEGRADED = 5
    TIMED_OUT = 124


@dataclass(frozen=True, slots=True)
class Self:
    """`pid`: in its own box, where it may have another than outside. `dashboard`: where a browser on this machine finds the page;
    `metrics`: where Prometheus does; empty: nowhere."""

    peer_id: str
    name: str
    addrs: tuple[str, ...]
    pid: int
    dashboard: str = ""
    metrics: str = ""


@dataclass(frozen=True, slots=True)
class Fetching:
    """A snapshot on its way: how much of it is here, and how many peers say that they keep it."""

    height: int
    here_bytes: int
    bytes: int
    donors: int


@dataclass(frozen=True, slots=True)
class Run:
    """`height`: commits since genesis. `round`: by the swarm clock.
    `boundary_in_s`: seconds until local steps end; negative inside the average window. `fetching`: while a snapshot is."""

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
    fetching: Fetching | None = None


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
    """`state`: off, starting, waiting, training, failed, released (while we pause: its memory is given back). `steps`, `tokens`, and
    `withheld`, vectors that its rules of release kept, since its first start. `epsilon`: privacy ever spent; with any, no loss is told."""

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
    withheld: int = 0
    epsilon: float = 0.0


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that a round went without. `stage`: roster (present, and not in it), part (its part did not come from it), mean
    (its delta is not, or not everywhere, in the mean), vote (none for our result). `why`: a sentence."""

    peer: str
    stage: str
    why: str


@dataclass(frozen=True, slots=True)
class Silent:
    """A leader in the round's order that gave us no roster, and why."""

    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """A part that its reducer did not give us, and the voter that did."""

    part: int
    peer: str


STATES = ("idle", "joining", "syncing", "training", "averaging", "serving", "paused", "stopping")
READY = ("syncing", "training", "averaging", "serving", "paused")
"""States of a member of a run, as /readyz and `tapestry wait --for joined` mean it."""

ROUND_RESULTS = ("committed", "replayed", "discarded")
"""What became of a round. The other stories are of catching up: caught_up (with what was announced), behind (not)."""


@dataclass(frozen=True, slots=True)
class Story:
    """One round as this node lived it, or one catch-up. `result`: committed, discarded (`reason` says why), replayed (others
    committed it, and we followed); caught_up, behind (`reason` says why). `round` of a catch-up: by the swarm clock.

    From `leader` on, empty where it is not known, as in what an earlier version wrote. `silent`: the leaders before `leader`;
    `present`: peers seen on our base at the boundary, ourselves not counted; `shares`: reducer → elements; `times_ms`: stage →
    duration; `refusals`: reason → count, while it lasted; `votes`: who voted for `root`, the result that we hold;
    `from_height`, `to_height`, `donors`: of a catch-up, where it began, what was announced, and by whom; None, if not one."""

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
    leader: str = ""
    silent: tuple[Silent, ...] = ()
    present: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    shares: dict[str, int] = field(default_factory=dict)
    repaired: tuple[Repaired, ...] = ()
    times_ms: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    votes: tuple[str, ...] = ()
    root: str = ""
    from_height: int | None = None
    to_height: int | None = None
    donors: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, raw: object) -> "Story":
        """As it was stored, by this version or another. Raises TypeError, ValueError or KeyError if it is none."""
        return cast(Story, stored(cls, raw))


def stored(kind: Any, value: object) -> Any:
    """`value`, out of a file of JSON, as a field of type `kind` holds it; fields with a default may be absent from a dataclass, and
    unknown ones are passed over. Raises TypeError, ValueError or KeyError for what the reader could not show."""
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        names = [item.name for item in fields(kind) if item.name in value or _is_needed(item)]
        kinds = get_type_hints(kind)
        return kind(**{name: stored(kinds[name], value[name]) for name in names})
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else stored(inner[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(stored(inner[0], item) for item in value)
    if origin is dict and isinstance(value, dict):
        return {stored(inner[0], key): stored(inner[1], item) for key, item in value.items()}
    if kind is float and type(value) is float:
        return value
    if kind in (int, float) and type(value) is int and abs(value) <= limits.INTEGER:
        return kind(value)
    if kind is str and isinstance(value, str):
        value.encode()  # half a surrogate pair has no place in an answer
        return value
    raise TypeError(f"{str(value)[:40]!r} is no {kind}")


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the log entry of a committed round certifies. `parts`: digest of each part, `sizes` their bytes, in the order of
    `reducers`; `signed_by`: the members whose votes it holds."""

    height: int
    weight: int
    coverage: float
    roster_digest: str
    members: tuple[str, ...]
    reducers: tuple[str, ...]
    parts: tuple[str, ...]
    sizes: tuple[int, ...]
    root: str
    before: str
    after: str
    signed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Averaging:
    """`last`: the latest round of any of ROUND_RESULTS. `rounds` and `committed`: over the last 60 rounds."""

    last: Story | None
    rounds: int
    committed: int


@dataclass(frozen=True, slots=True)
class Contribution:
    """This node's, since its start: committed rounds whose roster it was in, the local steps behind its deltas in them, and their
    tokens. Of the whole run, with its certificates: accounts.md."""

    rounds: int = 0
    steps: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """That of the state directory; with less than `min_free_bytes` free no round is begun."""

    free_bytes: int
    min_free_bytes: int


@dataclass(frozen=True, slots=True)
class Network:
    """`present`: peers with a live presence record in this run; `reachable`: others can dial us: yes, no, unknown."""

    present: int
    reachable: str
    clock_offset_ms: int | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes of our own streams and DHT calls since the run was joined or resumed, by verb (streams.md; rpc_…: the DHT's)."""

    sent_bytes: int
    received_bytes: int
    by_kind: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Isolation:
    """Whether the data side and the network side are shut off from one another, as both have found by trying. `method`: systemd,
    namespaces, none. `checks`: "network.…" and "data.…" → held, open, untried (control.md says what each tries)."""

    enforced: bool
    method: str
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """`rtt_ms` and `skew_ms` are measured by us, `score` is what we think of it: from 0 down to -100. The rest is what the
    peer's signed presence says; of a banned one, whose presence is not read, only that it is there (`state` banned).
    `member`: for whom it speaks; empty in an open run."""

    peer_id: str
    name: str
    member: str
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
class Gpu:
    """One that we train on. `util`, `others_util`: share of the time that it works, for all and for other programs, 0 to 1; `others`:
    programs of others that compute on it. None: not known."""

    temperature_c: float | None = None
    util: float | None = None
    power_w: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    others: int | None = None
    others_util: float | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why not to train now. `says`: a sentence for people. `left_s`: when it ends, as things stand; None: nobody knows."""

    reason: str
    says: str
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Policy:
    """When this node trains. `mode`: always, auto, never; `mode_left_s`: then it is auto again. `finishing`: it pauses behind the round
    at hand. `holds`: all that holds it. `changes_in_s`: when that is something else, as things stand."""

    mode: str = "auto"
    mode_left_s: float | None = None
    finishing: bool = False
    holds: tuple[Hold, ...] = ()
    changes_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Netcheck:
    """Whether others can dial this node. `verdict`: yes, no, unknown; `says`: a sentence; `fix`: what to do, in order. `reached`:
    multiaddr that others are told → whether the peer asked last got through. `seen`: where our connections come from, as peers see
    it. `asked_s`: how long ago a peer last tried; None: none has."""

    verdict: str
    says: str
    fix: tuple[str, ...]
    listen: tuple[str, ...]
    reached: dict[str, bool]
    seen: tuple[str, ...]
    asked_s: float | None


@dataclass(frozen=True, slots=True)
class Known:
    """A peer to look for the run at. `by`: configuration, operator, or invite (and who was seen last); `known`: our DHT node knows it."""

    address: str
    by: str
    known: bool


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What came of reading the configuration again. `changed`: keys with other values that are in force now; `restart`: those that
    will be when the daemon is started anew."""

    said: str
    changed: tuple[str, ...]
    restart: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the running daemon. `value`: as a file would say it. `origin`: built-in, a profile, a file, a name of the
    environment, or the command line. `live`: whether a reload takes up another value."""

    key: str
    value: bool | int | float | str | list[str]
    origin: str
    live: bool


@dataclass(frozen=True, slots=True)
class Status:
    """`state`: idle, no run joined; joining, no peers or no base yet; syncing, catching up; training; averaging, which is
    gathering, reducing, settling or committing (`run.phase` says which); serving: it has the base, and trains nothing as it is
    configured; paused; stopping. `refusals`: what we refused;
    `declined`: what others refused of ours; both since start, by reason. `bans`: in force."""

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
    isolation: Isolation
    peers: tuple[Peer, ...] = ()
    declined: dict[str, int] = field(default_factory=dict)
    bans: int = 0
    disk: Disk | None = None
    policy: Policy = field(default_factory=Policy)
    gpus: tuple[Gpu, ...] = ()
    contribution: Contribution = field(default_factory=Contribution)
    schema: int = field(default=SCHEMA)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
