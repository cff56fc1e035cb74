"""Telling systemd how we are: sd_notify(3) in datagrams, and the watchdog. Outside systemd everything here does nothing.

Knows nothing of the daemon; it is told what to say.
"""

import asyncio
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notifier:
    """`address`: of systemd's socket, empty without systemd. `watchdog_s`: systemd kills us when unheard for this long; 0 is never."""

    address: str
    watchdog_s: float

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> "Notifier":
        """`pid`: ours; a watchdog meant for our parent (WATCHDOG_PID) is not ours to feed."""
        usec = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        return cls(environ.get("NOTIFY_SOCKET", ""), int(usec) / 1e6 if ours and usec.isascii() and usec.isdigit() else 0.0)

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, line: str) -> None:
        """Shown by `systemctl status`."""
        self._send("STATUS=" + " ".join(line.split()))

    def reloading(self) -> None:
        """Until the next `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    async def watchdog(self) -> None:
        """Says that the event loop turns, twice in every watchdog period, until cancelled; returns at once where nobody waits for it."""
        while self.address and self.watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, text: str) -> None:
        """Never waits and never fails: a service must not die of its supervisor's deafness."""
        if not self.address.startswith(("/", "@")):
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out, suppress(OSError):
            out.sendto(text.encode(), address)
