"""DHT records: what a peer says of itself to whoever looks for the run. Signed, canonical, bounded, expiring.

One record: `Presence`, under the key `<prefix>/presence`, one subkey a peer. Specified in records.md.
"""

import re
from dataclasses import dataclass

from protocols import limits
from protocols.canonical import Json, Sign, Signed, Verify, dumps, is_digest, loads, take
from protocols.lineage import Tip
from protocols.membership import Delegation, maybe
from protocols.refusal import Reason, Refused

STATES = ("waiting", "joining", "syncing", "training", "averaging", "paused", "left")
ACTIVE = ("joining", "training", "averaging")
"""States of peers that will take part in the next round if nothing happens to them. joining: all it lacks is company;
waiting: it lacks something of its own."""


@dataclass(frozen=True, slots=True)
class Presence:
    """`made_ms`: swarm time of making. `base` empty: no base yet. `addrs`: where it can be dialled; none for a peer that
    can only dial out. `delegation`: of `peer` by its Member, verified, but not held against the rules; none in an open run.
    Everything here is a claim of `peer`, proven to be its own and no more."""

    run: str
    peer: str
    name: str
    state: str
    height: int
    weight: int
    base: str
    addrs: tuple[str, ...]
    version: str
    delegation: Delegation | None
    made_ms: int

    @property
    def tip(self) -> Tip | None:
        return Tip(self.height, self.weight, self.base) if self.base else None

    @property
    def member(self) -> str:
        """For whom it says that it speaks; empty in an open run."""
        return self.delegation.member if self.delegation else ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def to_bytes(self, sign: Sign) -> bytes:
        body: Json = {
            "run": self.run, "name": self.name, "state": self.state, "height": self.height, "weight": self.weight,
            "base": self.base, "addrs": list(self.addrs), "version": self.version, "made_ms": self.made_ms,
            "delegation": self.delegation.to_json() if self.delegation else {},
        }  # fmt: skip
        data = dumps(Signed.make("presence", body, self.peer, sign).to_json())
        if len(data) > limits.RECORD_BYTES:
            raise Refused(Reason.TOO_LARGE, f"our own presence takes {len(data)} bytes")
        return data

    @classmethod
    def parse(cls, data: object, *, run: str, peer: str, now_ms: int, verify: Verify) -> "Presence":
        """The presence found under `peer`'s subkey, or Refused: wrong signer, other run, stale, too large, unknown field, wrong type."""
        if not isinstance(data, bytes):
            raise Refused(Reason.WRONG_TYPE, "a record is bytes")
        signed = Signed.from_json(loads(data, limits.RECORD_BYTES), "presence", verify)
        body = signed.body
        take(
            body,
            {
                "run": str, "name": str, "state": str, "height": int, "weight": int,
                "base": str, "addrs": list, "version": str, "delegation": dict, "made_ms": int,
            },
        )  # fmt: skip
        if signed.peer != peer:
            raise Refused(Reason.BAD_SIGNATURE, f"{signed.peer[-6:]}'s presence under {peer[-6:]}'s key")
        if body["run"] != run:
            raise Refused(Reason.OTHER_RUN, "a presence in another run")
        if body["state"] not in STATES:
            raise Refused(Reason.OUT_OF_RANGE, f"state {body['state'][:20]!r}")
        if not now_ms - limits.PRESENCE_MS - limits.CLOCK_SKEW_MS <= body["made_ms"] <= now_ms + limits.PRESENCE_MS:
            raise Refused(Reason.STALE, f"made {now_ms - body['made_ms']} ms ago")
        if (
            len(body["name"]) > limits.NAME_CHARS
            or len(body["version"]) > limits.NAME_CHARS
            or not (body["name"] + body["version"]).isprintable()
        ):
            raise Refused(Reason.OUT_OF_RANGE, "name or version")
        if len(body["addrs"]) > limits.ADDRESSES or not all(map(is_address, body["addrs"])):
            raise Refused(Reason.OUT_OF_RANGE, "addresses")
        if body["base"] and not is_digest(body["base"]):
            raise Refused(Reason.MALFORMED, "base is not a digest")
        if not 0 <= body["height"] < 1 << 53 or not 0 <= body["weight"] < 1 << 53:
            raise Refused(Reason.OUT_OF_RANGE, "height or weight")
        if (body["height"] == 0) != (body["weight"] == 0):
            raise Refused(Reason.OUT_OF_RANGE, "weight comes from commits, and every commit has some")
        body = {**body, "addrs": tuple(body["addrs"]), "delegation": maybe(body["delegation"], verify)}
        return cls(peer=peer, **body)


_ADDRESS = re.compile(r"/[!-+\--~]+")
"""Looks like a multiaddr: ASCII without blanks and commas, so that it can stand in an invite and on a command line."""

_WITH_PEER = len("/p2p/") + 52


def is_address(value: object) -> bool:
    return isinstance(value, str) and bool(_ADDRESS.fullmatch(value)) and len(value) + _WITH_PEER <= limits.ADDRESS_BYTES
