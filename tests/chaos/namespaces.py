"""Machines on a network of their own: network namespaces on one bridge. Needs root; touches nothing outside itself."""

import subprocess
from types import TracebackType


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Lan:
    """A bridge 10.83.<number>.0/24 with one namespace a machine: `tap<number>-<i>` at .i."""

    def __init__(self, machines: int, number: int) -> None:
        self.machines = machines
        self.number = number

    def __enter__(self) -> "Lan":
        self.__exit__(None, None, None)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for i in range(1, self.machines + 1):
            name, outside = self.namespace(i), f"tv{self.number}-{i}"
            _ip("netns", "add", name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for i in range(1, self.machines + 1):
            subprocess.run(["ip", "netns", "del", self.namespace(i)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    @property
    def _bridge(self) -> str:
        return f"tapbr{self.number}"

    def namespace(self, machine: int) -> str:
        return f"tap{self.number}-{machine}"

    def address(self, machine: int) -> str:
        return f"10.83.{self.number}.{machine}"
