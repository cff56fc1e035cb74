"""One thing that the control API can be asked, declared once: how it is asked, what it answers, and who does it.

Whatever is not a success is answered with a problem document (RFC 9457) and a sentence. Knows nothing of listeners and of who
may ask.
"""

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from protocols import limits
from protocols.control import SCHEMA
from tapestryd.errors import DiskFull, LocalFault
from tapestryd.host.fields import Asked, Doc, Field

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

Count = Callable[[int, int], None]
"""(sent, received): the bytes of an answer, and of the body that came with the question."""

SAID = {"said": str}
"""What most changes answer: a sentence that says what changed and until when."""


class Refusal(Exception):
    """An answer other than 200: RFC 9457 `status` and `detail`, and members of our own."""

    def __init__(self, status: HTTPStatus, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.extra = extra


@dataclass(frozen=True, slots=True)
class Route:
    """`does`: a line for the OpenAPI document. `handler` is called with what `asks` (of path and query) and `body` read, by name,
    and returns the members of the answer; `answer`: the dataclass that has them, or their types by name. `media`, where the answer
    is no document: the handler is given the request, too, and returns the response. `takes`: the media type of a body that is no
    document: the handler reads it from the request. `others`: answers beside 200 and those that every route may give."""

    method: str
    path: str
    does: str
    handler: Callable[..., Awaitable[Any]]
    answer: type | Mapping[str, Any] = field(default_factory=dict)
    asks: Mapping[str, Asked] = field(default_factory=dict)
    body: Mapping[str, Field] = field(default_factory=dict)
    media: str = ""
    takes: str = ""
    others: tuple[HTTPStatus, ...] = ()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        values: Doc = {}
        for name, asked in self.asks.items():
            if name in request.match_info:
                values[name] = _read(name, asked, request.match_info[name])
            elif name in request.query:
                values[name] = _read(name, asked, request.query[name])
            else:
                values[name] = asked.default
        if self.takes:
            return reply(**await self.handler(request, **values))
        if self.method != "GET":
            values |= await self._body(request)
        if self.media:
            answered: web.StreamResponse = await self.handler(request, **values)
            return answered
        return reply(**await self.handler(**values))

    async def _body(self, request: web.Request) -> Doc:
        """The request's JSON object, of our fields only; no body at all is an empty object."""
        try:
            data = await request.read()
            body = json.loads(data) if data else {}
        except ConnectionError:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request broke off") from None
        except (ValueError, RecursionError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {str(error)[:200]}") from None
        if not isinstance(body, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
        for key in body:
            if key not in self.body:
                known = ", ".join(self.body) or "none"
                raise Refusal(HTTPStatus.BAD_REQUEST, f"field {key[:40]!r} is not known here; there are: {known}")
        return {name: _read(name, asked, body.get(name)) for name, asked in self.body.items()}


def _read(name: str, asked: Field, value: object) -> object:
    try:
        return asked.read(value)
    except ValueError as wrong:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} = {repr(value)[:80]}: {wrong}") from None


def reply(**members: object) -> web.Response:
    return web.json_response({"schema": SCHEMA} | members, dumps=lambda value: json.dumps(finite(value), ensure_ascii=False))


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity: a loss that is neither becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@web.middleware
async def answer_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer that is not a success is a problem document with a sentence."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return _problem(refusal.status, refusal.detail, refusal.extra)
    except DiskFull as fault:
        return _problem(HTTPStatus.INSUFFICIENT_STORAGE, str(fault))
    except LocalFault as fault:
        return _problem(HTTPStatus.CONFLICT, str(fault))
    except web.HTTPRequestEntityTooLarge:
        return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {limits.CONTROL_BYTES} bytes")
    except web.HTTPException as other:
        sentence = f"{request.method} {request.path[:80]}: {other.reason}; protocols/control.md lists what can be asked"
        answer = _problem(HTTPStatus(other.status), sentence)
        if "Allow" in other.headers:
            answer.headers["Allow"] = other.headers["Allow"]
        return answer
    except Exception:
        logger.exception("control API: %s %s failed", request.method, request.path)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in tapestryd; its log has the details")


def _problem(status: HTTPStatus, detail: str, extra: Mapping[str, object] | None = None) -> web.Response:
    body = {"schema": SCHEMA, "title": status.phrase, "status": int(status), "detail": detail} | dict(extra or {})
    return web.json_response(body, status=int(status), content_type="application/problem+json")


def counting(count: Count) -> type[AbstractAccessLogger]:
    """Nothing is logged: an access logger is who aiohttp tells how large an answer was, once it is out."""

    class Counting(AbstractAccessLogger):
        def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
            count(max(response.body_length, response.content_length or 0), request.content_length or 0)

    return Counting
