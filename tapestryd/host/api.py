"""The local control API: HTTP and JSON on a unix socket, as protocols/control.md specifies.

Reads requests, refuses what is malformed or not allowed, asks the Operator (the daemon) and words the answer.
Knows nothing of runs, peers or tensors. Whoever can open the socket may read; who may change things,
control_socket.may_change says.
"""

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from socket import socket as Socket
from typing import Any, Protocol

from aiohttp import web

from protocols import TREATY, limits
from protocols.control import SCHEMA, Ban, Certificate, Status, Story
from protocols.identity import public_key
from protocols.refusal import Refused
from tapestryd.errors import DiskFull, LocalFault
from tapestryd.host import control_socket
from tapestryd.host.clock import now_ms

logger = logging.getLogger(__name__)

READY = ("syncing", "training", "averaging", "paused")
"""States of a member of a run, as /readyz and `tapestry wait --for joined` mean it."""
HOSTS = ("localhost", "tapestry")
"""A web page whose name was pointed at us (DNS rebinding) sends its own name instead."""
PAUSE_S = BAN_S = 366 * 86_400
REASON_CHARS = 200
ROUNDS = 1_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operator(Protocol):
    """What the daemon does for its operator. Sentences say what changed and until when; a LocalFault says why nothing did."""

    def status(self) -> Status: ...

    def rounds(self, limit: int) -> list[Story]:
        """At most `limit` of the latest rounds, newest last."""

    async def round(self, number: int) -> tuple[list[Story], Certificate | None]:
        """All that is remembered of one round, oldest first, and what its log entry certifies, if that is here."""

    def rules_toml(self) -> str | None: ...

    def bans(self) -> Sequence[Ban]: ...

    async def ban(self, peer: str, for_s: float | None, reason: str) -> str:
        """`for_s` None: as long as the configuration says."""

    async def unban(self, peer: str) -> str: ...

    async def pause(self, for_s: float | None) -> str: ...

    async def resume(self) -> str: ...

    async def join(self, target: str) -> str:
        """`target`: an invite, or the absolute path of a run.toml."""

    async def leave(self) -> str: ...

    async def shutdown(self) -> str: ...

    async def export(self) -> Path:
        """A folder of plain files, which stays until the next export."""


class Refusal(Exception):
    """An answer other than 200: RFC 9457 `status` and `detail`."""

    def __init__(self, status: HTTPStatus, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.extra = extra


@dataclass(frozen=True, slots=True)
class Export:
    """One export as it was listed: only these names are served, and only under this id."""

    id: str
    folder: Path
    files: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, folder: Path) -> "Export":
        """Reads every file of `folder`, links and folders excepted."""
        files = []
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    files.append(
                        {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                    )
        return cls(hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16], folder, tuple(files))


