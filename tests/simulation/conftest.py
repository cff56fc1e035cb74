"""How many histories, or which one."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--histories", type=int, default=None, help="live through so many histories (tests/simulation)")
    parser.addoption("--seed", type=int, default=None, help="live through this one history again, and print it (tests/simulation)")
