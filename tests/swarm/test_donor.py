"""Serving: whose turn it is, how fast it goes, and that everybody gets there."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import limits
from protocols.canonical import digest
from tapestryd.swarm import donor as module
from tapestryd.swarm.donor import Donor, Turns
from tapestryd.swarm.meter import Meter
from tapestryd.swarm.streams import Busy, Gone
from tests.swarm.rooms import go, nodes, until
from tests.swarm.test_lineage import _PIECES, Shelf, big, fetcher, holding, taken, whole


def run(work) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        await asyncio.wait_for(work(), 30)

    asyncio.run(main())


async def served(turns: Turns, peer: str, order: list[str], gate: asyncio.Event | None = None) -> None:
    async with turns.turn(peer):
        order.append(peer)
        await (gate.wait() if gate else asyncio.sleep(0))


def test_who_was_served_the_longest_ago_is_next() -> None:
    """However much one peer asks for."""

    async def work() -> None:
        turns, order, gate = Turns(1), [], asyncio.Event()  # type: ignore[var-annotated]
        greedy = [asyncio.create_task(served(turns, "greedy", order, gate)) for _ in range(4)]
        await asyncio.sleep(0)
        late = [asyncio.create_task(served(turns, peer, order)) for peer in ("ann", "bo", "ann", "bo")]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*greedy, *late)
        assert order[:6] == ["greedy", "ann", "bo", "greedy", "ann", "bo"]
        assert not turns._placed
        assert not turns._serving
        assert not turns._waiting

    run(work)


def test_one_transfer_a_peer_and_so_many_at_once() -> None:
    async def work() -> None:
        turns, order, gate = Turns(2), [], asyncio.Event()  # type: ignore[var-annotated]
        jobs = [asyncio.create_task(served(turns, peer, order, gate)) for peer in ("ann", "ann", "bo", "cyd")]
        await asyncio.sleep(0.05)
        assert order == ["ann", "bo"]
        gate.set()
        await asyncio.gather(*jobs)
        assert sorted(order) == ["ann", "ann", "bo", "cyd"]

    run(work)


def test_who_waits_too_long_is_told_to_ask_again_and_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.1)

    async def work() -> None:
        turns, order, gate = Turns(1), [], asyncio.Event()  # type: ignore[var-annotated]
        first = asyncio.create_task(served(turns, "ann", order, gate))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await served(turns, "bo", order)
        monkeypatch.setattr(module, "_WAIT_S", 20.0)
        waiting = [asyncio.create_task(served(turns, peer, order)) for peer in ("ann", "bo")]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *waiting)
        assert order == ["ann", "bo", "ann"]

    run(work)


def test_a_slow_reader_keeps_its_transfer_and_not_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there is no more room, the one that began first is cut off for whoever is next, and for no one else."""
    monkeypatch.setattr(module, "_TURN_S", 0.1)
    monkeypatch.setattr(module, "_OPEN", 3)
    monkeypatch.setattr(module, "_WAIT_S", 20.0)

    async def work() -> None:
        turns, order, gate = Turns(1), [], asyncio.Event()  # type: ignore[var-annotated]
        jobs = [asyncio.create_task(served(turns, peer, order, gate)) for peer in ("ann", "bo", "cyd")]

        async def all_begun() -> bool:
            return order == ["ann", "bo", "cyd"]

        await until(all_begun)
        assert not any(job.done() for job in jobs)
        await served(turns, "dee", order)
        assert [job.cancelled() for job in jobs] == [True, False, False]
        await served(turns, "eve", order)
        gate.set()
        await asyncio.gather(*jobs[1:])
        assert not turns._placed
        assert not turns._serving

    run(work)


def test_slow_readers_on_real_streams_close_no_donor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECES_AT_ONCE", 1)
    monkeypatch.setattr(module, "_TURN_S", 0.2)
    monkeypatch.setattr(module, "_OPEN", 2)

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 4) as (there, here, *slow):
            await Donor(there, holding(made, data)).serve()
            streams = [await node.open(there.peer_id, "piece") for node in slow]
            for stream in streams:
                await stream.send({"base": made.tip.base, "piece": 0})
            assert len(await taken(fetcher(here), [there], made, [0, 1])) == 2
            ends = [await asyncio.gather(stream.answer(limits.PIECE_BYTES), return_exceptions=True) for stream in streams]
            assert sorted(isinstance(end, Gone) for (end,) in ends) == [False, True]
            assert not there.refusals

    go(work)


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    async def work() -> None:
        turns, order, gate = Turns(1), [], asyncio.Event()  # type: ignore[var-annotated]
        jobs = [asyncio.create_task(served(turns, peer, order, gate)) for peer in ("ann", "bo")]
        await asyncio.sleep(0)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await served(turns, "cyd", order)
        assert (turns._placed, turns._serving, turns._waiting) == ({}, {}, [])

    run(work)


