"""The page's listener on real sockets: what it serves, whom it turns away, and who may change things."""

import asyncio
import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from protocols.control import STATES
from protocols.trainer import Check
from tapestryd.config import Dashboard as Choices
from tapestryd.host import dashboard, probes
from tapestryd.host.trends import SERIES
from tapestryd.host.web import CONNECTIONS
from tapestryd.swarm.meter import KINDS
from tapestryd.words import REASONS
from tests.host.test_api import Headers, ask
from tests.scripted import STATUS, Scripted, Served


class Page:
    """The dashboard of a Served, as a browser sees it."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.web = served.dashboard.web
        self.url = self.web.url

    def ask(self, method: str, target: str, body: object = None, **headers: str) -> tuple[int, Any, Headers]:
        host = self.url.removeprefix("http://").rstrip("/")
        connection = http.client.HTTPConnection(host, timeout=10)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), {"Host": host} | headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kind = response.headers.get_content_type()
        return response.status, json.loads(content) if kind.endswith("json") else content, dict(response.headers)

    def link(self) -> str:
        status, answer, _ = ask(self.served.socket, "POST", "/v1/dashboard")
        assert status == 200
        return str(answer["url"])

    def token(self) -> Headers:
        status, answer, _ = self.ask("POST", "/v1/token", {"code": self.link().partition("#")[2]})
        assert status == 200
        return {"Authorization": f"Bearer {answer['token']}"}


@pytest.fixture
def page(served: Served) -> Page:
    return Page(served)


@contextmanager
def with_choices(folder: Path, **choices: Any) -> Iterator[Page]:
    served = Served(Scripted(folder), folder / "t.sock", asyncio.new_event_loop(), Choices(**{"listen": "127.0.0.1:0"} | choices))
    try:
        yield Page(served)
    finally:
        served.close()


def test_the_page_and_its_files(page: Page) -> None:
    status, content, headers = page.ask("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<script" in content
    for name, media in (("style.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        assert f'"{name}"'.encode() in content
        status, _, headers = page.ask("GET", f"/{name}")
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, media)
    for absent in ("/__init__.py", "/index.html", "/../web.py", "/%2e%2e/web.py", "/favicon.ico"):
        assert page.ask("GET", absent)[0] == 404


def test_whoever_opens_connections_and_asks_nothing_takes_no_more_than_these(page: Page) -> None:
    host, port = page.url.removeprefix("http://").rstrip("/").split(":")
    with ExitStack() as opened:
        idle = [opened.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(CONNECTIONS + 3)]
        assert [more.recv(1) for more in idle[CONNECTIONS:]] == [b""] * 3
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            page.ask("GET", "/livez")
        idle[0].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while idle[0].recv(4096):
            pass
        assert page.ask("GET", "/livez")[0] == 200


FILES = {path.name: path.read_text() for path in Path(dashboard.__file__).parent.iterdir() if path.is_file() and path.suffix != ".py"}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}


def test_the_files_need_nothing_from_elsewhere() -> None:
    for name, text in FILES.items():
        addresses = set(re.findall(r"(?:https?:|wss?:)?//[\w.]+", re.sub(r"(?m)^\s*//.*$|; // .*$", "", text)))
        assert addresses <= {"http://www.w3.org"}, name  # the name of SVG, which nobody asks for
    markup = re.compile(r"innerHTML\s*=[^=]|insertAdjacentHTML|outerHTML|document\.write|\beval\(")
    for name, text in SCRIPTS.items():
        assert not markup.search(text), f"{name} makes markup of text"
        assert {*re.findall(r'from "\./([\w.]+)"', text)} <= set(SCRIPTS)


def test_scripts_and_page_name_the_same_places() -> None:
    named = {place for text in SCRIPTS.values() for place in re.findall(r'\bat\("([\w-]+)"\)', text)}
    assert named == set(re.findall(r'data-at="([\w-]+)"', FILES["index.html"]))
    charts = set(re.findall(r"charts\.(\w+)\.draw", FILES["lately.js"]))
    assert charts == set(re.findall(r'data-chart="(\w+)"', FILES["index.html"]))


def test_scripts_know_the_words_of_the_daemon(served: Served) -> None:
    words = FILES["words.js"]
    drawn = {name for names in re.findall(r"columns\(history, \[(.*?)\]", FILES["lately.js"]) for name in re.findall(r'"(\w+)"', names)}
    assert drawn <= set(SERIES)
    for state in STATES:
        assert f"  {state}: " in words
    for reason in REASONS:
        assert f"  {reason}: " in words
    for check in Check:
        assert f'"data.{check.name.lower()}": ' in words
    for check in probes.network_side(Path("/nonexistent"), ()):
        assert f'"network.{check}": ' in words
    for kind in {kind for both in KINDS.values() for kind in both}:
        assert f'\n  {kind}: "' in words
    asked = set(re.findall(r"v1/(\w+)", FILES["page.js"])) - {"openapi", "token"}
    assert {f"/v1/{name}" for name in asked} <= {route.path for route in served.routes}


def test_it_reads_what_the_operator_reads(page: Page) -> None:
    assert page.ask("GET", "/v1/status")[1] == json.loads(json.dumps(STATUS.to_json()))
    paths = page.ask("GET", "/v1/openapi.json")[1]["paths"]
    assert {path for path, methods in paths.items() if set(methods) - {"get"}} == {"/v1/pause", "/v1/finish", "/v1/resume", "/v1/token"}
    for method, target in (("POST", "/v1/shutdown"), ("POST", "/v1/export"), ("GET", "/v1/export/config.json"), ("POST", "/v1/dashboard")):
        assert page.ask(method, target, {}, **page.token())[0] == 404


def test_every_answer_tells_browsers_to_be_strict(page: Page) -> None:
    for target in ("/", "/page.js", "/v1/status", "/v1/nothing", "/v1/rounds/7"):
        _, _, headers = page.ask("GET", target)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "", "localhost.", "localhost@evil.example", "[::1", "0x7f.1"]
)
def test_a_name_that_was_pointed_at_us_gets_nothing(page: Page, host: str) -> None:
    for target in ("/", "/v1/status", "/page.js"):
        assert page.ask("GET", target, Host=host)[0] in (400, 403)
    assert page.ask("POST", "/v1/pause", {}, Host=host, **page.token())[0] in (400, 403)
    assert page.served.operator.asked == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "localhost", "127.0.0.1", "localhost:9000", "[::1]:9000", "LOCALHOST"]
)
def test_its_own_names_and_those_of_a_tunnel(page: Page, host: str) -> None:
    host = host.format(port=page.url.rstrip("/").rpartition(":")[2])
    assert page.ask("GET", "/v1/status", Host=host)[0] == 200
    ours = {"Origin": f"http://{host}", "Referer": f"http://{host}/", "Sec-Fetch-Site": "same-origin"}
    assert page.ask("POST", "/v1/pause", {}, Host=host, **ours, **page.token())[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9"},
        {"Origin": "https://{host}"},
        {"Referer": "http://evil.example/"},
        {"Referer": "http://{host}.evil.example/"},
        {"Referer": "http://{host}@evil.example/"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_pages_are_turned_away(page: Page, headers: Headers) -> None:
    host = page.url.removeprefix("http://").rstrip("/")
    headers = {name: value.format(host=host) for name, value in headers.items()}
    assert page.ask("GET", "/v1/status", **headers)[0] == 403
    assert page.ask("POST", "/v1/pause", {}, **headers, **page.token())[0] == 403
    assert page.ask("GET", "/", **headers)[0] == 200  # reached by a link; it holds nothing
    assert page.served.operator.asked == []


def test_changes_need_a_token_and_a_token_a_link(page: Page) -> None:
    for value in ("", "Bearer ", "Bearer x", "Basic eA=="):
        status, answer, _ = page.ask("POST", "/v1/pause", {"for_s": 60}, Authorization=value, Cookie="token=x")
        assert (status, answer["detail"]) == (403, "to change things, open the page by a link that `tapestry dashboard` makes")
    assert page.served.operator.asked == []
    code = page.link().partition("#")[2]
    status, answer, _ = page.ask("POST", "/v1/token", {"code": code})
    assert status == 200
    assert page.ask("POST", "/v1/pause", {"for_s": 60}, Authorization=f"Bearer {answer['token']}")[1]["said"] == "Paused."
    assert page.ask("POST", "/v1/resume", {}, Authorization=f"bearer {answer['token']}")[0] == 200
    assert page.served.operator.asked == [("pause", 60), "resume"]
    status, answer, _ = page.ask("POST", "/v1/token", {"code": code})
    assert (status, answer["detail"]) == (403, "this link was used, or is too old; `tapestry dashboard` makes another one")
    assert page.ask("POST", "/v1/token", {})[0] == 403
    assert page.ask("POST", "/v1/token", {"code": "x" * 101})[0] == 400


def test_writes_can_be_forbidden(tmp_path: Path) -> None:
    with with_choices(tmp_path, writes="never") as page:
        assert page.link() == page.url
        for target in ("/v1/pause", "/v1/resume", "/v1/token"):
            assert page.ask("POST", target, {})[0] == 404
        assert page.ask("GET", "/v1/status")[0] == 200


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with with_choices(tmp_path, listen=f"127.0.0.1:{port}") as page:
            sentence = (
                f"nothing can listen at dashboard.listen = 127.0.0.1:{port} (Address already in use); "
                "name another port there, or 0 for any that is free, and restart"
            )
            assert (page.url, page.web.trouble) == ("", sentence)
            assert ask(page.served.socket, "POST", "/v1/dashboard")[1]["detail"] == sentence


def test_it_can_be_off(tmp_path: Path) -> None:
    with with_choices(tmp_path, enabled=False) as page:
        assert (page.url, page.web.trouble) == ("", "")
        assert ask(page.served.socket, "POST", "/v1/dashboard")[1]["detail"].startswith("dashboard.enabled is false; set it")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6(tmp_path: Path) -> None:
    with with_choices(tmp_path, listen="[::1]:0") as page:
        if page.web.trouble:
            pytest.skip(page.web.trouble)
        assert page.url.startswith("http://[::1]:")
        assert page.ask("GET", "/v1/status")[0] == 200
