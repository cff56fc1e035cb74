"""The dashboard in a real browser, on a real swarm: what it shows, and what can be done on it.

pytest -m slow tests/browser        TAPESTRY_SCREENSHOTS=DIR keeps the pictures; TAPESTRY_AXE=axe.min.js checks accessibility
"""

import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapestryd import screen
from tests.browser.chromium import THEMES, WIDTHS, Browser, chromium, findings
from tests.living import Peer, found

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    shots = Path(os.environ.get("TAPESTRY_SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    with chromium(shots) as made:
        yield made


@pytest.fixture(scope="module")
def swarm(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    """Three daemons that have committed a few rounds; the browser first, so that nothing starts where there is none."""
    folder = tmp_path_factory.mktemp("swarm")
    text = "\n\n".join(pydoc_data.topics.topics.values())
    peers = []
    for place, region in enumerate(("north", "south", "west")):
        data = folder / "data" / region
        data.mkdir(parents=True)
        (data / "prose.txt").write_text(text[place * 100_000 : (place + 1) * 100_000])
        peers.append(Peer(folder / region, [data]))
    try:
        toml = found(folder / "founder", "--train", "4", "--average", "3")
        peers[0].start(str(toml))
        invite = peers[0].invite(90)
        for peer in peers[1:]:
            peer.start(invite)
        for peer in peers:
            peer.height(3, 240)
        yield peers
    finally:
        for peer in peers:
            peer.end()


def page(peer: Peer) -> str:
    return str(peer.status()["self"]["dashboard"])


def link(peer: Peer) -> str:
    command = [sys.executable, "-m", "tapestryd.cli", "--socket", str(peer.folder / "api.sock"), "dashboard", "--print"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()[0]


def accessible(browser: Browser) -> None:
    for width in WIDTHS:
        for scheme in THEMES:
            browser.size(width)
            browser.theme(scheme)
            assert findings(browser) == []


def test_empty(browser: Browser, tmp_path: Path) -> None:
    peer = Peer(tmp_path / "alone", [tmp_path]).start()
    try:
        peer.wait("idle", lambda status: status["state"] == "idle" and status["self"]["dashboard"], 60)
        browser.open(page(peer))
        assert browser.text("state").lower() == "idle"
        assert "tapestry run join" in browser.text("lead")
        assert not any(browser.visible(f"[data-chart={name}] .plot") for name in ("loss", "speed", "traffic", "rounds"))
        browser.shoot("empty")
        assert browser.said() == []
        assert browser.requested() == {page(peer)}
    finally:
        peer.end()


def test_busy(browser: Browser, swarm: list[Peer]) -> None:
    browser.open(page(swarm[0]))
    status = swarm[0].status()
    assert browser.text("who").startswith("north · ")
    assert browser.text("state").lower() in ("training", "averaging", "syncing")
    assert status["run"]["id"][:8] in browser.text("machine")
    assert "held-out loss" in browser.text("machine")
    assert "yes, others can dial" in browser.text("swarm") or "not known yet" in browser.text("swarm")
    assert {"north", "south", "west"} <= set(browser.text("peers").split())
    assert "sent" in browser.text("left")
    assert browser.text("more") == ""

    # It lives: without being loaded anew it tells of rounds that were not there when it was.
    before = swarm[0].status()["run"]["height"]
    browser.until("told of two more commits", lambda: f"{before + 2}" in browser.text("figures").split(), 60)
    browser.until("all curves there", lambda: browser.visible(".plot"), 60)
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    browser.shoot("busy")
    assert browser.said() == []
    assert browser.requested() == {page(swarm[0])}


def test_pausing_needs_the_link(browser: Browser, swarm: list[Peer]) -> None:
    peer = swarm[1]
    browser.open(page(peer))
    assert "tapestry dashboard" in browser.text("may")
    assert not browser.visible("[data-at=buttons]")

    browser.open(link(peer))
    assert "#" not in browser.run("return location.href")
    press = "document.querySelector(`.buttons button:not(.idle)[data-do=${arguments[0]}]`).click()"
    browser.run(press, "pause")
    browser.until("paused", lambda: browser.text("state").lower() == "paused")
    assert peer.status()["state"] == "paused"
    assert "paused for" in browser.text("said").lower()
    browser.until("settled", lambda: browser.text("figures").split()[0] != "–")
    browser.shoot("paused")
    browser.run("location.reload()")
    browser.until("good in this tab still", lambda: browser.visible(".buttons button[data-do=resume]"))
    browser.run(press, "resume")
    browser.until("going on", lambda: browser.text("state").lower() in ("training", "averaging"), 60)
    assert peer.status()["state"] != "paused"
    browser.run(press, "finish")
    browser.until("told", lambda: "until tapestry resume" in browser.text("said"))  # behind the round at hand, if there is one
    browser.until("finished", lambda: browser.text("state").lower() == "paused", 60)
    browser.run(press, "resume")
    browser.until("going on again", lambda: browser.text("state").lower() in ("training", "averaging"), 60)
    assert browser.said() == []


def test_degraded(browser: Browser, swarm: list[Peer], tmp_path: Path) -> None:
    peer = Peer(tmp_path / "poor", [tmp_path / "absent"]).start(swarm[0].invite(), "metrics.listen=192.0.2.1:1")
    try:
        status = peer.wait("unwell", lambda status: len(status["health"]) >= 2, 120)
        browser.open(page(peer))
        browser.until("all told", lambda: browser.text("troubles").count("\n") >= 1)
        for sentence in status["health"]:
            assert sentence[1:40] in browser.text("troubles")
        assert "the trainer is not ready" in browser.text("reasons")
        browser.shoot("degraded")
        assert browser.said() == []
    finally:
        peer.end()

    # The daemon is gone: the page says so, and does not look alive.
    browser.until("noticed", lambda: "no answer" in browser.text("state").lower(), 30)
    assert "last word 20" in browser.text("link")
    assert browser.run("return document.getElementById('main').classList.contains('stale')")
    browser.shoot("gone")
    browser.said()


def test_keyboard(browser: Browser, swarm: list[Peer]) -> None:
    browser.open(page(swarm[0]))
    browser.size(1280)
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    body = browser.driver.find_element("tag name", "body")
    reached = []
    for _ in range(40):
        body.send_keys(keys.TAB) if not reached else browser.driver.switch_to.active_element.send_keys(keys.TAB)
        reached.append(browser.run("const at = document.activeElement; return [at.tagName, at.matches(':focus-visible')]"))
    assert all(visible for tag, visible in reached if tag != "BODY")
    assert {"A", "SUMMARY", "BUTTON", "svg"} <= {tag for tag, _ in reached}

    browser.until("a curve there", lambda: browser.visible("[data-chart=speed] .plot"))
    plot = browser.driver.find_element("css selector", "[data-chart=speed] .plot")
    browser.run("arguments[0].focus()", plot)
    readout = "return document.querySelector('[data-chart=speed] .readout').textContent"
    assert browser.run(readout).startswith("Latest: ")
    browser.driver.switch_to.active_element.send_keys(keys.ARROW_LEFT)
    assert browser.run(readout).startswith("20")  # a date

    head = browser.driver.find_element("css selector", "[data-at=peers] th:nth-child(5) button")
    browser.run("arguments[0].focus()", head)
    head.send_keys(keys.ENTER)
    assert browser.run("return document.querySelector('[data-at=peers] th:nth-child(5)').getAttribute('aria-sort')") == "ascending"
    assert browser.run("return document.querySelector('[data-at=peers] tbody tr').textContent").startswith("north")


def test_axe_finds_nothing_serious(browser: Browser, swarm: list[Peer]) -> None:
    browser.open(page(swarm[0]))
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    accessible(browser)
    browser.open(link(swarm[0]))
    accessible(browser)


def test_words_and_numbers_are_those_of_the_cli(browser: Browser, swarm: list[Peer]) -> None:
    browser.open(page(swarm[0]))
    for name, values, ours in (
        ("duration", [0, 0.3, 9.94, 12, 59.4, 61, 200, 3600, 7265, 90_000, 273_600, 1e7], screen.duration),
        ("size", [0, 1, 1023, 1024, 1536, 99 * 1024, 100 * 1024, 5 << 20, 19 << 30, 3 << 41], screen.size),
        ("number", [0, 7, 850, 1000, 21_300, 1_840_000, 1_240_000_000], screen.number),
    ):
        theirs = browser.module(f"const words = await import('/format.js'); return given[0].map(words.{name});", values)
        assert theirs == [ours(value) for value in values]
    assert browser.module("return (await import('/format.js')).clean(given[0])", "a\x1b[31m\u202eb森") == "a?[31m?b森"
