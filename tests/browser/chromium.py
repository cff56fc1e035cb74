"""Headless Chromium for the tests of the dashboard: looked at in both themes, on a telephone and on a desk."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (360, 1280)
THEMES = ("light", "dark")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One tab. `shots`: the folder of screenshots."""

    def __init__(self, driver: Any, shots: Path) -> None:
        self.driver = driver
        self.shots = shots

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def module(self, script: str, *arguments: object) -> Any:
        """The value of an async function's body, which may import the page's modules."""
        wrapped = f"const [done, ...given] = [arguments[arguments.length - 1], ...arguments]; (async () => {{ {script} }})().then(done);"
        return self.driver.execute_async_script(wrapped, *arguments)

    def text(self, name: str) -> str:
        return str(self.run("return document.querySelector(`[data-at=\"${arguments[0]}\"]`)?.innerText ?? ''", name))

    def visible(self, selector: str) -> bool:
        """Whether all that `selector` names, and something is, can be seen."""
        found = self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.checkVisibility())", selector)
        return bool(found) and all(found)

    def size(self, width: int, height: int = 900) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        )

    def theme(self, scheme: str) -> None:
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # else a new fragment alone would load nothing
        self.said()
        self.requested()
        self.driver.get(url)
        self.until("drawn", lambda: self.visible("#main:not(.waiting)"))

    def until(self, what: str, good: Callable[[], Any], timeout_s: float = 30) -> Any:
        end = time.monotonic() + timeout_s
        while not (found := good()):
            assert time.monotonic() < end, f"not {what} within {timeout_s} s:\n{self.run('return document.body.innerText')[:1500]}"
            time.sleep(0.1)
        return found

    def shoot(self, name: str) -> None:
        """The whole page in each size and theme; nothing may stick out at its side."""
        for width in WIDTHS:
            for scheme in THEMES:
                self.theme(scheme)
                self.size(width)
                tall = self.run("return document.documentElement.scrollHeight")
                self.size(width, max(900, min(tall, 6000)))
                self.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                assert self.run("return document.documentElement.scrollWidth") <= width, f"{name}: wider than {width} px"
                self.driver.save_screenshot(str(self.shots / f"{name}-{width}-{scheme}.png"))
        self.size(1280)

    def said(self) -> list[str]:
        """What the console and the network have complained of since the page was opened, or asked about."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> set[str]:
        """Origins of all that was asked for since then."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if url.startswith(("http", "ws")):
                    found.add("/".join(url.split("/")[:3]) + "/")
        return found


@contextmanager
def chromium(shots: Path) -> Iterator[Browser]:
    """Skips where there is no Chromium, or no selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        made.set_script_timeout(20)
        shots.mkdir(parents=True, exist_ok=True)
        yield Browser(made, shots)
    finally:
        made.quit()


def findings(browser: Browser) -> list[str]:
    """What axe-core finds that is serious, in the theme and size of the moment. Skips where there is no axe-core."""
    source = os.environ.get("TAPESTRY_AXE", "")
    if not source:
        pytest.skip("no axe-core here: npm install axe-core, and set TAPESTRY_AXE to node_modules/axe-core/axe.min.js")
    browser.run(Path(source).read_text())
    found = browser.module("return (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [
        f"{rule['impact']} {rule['id']}: {rule['help']}: {[node['html'][:120] for node in rule['nodes']][:3]}"
        for rule in found
        if rule["impact"] in ("serious", "critical", "moderate")
    ]