class Api:
    """Serves one Operator on one socket, from start to stop, in the running event loop."""

    def __init__(self, operator: Operator, socket: Path) -> None:
        self._operator = operator
        self._path = socket
        self._export: Export | None = None
        self._exporting = asyncio.Lock()
        app = web.Application(middlewares=[_answer_faults, _guard], client_max_size=limits.CONTROL_BYTES, logger=logger)
        app.add_routes(
            [
                web.get("/livez", self._live),
                web.get("/readyz", self._ready),
                web.get("/v1/status", self._status),
                web.get("/v1/peers", self._peers),
                web.get("/v1/rounds", self._rounds),
                web.get("/v1/rounds/{number}", self._round),
                web.get("/v1/version", self._version),
                web.get("/v1/run", self._run),
                web.put("/v1/run", self._join),
                web.delete("/v1/run", self._leave),
                web.get("/v1/bans", self._bans),
                web.put("/v1/bans/{peer_id}", self._ban),
                web.delete("/v1/bans/{peer_id}", self._unban),
                web.post("/v1/pause", self._pause),
                web.post("/v1/resume", self._resume),
                web.post("/v1/shutdown", self._shutdown),
                web.post("/v1/export", self._make_export),
                web.get("/v1/export/{name}", self._send_export),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        self._bound: tuple[Socket, int] | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises ConfigFault, or Unavailable where another daemon answers."""
        bound = control_socket.claim(self._path)
        self._bound = (bound, self._path.lstat().st_ino)
        await self._runner.setup()
        protocol = self._runner.server
        assert protocol is not None
        self._server = await asyncio.get_running_loop().create_unix_server(protocol, sock=bound)

    async def stop(self) -> None:
        """Answers what is being asked, then closes and removes the socket. May be called whether or not it started."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        if self._bound is not None:
            control_socket.release(self._bound[0], self._path, self._bound[1])
            self._bound = None

    async def _live(self, request: web.Request) -> web.Response:
        return _reply(live=True)

    async def _ready(self, request: web.Request) -> web.Response:
        status = self._operator.status()
        checks = {"run": status.run is not None, "state": status.state in READY}
        told = {"checks": checks, "state": status.state, "reasons": status.reasons} if "verbose" in request.query else {}
        if not all(checks.values()):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join([f"the daemon is {status.state}", *status.reasons]), **told)
        return _reply(ready=True, **told)

    async def _status(self, request: web.Request) -> web.Response:
        return _reply(**self._operator.status().to_json())

    async def _peers(self, request: web.Request) -> web.Response:
        return _reply(peers=self._operator.status().to_json()["peers"])

    async def _rounds(self, request: web.Request) -> web.Response:
        text = request.query.get("limit", "60")
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= ROUNDS):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"limit = {text[:40]!r}: must be a whole number from 1 to {ROUNDS}")
        return _reply(rounds=[asdict(story) for story in self._operator.rounds(int(text))])

    async def _round(self, request: web.Request) -> web.Response:
        text = request.match_info["number"]
        if not (text.isascii() and text.isdigit() and len(text) <= 16):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"round {text[:40]!r}: must be a whole number")
        stories, certificate = await self._operator.round(int(text))
        if not stories:
            raise Refusal(HTTPStatus.NOT_FOUND, f"nothing is remembered of round {int(text)}; `tapestry rounds` lists the latest")
        return _reply(round=int(text), stories=[asdict(story) for story in stories], certificate=certificate and asdict(certificate))

    async def _version(self, request: web.Request) -> web.Response:
        return _reply(version=self._operator.status().version, treaty=TREATY)

    async def _run(self, request: web.Request) -> web.Response:
        run, rules = self._operator.status().run, self._operator.rules_toml()
        if run is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no run is joined; join one with: tapestry run join INVITE")
        return _reply(id=run.id, name=run.name, invite=run.invite, rules_toml=rules)

    async def _join(self, request: web.Request) -> web.Response:
        body = await _body(request, "target")
        target = body.get("target")
        if not isinstance(target, str) or not target.startswith(("tapestry:", "/")):
            raise Refusal(
                HTTPStatus.BAD_REQUEST, f"target = {str(target)[:80]!r}: must be an invite, tapestry:…, or the absolute path of a run.toml"
            )
        return _reply(said=await self._operator.join(target))

    async def _leave(self, request: web.Request) -> web.Response:
        await _body(request)
        return _reply(said=await self._operator.leave())

    async def _bans(self, request: web.Request) -> web.Response:
        now = now_ms()
        bans = [
            asdict(ban) | {"left_s": None if ban.until_ms is None else round((ban.until_ms - now) / 1000, 1)}
            for ban in self._operator.bans()
        ]
        return _reply(bans=bans)

    async def _ban(self, request: web.Request) -> web.Response:
        body = await _body(request, "for_s", "reason")
        peer, for_s, reason = _peer(request), _for_s(body, BAN_S), body.get("reason") or ""
        if not isinstance(reason, str) or len(reason) > REASON_CHARS or not reason.isprintable():
            raise Refusal(
                HTTPStatus.BAD_REQUEST, f"reason = {str(reason)[:40]!r}: must be one line of at most {REASON_CHARS} characters, or null"
            )
        return _reply(said=await self._operator.ban(peer, for_s, reason))

    async def _unban(self, request: web.Request) -> web.Response:
        await _body(request)
        return _reply(said=await self._operator.unban(_peer(request)))

    async def _pause(self, request: web.Request) -> web.Response:
        return _reply(said=await self._operator.pause(_for_s(await _body(request, "for_s"), PAUSE_S)))

    async def _resume(self, request: web.Request) -> web.Response:
        await _body(request)
        return _reply(said=await self._operator.resume())

    async def _shutdown(self, request: web.Request) -> web.Response:
        await _body(request)
        return _reply(said=await self._operator.shutdown())

    async def _make_export(self, request: web.Request) -> web.Response:
        await _body(request)
        async with self._exporting:
            self._export = await asyncio.to_thread(Export.of, await self._operator.export())
            return _reply(id=self._export.id, files=self._export.files)

    async def _send_export(self, request: web.Request) -> web.StreamResponse:
        export, name = self._export, request.match_info["name"]
        if export is None or request.query.get("id", export.id) != export.id:
            raise Refusal(HTTPStatus.CONFLICT, "that export was replaced or never made; begin again with POST /v1/export")
        if name not in {file["name"] for file in export.files}:
            raise Refusal(HTTPStatus.NOT_FOUND, f"the export holds no file {name[:80]!r}")
        return web.FileResponse(export.folder / name)


