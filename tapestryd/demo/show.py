"""The show itself: found, start, watch until enough rounds are committed and evaluated, stop, tell.

The only room of the demo with a clock, signals and an outside: the rest are handed what they need.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

from tapestryd.client import Doc
from tapestryd.demo import report, view
from tapestryd.demo.progress import Event, Progress
from tapestryd.demo.regions import Region
from tapestryd.demo.swarm import Daemon, Swarm, invite_of, last_words, status_of, windows
from tapestryd.errors import LocalFault

POLL_S = 0.25
ANSWER_S = 2.0
START_S = 180.0
"""Founding, and the first daemon until it can be joined, may each take so long; 8 s are usual on two cores."""
STALL_S = 120.0
"""No commit for so long, or for eight rounds where that is longer, ends the demo."""
EVALUATE_S = 60.0
"""All peers must have evaluated the last base within this of the last commit."""


class Audience(Protocol):
    """Who watches. `frame` comes several times a second."""

    def event(self, event: Event) -> None: ...

    def frame(self, progress: Progress, doing: str) -> None: ...

    def end(self, progress: Progress, summary: Event) -> None: ...


class Json:
    """A program: one event a line, the summary last."""

    def event(self, event: Event) -> None:
        print(json.dumps(event, ensure_ascii=False), flush=True)

    def frame(self, progress: Progress, doing: str) -> None:
        pass

    def end(self, progress: Progress, summary: Event) -> None:
        self.event(summary)


class Lines:
    """A file or a pipe: one line an event."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def event(self, event: Event) -> None:
        if text := view.line(event):
            print(text, flush=True)

    def frame(self, progress: Progress, doing: str) -> None:
        pass

    def end(self, progress: Progress, summary: Event) -> None:
        print(view.closing(progress, summary, self._where), end="", flush=True)


class Screen:
    """A terminal, redrawn in place; what was on it before stays above."""

    def __init__(self, out: TextIO, where: Path, colour: bool) -> None:
        self._out, self._where, self._colour = out, where, colour
        self._height = 0

    def event(self, event: Event) -> None:
        if event["event"] == "started":  # all others show in the frame
            self._over(view.line(event) + "\n")

    def frame(self, progress: Progress, doing: str) -> None:
        columns, rows = shutil.get_terminal_size()
        text = view.render(progress, where=str(self._where), doing=doing, width=columns - 1, rows=rows - 1, colour=self._colour)
        self._over(text)
        self._height = text.count("\n")

    def end(self, progress: Progress, summary: Event) -> None:
        self._height = 0  # the last frame stays
        self._over("\n" + view.closing(progress, summary, self._where))

    def _over(self, text: str) -> None:
        """Write `text` in the place of the last frame."""
        back = f"\x1b[{self._height}F" if self._height else ""
        self._out.write(back + text.replace("\n", "\x1b[K\n") + "\x1b[J")
        self._out.flush()
        self._height = 0


class Signals:
    """Counts SIGINT and SIGTERM instead of dying of them. `number`: the first that came, else 0."""

    def __init__(self) -> None:
        self.number = self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number, self.count = self.number or number, self.count + 1


class _Stopped(Exception):
    """A signal came."""


