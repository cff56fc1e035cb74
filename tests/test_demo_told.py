"""What a demo has seen, and how it is told: events, summary, screen, report."""

import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from typing import Any

import pytest

from protocols import control
from tapestryd.demo import chart, report, view
from tapestryd.demo.chart import Axes, Series
from tapestryd.demo.progress import Progress

IDS = {"prose": "12D3KooWprose", "библиотека": "12D3KooWlib"}
PAGES = {"prose": "http://127.0.0.1:8471/", "библиотека": "http://127.0.0.1:8472/"}
BASES = ["9d" * 32, "a1" * 32, "b2" * 32, "c3" * 32]
LOSSES = {"prose": [5.386, 3.223, 2.390, 1.947], "библиотека": [5.331, 3.166, 2.487, 2.133]}


def status(name: str, height: int, *, state: str = "training", health: tuple[str, ...] = (), evaluated: bool = True) -> dict[str, Any]:
    """A Status as the daemon of this peer would answer it."""
    known = LOSSES[name][: height + 1 if evaluated else height]
    heldout = control.Heldout(0, known[0], len(known) - 1, known[-1], 8192) if known else None
    trainer = control.Trainer(
        "failed" if health else "training", "cpu", "fp32", "adamw8bit", 100 * height, 76_800 * height, 4321.0, 5.0 - height, 0, 0, heldout
    )
    return control.Status(
        "0.1.0", control.Self(IDS[name], name, (), 7, PAGES[name]), 20.0, state, (), health,
        control.Run("0997" * 16, "demo", "training", 3 + height, height, BASES[height], 7.21, "tapestry:", 246_336, 2, 2),
        trainer, control.Network(1, "unknown", 0), control.Averaging(None, 0, 0), control.Traffic(150_000 * height, 0, {}), {}, {},
    ).to_json()  # fmt: skip


def story(round: int, height: int, result: str = "committed", reason: str = "") -> dict[str, Any]:
    members = tuple(IDS.values()) if result != "discarded" else ()
    return asdict(
        control.Story(round, round % 2, result, reason, members, 1.0, height, BASES[height], 153_600, 150_000, 180, 100, 76_800, 2.0)
    )


def ran(height: int = 3, target: int = 3) -> tuple[Progress, list[dict[str, Any]]]:
    """Two peers that committed rounds 4, 6 and 7; 5 was discarded by both."""
    progress, events = Progress(list(IDS), target), []
    for reached in range(height + 1):
        stories = [s for s in (story(4, 1), story(5, 1, "discarded", "no_roster"), story(6, 2), story(7, 3)) if s["height"] <= reached]
        for name in IDS:
            now = 30.0 + 15 * reached
            events += progress.see(name, status(name, reached), now)
            events += progress.hear(name, stories, now)
            progress.now_s = now
    return progress, events


def test_events_are_told_once_and_in_order() -> None:
    _, events = ran()
    told = [(event["event"], event.get("peer") or event.get("round")) for event in events]
    assert told == [
        ("peer_up", "prose"), ("founded", None), ("joined", "prose"), ("evaluated", "prose"),
        ("peer_up", "библиотека"), ("joined", "библиотека"), ("evaluated", "библиотека"),
        ("evaluated", "prose"), ("round_committed", 4), ("evaluated", "библиотека"), ("round_discarded", 5),
        ("evaluated", "prose"), ("round_committed", 6), ("evaluated", "библиотека"),
        ("evaluated", "prose"), ("round_committed", 7), ("evaluated", "библиотека"),
    ]  # fmt: skip
    assert events[8] == {
        "event": "round_committed", "s": 45.0, "round": 4, "fragment": 0, "height": 1, "base_digest": BASES[1],
        "members": ["prose", "библиотека"], "coverage": 1.0, "took_ms": 180,
    }  # fmt: skip
    assert events[10]["reason"] == "no_roster"


def test_a_round_that_some_discard_and_one_commits_is_committed() -> None:
    progress = Progress(list(IDS), 1)
    for name in IDS:
        progress.see(name, status(name, 0), 1.0)
    assert progress.hear("prose", [story(4, 0, "discarded", "no_majority")], 2.0) == []
    assert [event["event"] for event in progress.hear("библиотека", [story(4, 1)], 3.0)] == ["round_committed"]
    assert progress.hear("prose", [story(4, 1, "replayed")], 4.0) == []


