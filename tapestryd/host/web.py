"""One TCP address for browsers and scrapers: whom it turns away, and what it tells browsers.

A page from elsewhere must neither read nor change anything here, also when its name was pointed at us (DNS rebinding).
Knows nothing of what is asked. A port that is taken stops nothing: `trouble` says so.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Collection, Iterable
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from protocols import limits
from tapestryd.host.route import Count, Handler, Refusal, answer_faults, counting

logger = logging.getLogger(__name__)

CONNECTIONS = 128
"""At once; one more is closed. Whoever can reach the port may open them, ask nothing and stay: each is a descriptor of the daemon's."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Web:
    """`key`: the setting that `address` comes from; None: it never listens. `hosts`: names by which it may be asked, beside any IP
    address; None: by any. `count` may be set before it starts."""

    def __init__(
        self, key: str, address: tuple[str, int] | None, hosts: Collection[str] | None, routes: Iterable[web.RouteDef]
    ) -> None:  # fmt: skip
        self.url = ""
        self.trouble = ""
        self._key = key
        self._address = address
        self.count: Count = lambda *_: None
        app = web.Application(middlewares=[answer_faults, _guard(hosts)], client_max_size=limits.CONTROL_BYTES, logger=logger)
        app.add_routes(routes)
        app.on_response_prepare.append(_harden)
        counted = counting(lambda *moved: self.count(*moved))
        self._runner = web.AppRunner(app, access_log=logger, access_log_class=counted, handle_signals=False, shutdown_timeout=2.0)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._address is None:
            return
        host, port = self._address
        shown = f"[{host}]" if ":" in host else host
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(self._address)
        except OSError as error:
            bound.close()
            self.trouble = (
                f"nothing can listen at {self._key} = {shown}:{port} ({error.strerror}); "
                "name another port there, or 0 for any that is free, and restart"
            )
            logger.warning("%s", self.trouble)
            return
        self.url = f"http://{shown}:{bound.getsockname()[1]}/"
        await self._runner.setup()
        served = self._runner.server
        assert served is not None
        self._server = await asyncio.get_running_loop().create_server(lambda: _Door(served), sock=bound)

    async def stop(self) -> None:
        """May be called whether or not it started."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


class _Door(asyncio.Protocol):
    """Lets a connection in or closes it, once it is there: many are accepted at a time, and only then counted one by one."""

    def __init__(self, served: web.Server) -> None:
        self._served = served

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._served.connections) >= CONNECTIONS:
            transport.close()
            return
        handler = self._served()
        transport.set_protocol(handler)
        handler.connection_made(transport)


def _guard(hosts: Collection[str] | None) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if hosts is not None and not _is_ours(host, hosts):
            raise Refusal(HTTPStatus.FORBIDDEN, f"Host = {host[:80]!r}: must be an IP address or one of dashboard.allowed_hosts")
        if not _is_same_origin(request, f"http://{host}"):
            raise Refusal(HTTPStatus.FORBIDDEN, "another page in this browser asks; only the dashboard's own may")
        return await handler(request)

    return guard


def _is_ours(host: str, hosts: Collection[str]) -> bool:
    """Whoever had a name pointed at us sends that name; an IP address is what was really dialled."""
    try:
        name = urlsplit(f"http://{host}").hostname or ""
        return name in hosts or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_same_origin(request: web.Request, origin: str) -> bool:
    """What browsers say of who asks, where they say it. The page itself may be reached by a link from anywhere: it holds nothing."""
    if request.path == "/":
        return True
    said = request.headers
    return (
        said.get("Origin", origin) == origin
        and f"{said.get('Referer', origin)}/".startswith(f"{origin}/")
        and said.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
    )


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")
