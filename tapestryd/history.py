"""What became of each round and each catch-up on this node: stories in memory, on disk and in the log, in the same words."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.control import ROUND_RESULTS, Contribution, Story
from protocols.lineage import Entry, Tip
from protocols.rounds import IN_ROUND, State
from protocols.trainer import Delta
from tapestryd import story
from tapestryd.averaging import Round
from tapestryd.errors import DiskFull
from tapestryd.host.store import STORIES, RunStore
from tapestryd.story import Spent
from tapestryd.swarm.meter import Meter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Mark:
    """A moment, and the counts at it. `times_ms`: what the stages that ended since then took."""

    began: float
    sent: int
    received: int
    refusals: Counter[str]
    stage: str = ""
    stage_began: float = 0.0
    times_ms: dict[str, int] = field(default_factory=dict)


class History:
    """`meter` and `refusals`: the node's own, counted on from outside. `tell` is handed every story from now on."""

    def __init__(self, store: RunStore, me: str, meter: Meter, refusals: Counter[str], tell: Callable[[Story], None]) -> None:
        self.stories: deque[Story] = deque(store.stories(), maxlen=STORIES)
        self.contribution = Contribution()
        self._store = store
        self._me = me
        self._meter = meter
        self._refusals = refusals
        self._tell = tell
        self._round: Mark | None = None

    @property
    def rounds(self) -> list[Story]:
        """The stories of rounds, without those of catching up."""
        return [told for told in self.stories if told.result in ROUND_RESULTS]

    def of(self, number: int) -> list[Story]:
        """Everything told of a round: it may have been discarded first, and replayed later."""
        return [told for told in self.stories if told.round == number]

    def mark(self) -> Mark:
        sent, received = self._meter.totals()
        return Mark(time.monotonic(), sent, received, self._refusals.copy())

    def enter(self, state: State) -> None:
        """The Member's state changed. At a round's boundary, its time and its bytes begin to count."""
        if state is State.STOPPING:
            self._round = self.mark()
        if self._round is not None:
            _turn(self._round, state.value if state in IN_ROUND else "")

    def end(self, number: int, fragment: int, tip: Tip | None, *, reason: str, round: Round | None, trained: Delta | None) -> None:
        """The round is over: committed, or discarded for `reason`. `tip`: our base now. `round` None: it was never gathered."""
        spent = self._spent(self._round) if self._round else Spent()  # else it was over before its boundary: it took nothing
        told = story.lived(self._me, number, fragment, tip, reason, round, trained if self._round else None, spent)
        log.log(
            logging.WARNING if reason else logging.INFO,
            "round=%d %s%s peers=%d coverage=%.2f height=%d base=%s sent=%d took=%.2fs",
            number, told.result, f" ({reason})" if reason else "", len(told.members), told.coverage, told.height,
            told.base_digest[:12], told.sent_bytes, told.took_ms / 1000,
        )  # fmt: skip
        for missing in told.missing:
            log.info("round=%d without=%s stage=%s: %s", number, missing.peer[-6:], missing.stage, missing.why)
        for repaired in told.repaired:
            log.info("round=%d part=%d repaired by %s", number, repaired.part, repaired.peer[-6:])
        if told.result == "committed":
            had = self.contribution
            self.contribution = Contribution(had.rounds + 1, had.steps + told.steps, had.tokens + told.tokens)
        self._round = None
        self._keep(told)

    def replayed(self, entry: Entry) -> None:
        """A round that others committed, and that we followed from their log."""
        self._keep(story.replayed(entry))

    def caught_up(
        self, number: int, before: Tip | None, reached: Tip | None, target: Tip, donors: Sequence[str], reason: str, began: Mark
    ) -> None:
        """An attempt to catch up that began at `began` is over."""
        told = story.caught_up(number, before, reached, target, tuple(donors), reason, self._spent(began))
        log.info(
            "round=%d %s%s height=%d→%d of %d donors=%d received=%d took=%.2fs",
            number, told.result, f" ({reason})" if reason else "", told.from_height, told.height, told.to_height, len(donors),
            told.received_bytes, told.took_ms / 1000,
        )  # fmt: skip
        last = self.stories[-1] if self.stories else None
        if reason and reached == before and last and (last.result, last.to_height) == (told.result, told.to_height):
            return  # tried again, with the same end: one story of it is enough
        self._keep(told)

    def _spent(self, since: Mark) -> Spent:
        _turn(since, "")
        sent, received = self._meter.totals()
        took_ms = int((time.monotonic() - since.began) * 1000)
        return Spent(sent - since.sent, received - since.received, took_ms, since.times_ms, dict(self._refusals - since.refusals))

    def _keep(self, told: Story) -> None:
        self.stories.append(told)
        self._tell(told)
        try:
            self._store.tell(told)
        except DiskFull as error:
            log.error("%s", error)


def _turn(mark: Mark, stage: str) -> None:
    """One stage ends, another begins; "": none."""
    now = time.monotonic()
    if mark.stage:
        mark.times_ms[mark.stage] = mark.times_ms.get(mark.stage, 0) + int((now - mark.stage_began) * 1000)
    mark.stage, mark.stage_began = stage, now
