"""What a demo has seen of its swarm so far: documents of the control API in, events and the summary out. Pure.

An event is one dict, {"event": …, "s": seconds since the start, …}; `--json` prints it, the view words it. A round is
told once: as committed when the first peer says so, as discarded when every peer did or a later round is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from protocols.control import ROUND_RESULTS

Doc = Mapping[str, Any]
Event = dict[str, Any]

SAMPLES = 20_000
"""Of local loss, kept a peer: hours of beats."""


@dataclass(slots=True)
class Peer:
    """The latest that a peer said, and its curves. `heldout`: height → loss of the Shared Base on this peer's own text;
    `losses`: (seconds since the start, running mean of the local training loss)."""

    name: str
    peer_id: str = ""
    page: str = ""
    state: str = "starting"
    health: tuple[str, ...] = ()
    failed: bool = False
    height: int = 0
    digest: str = ""
    steps: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    sent_bytes: int = 0
    heldout: dict[int, float] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """One round of the swarm. `results`: peer name → its Story. `height`: None until a peer commits it, at `committed_s`."""

    number: int
    fragment: int
    results: dict[str, Doc] = field(default_factory=dict)
    height: int | None = None
    digest: str = ""
    members: tuple[str, ...] = ()
    committed_s: float = 0.0
    told: bool = False

    @property
    def sent_bytes(self) -> int:
        return sum(int(story["sent_bytes"]) for story in self.results.values())

    @property
    def reasons(self) -> str:
        """Why it was discarded, by those who discarded it."""
        return ", ".join(sorted({str(story["reason"]) for story in self.results.values() if story["reason"]}))


class Progress:
    """`target`: commits that the demo waits for. `run`: of a Status, as last seen."""

    def __init__(self, names: Sequence[str], target: int) -> None:
        self.target = target
        self.peers = {name: Peer(name) for name in names}
        self.rounds: dict[int, Round] = {}
        self.run: Doc | None = None
        self.now_s = 0.0

    @property
    def height(self) -> int:
        return max(peer.height for peer in self.peers.values())

    @property
    def same(self) -> bool:
        """Whether every peer holds a base, and all the same one."""
        digests = {peer.digest for peer in self.peers.values()}
        return len(digests) == 1 and "" not in digests

    @property
    def complete(self) -> bool:
        """Whether all hold the same base, high enough, and each has evaluated it."""
        return self.same and all(peer.height >= self.target and peer.height in peer.heldout for peer in self.peers.values())

    @property
    def committed(self) -> list[Round]:
        return sorted((round for round in self.rounds.values() if round.height is not None), key=lambda round: round.number)

    def see(self, name: str, status: Doc, now_s: float) -> list[Event]:
        """A Status of this peer."""
        peer, trainer, run = self.peers[name], status["trainer"], status["run"]
        events: list[Event] = []

        def tell(event: str, **more: object) -> None:
            events.append({"event": event, "s": round(now_s, 1), "peer": name, **more})

        if not peer.peer_id:
            peer.peer_id = status["self"]["peer_id"]
            peer.page = status["self"]["dashboard"]
            tell("peer_up", peer_id=peer.peer_id, page=peer.page)
        peer.state, peer.health, peer.failed = status["state"], tuple(status["health"]), trainer["state"] == "failed"
        peer.sent_bytes = status["traffic"]["sent_bytes"]
        if run:
            if self.run is None and run["elements"]:
                shape = {"run": run["id"], "elements": run["elements"], "fragments": run["fragments"]}
                events.append({"event": "founded", "s": round(now_s, 1), **shape})
            if run["base_digest"] and not peer.digest:
                tell("joined", height=run["height"], base_digest=run["base_digest"])
            peer.height, peer.digest = run["height"], run["base_digest"]
            self.run = run if run["elements"] else self.run
        if trainer["steps"] != peer.steps and trainer["loss"] is not None and len(peer.losses) < SAMPLES:
            peer.losses.append((now_s, trainer["loss"]))
        peer.steps, peer.loss, peer.tokens_per_s = trainer["steps"], trainer["loss"], trainer["tokens_per_s"]
        if heldout := trainer["heldout"]:
            for height, loss in ((heldout["first_height"], heldout["first_loss"]), (heldout["height"], heldout["loss"])):
                if height not in peer.heldout:
                    peer.heldout[height] = loss
                    tell("evaluated", height=height, loss=loss)
        return events

    def hear(self, name: str, stories: Sequence[Doc], now_s: float) -> list[Event]:
        """The Stories of this peer, all anew each time."""
        for story in stories:
            if story["result"] not in ROUND_RESULTS:
                continue
            lived = self.rounds.setdefault(story["round"], Round(story["round"], story["fragment"]))
            lived.results[name] = story
            if story["result"] != "discarded" and lived.height is None:
                lived.height, lived.digest, lived.committed_s = story["height"], story["base_digest"], now_s
                names = {peer.peer_id: peer.name for peer in self.peers.values()}
                lived.members = tuple(sorted(names.get(member, member) for member in story["members"]))
        last = max((number for number, lived in self.rounds.items() if lived.told or lived.height is not None), default=-1)
        events: list[Event] = []
        for number in sorted(self.rounds):
            lived = self.rounds[number]
            if not lived.told and (lived.height is not None or len(lived.results) == len(self.peers) or number < last):
                lived.told = True
                events.append(_event(lived, now_s))
        return events

    def heldout(self) -> dict[str, tuple[float | None, float | None]]:
        """Peer → loss of the Shared Base on its held-out text at genesis, and at the height that it has now (or the latest)."""
        found = {}
        for peer in self.peers.values():
            latest = peer.heldout.get(peer.height, peer.heldout[max(peer.heldout)] if peer.heldout else None)
            found[peer.name] = (peer.heldout.get(0), latest)
        return found

    def mean(self) -> tuple[float, float] | None:
        """The mean over all regions of `heldout`; None while one is missing."""
        pairs = list(self.heldout().values())
        first, last = [a for a, _ in pairs if a is not None], [b for _, b in pairs if b is not None]
        return (fmean(first), fmean(last)) if len(first) == len(last) == len(pairs) else None

    def verdict(self) -> str:
        """Why the demo did not show what it is there to show; "" when it did."""
        mean, done = self.mean(), min(self.height, self.target)
        if not self.same:
            return "The peers hold different bases: " + ", ".join(f"{p.name} {p.digest[:12] or 'none'}" for p in self.peers.values()) + "."
        if done < self.target:
            return f"Only {done} of {self.target} rounds were committed."
        if missing := [peer.name for peer in self.peers.values() if peer.height not in peer.heldout]:
            return f"The base at height {self.height} was not evaluated by {', '.join(missing)} in time."
        if mean is None or not mean[1] < mean[0]:
            told = "was not measured at genesis" if mean is None else f"did not fall: {mean[0]:.3f} at genesis, {mean[1]:.3f} now"
            return f"The mean held-out loss of the Shared Base {told}."
        return ""

    def summary(self, ok: bool, seconds: float) -> Event:
        """The last event. `base_digest` is the one that all hold, else null."""
        digests = [peer.digest for peer in self.peers.values()]
        return {
            "event": "summary",
            "ok": ok,
            "peers": len(self.peers),
            "rounds_committed": self.height,
            "base_digest": digests[0] if self.same else None,
            "digests_equal": self.same,
            "heldout": {name: {"first": first, "last": last} for name, (first, last) in self.heldout().items()},
            "bytes_sent": sum(peer.sent_bytes for peer in self.peers.values()),
            "seconds": round(seconds, 1),
        }


def _event(lived: Round, now_s: float) -> Event:
    told: Event = {"event": "round_discarded", "s": round(now_s, 1), "round": lived.number, "reason": lived.reasons}
    if lived.height is None:
        return told
    first = next(story for story in lived.results.values() if story["result"] != "discarded")
    return {
        "event": "round_committed", "s": round(now_s, 1), "round": lived.number, "fragment": lived.fragment, "height": lived.height,
        "base_digest": lived.digest, "members": list(lived.members), "coverage": first["coverage"], "took_ms": first["took_ms"],
    }  # fmt: skip
