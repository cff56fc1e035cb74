"""The data side's filter of system calls, loaded for good by a process of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tapestryd.host import seccomp

pytestmark = pytest.mark.skipif(bool(seccomp.fault()), reason="no filter for this machine")


def filtered(program: str) -> Any:
    """What a program prints, as JSON, under the filter."""
    start = "import errno, json, os, socket\nfrom tapestryd.host import probes, seccomp\nseccomp.load(())\n"
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_packets_between_processes_are_all_that_a_socket_can_be_for() -> None:
    made = filtered("""
found = []
for family in range(46):
    for kind in range(1, 11):
        try:
            socket.socket(family, kind).close()
            found.append([family, kind])
        except OSError:
            pass
print(json.dumps(found))
""")
    assert made == [[1, 5]]


def test_it_can_be_listened_at_as_cuda_does_and_nobody_can_be_reached_by_it() -> None:
    """Nor does a wall count as open by it, which it would by a socket that is connected."""
    found = filtered("""
driver, other = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) for _ in range(2))
driver.bind(f"\\0cuda-uvmfd-4026531836-{os.getpid()}")
driver.listen()
errors = [other.connect_ex(driver.getsockname())]
try:
    other.sendmsg([b"row"], [], 0, driver.getsockname())
except OSError as refused:
    errors.append(refused.errno)
other.close()
before = probes._sockets()
pair = socket.socketpair()
print(json.dumps([*map(errno.errorcode.get, errors), len(before - {0, 1, 2}), len(probes._sockets() - before)]))
""")
    assert found == ["EPERM", "ENOTCONN", 0, 2]
