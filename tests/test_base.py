"""The Shared Base: steps on copies, digests that say everything, snapshots that are what they claim or change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protocols import limits
from protocols.canonical import digest
from protocols.lineage import Tip, base_digest
from protocols.refusal import Reason, Refused
from tapestryd.base import SharedBase, describe
from tests.lineages import Line, noise


def test_next_works_on_copies_and_put_moves_the_base() -> None:
    line = Line.begin()
    base = line.base
    before = (base.theta.clone(), base.velocity.clone(), list(base.pairs), base.tip)
    step = base.next(1, noise(base.layout.size(1), 3))
    assert torch.equal(base.theta, before[0])
    assert torch.equal(base.velocity, before[1])
    assert (base.pairs, base.tip) == before[2:]
    base.put(step, Tip(1, 2, step.base))
    assert torch.equal(base.theta[base.slice(0)], before[0][base.slice(0)])
    assert not torch.equal(base.theta[base.slice(1)], before[0][base.slice(1)])
    assert base_digest(base.pairs) == step.base == base_digest(base.digests(base.theta, base.velocity))


def test_put_refuses_a_tip_that_is_not_the_steps() -> None:
    base = Line.begin().base
    with pytest.raises(AssertionError):
        base.put(base.next(0, noise(base.layout.size(0), 3)), Tip(1, 2, "00" * 32))


def test_the_digest_is_of_little_endian_float32() -> None:
    base = Line.begin(fragments=4).base
    pairs = []
    for start, stop in base.layout.bounds:
        pairs.append(tuple(digest(half[start:stop].numpy().astype("<f4").tobytes()) for half in (base.theta, base.velocity)))
    assert base.tip is not None
    assert base_digest(pairs) == base.tip.base  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_a_base_that_would_not_stay_finite_is_refused(value: float) -> None:
    base = Line.begin().base
    base.velocity[:] = 3e38
    mean = torch.zeros(base.layout.size(0))
    mean[7] = value
    with pytest.raises(Refused) as refused:
        base.next(0, mean)
    assert refused.value.reason is Reason.NOT_FINITE


def _grown() -> Line:
    line = Line.begin()
    for _ in range(3):
        line.grow()
    return line


def test_a_snapshot_comes_back_bit_for_bit(tmp_path: Path) -> None:
    line = _grown()
    snapshot, path = line.write_snapshot(tmp_path)
    assert path.stat().st_size == snapshot.size
    other = SharedBase(line.rules, line.base.layout)
    other.load(snapshot, path)
    assert other.tip == line.base.tip
    assert other.pairs == line.base.pairs
    assert torch.equal(other.theta, line.base.theta)
    assert torch.equal(other.velocity, line.base.velocity)


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty", "swapped"])
def test_a_damaged_snapshot_is_refused_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    line = _grown()
    snapshot, path = line.write_snapshot(tmp_path)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[-3] ^= damage == "bit"
    path.write_bytes({"short": data[:-4], "long": data + bytes(4), "empty": b"", "swapped": data[half:] + data[:half]}.get(damage, data))
    before = (line.base.theta.clone(), line.base.tip, list(line.base.pairs))
    line.base.theta += 0
    with pytest.raises(Refused) as refused:
        line.base.load(snapshot, path)
    assert refused.value.reason is Reason.BAD_DIGEST
    assert torch.equal(line.base.theta, before[0])
    assert (line.base.tip, line.base.pairs) == before[1:]


def test_a_snapshot_that_is_true_but_not_finite_is_refused(tmp_path: Path) -> None:
    line = _grown()
    line.base.theta[5] = float("nan")
    line.base.pairs = line.base.digests(line.base.theta, line.base.velocity)
    line.base.tip = Tip(3, 9, base_digest(line.base.pairs))
    snapshot, path = line.write_snapshot(tmp_path)
    with pytest.raises(Refused) as refused:
        SharedBase(line.rules, line.base.layout).load(snapshot, path)
    assert refused.value.reason is Reason.NOT_FINITE


@pytest.mark.parametrize("elements", [1, limits.PIECE_BYTES // 8, limits.PIECE_BYTES // 4 + 3, limits.PIECE_BYTES // 4 * 2 + 1])
def test_pieces_are_the_digests_of_the_files_pieces(elements: int) -> None:
    """Also where a piece has theta's end and velocity's beginning in it."""
    theta, velocity = torch.arange(elements, dtype=torch.float32), torch.full((elements,), 0.5)
    snapshot, first, second = describe("00" * 32, Tip(1, 1, ""), [], theta, velocity)
    data = np.concatenate([theta.numpy(), velocity.numpy()]).astype("<f4").tobytes()
    assert bytes(first) + bytes(second) == data
    assert list(snapshot.pieces) == [digest(data[at : at + limits.PIECE_BYTES]) for at in range(0, len(data), limits.PIECE_BYTES)]
