"""Run rules: everything that all peers of one run must agree on, and nothing that only one machine cares about.

`run.toml` (for people) → canonical JSON (for machines) → `run_id` = its SHA-256. A peer with other rules has
another run_id and so another DHT prefix: it cannot even find the group. Decimals are strings ("0.5"), so that
every language hashes the same bytes. The format is specified in rules.md.
"""

import json
import re
import tomllib
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, quote

from protocols import TREATY, limits
from protocols.canonical import Json, digest, dumps, is_digest, loads
from protocols.identity import public_key
from protocols.layout import Layout, parse_tensor
from protocols.refusal import Reason, Refused
from protocols.schedule import Schedule
from protocols.weighting import AGGREGATIONS, WEIGHTINGS


@dataclass(frozen=True, slots=True)
class Model:
    """`config`: a Hugging Face config.json as canonical JSON text, with `model_type`; code from a checkpoint is never run.

    `tensors`: every trainable tensor in model order, "name 256x128". `genesis`: digest of the base at height 0.
    """

    config: str
    tensors: tuple[str, ...]
    genesis: str


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`kind` bytes: ids are UTF-8 bytes, 256 is the end of a document, `digest` is empty. `kind` file: a tokenizer.json of that digest."""

    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class Inner:
    """The local optimizer: AdamW with decoupled weight decay, linear warm-up, then cosine to `final_ratio`, by committed round.

    `sequences` x `tokens` is one local batch. `decay_rounds` counts commits; past it the rate stays at lr * final_ratio.
    """

    optimizer: str
    lr: str
    beta1: str
    beta2: str
    weight_decay: str
    clip_norm: str
    sequences: int
    tokens: int
    warmup_rounds: int
    decay_rounds: int
    final_ratio: str


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer optimizer, Nesterov momentum on the mean delta. Gain lr / (1 - momentum) = 2 won on disjoint languages;
    DiLoCo's 0.7 / 0.9 (gain 7) is too hot for few peers."""

    lr: str
    momentum: str


@dataclass(frozen=True, slots=True)
class Codec:
    """Bits per element: 4 or 8 (block-wise absmax) or 32 (float32). `up`: delta to its reducer; `down`: mean to everybody.
    `block`: elements per scale; smaller is closer and dearer (32 / block bits an element)."""

    up: int
    down: int
    block: int


@dataclass(frozen=True, slots=True)
class Averaging:
    """`fragments`: the vector is averaged one fragment a round. `aggregation`: clipped (every delta at most as long as
    the median one, then their mean), mean, trimmed or median. `weighting`: uniform, or steps (each delta first scaled to
    the median number of local steps in a round). What each costs is in aggregation.md.

    `min_peers`: no round is begun with fewer. `coverage`: least share of (member, element) pairs in a mean for it to count.
    """

    fragments: int
    aggregation: str
    weighting: str
    min_peers: int
    coverage: str