class Show:
    def __init__(self, folder: Path, regions: Sequence[Region], rounds: int, audience: Audience) -> None:
        self.folder = folder
        self.progress = Progress([region.name for region in regions], rounds)
        self.swarm = Swarm(folder, regions)
        self._audience = audience
        self._began = time.monotonic()
        self._signals = Signals()
        self._log = (folder / "events.jsonl").open("a", encoding="utf-8")

    def run(self) -> int:
        """The whole of it; exit code 0, 1, or 128 + the signal. No process of ours is left, whatever happens."""
        reason, fault = "", ""
        with self._signals, self._log:
            try:
                self._go()
                fault = self.progress.verdict()
                reason = "all rounds are there"
            except LocalFault as trouble:
                fault = reason = str(trouble)
            except _Stopped:
                fault = (
                    f"Stopped by {signal.Signals(self._signals.number).name} at height {self.progress.height} of {self.progress.target}."
                )
                reason = signal.Signals(self._signals.number).name
            finally:
                before = self._signals.count
                try:
                    self._tell({"event": "stopping", "s": self._now(), "reason": reason})
                    self._audience.frame(self.progress, "stopping")
                finally:
                    self.swarm.stop(lambda: self._signals.count > max(before, 1))
            self._tell_end(fault)
        if fault:
            print(f"tapestryd demo: {fault}", file=sys.stderr)
        return 128 + self._signals.number if self._signals.number and fault else int(bool(fault))

    def _go(self) -> None:
        """Raises _Stopped, or LocalFault with why it cannot go on."""
        first, *others = self.swarm.daemons
        train, average = windows(len(self.swarm.daemons))
        self._tell({
            "event": "started", "s": 0.0, "dir": str(self.folder), "peers": list(self.progress.peers), "rounds": self.progress.target,
            "round_s": train + average,
        })  # fmt: skip
        founding = self.swarm.start_founding()
        self._until(lambda: status_of(founding) is not None, START_S, "founding the run", lambda: "the founding did not end")
        if status_of(founding) != 0:
            raise LocalFault(f"The run could not be founded: {last_words(self.folder / 'founding.log')}")
        self.swarm.start(first, str(self.swarm.run_toml))
        self._until(
            lambda: invite_of(self.progress.run) is not None, START_S, "starting the first peer", lambda: f"{first.name} gave no invite"
        )
        for other in others:
            self.swarm.start(other, invite_of(self.progress.run) or "")
        stall_s = max(STALL_S, 8.0 * (train + average))
        for height in range(1, self.progress.target + 1):
            doing = f"round {height} of {self.progress.target}"
            self._until(partial(self._committed, height), stall_s, doing, self._why_no_commit)
        self._until(lambda: self.progress.complete, EVALUATE_S, "evaluating", self.progress.verdict)

    def _until(self, done: Callable[[], bool], limit_s: float, doing: str, why: Callable[[], str]) -> None:
        """Watch until `done`. Raises LocalFault with `why` after `limit_s`, or when a daemon ends or cannot train."""
        end = time.monotonic() + limit_s
        while not done():
            if self._signals.number:
                raise _Stopped
            if time.monotonic() > end:
                raise LocalFault(f"Nothing came of {doing} within {limit_s:.0f} s: {why().rstrip('.')}.")
            for daemon in self.swarm.daemons:
                self._look(daemon)
            self.progress.now_s = self._now()
            self._audience.frame(self.progress, doing)
            time.sleep(POLL_S)

    def _look(self, daemon: Daemon) -> None:
        """Hear what one daemon has to say; nothing while it starts. Raises LocalFault when it has ended or cannot train."""
        if daemon.process is None:
            return
        code = status_of(daemon.process)
        if code is not None:
            raise LocalFault(f"{daemon.name} ended by itself (status {code}). The end of {daemon.log}: {last_words(daemon.log)}")
        try:
            status = daemon.client.ask("GET", "/v1/status", timeout_s=ANSWER_S)
            stories: list[Doc] = daemon.client.ask("GET", "/v1/rounds?limit=60", timeout_s=ANSWER_S)["rounds"] if _last(status) else []
        except LocalFault:
            return  # starting, or too busy to answer now; whoever stays silent for long is noticed by what does not come
        seen = self.progress.see(daemon.name, status, self._now())
        for event in [*self.progress.hear(daemon.name, stories, self._now()), *seen]:
            self._tell(event)
        if self.progress.peers[daemon.name].failed:
            said = "; ".join(status["health"])
            raise LocalFault(f"{daemon.name} cannot train: {said}. The end of {daemon.log}: {last_words(daemon.log)}")

    def _committed(self, height: int) -> bool:
        return self.progress.height >= height

    def _why_no_commit(self) -> str:
        states = ", ".join(f"{peer.name} is {peer.state}" for peer in self.progress.peers.values())
        last = self.progress.rounds[max(self.progress.rounds)] if self.progress.rounds else None
        return states + (f"; round {last.number} was discarded: {last.reasons}" if last and last.height is None else "")

    def _tell(self, event: Event) -> None:
        self._log.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._log.flush()
        self._audience.event(event)

    def _tell_end(self, fault: str) -> None:
        """Report and summary."""
        seconds = self._now()
        summary = self.progress.summary(not fault, seconds)
        path = self.folder / report.NAME
        path.write_text(report.page(self.progress, summary, fault), encoding="utf-8")
        self._tell({"event": "report", "s": seconds, "path": str(path)})
        self._log.write(json.dumps(summary, ensure_ascii=False) + "\n")
        self._audience.end(self.progress, summary)

    def _now(self) -> float:
        return round(time.monotonic() - self._began, 1)


def _last(status: Doc) -> bool:
    return status["averaging"]["last"] is not None


def audience(folder: Path, as_json: bool) -> Audience:
    """Fit for where standard output goes."""
    if as_json:
        return Json()
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Screen(sys.stdout, folder, colour=not os.environ.get("NO_COLOR"))
    return Lines(folder)
