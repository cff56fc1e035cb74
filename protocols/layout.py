"""The vector: how a model's tensors lie in one line of float32, and how that line is cut in fragments.

Fragments are strided: whole tensors are dealt in model order to the fragment that is shortest so far, so that
each fragment holds parts of every depth (Streaming DiLoCo, arXiv 2501.18512, §3). The vector is laid out
fragment by fragment, so a fragment is one slice of it. Knows nothing of models or tensors beyond names and shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from protocols import limits
from protocols.canonical import digest, dumps
from protocols.refusal import Reason, Refused


@dataclass(frozen=True, slots=True)
class Span:
    """One tensor's place: elements [start, stop) of the vector, row-major."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """`spans` in vector order; `bounds[f]` is fragment f's (start, stop). `elements` is the vector's length."""

    spans: tuple[Span, ...]
    bounds: tuple[tuple[int, int], ...]

    @property
    def elements(self) -> int:
        return self.bounds[-1][1]

    @property
    def fragments(self) -> int:
        return len(self.bounds)

    def size(self, fragment: int) -> int:
        start, stop = self.bounds[fragment]
        return stop - start

    @classmethod
    def of(cls, tensors: Sequence[tuple[str, tuple[int, ...]]], fragments: int) -> "Layout":
        """Deal `tensors` (name, shape; in model order) out to `fragments`. Refuses more fragments than tensors."""
        if not 1 <= fragments <= limits.FRAGMENTS:
            raise Refused(Reason.OUT_OF_RANGE, f"{fragments} fragments; allowed are 1 to {limits.FRAGMENTS}")
        if not fragments <= len(tensors) <= limits.TENSORS:
            raise Refused(Reason.OUT_OF_RANGE, f"{len(tensors)} tensors for {fragments} fragments")
        if len({name for name, _ in tensors}) != len(tensors):
            raise Refused(Reason.MALFORMED, "two tensors of one name")
        dealt: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(fragments)]
        lengths = [0] * fragments
        for name, shape in tensors:
            shortest = lengths.index(min(lengths))
            dealt[shortest].append((name, shape))
            lengths[shortest] += prod(shape)
        spans, bounds, start = [], [], 0
        for hand in dealt:
            first = start
            for name, shape in hand:
                spans.append(Span(name, shape, start, start + prod(shape)))
                start += prod(shape)
            bounds.append((first, start))
        if start > limits.ELEMENTS:
            raise Refused(Reason.TOO_LARGE, f"a vector of {start} elements")
        return cls(tuple(spans), tuple(bounds))

    def digest(self) -> str:
        """What both sides of the trainer channel compare before a vector passes."""
        return digest(dumps([[s.name, list(s.shape), s.start, s.stop] for s in self.spans] + [list(b) for b in self.bounds]))


def parse_tensor(line: str) -> tuple[str, tuple[int, ...]]:
    """`"model.norm.weight 128"` or `"lm_head.weight 256x128"` → (name, shape)."""
    name, _, dims = line.rpartition(" ")
    try:
        shape = tuple(int(d) for d in dims.split("x"))
    except ValueError:
        shape = ()
    fits = 0 < len(shape) <= 8 and all(1 <= d <= limits.ELEMENTS for d in shape)
    if not 0 < len(name) <= 256 or not fits or format_tensor(name, shape) != line:  # int() would take "+1_2" too
        raise Refused(Reason.MALFORMED, f"tensor line {line[:80]!r}; expected 'NAME 256x128'")
    return name, shape


def format_tensor(name: str, shape: Sequence[int]) -> str:
    return f"{name} {'x'.join(str(d) for d in shape)}"