def test_a_round_that_only_one_peer_lived_is_told_with_the_next() -> None:
    progress = Progress(list(IDS), 1)
    assert progress.hear("prose", [story(4, 0, "discarded", "no_peers")], 2.0) == []
    told = progress.hear("prose", [story(4, 0, "discarded", "no_peers"), story(5, 1)], 3.0)
    assert [(event["event"], event["round"]) for event in told] == [("round_discarded", 4), ("round_committed", 5)]


def test_the_summary_and_the_verdict() -> None:
    progress, _ = ran()
    assert progress.complete
    assert progress.verdict() == ""
    assert progress.summary(True, 81.234) == {
        "event": "summary", "ok": True, "peers": 2, "rounds_committed": 3, "base_digest": BASES[3], "digests_equal": True,
        "heldout": {"prose": {"first": 5.386, "last": 1.947}, "библиотека": {"first": 5.331, "last": 2.133}},
        "bytes_sent": 900_000, "seconds": 81.2,
    }  # fmt: skip


def test_every_verdict_is_a_sentence() -> None:
    progress, _ = ran(2)
    assert progress.verdict() == "Only 2 of 3 rounds were committed."
    progress, _ = ran()
    progress.see("prose", status("prose", 2), 90.0)
    assert progress.verdict() == "The peers hold different bases: prose b2b2b2b2b2b2, библиотека c3c3c3c3c3c3."
    assert progress.summary(False, 1.0)["base_digest"] is None
    progress, _ = ran()
    del progress.peers["prose"].heldout[3]
    assert not progress.complete
    assert progress.verdict() == "The base at height 3 was not evaluated by prose in time."
    progress, _ = ran()
    progress.peers["prose"].heldout[3] = 9.0
    assert progress.verdict() == "The mean held-out loss of the Shared Base did not fall: 5.359 at genesis, 5.566 now."
    del progress.peers["prose"].heldout[0]
    assert progress.verdict() == "The mean held-out loss of the Shared Base was not measured at genesis."


SCREEN = """\
tapestryd demo · 2 peers on this machine · 1m 15s                 ● round 4 of 6
Run      09970997   246k elements in 2 fragments   round 6, averaging in 7.2 s
Base     height 3 of 6   c3c3c3c3c3c3   the same on all 2 peers
Learned  held-out loss of the Shared Base, mean of all regions 5.359 → 2.040
Pages    prose http://127.0.0.1:8471/   библиотека http://127.0.0.1:8472/
Files    /tmp/d

PEER        STATE     LOSS   TOK/S  STEPS  SENT     SHARED BASE, HELD-OUT LOSS
prose       training  2.000  4.32k  300    439 KiB  5.386 █▄▂▁ 1.947
библиотека  training  2.000  4.32k  300    439 KiB  5.331 █▃▂▁ 2.133

ROUND  RESULT     HEIGHT  BYTES    BASE          TOOK PART
4      committed  1       300 KiB  a1a1a1a1a1a1  prose библиотека
5      discarded  -       300 KiB  -             no_roster
6      committed  2       300 KiB  b2b2b2b2b2b2  prose библиотека
7      committed  3       300 KiB  c3c3c3c3c3c3  prose библиотека
"""


def render(progress: Progress, width: int = 80, rows: int = 40, colour: bool = False) -> str:
    return view.render(progress, where="/tmp/d", doing="round 4 of 6", width=width, rows=rows, colour=colour)


def test_the_screen() -> None:
    progress, _ = ran(3, 6)
    assert render(progress) == SCREEN
    assert re.sub("\x1b\\[[0-9]+m", "", render(progress, colour=True)) == SCREEN


def test_the_screen_before_anything_is_there() -> None:
    assert render(Progress(list(IDS), 6), colour=False).splitlines()[1:4] == [
        "Run      not founded yet",
        "Base     height 0 of 6   0 of 2 peers hold a base",
        "Learned  nothing measured yet",
    ]


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
@pytest.mark.parametrize("rows", [5, 12, 40])
def test_the_screen_fits(width: int, rows: int) -> None:
    progress, _ = ran(3, 6)
    lines = render(progress, width, rows).splitlines()
    assert len(lines) <= rows
    assert all(view.columns(line) <= width for line in lines)


