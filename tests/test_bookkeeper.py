"""The books of one daemon: counted, kept, shown; with real sockets and a real kernel."""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocols.egress import Moved
from tapestryd import bookkeeper
from tapestryd.bookkeeper import Bookkeeper
from tapestryd.host import policy
from tapestryd.host.clock import now_ms
from tapestryd.host.kernel import Endpoint
from tapestryd.host.tallies import Page
from tests.living import Peer
from tests.swarm.rooms import go

SIZE = 200_000
_START_S = 80


class Listener:
    count: Callable[[int, int], None]


def test_payload_is_held_against_the_kernels_counts(tmp_path: Path) -> None:
    """This process plays p2pd: what it moves over TCP beyond what was counted is libp2p's."""
    books = Bookkeeper(tmp_path / "egress", now_ms)
    books.count("log", "before", 5, 0)
    asyncio.run(books.joining())
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as here:
        there, _ = listening.accept()
        names = {here.getpeername(): "ada", here.getsockname(): "ada"}

        async def named() -> dict[Endpoint, str]:
            return names

        books.joined(os.getpid(), named)
        with there:
            books.count("delta", "ada", SIZE, 0)
            listener = Listener()
            books.serves({"metrics": listener})
            listener.count(77, 3)
            here.sendall(bytes(SIZE + 100))
            assert len(there.recv(SIZE + 100, socket.MSG_WAITALL)) == SIZE + 100
            shown = asyncio.run(books.show(0))
    assert shown.by_peer == {"before": {"log": Moved(5, 0)}, "ada": {"delta": Moved(SIZE, 0)}}
    assert (shown.sum, shown.api, shown.gaps) == (Moved(SIZE + 5, 0), {"metrics": Moved(77, 3)}, ())
    found = shown.reconciliation
    assert found is not None
    assert found.by_peer == {"ada": {"payload": Moved(SIZE, 0), "tcp": Moved(SIZE + 100, SIZE + 100)}}  # both ends are ours
    assert (found.sent.payload, found.sent.libp2p, found.interfaces) == (SIZE, 100, ("lo",))
    assert found.sent.interfaces >= SIZE + 100 + found.sent.headers

    async def afterwards() -> None:
        ended = [await books.show(0) for _ in range(2)][1].reconciliation
        assert ended is not None
        assert (ended.by_peer["ada"]["tcp"].sent, ended.connections) == (SIZE + 100, 2)
        assert ended.by_peer["ada"]["tcp"].received - SIZE - 100 <= 2  # Linux counts a farewell as a byte received
        await books.left()
        gone = await books.show(0)
        assert (gone.reconciliation, gone.unreconciled) == (None, "no run is joined")
        await books.close()

    asyncio.run(afterwards())


def test_without_netlink_it_counts_and_says_why_it_does_not_reconcile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise PermissionError(1, "Operation not permitted")

    async def work() -> None:
        monkeypatch.setattr(bookkeeper, "Kernel", none)
        books = Bookkeeper(tmp_path / "egress", now_ms)
        await books.joining()
        books.joined(os.getpid(), nobody)
        books.count("delta", "ada", 1, 2)
        shown = await books.show(0)
        assert (shown.sum, shown.reconciliation) == (Moved(1, 2), None)
        assert shown.unreconciled == "the kernel's counts cannot be read: Operation not permitted"

    go(work)


def test_a_process_that_cannot_be_looked_into_is_not_reconciled(tmp_path: Path) -> None:
    async def work() -> None:
        books = Bookkeeper(tmp_path / "egress", now_ms)
        await books.joining()
        assert (await books.show(0)).unreconciled == "no run is joined"  # not yet
        books.joined(1 << 30, nobody)
        with socket.create_server(("127.0.0.1", 0)):
            shown = await books.show(0)
        assert (shown.reconciliation, shown.unreconciled) == (None, "the kernel's counts cannot be read: No such file or directory")
        await books.joining()
        books.joined(os.getpid(), nobody)
        assert (await books.show(0)).reconciliation is not None
        await books.close()

    go(work)