@dataclass(frozen=True, slots=True)
class RunRules:
    treaty: int
    name: str
    membership: str
    members: tuple[str, ...]
    model: Model
    tokenizer: Tokenizer
    schedule: Schedule
    inner: Inner
    outer: Outer
    codec: Codec
    averaging: Averaging

    @property
    def run_id(self) -> str:
        return digest(self.canonical())

    @property
    def prefix(self) -> str:
        return prefix_of(self.run_id)

    def layout(self) -> Layout:
        return Layout.of([parse_tensor(line) for line in self.model.tensors], self.averaging.fragments)

    def to_json(self) -> Json:
        return _to_json(self)

    def canonical(self) -> bytes:
        return dumps(self.to_json())

    @classmethod
    def from_canonical(cls, data: bytes, run_id: str) -> "RunRules":
        """Rules as received from a peer: bounded, canonical, and of that hash, or Refused."""
        body = loads(data, limits.RULES_BYTES)
        if digest(data) != run_id:
            raise Refused(Reason.OTHER_RUN, f"rules of run {digest(data)[:12]} where {run_id[:12]} was asked for")
        return cls.from_json(body)

    @classmethod
    def from_json(cls, body: Json) -> "RunRules":
        faults: list[str] = []
        rules: RunRules = _from_json(cls, body, "", faults)
        if not faults:
            faults = rules.faults()
        if faults:
            raise Refused(Reason.MALFORMED, "; ".join(faults))
        return rules

    @classmethod
    def from_toml(cls, text: str) -> "RunRules":
        """Parse run.toml. Every fault is reported, with its key and value, in one Refused."""
        try:
            body = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists a thousand deep
            raise Refused(Reason.MALFORMED, f"not TOML: {error}") from None
        return cls.from_json(body)

    def to_toml(self) -> str:
        lines = ["# Run rules: what every peer of this run agrees on. Its hash is the run; do not edit, make a new run."]
        lines += [f"{key} = {_toml(value)}" for key, value in _to_json(self).items() if not isinstance(value, dict)]
        for section, table in _to_json(self).items():
            if isinstance(table, dict):
                lines += ["", f"[{section}]"] + [f"{key} = {_toml(value)}" for key, value in table.items()]
        return "\n".join(lines) + "\n"

    def faults(self) -> list[str]:
        """Everything wrong with the values, one sentence each."""
        found: list[str] = []

        def need(good: bool, key: str, value: object, must: str) -> None:
            if not good:
                found.append(f"{key} = {value!r}: {must}")

        def decimal(key: str, text: str, low: str, high: str) -> None:
            good = bool(_DECIMAL.fullmatch(text)) and Decimal(low) <= Decimal(text) <= Decimal(high)
            need(good, key, text, f'must be a decimal string from "{low}" to "{high}"')

        def whole(key: str, value: int, low: int, high: int) -> None:
            need(low <= value <= high, key, value, f"must be from {low} to {high}")

        def one_of(key: str, value: str, names: tuple[str, ...]) -> None:
            need(value in names, key, value, f"must be one of {', '.join(names)}")

        need(self.treaty == TREATY, "treaty", self.treaty, f"this version speaks treaty {TREATY}")
        need(0 < len(self.name) <= limits.NAME_CHARS and self.name.isprintable(), "name", self.name, "must be 1 to 64 printable characters")
        need(self.membership in ("open", "roster"), "membership", self.membership, 'must be "open" or "roster"')
        found += self._members()
        need(is_digest(self.model.genesis), "model.genesis", self.model.genesis, "must be a SHA-256 in hexadecimal")
        need(_model_type(self.model.config) != "", "model.config", self.model.config[:60], "must be a JSON object with a model_type")
        need(self.tokenizer.kind in ("bytes", "file"), "tokenizer.kind", self.tokenizer.kind, 'must be "bytes" or "file"')
        need(
            is_digest(self.tokenizer.digest) if self.tokenizer.kind == "file" else self.tokenizer.digest == "",
            "tokenizer.digest", self.tokenizer.digest, "must be the SHA-256 of the tokenizer.json, and empty for bytes",
        )  # fmt: skip
        whole("schedule.origin_ms", self.schedule.origin_ms, 0, 1 << 53)
        whole("schedule.train_ms", self.schedule.train_ms, 500, 7 * 24 * 3_600_000)
        whole("schedule.average_ms", self.schedule.average_ms, 1_000, 24 * 3_600_000)
        need(self.inner.optimizer in ("adamw8bit", "adamw"), "inner.optimizer", self.inner.optimizer, 'must be "adamw8bit" or "adamw"')
        decimal("inner.lr", self.inner.lr, "0", "10")
        decimal("inner.beta1", self.inner.beta1, "0", "0.99999")
        decimal("inner.beta2", self.inner.beta2, "0", "0.99999")
        decimal("inner.weight_decay", self.inner.weight_decay, "0", "10")
        decimal("inner.clip_norm", self.inner.clip_norm, "0.000001", "1000000")
        decimal("inner.final_ratio", self.inner.final_ratio, "0", "1")
        whole("inner.sequences", self.inner.sequences, 1, 65_536)
        whole("inner.tokens", self.inner.tokens, 2, 1 << 20)
        whole("inner.warmup_rounds", self.inner.warmup_rounds, 0, 1 << 40)
        whole("inner.decay_rounds", self.inner.decay_rounds, 1, 1 << 40)
        decimal("outer.lr", self.outer.lr, "0", "10")
        decimal("outer.momentum", self.outer.momentum, "0", "0.9999")
        need(self.codec.up in (4, 8, 32), "codec.up", self.codec.up, "must be 4, 8 or 32")
        need(self.codec.down in (4, 8, 32), "codec.down", self.codec.down, "must be 4, 8 or 32")
        need(self.codec.block in (64, 128, 256, 512, 1024), "codec.block", self.codec.block, "must be 64, 128, 256, 512 or 1024")
        one_of("averaging.aggregation", self.averaging.aggregation, AGGREGATIONS)
        one_of("averaging.weighting", self.averaging.weighting, WEIGHTINGS)
        whole("averaging.min_peers", self.averaging.min_peers, 2, limits.ROSTER_MEMBERS)
        decimal("averaging.coverage", self.averaging.coverage, "0", "1")
        try:
            self.layout()
        except Refused as refused:
            found.append(f"model.tensors, averaging.fragments: {refused.detail}")
        size = 0 if found else len(self.canonical())
        need(size <= limits.RULES_BYTES, "model", "…", f"the rules take {size} bytes, of which peers accept {limits.RULES_BYTES}")
        return found

    def _members(self) -> list[str]:
        """What is wrong with the list of Members."""
        if self.membership != "roster":
            return ["members: only a run in roster mode has Members; must be empty"] if self.members else []
        if not 1 <= len(self.members) <= limits.MEMBERS:
            return [f"members: {len(self.members)} of them; roster mode needs 1 to {limits.MEMBERS}"]
        found = []
        for member in self.members:
            try:
                public_key(member)
            except Refused:
                found.append(f"members = {member[:60]!r}: must be a Member's id, as `tapestry member show` prints it")
        if list(self.members) != sorted(set(self.members)):
            found.append("members: must be sorted, and each there once")
        return found


