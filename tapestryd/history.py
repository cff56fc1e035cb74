"""What became of each round on this node: one story a round, in memory, on disk and in the log, in the same words."""

import logging
import time
from collections import deque

from protocols.control import Story
from protocols.lineage import Entry, Tip
from protocols.trainer import Delta
from tapestryd.averaging import Round
from tapestryd.errors import DiskFull
from tapestryd.host.store import STORIES, RunStore
from tapestryd.swarm.streams import Meter

log = logging.getLogger(__name__)


class History:
    def __init__(self, store: RunStore, meter: Meter) -> None:
        self.stories: deque[Story] = deque(store.stories(), maxlen=STORIES)
        self._store = store
        self._meter = meter
        self._began: float | None = None
        self._bytes = (0, 0)

    def begin(self) -> None:
        """A round's boundary: from here its time and its bytes count."""
        self._began, self._bytes = time.monotonic(), self._meter.totals()

    def end(self, number: int, fragment: int, tip: Tip | None, *, reason: str, round: Round | None, trained: Delta | None) -> None:
        """The round is over: committed, or discarded for `reason`. `tip`: our base now. `round` None: it was never gathered."""
        roster = round.exchange.roster if round and round.exchange else None
        sent, received = self._meter.totals()
        if self._began is None:
            self.begin()  # over before its boundary: it took nothing
            sent, received, trained = *self._bytes, None
        assert self._began is not None
        story = Story(
            round=number,
            fragment=fragment,
            result="discarded" if reason else "committed",
            reason=reason,
            members=roster.members if roster else (),
            coverage=round.vote.coverage_ppm / 1e6 if round and round.vote else 0.0,
            height=tip.height if tip else 0,
            base_digest=tip.base if tip else "",
            sent_bytes=sent - self._bytes[0],
            received_bytes=received - self._bytes[1],
            took_ms=int((time.monotonic() - self._began) * 1000),
            steps=trained.steps if trained else 0,
            tokens=trained.tokens if trained else 0,
            loss=trained.loss if trained and trained.steps else None,
        )
        log.log(
            logging.WARNING if reason else logging.INFO,
            "round=%d %s%s peers=%d coverage=%.2f height=%d base=%s sent=%d took=%.2fs",
            number, story.result, f" ({reason})" if reason else "", len(story.members), story.coverage, story.height,
            story.base_digest[:12], story.sent_bytes, story.took_ms / 1000,
        )  # fmt: skip
        self._began = None
        self._keep(story)

    def replayed(self, entry: Entry) -> None:
        """A round that others committed, and that we followed from their log."""
        vote = entry.vote
        self._keep(
            Story(
                vote.round, vote.fragment, "replayed", "", entry.roster.members, vote.coverage_ppm / 1e6, vote.height, vote.after,
                0, sum(entry.sizes), 0, 0, 0, None,
            )
        )  # fmt: skip

    def _keep(self, story: Story) -> None:
        self.stories.append(story)
        try:
            self._store.tell(story)
        except DiskFull as error:
            log.error("%s", error)
