"""The OpenAPI document of what a listener serves, made of its routes and of the dataclasses that they answer with."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from http import HTTPStatus
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from aiohttp import web

from protocols.control import SCHEMA
from tapestryd import __version__
from tapestryd.host.fields import Doc
from tapestryd.host.route import Route

PATH = "/v1/openapi.json"
_JSON = "application/json"
_SCALARS: dict[Any, Doc] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    float: {"type": ["number", "null"]},  # one that is not finite is null
    type(None): {"type": "null"},
    Any: {},
}
_CHANGES = (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE)


def documented(routes: Sequence[Route]) -> tuple[Route, ...]:
    """`routes`, and one more, which describes them all and itself."""

    @cache
    def made() -> Doc:
        return document(described)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(made())

    described = (*routes, Route("GET", PATH, "This document.", answer, media=_JSON))
    return described


def document(routes: Sequence[Route]) -> Doc:
    parts: dict[str, Doc] = {"Problem": _PROBLEM}
    paths: dict[str, Doc] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, parts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tapestryd control API", "version": __version__, "description": "Specified in protocols/control.md."},
        "paths": paths,
        "components": {"schemas": dict(sorted(parts.items()))},
    }


def _operation(route: Route, parts: dict[str, Doc]) -> Doc:
    operation: Doc = {"summary": route.does, "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_")}
    if route.asks:
        operation["parameters"] = [_parameter(route, name) for name in route.asks]
    if route.body:
        body = {
            "type": "object",
            "properties": {name: asked.schema() for name, asked in route.body.items()},
            "required": [name for name, asked in route.body.items() if "null" not in asked.schema()["type"]],
            "additionalProperties": False,
        }
        operation["requestBody"] = {"required": bool(body["required"]), "content": {_JSON: {"schema": body}}}
    if route.takes:
        operation["requestBody"] = {"required": True, "content": {route.takes: {}}}
    others = {HTTPStatus.FORBIDDEN, *route.others, *(_CHANGES if route.method != "GET" else ())}
    if route.asks or route.method != "GET":
        others.add(HTTPStatus.BAD_REQUEST)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation["responses"] = {
        "200": {"description": "Done.", "content": _answer(route, parts)},
        **{str(int(status)): {"description": status.phrase, "content": problem} for status in sorted(others)},
    }
    return operation


def _parameter(route: Route, name: str) -> Doc:
    in_path, asked = f"{{{name}}}" in route.path, route.asks[name]
    return {"name": name, "in": "path" if in_path else "query", "required": in_path, "schema": asked.schema()}


def _answer(route: Route, parts: dict[str, Doc]) -> Doc:
    if route.media:
        return {route.media: {}}
    if not isinstance(route.answer, Mapping):
        return {_JSON: {"schema": schema_of(route.answer, parts)}}
    members = {"schema": {"const": SCHEMA}} | {name: schema_of(kind, parts) for name, kind in route.answer.items()}
    return {_JSON: {"schema": {"type": "object", "properties": members, "required": list(members)}}}


def schema_of(kind: Any, parts: dict[str, Doc]) -> Doc:
    """The JSON Schema of what asdict and JSON make of a `kind`; dataclasses go to `parts`, by name."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in parts:
            parts[kind.__name__] = {}  # one that holds itself ends here
            parts[kind.__name__] = _object(kind, lambda inner: schema_of(inner, parts))
        return {"$ref": f"#/components/schemas/{kind.__name__}"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return {"anyOf": [schema_of(one, parts) for one in inner]}
    if origin in (list, tuple):
        return {"type": "array", "items": schema_of(inner[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(inner[1], parts)}
    raise TypeError(f"{kind} has no JSON Schema here")


def _object(kind: type, schema: Callable[[Any], Doc]) -> Doc:
    kinds = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    doc = inspect.getdoc(kind) or ""
    said = {} if doc.startswith(f"{kind.__name__}(") else {"description": " ".join(doc.split())}
    return {"type": "object", **said, "properties": {name: schema(kinds[name]) for name in names}, "required": names}


_PROBLEM: Doc = {
    "type": "object",
    "description": "RFC 9457: `detail` is one sentence for a person.",
    "properties": {
        "schema": {"const": SCHEMA},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["schema", "title", "status", "detail"],
}
