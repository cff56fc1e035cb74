"""The control API on its unix socket: HTTP and JSON, as protocols/control.md specifies.

Whoever can open the socket may read; who may change things, control_socket.may_change says. What is answered, `answers` says.
"""

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from socket import socket as Socket

from aiohttp import web

from protocols import limits
from tapestryd.host import control_socket
from tapestryd.host.openapi import documented
from tapestryd.host.route import Count, Handler, Refusal, Route, answer_faults, counting

logger = logging.getLogger(__name__)

HOSTS = ("localhost", "tapestry")
"""A web page whose name was pointed at us (DNS rebinding) sends its own name instead."""


class Api:
    """Serves `routes` on one socket, from start to stop, in the running event loop. `count` may be set before it starts."""

    def __init__(self, routes: Sequence[Route], socket: Path, listening: Socket | None = None) -> None:
        """`listening`: one that somebody else has made at this path, and will remove."""
        self.count: Count = lambda *_: None
        self._path = socket
        self._listening = listening
        app = web.Application(middlewares=[answer_faults, _guard], client_max_size=limits.CONTROL_BYTES, logger=logger)
        for route in documented(routes):
            app.router.add_route(route.method, route.path, route.serve)
        counted = counting(lambda *moved: self.count(*moved))
        self._runner = web.AppRunner(app, access_log=logger, access_log_class=counted, handle_signals=False, shutdown_timeout=2.0)
        self._bound: tuple[Socket, int] | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises ConfigFault, or Unavailable where another daemon answers."""
        bound = self._listening
        if bound is None:
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
