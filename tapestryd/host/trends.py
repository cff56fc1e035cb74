"""How a few numbers went in the last 24 hours: one sample every STEP_S in a ring of fixed size. In memory only."""

from collections.abc import Sequence

import numpy as np

from protocols.control import Status

STEP_S = 10
KEPT_S = 86_400
POINTS = 360
"""At most so many in one answer: an hour as it was sampled, longer ranges as means."""

SERIES = {
    "loss": "local training loss, nats per token",
    "heldout_loss": "loss of the Shared Base on this node's held-out text, nats per token",
    "tokens_per_s": "local tokens per second",
    "sent_bytes_per_s": "payload bytes per second to peers",
    "received_bytes_per_s": "payload bytes per second from peers",
    "height": "commits since genesis",
    "peers": "peers present",
}


class Trends:
    """`now_ms` is Unix time; where it jumps, so do the samples. What is not known at a moment is not there."""

    def __init__(self) -> None:
        self._rows = np.full((KEPT_S // STEP_S, 1 + len(SERIES)), np.nan)
        self._count = 0
        self._at_ms = 0
        self._bytes = (0, 0)

    def add(self, status: Status, now_ms: int) -> None:
        """One sample, if STEP_S have passed since the last one."""
        passed_s = (now_ms - self._at_ms) / 1000
        if 0 <= passed_s < STEP_S:
            return
        moved = (status.traffic.sent_bytes, status.traffic.received_bytes)
        rates = [(now - then) / passed_s if self._count and now >= then and passed_s > 0 else None
                 for now, then in zip(moved, self._bytes, strict=True)]  # fmt: skip
        trainer, run = status.trainer, status.run
        training = trainer.state == "training"
        sample: Sequence[float | None] = (
            trainer.loss if training else None,
            trainer.heldout.loss if trainer.heldout else None,
            trainer.tokens_per_s,
            *rates,
            run.height if run else None,
            status.network.present if run else None,
        )
        self._rows[self._count % len(self._rows)] = [now_ms, *(np.nan if value is None else value for value in sample)]
        self._count += 1
        self._at_ms, self._bytes = now_ms, moved

    def of(self, names: Sequence[str], range_s: float, now_ms: int) -> dict[str, object]:
        """Means over `step_s` each, the first one beginning at `from_ms`, the last one ending about now; None where there was none."""
        step_s = max(STEP_S, -(-int(range_s) // POINTS))
        points = max(1, int(range_s) // step_s)
        begin_ms = (now_ms // (step_s * 1000) - points + 1) * step_s * 1000  # so that a bucket keeps its samples as time goes on
        rows = self._rows[: min(self._count, len(self._rows))]
        bucket = (rows[:, 0] - begin_ms) // (step_s * 1000)
        inside = (bucket >= 0) & (bucket < points)
        rows, bucket = rows[inside], bucket[inside].astype(np.int64)
        series = {}
        for name in names:
            column = rows[:, 1 + list(SERIES).index(name)]
            known = ~np.isnan(column)
            counts = np.bincount(bucket[known], minlength=points)
            sums = np.bincount(bucket[known], weights=column[known], minlength=points)
            series[name] = [float(f"{total / count:.9g}") if count else None for total, count in zip(sums, counts, strict=True)]
        return {"from_ms": begin_ms, "step_s": step_s, "series": series}