def prefix_of(run_id: str) -> str:
    """Where in the DHT, and under which libp2p protocol names, a run lives."""
    return f"tapestry/{TREATY}/{run_id}"


@dataclass(frozen=True, slots=True)
class Invite:
    """All that a joiner needs: `tapestry:<run_id>?peer=<multiaddr>&peer=…`. The rules come from the peers and must hash to run_id."""

    run_id: str
    peers: tuple[str, ...]

    def __str__(self) -> str:
        query = "&".join("peer=" + quote(peer, safe="/:") for peer in self.peers)
        return f"tapestry:{self.run_id}" + ("?" + query if query else "")

    @classmethod
    def parse(cls, text: str) -> "Invite":
        if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can spell them; no invite could be written with them
            raise Refused(Reason.MALFORMED, f"{text[:80]!r} holds half a surrogate pair")
        head, _, query = text.strip().partition("?")
        scheme, _, run_id = head.partition(":")
        if scheme != "tapestry" or not is_digest(run_id):
            raise Refused(Reason.MALFORMED, f"{text[:80]!r} is not an invite; one reads tapestry:<64 hex digits>?peer=<multiaddr>")
        pairs = parse_qsl(query, keep_blank_values=True)
        if any(key != "peer" or not value.startswith("/") or "/p2p/" not in value for key, value in pairs):
            raise Refused(Reason.MALFORMED, f"{query[:80]!r}: only peer=<multiaddr>, each with its /p2p/<peer id>, may follow the run id")
        if len(pairs) > limits.ADDRESSES or any(len(value) > limits.ADDRESS_BYTES for _, value in pairs):
            raise Refused(Reason.TOO_LARGE, f"more than {limits.ADDRESSES} peers, or an address over {limits.ADDRESS_BYTES} bytes")
        for _, value in pairs:
            public_key(value.rpartition("/p2p/")[2])
        return cls(run_id, tuple(value for _, value in pairs))


_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?")
"""What every language reads alike; Decimal() would also take "1_0", blanks, NaN and other scripts' digits."""


def _model_type(config: str) -> str:
    try:
        value = json.loads(config)
    except (ValueError, RecursionError):
        return ""
    kind = value.get("model_type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _to_json(value: Any) -> Json:
    out: Json = {}
    for field in fields(value):
        item = getattr(value, field.name)
        out[field.name] = _to_json(item) if is_dataclass(item) else list(item) if isinstance(item, tuple) else item
    return out


def _from_json(kind: Any, body: Json, path: str, faults: list[str]) -> Any:
    """Build dataclass `kind` from `body`, collecting every fault with its dotted key."""
    values = {}
    names = {field.name for field in fields(kind)}
    faults += [f"{path}{key[:60]} = {_shown(body[key])}: no such key" for key in body if key not in names]
    for field in fields(kind):
        key, want = path + field.name, field.type
        item = body.get(field.name)
        if field.name not in body:
            faults.append(f"{key}: missing")
        elif is_dataclass(want):
            if isinstance(item, dict):
                values[field.name] = _from_json(want, item, key + ".", faults)
            else:
                faults.append(f"{key} = {_shown(item)}: must be a table")
        elif want is str or want is int:
            if type(item) is not want or (type(item) is int and abs(item) > limits.INTEGER):
                faults.append(f"{key} = {_shown(item)}: must be {'text' if want is str else 'a whole number of at most 2^53'}")
            values[field.name] = item
        else:
            if not isinstance(item, list) or not all(isinstance(line, str) for line in item):
                faults.append(f"{key}: must be a list of text")
            else:
                values[field.name] = tuple(item)
    return None if faults else kind(**values)


def _shown(value: object) -> str:
    try:
        return repr(str(value)[:60])
    except ValueError:
        return "a number of thousands of digits"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)  # TOML wants some escaped, terminals all
