"""Fixtures that several folders of tests use."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.scripted import Scripted, Served

# How fast it is, is no property: the machine has other work.
settings.register_profile("tapestry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tapestry")

# Of models as small as the tests' two threads take three times as long as one, and more where the cores have other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background by a script, pytest ignores SIGINT, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A daemon that answers, training, with two files to export."""
    exports = tmp_path / "exports"
    exports.mkdir()
    (exports / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    (exports / "config.json").write_text("{}")
    (exports / "secret").symlink_to("/etc/passwd")
    daemon = Served(Scripted(exports), tmp_path / "run" / "t.sock", asyncio.new_event_loop())
    yield daemon
    daemon.close()
