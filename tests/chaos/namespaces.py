"""Machines on a network of their own: network namespaces on one bridge. Needs root; touches nothing outside itself."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import TracebackType

_NAMESPACES = Path("/run/netns")
_NOBODY = "02:00:00:00:00:00"
"""An address that no machine on the bridge has: what is sent to it is lost without a word, as on a broken line."""


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _ip(*words: str) -> None:
    _run("ip", *words)


class Lan:
    """A bridge 10.83.<number>.0/24 with one namespace a machine: `tap<number>-<i>` at .i."""

    def __init__(self, machines: int, number: int) -> None:
        self.machines = machines
        self.number = number
        self._cuts: Counter[tuple[int, int]] = Counter()
        """(sender, receiver) → how many of the cuts there are part them."""

    def __enter__(self) -> "Lan":
        self.__exit__(None, None, None)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for i in range(1, self.machines + 1):
            name = self.namespace(i)
            _ip("netns", "add", name)
            _ip("link", "add", self.plug(i), "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", self.plug(i), "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Also of a test that was killed: whatever still runs in a namespace of ours ends with it."""
        for name in self.leftovers():
            for process in self.processes(name):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    @property
    def _bridge(self) -> str:
        return f"tapbr{self.number}"

    def plug(self, machine: int) -> str:
        """The machine's end on the bridge: an interface of ours, by which all goes that it sends or gets."""
        return f"tv{self.number}-{machine}"

    def namespace(self, machine: int) -> str:
        return f"tap{self.number}-{machine}"

    def address(self, machine: int) -> str:
        return f"10.83.{self.number}.{machine}"

    def leftovers(self) -> list[str]:
        """Our namespaces that are there."""
        return sorted(path.name for path in _NAMESPACES.glob(f"tap{self.number}-*"))

    def processes(self, namespace: str) -> list[int]:
        return [int(word) for word in _run("ip", "netns", "pids", namespace).split()]

    def cut(self, senders: Iterable[int], receivers: Iterable[int]) -> None:
        """Nothing that `senders` send reaches `receivers`; nobody is told. One way: the other way is another cut."""
        for sender, receiver in product(senders, receivers):
            self._cuts[sender, receiver] += 1
            at = (self.address(receiver), "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
            _ip("-n", self.namespace(sender), "neigh", "replace", *at)

    def mend(self, senders: Iterable[int], receivers: Iterable[int]) -> None:
        """Takes one cut back; who are parted by another one, too, stay so."""
        for sender, receiver in product(senders, receivers):
            self._cuts[sender, receiver] -= 1
            if not self._cuts[sender, receiver]:
                _ip("-n", self.namespace(sender), "neigh", "del", self.address(receiver), "dev", "eth0")

    def slow(self, machine: int, rate: str) -> None:
        """The machine's line carries `rate` (as tc writes it) each way."""
        for tc, device in self._ends(machine):
            _run(*tc, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")

    def fast(self, machine: int) -> None:
        for tc, device in self._ends(machine):
            _run(*tc, "qdisc", "del", "dev", device, "root")

    def _ends(self, machine: int) -> list[tuple[list[str], str]]:
        return [(["tc"], self.plug(machine)), (["tc", "-n", self.namespace(machine)], "eth0")]
