"""What tests of the data side share."""

from collections.abc import Iterator

import pytest

from tests.host.home import Daemon


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Every daemon a test started, hung up at its end."""
    started: list[Daemon] = []
    yield started
    for daemon in started:
        daemon.close()
