"""What a request to the control API may hold: each field reads one value, and says in JSON Schema what it reads.

The check and the OpenAPI document come from the same object, so they cannot disagree. Fields of paths and queries read
text, fields of bodies read JSON. `read` raises ValueError with what the value must be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from protocols.identity import public_key
from protocols.records import is_address
from protocols.refusal import Refused
from tapestryd.settings import PAUSE_S, parse_duration

Doc = dict[str, Any]


class Field(Protocol):
    def read(self, value: Any) -> Any: ...

    def schema(self) -> Doc: ...


class Asked(Field, Protocol):
    """A field of a path or a query."""

    @property
    def default(self) -> Any:
        """Where a query leaves it out."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number, as text."""

    least: int
    most: int
    default: int | None = None

    def read(self, value: Any) -> int:
        if not isinstance(value, str) or not (value.isascii() and value.isdigit() and len(value) <= 16):
            raise ValueError(self._must())
        if not self.least <= int(value) <= self.most:
            raise ValueError(self._must())
        return int(value)

    def schema(self) -> Doc:
        default = {} if self.default is None else {"default": self.default}
        return {"type": "integer", "minimum": self.least, "maximum": self.most, **default}

    def _must(self) -> str:
        return f"must be a whole number from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True where a query names it, whatever it says: `?verbose`."""

    default: bool = False

    def read(self, value: Any) -> bool:
        return True

    def schema(self) -> Doc:
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Text:
    """Any text at all."""

    default: str | None = None

    def read(self, value: Any) -> str:
        return str(value)

    def schema(self) -> Doc:
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Span:
    """A duration as people write it, "90s" or "24h", in whole seconds."""

    most_s: int
    default: int

    def read(self, value: Any) -> int:
        seconds = parse_duration(str(value))
        if not 1 <= seconds <= self.most_s:
            raise ValueError(f"must be from 1 to {self.most_s} seconds")
        return int(seconds)

    def schema(self) -> Doc:
        return {"type": "string", "pattern": r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d))+$", "default": f"{self.default}s"}


@dataclass(frozen=True, slots=True)
class Names:
    """Some of `known`, each with what it is, with commas between them; all of them where a query names none."""

    known: Mapping[str, str]

    @property
    def default(self) -> tuple[str, ...]:
        return tuple(self.known)

    def read(self, value: Any) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(str(value).split(",")))
        if not set(names) <= set(self.known):
            raise ValueError(f"must be one or more of {', '.join(self.known)}, with commas between them")
        return names

    def schema(self) -> Doc:
        one = f"({'|'.join(self.known)})"
        says = "; ".join(f"{name}: {what}" for name, what in self.known.items())
        return {"type": "string", "pattern": f"^{one}(,{one})*$", "description": says}


@dataclass(frozen=True, slots=True)
class PeerId:
    default: None = None

    def read(self, value: Any) -> str:
        try:
            public_key(str(value))
        except Refused as refused:
            raise ValueError(f"{refused.detail}; it must be whole") from None
        return str(value)

    def schema(self) -> Doc:
        return {"type": "string", "pattern": "^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$"}


@dataclass(frozen=True, slots=True)
class Seconds:
    """A number of seconds, or null."""

    most: int = PAUSE_S

    def read(self, value: Any) -> float | None:
        if value is not None and (type(value) not in (int, float) or not 0 < value <= self.most):
            raise ValueError(f"must be a number of seconds, above 0 and at most {self.most}, or null")
        found: float | None = value
        return found

    def schema(self) -> Doc:
        return {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Ago:
    """Seconds that have passed, or null: not known."""

    most: int = PAUSE_S

    def read(self, value: Any) -> float | None:
        if value is None:
            return None
        if type(value) not in (int, float) or not 0 <= value <= self.most:
            raise ValueError(f"must be a number of seconds from 0 to {self.most}, or null")
        return float(value)

    def schema(self) -> Doc:
        return {"type": ["number", "null"], "minimum": 0, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Maybe:
    """true, false, or null: not known."""

    def read(self, value: Any) -> bool | None:
        if value is not None and type(value) is not bool:
            raise ValueError("must be true, false or null")
        return value

    def schema(self) -> Doc:
        return {"type": ["boolean", "null"]}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `known`. A body must have it."""

    known: tuple[str, ...]

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.known:
            raise ValueError(f"must be one of {', '.join(self.known)}")
        return value

    def schema(self) -> Doc:
        return {"type": "string", "enum": [*self.known]}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text; null is the empty one."""

    most: int

    def read(self, value: Any) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > self.most or not value.isprintable():
            raise ValueError(f"must be one line of at most {self.most} characters, or null")
        return value

    def schema(self) -> Doc:
        return {"type": ["string", "null"], "maxLength": self.most}


FOUNDED = "founded"
"""As a target to join: the founder's folder in the inbox."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to join. A body must have it."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not (value.startswith("tapestry:") or value == FOUNDED) or not value.isprintable():
            raise ValueError(f"must be an invite, tapestry:…, or {FOUNDED}: what was put to /v1/founded")
        return value

    def schema(self) -> Doc:
        return {"type": "string", "pattern": f"^(tapestry:.*|{FOUNDED})$"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer can be dialled, and which one. A body must have it."""

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not is_address(value.partition("/p2p/")[0]):
            raise ValueError("must be a multiaddr with a peer id; write it like /ip4/192.0.2.7/tcp/31700/p2p/12D3…")
        PeerId().read(value.partition("/p2p/")[2])
        return value

    def schema(self) -> Doc:
        return {"type": "string", "pattern": "^/.+/p2p/12D3KooW[1-9A-HJ-NP-Za-km-z]{44}$"}
