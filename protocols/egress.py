"""What left this machine and what came, as the control API tells it (GET /v1/egress). Specified in control.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(self.sent + other.sent, self.received + other.received)


@dataclass(frozen=True, slots=True)
class Gap:
    """A daemon was killed at some time in it: what it moved then is not counted."""

    from_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Balance:
    """One way, in bytes: `payload` + `libp2p` (handshakes, its own messages and framing) + `resent` (by TCP) + `headers` (of TCP, IP
    and the link) + `rest` (neither) = `interfaces`, what the interfaces say that our connections use."""

    payload: int
    libp2p: int
    resent: int
    headers: int
    rest: int
    interfaces: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`payload` against what the kernel counts, since the run was joined or resumed. `by_peer`: `payload`, and `tcp`, what the
    connections to it carried. `cut`: connections that our side cut off, or of whose end nobody told; what the last second of
    them moved may be missing."""

    since_ms: int
    sent: Balance
    received: Balance
    by_peer: dict[str, dict[str, Moved]]
    interfaces: tuple[str, ...]
    connections: int
    cut: int


@dataclass(frozen=True, slots=True)
class Egress:
    """What left this machine by our doing, and what came, since `since_ms`. `api`: by listener, what this API answered and was
    sent; it goes to whoever runs this machine, and is in no sum. `reconciliation`: None where there is none, and
    `unreconciled` says why."""

    since_ms: int
    until_ms: int
    sum: Moved
    by_kind: dict[str, Moved]
    by_peer: dict[str, dict[str, Moved]]
    api: dict[str, Moved]
    gaps: tuple[Gap, ...]
    reconciliation: Reconciliation | None
    unreconciled: str
