"""The control API against requests made from its own OpenAPI document, and against what that document forbids."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tapestryd.host.answers import Answers
from tapestryd.host.inbox import Inbox
from tapestryd.host.openapi import document, documented
from tests.scripted import Scripted, Served

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[fuzz]'")

import requests  # noqa: E402
from requests.adapters import HTTPAdapter  # noqa: E402
from schemathesis import checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402
from urllib3.connection import HTTPConnection  # noqa: E402
from urllib3.connectionpool import HTTPConnectionPool  # noqa: E402

pytestmark = pytest.mark.slow

REQUESTS = 200
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]


def _document() -> object:
    operator = Scripted(Path("/nonexistent"))
    return document(documented(Answers(operator, operator.watch, Inbox(Path("/nonexistent"), lambda: 0)).routes))


def _can_be_wrong(operation: schemathesis.APIOperation) -> bool:
    """Whether there is a request that its schema forbids; any bytes will do for a file."""
    bodies = list(operation.body)
    return all(body.media_type == "application/json" for body in bodies) and (bool(bodies) or any(operation.iter_parameters()))


SCHEMA = schemathesis.openapi.from_dict(_document())
OPERATIONS = [SCHEMA[path][method] for path in SCHEMA for method in SCHEMA[path]]
GOOD, BAD = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [(GOOD, one) for one in OPERATIONS] + [(BAD, one) for one in OPERATIONS if _can_be_wrong(one)]


class OverUnix(HTTPAdapter):
    """requests' way to one unix socket."""

    def __init__(self, path: Path) -> None:
        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                made = socket.socket(socket.AF_UNIX)
                made.settimeout(10)
                made.connect(str(path))
                return made

        self._pool = HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = Connection  # type: ignore[assignment]
        super().__init__()

    def get_connection_with_tls_context(self, *_: object, **__: object) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[requests.Session]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "config.json").write_text("{}")
    served = Served(Scripted(folder), folder.with_suffix(".sock"), asyncio.new_event_loop())
    served.operator.watch.events.close()  # or listening would never end
    with requests.Session() as session:
        session.mount("http://", OverUnix(served.socket))
        yield session
    served.close()


@pytest.mark.parametrize(("mode", "operation"), CASES, ids=[f"{mode.value} {one.label}" for mode, one in CASES])
def test_no_request_makes_it_break_its_word(api: requests.Session, mode: object, operation: schemathesis.APIOperation) -> None:
    @given(operation.as_strategy(mode))
    @settings(max_examples=REQUESTS, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url="http://localhost", session=api, headers={"Host": "localhost"})
        case.validate_response(answer, checks=CHECKS)

    ask()
