"""The Shared Base in memory: theta and the outer velocity, their digests, and how far the lineage has come.

Only `put` and `replace` write it: a commit and a replay call the one, a loaded snapshot the other; everything before works on copies.
Caller's duty: `next` and `load` are heavy (arithmetic and SHA-256 over the fragment): call them off the event loop.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protocols import limits
from protocols.canonical import digest
from protocols.layout import Layout
from protocols.lineage import Pair, Snapshot, Tip, base_digest
from protocols.refusal import Reason, Refused
from protocols.rules import RunRules
from tapestryd.training import vector
from tapestryd.training.outer import outer_step


@dataclass(frozen=True, slots=True)
class Next:
    """What one committed mean makes of one fragment: theta and velocity (n_f,) float32, and the digests that follow."""

    fragment: int
    theta: Tensor
    velocity: Tensor
    pair: Pair
    base: str


class SharedBase:
    """theta, velocity: (n,) float32 on the CPU, in vector order. `tip` None: nothing loaded yet."""

    def __init__(self, rules: RunRules, layout: Layout) -> None:
        self.rules = rules
        self.layout = layout
        self.theta = torch.zeros(layout.elements, dtype=torch.float32)
        self.velocity = torch.zeros(layout.elements, dtype=torch.float32)
        self.pairs: list[Pair] = []
        self.tip: Tip | None = None

    def slice(self, fragment: int) -> slice:
        return slice(*self.layout.bounds[fragment])

    def next(self, fragment: int, mean: Tensor) -> Next:
        """The outer step on one fragment. mean: (n_f,) float32. Raises Refused(NOT_FINITE) if the base would not stay finite."""
        here = self.slice(fragment)
        outer = self.rules.outer
        theta, velocity = outer_step(self.theta[here], self.velocity[here], mean, lr=float(outer.lr), momentum=float(outer.momentum))
        if not (bool(torch.isfinite(theta).all()) and bool(torch.isfinite(velocity).all())):
            raise Refused(Reason.NOT_FINITE, "the next base would not be finite")
        pair = (vector.digest(theta), vector.digest(velocity))
        pairs = [*self.pairs[:fragment], pair, *self.pairs[fragment + 1 :]]
        return Next(fragment, theta, velocity, pair, base_digest(pairs))

    def put(self, step: Next, tip: Tip) -> None:
        assert tip.base == step.base
        here = self.slice(step.fragment)
        self.theta[here] = step.theta
        self.velocity[here] = step.velocity
        self.pairs[step.fragment] = step.pair
        self.tip = tip

    def load(self, snapshot: Snapshot, file: Path) -> None:
        """Replace everything by a snapshot's file. Raises Refused, with nothing changed, if it is not what its manifest says."""
        self.replace(snapshot, *self.read(snapshot, file))

    def read(self, snapshot: Snapshot, file: Path) -> tuple[Tensor, list[Pair]]:
        """A snapshot's file: theta and velocity end to end, (2 n,) float32, and the fragments' digests. Changes nothing.
        Raises Refused: BAD_DIGEST if it is not what its manifest says, NOT_FINITE."""
        raw = np.fromfile(file, dtype="<f4")
        if raw.size != 2 * self.layout.elements:
            raise Refused(Reason.BAD_DIGEST, f"{file.name} holds {raw.size} numbers")
        both = torch.from_numpy(raw.astype(np.float32, copy=False))
        theta, velocity = both[: self.layout.elements], both[self.layout.elements :]
        pairs = self.digests(theta, velocity)
        if base_digest(pairs) != snapshot.tip.base:
            raise Refused(Reason.BAD_DIGEST, f"{file.name} is not base {snapshot.tip.base[:12]}")
        if not bool(torch.isfinite(both).all()):
            raise Refused(Reason.NOT_FINITE, file.name)
        return both, pairs

    def replace(self, snapshot: Snapshot, both: Tensor, pairs: list[Pair]) -> None:
        self.theta.copy_(both[: self.layout.elements])
        self.velocity.copy_(both[self.layout.elements :])
        self.pairs = pairs
        self.tip = snapshot.tip

    def digests(self, theta: Tensor, velocity: Tensor) -> list[Pair]:
        slices = [self.slice(fragment) for fragment in range(self.layout.fragments)]
        return [(vector.digest(theta[here]), vector.digest(velocity[here])) for here in slices]


def describe(run_id: str, tip: Tip, pairs: list[Pair], theta: Tensor, velocity: Tensor) -> tuple[Snapshot, memoryview, memoryview]:
    """A snapshot's manifest and its file's two halves, of theta and velocity (n,) float32, which must not change meanwhile."""
    halves = [half.numpy().astype("<f4", copy=False).data.cast("B") for half in (theta, velocity)]
    return Snapshot(run_id, tip, tuple(pairs), theta.numel(), tuple(_pieces(halves))), halves[0], halves[1]


def _pieces(halves: list[memoryview]) -> list[str]:
    """Digests of PIECE_BYTES pieces over the two halves end to end."""
    size = sum(len(half) for half in halves)
    found = []
    for start in range(0, size, limits.PIECE_BYTES):
        stop = min(size, start + limits.PIECE_BYTES)
        edge = len(halves[0])
        found.append(digest(bytes(halves[0][start:stop]) + bytes(halves[1][max(0, start - edge) : max(0, stop - edge)])))
    return found
