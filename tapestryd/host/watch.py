"""Notices what changes in this peer and remembers it for a while: events, trends, metrics, and since when each trouble holds.

Is told to look, at every change and every other second, and told of each story; decides nothing.
"""

from collections.abc import Callable
from dataclasses import asdict

from protocols.control import Status, Story
from tapestryd.host.events import Events
from tapestryd.host.metrics import Metrics
from tapestryd.host.trends import Trends


class Watch:
    """`status` makes a picture of this moment; `now_ms` is Unix time; `per_peer`: whether metrics name peers."""

    def __init__(self, status: Callable[[], Status], now_ms: Callable[[], int], *, per_peer: bool = False) -> None:
        self.events = Events(now_ms())
        self.metrics = Metrics(status, per_peer)
        self.trends = Trends()
        self.health: dict[str, int] = {}
        """Each sentence that holds, and since when, in ms."""
        self._status = status
        self._now_ms = now_ms
        self._state: dict[str, object] = {}

    def look(self) -> Status:
        status, now = self._status(), self._now_ms()
        run = status.run
        state: dict[str, object] = {"state": status.state, "phase": run.phase if run else "", "reasons": status.reasons}
        if state != self._state:
            self._state = state
            self.events.publish("state", now, state | {"round": run.round if run else None})
        if set(status.health) != set(self.health):
            self.health = {sentence: self.health.get(sentence, now) for sentence in status.health}
            self.events.publish("health", now, {"health": status.health})
        self.trends.add(status, now)
        self.events.show(status)
        return status

    def told(self, story: Story) -> None:
        self.metrics.told(story)
        self.events.publish("story", self._now_ms(), asdict(story))
