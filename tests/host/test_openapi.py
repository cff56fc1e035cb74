"""The OpenAPI document is of what is served: the same routes, and answers that are as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tapestryd.host.openapi import documented, schema_of
from tests.host.test_api import ask
from tests.scripted import IDLE, PEER, Served


@pytest.fixture
def document(served: Served) -> Any:
    status, found, _ = ask(served.socket, "GET", "/v1/openapi.json")
    assert status == 200
    return found


def schema_for(document: Any, method: str, path: str, status: str) -> Draft202012Validator:
    (content,) = document["paths"][path][method.lower()]["responses"][status]["content"].values()
    return Draft202012Validator({**content["schema"], "components": document["components"]})


def test_it_names_every_route_and_no_other(document: Any, served: Served) -> None:
    routes = documented(served.routes)
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert named == {(route.method, route.path) for route in routes}
    operations = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(operations)) == len(operations)


def test_its_references_lead_somewhere(document: Any) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    found = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert found == set(document["components"]["schemas"])


@pytest.mark.parametrize("idle", [False, True])
def test_answers_are_as_it_says(document: Any, served: Served, idle: bool) -> None:
    if idle:
        served.operator.now = IDLE
        served.operator.stories = []
    served.operator.watch.look()
    asked = 0
    for path, methods in document["paths"].items():
        content = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        if not content.get("application/json"):
            continue  # a stream, a file, the document itself
        status, answer, _ = ask(served.socket, "GET", path.replace("{number}", "40"))
        assert str(status) in methods["get"]["responses"]
        schema_for(document, "GET", path, str(status)).validate(answer)
        asked += 1
    assert asked >= 10


def test_problems_are_as_it_says(document: Any, served: Served) -> None:
    for method, target, path in (
        ("GET", "/v1/rounds?limit=no", "/v1/rounds"),
        ("GET", "/v1/rounds/7", "/v1/rounds/{number}"),
        ("PUT", f"/v1/bans/{PEER}", "/v1/bans/{peer_id}"),
        ("POST", "/v1/pause", "/v1/pause"),
    ):
        status, answer, _ = ask(served.socket, method, target, b"{")
        schema_for(document, method, path, str(status)).validate(answer)


def test_a_kind_that_has_no_schema_is_a_bug() -> None:
    with pytest.raises(TypeError, match="has no JSON Schema here"):
        schema_of(set[int], {})