def _peer(request: web.Request) -> str:
    peer = request.match_info["peer_id"]
    try:
        public_key(peer)
    except Refused as refused:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"peer id {peer[:80]!r}: {refused.detail}; it must be whole") from None
    return peer


def _for_s(body: Mapping[str, Any], most_s: int) -> float | None:
    for_s: float | None = body.get("for_s")
    if for_s is not None and (type(for_s) not in (int, float) or not 0 < for_s <= most_s):
        raise Refusal(
            HTTPStatus.BAD_REQUEST, f"for_s = {str(for_s)[:40]!r}: must be a number of seconds, above 0 and at most {most_s}, or null"
        )
    return for_s


def _reply(**members: object) -> web.Response:
    return web.json_response({"schema": SCHEMA} | members, dumps=lambda value: json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: a loss that is neither becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


async def _body(request: web.Request, *fields: str) -> dict[str, Any]:
    """The request's JSON object, of these fields only; no body at all is an empty object."""
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
        if key not in fields:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"field {key[:40]!r} is not known here; there are: {', '.join(fields) or 'none'}")
    return body


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Browsers are turned away whatever they ask; readers, when they ask for a change."""
    if "Origin" in request.headers or "Referer" in request.headers:
        raise Refusal(HTTPStatus.FORBIDDEN, "requests with Origin or Referer come from web pages, which may not ask here")
    if request.headers.get("Host") not in HOSTS:
        raise Refusal(HTTPStatus.FORBIDDEN, f"Host = {request.headers.get('Host', '')[:80]!r}: must be localhost")
    if request.method != "GET":
        connection = request.transport.get_extra_info("socket") if request.transport else None
        if connection is None or not await asyncio.to_thread(control_socket.may_change, *control_socket.peer_of(connection)):
            raise Refusal(HTTPStatus.FORBIDDEN, f"only root, the daemon's own user and the group {control_socket.ADMINS} may change things")
    return await handler(request)


@web.middleware
async def _answer_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
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
        return _problem(
            HTTPStatus(other.status), f"{request.method} {request.path[:80]}: {other.reason}; protocols/control.md lists what can be asked"
        )
    except Exception:
        logger.exception("control API: %s %s failed", request.method, request.path)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in tapestryd; its log has the details")


def _problem(status: HTTPStatus, detail: str, extra: Mapping[str, object] | None = None) -> web.Response:
    body = {"schema": SCHEMA, "title": status.phrase, "status": int(status), "detail": detail} | dict(extra or {})
    return web.json_response(body, status=int(status), content_type="application/problem+json")
