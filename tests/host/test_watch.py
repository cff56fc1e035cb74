"""What is noticed, told as server-sent events over a real socket: to all, in order, once, and to nobody who is too slow."""

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapestryd.host import events
from tests.host.test_api import Connection, ask
from tests.scripted import STATUS, STORY, Served


class Listener:
    """Server-sent events as a browser reads them: (event, data), and the id of the last one."""

    def __init__(self, path: Path, target: str = "/v1/events", since: str = "") -> None:
        self.connection = Connection(path)
        self.connection.request("GET", target, headers={"Last-Event-ID": since} if since else {})
        self.response = self.connection.getresponse()
        assert (self.response.status, self.response.headers["Content-Type"]) == (200, "text/event-stream")
        self.last = ""
        assert self._block() == {"retry": "2000"}

    def _block(self) -> dict[str, str]:
        found = {}
        while line := self.response.readline().decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            found[name] = value
        return found

    def next(self) -> tuple[str, Any]:
        block = self._block()
        self.last = block.get("id", self.last)
        return block["event"], json.loads(block["data"])

    def ended(self) -> bool:
        return self.response.read() == b""

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def listener(served: Served) -> Iterator[Listener]:
    with closing(Listener(served.socket)) as made:
        yield made


def change(served: Served, **what: Any) -> None:
    async def look() -> None:
        served.operator.now = replace(served.operator.now, **what)
        served.operator.watch.look()

    served.run(look())


def tell(served: Served, *rounds: int) -> None:
    async def told() -> None:
        for number in rounds:
            served.operator.watch.told(replace(STORY, round=number))

    served.run(told())


def test_changes_are_told_once_and_in_order(served: Served, listener: Listener) -> None:
    change(served)
    change(served)  # nothing is new
    change(served, state="averaging", run=replace(STATUS.run, phase="gathering"))  # type: ignore[type-var]
    tell(served, 41)
    change(served, health=("the disk is full",))
    change(served, health=())
    told = [listener.next() for _ in range(5)]
    assert [kind for kind, _ in told] == ["state", "state", "story", "health", "health"]
    assert [data["state"] for kind, data in told if kind == "state"] == ["training", "averaging"]
    assert (told[1][1]["phase"], told[1][1]["round"], told[1][1]["reasons"]) == ("gathering", 41, [])
    assert (told[2][1]["round"], told[2][1]["members"]) == (41, list(STORY.members))
    assert [data["health"] for kind, data in told if kind == "health"] == [["the disk is full"], []]
    assert all(data["schema"] == 1 and data["at_ms"] > 1e12 for _, data in told)


def test_who_comes_back_misses_nothing(served: Served, listener: Listener) -> None:
    tell(served, 1, 2)
    listener.next()
    listener.close()
    tell(served, 3)
    for again in (Listener(served.socket, since=listener.last), Listener(served.socket, f"/v1/events?since={listener.last}")):
        with closing(again):
            assert [again.next()[1]["round"] for _ in range(2)] == [2, 3]


@pytest.mark.parametrize("since", ["1.7", "x", "0", "{boot}.99", "{boot}.-1", "{boot}." + "9" * 30])
def test_who_cannot_be_told_all_is_told_so(served: Served, listener: Listener, since: str) -> None:
    tell(served, 1)
    listener.next()
    boot = listener.last.partition(".")[0]
    with closing(Listener(served.socket, since=since.replace("{boot}", boot))) as again:
        assert again.next() == ("lost", {"schema": 1})
        tell(served, 2)
        assert again.next()[1]["round"] == 2


def test_the_memory_is_bounded(served: Served, listener: Listener) -> None:
    tell(served, 0)
    listener.next()
    tell(served, *range(events.KEPT))
    with closing(Listener(served.socket, since=listener.last)) as again:
        assert [again.next()[1]["round"] for _ in range(events.KEPT)] == list(range(events.KEPT))
    tell(served, 1)
    with closing(Listener(served.socket, since=listener.last)) as again:
        assert again.next()[0] == "lost"


def test_the_latest_status_for_those_who_ask(served: Served, listener: Listener) -> None:
    change(served)
    with closing(Listener(served.socket, "/v1/events?status")) as live:
        kind, data = live.next()
        assert (kind, data) == ("status", {key: value for key, value in json.loads(json.dumps(STATUS.to_json())).items() if key != "peers"})
        change(served, uptime_s=5.0)
        assert live.next()[1]["uptime_s"] == 5.0
    assert listener.next()[0] == "state"


def test_health_says_since_when(served: Served) -> None:
    assert ask(served.socket, "GET", "/v1/health")[1] == {"schema": 1, "healthy": True, "health": []}
    change(served, health=("a",))
    (first,) = ask(served.socket, "GET", "/v1/health")[1]["health"]
    change(served, health=("b", "a"))
    found = ask(served.socket, "GET", "/v1/health")[1]
    assert [told["says"] for told in found["health"]] == ["b", "a"]
    assert found["healthy"] is False
    assert found["health"][1] == first


def test_who_is_slow_is_dropped_and_the_others_are_not(served: Served, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WRITE_S", 0.2)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(served.socket))
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(1000, socket.MSG_PEEK)
        waiting = served.operator.watch.events._listeners
        assert len(waiting) == 2
        rounds = 0
        while len(waiting) == 2:
            tell(served, rounds)
            assert listener.next()[1]["round"] == rounds
            rounds += 1
            assert rounds < 100_000
        assert rounds > 10
        with suppress(ConnectionError):
            while slow.recv(1 << 20):
                pass
    tell(served, 7)
    assert listener.next()[1]["round"] == 7


def test_who_listens_at_the_page_takes_no_room_at_the_socket(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LISTENERS", 1)
    connection = http.client.HTTPConnection(served.dashboard.web.url.removeprefix("http://").rstrip("/"), timeout=10)
    with closing(connection):
        connection.request("GET", "/v1/events")
        assert connection.getresponse().status == 200
        with closing(Listener(served.socket)) as here:
            tell(served, 7)
            assert here.next()[1]["round"] == 7


def test_no_more_listeners_than_there_is_room_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LISTENERS", 1)
    with closing(Listener(served.socket)):
        status, answer, _ = ask(served.socket, "GET", "/v1/events")
        assert (status, answer["detail"]) == (503, "1 others listen already; close one of them")


def test_silence_is_broken_now_and_then(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "IDLE_S", 0.05)
    with closing(Listener(served.socket)) as one:
        assert one._block() == {":": ""}


def test_a_daemon_that_ends_ends_them(served: Served, listener: Listener) -> None:
    async def close() -> None:
        served.operator.watch.events.close()

    served.run(close())
    assert listener.ended()
    served.run(asyncio.wait_for(served.api.stop(), 20))