def test_pieces_give_way_to_our_own_round_and_come_again_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowly enough for the round, and never so slowly that a transfer is given up."""
    monkeypatch.setattr(limits, "PIECE_BYTES", 64 * limits.KIB)
    monkeypatch.setattr(limits, "IO_S", 1.0)

    async def work() -> None:
        made, data = big()
        now, averaging = asyncio.get_running_loop().time, [True]
        async with nodes(tmp_path, 2) as (here, there):
            await Donor(there, holding(made, data), averaging=lambda: averaging[0]).serve()
            began = now()
            assert len(await taken(fetcher(here), [there], made, [0, 1])) == 2
            paced = now() - began
            assert paced >= 1.9
            began = now()
            job = asyncio.create_task(taken(fetcher(here), [there], made, [0, 1]))
            await asyncio.sleep(0.1)
            averaging[0] = False
            assert len(await job) == 2
            assert now() - began < paced

    monkeypatch.setattr("tests.swarm.test_lineage._ELEMENTS", 64 * limits.KIB * (_PIECES - 1) // 8 + 3)
    go(work)


def test_tokenizers_and_manifests_give_way_to_our_own_round_and_say_nothing_of_our_link(tmp_path: Path) -> None:
    async def work() -> None:
        count, (made, data) = 3000, big()
        made = replace(made, elements=count * limits.PIECE_BYTES // 8, pieces=("00" * 32,) * count)
        shelf = holding(made, data)
        shelf.tokens = bytes(len(made.to_bytes()))
        now = asyncio.get_running_loop().time
        async with nodes(tmp_path, 2) as (here, there):
            await Donor(there, shelf, averaging=lambda: True).serve()
            began = now()
            assert await fetcher(here).tokenizer([there.peer_id], digest(shelf.tokens)) == shelf.tokens
            assert now() - began >= 1.9
            began = now()
            assert await fetcher(here).manifests([there.peer_id], "", made.elements, 1) == {there.peer_id: made}
            assert now() - began >= 1.9
            assert there.meter.rate() == Meter().rate()

    go(work)


def test_one_tokenizer_a_peer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads none of it holds one, and nobody else waits for it."""
    monkeypatch.setattr(module, "_WAIT_S", 0.3)

    async def work() -> None:
        shelf = Shelf()
        shelf.tokens = bytes(4 * limits.PIECE_BYTES)
        async with nodes(tmp_path, 3) as (there, here, slow):
            await Donor(there, shelf).serve()
            streams = [await slow.open(there.peer_id, "tokenizer") for _ in range(4)]
            for stream in streams:
                await stream.send({})
            ends = await asyncio.gather(*(stream.answer(0) for stream in streams), return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["Busy", "Busy", "Busy", "Refused"], ends
            assert await fetcher(here).tokenizer([there.peer_id], digest(shelf.tokens)) == shelf.tokens
            for stream in streams:
                stream.close()

    go(work)


def test_more_joiners_than_turns_all_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECES_AT_ONCE", 1)
    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    monkeypatch.setattr(module, "_RETRY_S", 0.1)

    async def work() -> None:
        made, data = big()
        async with nodes(tmp_path, 5) as (there, *joiners):
            await Donor(there, holding(made, data)).serve()
            for found in await asyncio.gather(*(taken(fetcher(joiner), [there], made) for joiner in joiners)):
                assert whole(found) == data
            assert not there.refusals
            assert not any(joiner.refusals for joiner in joiners)

    go(work)


def test_rules_and_tokenizer_are_in_memory_once(tmp_path: Path) -> None:
    """A tokenizer may have 64 MiB, and whoever reads it slowly keeps it there for hours."""

    async def work() -> None:
        shelf = Shelf()
        shelf.tokens = bytes(limits.PIECE_BYTES)
        read: list[str] = []
        for verb in ("rules", "tokenizer"):
            ask = getattr(shelf, verb)
            setattr(shelf, verb, lambda verb=verb, ask=ask: (read.append(verb), ask())[1])
        async with nodes(tmp_path, 2) as (there, slow):
            await Donor(there, shelf).serve()
            for verb in ("rules", "tokenizer"):
                streams = [await slow.open(there.peer_id, verb) for _ in range(4)]
                for stream in streams:
                    await stream.send({})
                found = await asyncio.gather(*(stream.answer(limits.PIECE_BYTES) for stream in streams))
                assert {bytes(body) for _, body in found} == {getattr(Shelf, verb)(shelf)}
            assert sorted(read) == ["rules", "tokenizer"]

    go(work)