async def nobody() -> dict[Endpoint, str]:
    return {}


def test_a_full_disk_is_said_and_costs_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        books = Bookkeeper(tmp_path / "egress", now_ms)
        books.count("delta", "ada", 1, 2)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("tapestryd.host.files.os.fsync", full)
            await books._keep()
        assert "would not survive a restart" in caplog.text
        assert (await books.show(0)).sum == Moved(1, 2)
        await books.close()
        (page,) = (tmp_path / "egress").iterdir()
        assert json.loads(page.read_bytes())["moved"] == {"delta": {"ada": {"sent": 1, "received": 2}}}

    go(work)


def test_the_months_bytes_are_counted_over_restarts_and_begin_anew(tmp_path: Path) -> None:
    async def work() -> None:
        at = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)

        def books() -> Bookkeeper:
            return Bookkeeper(tmp_path / "egress", lambda: int(at.timestamp() * 1000))

        one = books()
        one.count("delta", "ada", 100, 20)
        one.serves({"socket": (listener := Listener())})
        listener.count(7, 7)
        assert one.month is None
        await one._keep()
        one.count("mean", "ada", 0, 3)
        assert one.month == policy.Moved("2026-11", 123)
        await one.close()
        two = books()
        await two._keep()
        assert two.month == policy.Moved("2026-11", 123)
        two.count("delta", "ben", 1, 0)
        assert two.month == policy.Moved("2026-11", 124)
        at += timedelta(hours=1)
        await two._keep()
        two.count("delta", "ben", 5, 0)
        assert two.month == policy.Moved("2026-12", 5)
        at -= timedelta(hours=1)  # a clock that is set back
        await two._keep()
        assert two.month == policy.Moved("2026-11", 124)

    go(work)


def test_a_month_whose_bytes_are_used_up_holds_training_also_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("enough\n")
    peer = Peer(tmp_path / "aspen", [tmp_path / "text"], environment={"TAPESTRY_NETWORK__TRANSFER_CAP": "1 KiB"})
    month = f"{datetime.now(UTC):%Y-%m}"
    egress = peer.folder / "state" / "egress"
    egress.mkdir(mode=0o700, parents=True)
    page = Page(now_ms() - 2000, now_ms() - 1000, now_ms() - 1000, (), {"delta": {"ada": Moved(1000, 24)}})
    (egress / f"{month}-01.json").write_bytes(page.to_bytes())
    try:
        peer.start()
        held = peer.wait("the cap", lambda s: s["policy"]["holds"], _START_S)["policy"]["holds"]
        assert [hold["reason"] for hold in held] == ["transfer_cap"]
    finally:
        peer.end()


def test_a_daemon_that_was_killed_leaves_a_gap_and_one_that_ended_does_not(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("enough\n")
    peer = Peer(tmp_path / "aspen", [tmp_path / "text"])
    try:
        began = now_ms()
        peer.start()
        peer.wait("its first page", lambda _: list((peer.folder / "state" / "egress").glob("*.json")), _START_S)
        peer.kill()
        killed = now_ms()
        peer.start()
        peer.wait("an answer", lambda s: s["state"] == "idle", _START_S)
        (gap,) = peer.client.ask("GET", "/v1/egress")["gaps"]
        assert began <= gap["from_ms"] <= killed <= gap["until_ms"] <= now_ms()
        assert peer.term() == 0
        peer.start()
        peer.wait("an answer", lambda s: s["state"] == "idle", _START_S)
        shown = peer.client.ask("GET", "/v1/egress")
        assert shown["gaps"] == [gap]
        assert shown["api"]["socket"]["sent"] > 0
        assert (shown["reconciliation"], shown["unreconciled"]) == (None, "no run is joined")
        assert peer.client.ask("GET", f"/v1/egress?since={shown['until_ms'] + 7_200_000}")["since_ms"] > shown["since_ms"]
    finally:
        peer.end()