def test_a_fault_shows_and_cannot_steer_the_terminal() -> None:
    progress, _ = ran()
    progress.see("prose", status("prose", 3, health=("\x1b]0;owned\x07",)), 90.0)
    assert progress.peers["prose"].failed
    assert render(progress).splitlines()[-1] == "prose: ?]0;owned?"
    assert "\x1b[31m●" in render(progress, colour=True)


def test_lines() -> None:
    _, events = ran()
    started = {"event": "started", "s": 0.0, "dir": "/tmp/d", "peers": list(IDS), "rounds": 3, "round_s": 12}
    lines = [view.line(event) for event in [started, *events, {"event": "stopping", "s": 75.5, "reason": "SIGINT"}]]
    assert lines[:3] == [
        "    0.0 s  2 peers, each with its own text: prose, библиотека; kept in /tmp/d",
        "   30.0 s  prose is up: 12D3KooWprose, its page: http://127.0.0.1:8471/",
        "   30.0 s  run 09970997: a model of 246k elements in 2 fragments",
    ]
    assert lines[9] == "   45.0 s  round 4 committed by prose, библиотека: height 1, base a1a1a1a1a1a1"
    assert lines[11] == "   45.0 s  round 5 discarded: no_roster"
    assert lines[-1] == "   75.5 s  stopping: SIGINT"
    assert view.line({"event": "summary"}) == ""


def page(progress: Progress, fault: str = "") -> tuple[str, ET.Element]:
    text = report.page(progress, progress.summary(not fault, 81.2), fault)
    return text, ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def words(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def test_the_report_needs_nothing_else() -> None:
    text, root = page(ran()[0])
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img|<iframe", text)
    assert not any(name in {"src", "href", "srcset", "data", "action"} for element in root.iter() for name in element.attrib)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_the_report_tells_everything_in_words_too() -> None:
    _, root = page(ran()[0])
    assert root.attrib["lang"] == "en"
    svgs = [svg for svg in root.iter("svg") if svg.get("role") == "img"]
    assert len(svgs) == 3
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    for svg in svgs:
        assert set((svg.get("aria-labelledby") or "").split()) <= ids
    described = [words(desc) for desc in root.iter("desc")]
    assert described[0] == "nats per byte over committed rounds: prose from 5.386 to 1.947; библиотека from 5.331 to 2.133."
    assert described[2] == "KiB by committed rounds, all peers together: 1: 300; 2: 300; 3: 300."
    rows = [[words(cell) for cell in row] for row in root.iter("tr")]
    assert rows[1][:4] == ["prose", "5.386", "1.947", "-64%"]
    assert rows[-3] == ["5", "discarded: no_roster", "-", "1", "0.2 s", "300 KiB", "-", "-"]
    assert rows[-1] == ["7", "committed", "3", "1", "0.2 s", "300 KiB", "c3c3c3c3c3c3", "prose, библиотека"]
    assert "c3c3c3c3c3c3" in words(next(root.iter("dl")))


def test_a_report_of_nothing_and_of_what_failed() -> None:
    _, root = page(Progress(["<b>", "&"], 6), fault="It was <stopped> & gone.")
    text = words(root)
    assert "It was <stopped> & gone." in text
    assert "No round has ended." in text
    assert "nothing was measured" in text


def test_charts_stay_in_their_box() -> None:
    plain = Axes("x", "y", lambda value: f"{value:g}")
    wild = [Series("a", [(0, -1e9), (3, 1e9)]), Series("b", [(1, 0.0)]), Series("empty", [])]
    for drawn in (chart.lines("k", "t", plain, wild, [2.0]), chart.bars("k", "t", plain, [Series("a", [(1, 5.0), (900, 7.0)])]),
                  chart.lines("k", "t", plain, [Series("flat", [(5, 2.0)])])):  # fmt: skip
        root = ET.fromstring(drawn)
        for element in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.get(name, 0)) <= chart.WIDTH
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.get(name, 0)) <= chart.HEIGHT
            for point in element.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= chart.WIDTH
                assert 0 <= y <= chart.HEIGHT


@pytest.mark.parametrize(
    ("low", "high", "whole"), [(0, 0, True), (5, 5, False), (0.001, 0.002, False), (1, 6, True), (0, 1e7, False), (-3, -2, False)]
)
def test_ticks_enclose(low: float, high: float, whole: bool) -> None:
    ticks = chart._ticks(low, high, 5, whole)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
