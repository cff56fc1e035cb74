"""`tapestry-session`: tells this machine's tapestryd when somebody was last at the desktop that it runs in, and of a metered network.

    tapestry-session [--socket PATH]

A user unit of the graphical session (deploy/systemd-user/tapestry-session.service). Says only that there was a key, a click or a touch,
and how long ago: nothing of what. Without it `schedule.when_user_active` and `network.metered` have nothing to go by.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tapestryd.client import Client, default_socket
from tapestryd.errors import LocalFault, NotAllowed
from tapestryd.host.clock import now_ms
from tapestryd.host.sensors.desktop import ScreenSaver, gnome_idle_s, logind_idle_s, metered
from tapestryd.program import ended

POLL_S = 10.0
NETWORK_S = 60.0
SAY_S = 30.0
"""While somebody is there, said so often; whoever comes back is noticed at the next poll."""
AGAIN_S = 300.0
"""What the network costs is said again after so long: the daemon may have been started anew, and forgets it if we are gone."""

_SAME_S = 1.0
"""Two answers about one and the same input differ by less."""

Idle = Callable[[], float | None]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tapestry-session", description="Tell this machine's tapestryd when somebody was last at this desktop."
    )
    p.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's control socket")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(argv)
    client = Client(chosen.socket or default_socket(os.environ))
    return ended(lambda: serve(idle_of(os.environ.get("DISPLAY", ""), wayland="WAYLAND_DISPLAY" in os.environ), client), "tapestry-session")


def idle_of(display: str, *, wayland: bool) -> Idle:
    """The first way that works in this session; those of D-Bus are asked anew each time."""
    if display and not wayland:
        try:
            return ScreenSaver(display).idle_s
        except OSError as error:
            print(f"tapestry-session: {error}", file=sys.stderr)

    def idle_s() -> float | None:
        found = gnome_idle_s()
        return logind_idle_s(now_ms() / 1000) if found is None else found

    return idle_s


def serve(idle_s: Idle, client: Client) -> int:
    """Until a signal. Raises NotAllowed."""
    report = Report()
    looked_s, costs = float("-inf"), None
    while True:
        now_s, idle = time.monotonic(), idle_s()
        if now_s - looked_s >= NETWORK_S:
            looked_s, costs = now_s, metered()
        if report.due(now_s, idle, costs):
            try:
                client.ask("PUT", "/v1/activity", {"idle_s": None if idle is None else round(idle, 1), "metered": costs})
                report.said(now_s, idle, costs)
            except NotAllowed:
                raise
            except LocalFault:
                pass  # not there, or busy; by the time that it is not, this is old
        time.sleep(POLL_S)


class Report:
    """What has been said of the latest input and of the network, and when. Its clock is the caller's."""

    def __init__(self) -> None:
        self._input_s = self._at_s = float("-inf")
        self._metered: bool | None = None

    def due(self, now_s: float, idle_s: float | None, metered: bool | None) -> bool:
        """Whether there is anything to tell that was not told."""
        if metered != self._metered or (metered is not None and now_s - self._at_s >= AGAIN_S):
            return True
        return idle_s is not None and now_s - idle_s > self._input_s + _SAME_S and now_s - self._at_s >= SAY_S

    def said(self, now_s: float, idle_s: float | None, metered: bool | None) -> None:
        self._at_s, self._metered = now_s, metered
        if idle_s is not None:
            self._input_s = now_s - idle_s


if __name__ == "__main__":
    sys.exit(main())
