"""The run of all histories, and names that are their own proof: whoever has the name can sign, nobody else."""

from collections.abc import Callable
from functools import cache
from typing import Any

from protocols import grouping, identity
from protocols.canonical import Json, Signed, dumps, loads
from protocols.grouping import CELLS, Claim, Roster
from protocols.lineage import Tip
from protocols.membership import Delegation
from protocols.rules import Averaging
from protocols.schedule import Schedule

RUN = "ab" * 32
SCHEDULE = Schedule(0, 12_000, 18_000)
"""A round of 30 s: presences, which live 20 s, are as stale against it as in a hurried run."""
FRAGMENTS = 2
MIN_PEERS = 2
COVERAGE_PPM = 500_000
AVERAGING = Averaging(FRAGMENTS, "clipped", "uniform", MIN_PEERS, "0.5")
GENESIS = Tip(0, 0, "00" * 32)
LOOK_MS = min(5000, max(500, SCHEDULE.period_ms // 8))

_known: dict[tuple[str, int], tuple[object, Any]] = {}


def once(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, a pure function of its first argument, done once for each such object. A message that thirty peers hear is one
    object here, and parsing it thirty times would be most of the time that a history takes."""

    def remembered(value: object, *rest: Any) -> Any:
        key = (what, id(value))
        if key not in _known:
            _known[key] = (value, work(value, *rest))
        return _known[key][1]

    return remembered


def forget() -> None:
    """A new history begins."""
    _known.clear()


def frugal() -> None:
    """In a process that nobody uses for anything else: what is parsed, hashed and checked again and again is so once only."""
    message, claim, from_body, from_json = Signed.message, Claim.from_body, Roster.from_body, Signed.from_json

    @cache
    def claims(steps: int, rate: int, norms: str, shown: bytes) -> Claim:
        return claim({"steps": steps, "rate": rate, "norms": norms, "delegation": loads(shown, len(shown))}, verify)

    setattr(grouping, "public_key", cache(identity.public_key))  # noqa: B010
    setattr(Claim, "from_body", lambda body, _: claims(body["steps"], body["rate"], body["norms"], dumps(body["delegation"])))  # noqa: B010
    setattr(Roster, "from_body", once("roster", from_body))  # noqa: B010
    setattr(Signed, "from_json", once("signed", from_json))  # noqa: B010
    setattr(Signed, "message", staticmethod(lambda kind, body: once(f"message {kind}", lambda value: message(kind, value))(body)))  # noqa: B010


digest_of = once("digest", lambda roster: roster.digest)


@cache
def name_of(number: int) -> str:
    """A peer id as any other, of a key that nobody has: a name is its own proof here."""
    return identity.peer_id(bytes([number]) * 32)


@cache
def signature_of(peer: str) -> bytes:
    return peer.encode().ljust(64, b".")[:64]


def verify(peer: str, message: bytes, signature: bytes) -> bool:
    return signature == signature_of(peer)


class Rules:
    """What is asked of run rules here; the real ones would be hashed each time that they are asked for their run."""

    run_id = RUN
    schedule = SCHEDULE

    def __init__(self, members: tuple[str, ...] = ()) -> None:
        self.members = members


def delegation(member: str, node: str, nodes: int) -> Delegation:
    return Delegation(RUN, member, node, nodes, 1, 1 << 52, signature_of(member).hex())


@cache
def claim(rate: int, shown: Delegation | None) -> Claim:
    """What members say of themselves: all the same, but that some reduce nothing, and whose voice they have."""
    return Claim.of(100, rate, [1.0] * CELLS, shown)


def signed(kind: str, body: Json, peer: str) -> Signed:
    return Signed(kind, body, peer, signature_of(peer).hex())
