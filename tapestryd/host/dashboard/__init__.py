"""The dashboard: the page, what it may ask, and the one-time link that lets it change things.

The page is the files of this folder, sent as they are: no build step, nothing from elsewhere. It gets the same documents as
`tapestry`. Whoever can open a TCP connection to this machine's loopback may read them.
"""

import time
from collections.abc import Sequence
from http import HTTPStatus
from importlib import resources

from aiohttp import web

from tapestryd.config import Dashboard as Choices
from tapestryd.errors import LocalFault
from tapestryd.host.fields import Doc, Line
from tapestryd.host.openapi import documented
from tapestryd.host.route import Handler, Refusal, Route
from tapestryd.host.tokens import CODE_S, Tokens
from tapestryd.host.web import Web
from tapestryd.settings import endpoint

_MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_CODE_CHARS = 100


class Dashboard:
    """`routes`: what the page may ask; those that change things, only with a token. `link` is a route for the control socket."""

    def __init__(self, choices: Choices, routes: Sequence[Route]) -> None:
        self._writes = choices.writes == "token"
        self._tokens = Tokens()
        self.link = Route(
            "POST", "/v1/dashboard", "A link to the dashboard that may change things, good once.", self._link, {"url": str, "said": str}
        )
        token = Route("POST", "/v1/token", "A token for the code of a link.", self._token, {"token": str}, body={"code": Line(_CODE_CHARS)})
        asked = (*routes, token) if self._writes else tuple(route for route in routes if route.method == "GET")
        served = [
            web.route(route.method, route.path, route.serve if route.method == "GET" or route is token else self._with_token(route.serve))
            for route in documented(asked)
        ]
        address = endpoint(choices.listen) if choices.enabled else None
        self.web = Web("dashboard.listen", address, choices.allowed_hosts, [*_page(), *served])

    async def _link(self) -> Doc:
        if not self.web.url:
            raise LocalFault(self.web.trouble or "dashboard.enabled is false; set it to true in tapestryd.toml, and restart")
        if not self._writes:
            return {"url": self.web.url, "said": "The dashboard may be looked at; dashboard.writes does not let it change anything."}
        code = self._tokens.code(time.monotonic())
        return {"url": f"{self.web.url}#{code}", "said": f"This link works once, within {CODE_S / 60:.0f} minutes."}

    async def _token(self, code: str) -> Doc:
        token = self._tokens.redeem(code, time.monotonic())
        if token is None:
            raise Refusal(HTTPStatus.FORBIDDEN, "this link was used, or is too old; `tapestry dashboard` makes another one")
        return {"token": token}

    def _with_token(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            kind, _, token = request.headers.get("Authorization", "").partition(" ")
            if kind.lower() != "bearer" or not self._tokens.holds(token, time.monotonic()):
                raise Refusal(HTTPStatus.FORBIDDEN, "to change things, open the page by a link that `tapestry dashboard` makes")
            return await handler(request)

        return guarded


def _page() -> list[web.RouteDef]:
    """Read once: they are as large as a picture, and belong to this very daemon."""

    def route(path: str, media: str, content: bytes) -> web.RouteDef:
        async def send(request: web.Request) -> web.Response:
            return web.Response(body=content, content_type=media, charset=None if media.startswith("image") else "utf-8")

        return web.get(path, send)

    files = {file.name: file.read_bytes() for file in resources.files(__package__).iterdir() if file.name.rpartition(".")[2] in _MEDIA}
    return [route("/" if name == "index.html" else f"/{name}", _MEDIA[name.rpartition(".")[2]], files[name]) for name in files]
