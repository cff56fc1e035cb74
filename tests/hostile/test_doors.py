"""Bytes that are no messages, at every door of an honest member: refused, counted, bounded in memory and in time."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import limits
from protocols.canonical import Json, dumps, loads
from protocols.refusal import Reason
from tapestryd.neighbours import Neighbours
from tapestryd.swarm import meeting
from tapestryd.swarm.donor import Donor
from tapestryd.swarm.lineage import Fetcher
from tapestryd.swarm.reach import Reach
from tests.hostile.liar import LENGTHS, framed, read
from tests.hostile.world import World, fought, idle
from tests.people import BLANK, verify
from tests.swarm.rooms import Peer, go, until

DOORS = ("call", "reduce", "vote", "votes", "part", "hello", "dialback", "rules", "tokenizer", "snapshots", "piece", "entry")

GARBAGE: list[tuple[str, bytes, Reason | None]] = [
    ("all ones", b"\xff" * 64, Reason.TOO_LARGE),
    ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Reason.TOO_LARGE),
    ("head too large", LENGTHS.pack(limits.VOTE_BYTES + 1, 0), Reason.TOO_LARGE),
    ("many things", framed(b'{"a":[' + b"{}," * 349_000 + b"{}]}"), Reason.TOO_LARGE),
    ("body too large", LENGTHS.pack(2, 1 << 20) + b"{}", Reason.TOO_LARGE),
    ("body of 2^63", LENGTHS.pack(2, 1 << 63) + b"{}", Reason.TOO_LARGE),
    ("no head", LENGTHS.pack(0, 0), Reason.MALFORMED),
    ("no JSON", framed(b"\x00\x01\x02"), Reason.MALFORMED),
    ("no UTF-8", framed(b'{"a":"\xff"}'), Reason.MALFORMED),
    ("not canonical", framed(b'{"a": 1}'), Reason.MALFORMED),
    ("twice the same key", framed(b'{"a":1,"a":2}'), Reason.MALFORMED),
    ("a decimal", framed(b'{"a":1.5}'), Reason.WRONG_TYPE),
    ("NaN", framed(b'{"a":NaN}'), Reason.WRONG_TYPE),
    ("10^4000", framed(b'{"a":' + b"9" * 4000 + b"}"), Reason.OUT_OF_RANGE),
    ("no object", framed(b"[]"), Reason.WRONG_TYPE),
    ("deep", framed(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}"), Reason.MALFORMED),
    ("half a surrogate", framed(b'{"a":"\\ud800"}'), Reason.MALFORMED),
    ("a head of blanks", framed(b" " * limits.HEAD_BYTES), Reason.MALFORMED),
    ("a field too many", framed({"and": "so on"}), Reason.UNKNOWN_FIELD),
]

ENDED = [b"", b"\x01", LENGTHS.pack(100, 0) + b"{", LENGTHS.pack(2, 0) + b"{", LENGTHS.pack(limits.HEAD_BYTES, 0) + b"x" * 1000]


async def open_all(peer: Peer) -> None:
    """The doors that a session has and a round does not need."""
    fetcher = Fetcher(peer.node, peer.rules.run_id, verify)
    fetcher.agreed = peer.rules
    await Donor(peer.node, peer.keeper.store).serve()
    await Reach(peer.node).serve()
    await Neighbours(peer.node, peer.rules.run_id, verify, fetcher, lambda: None).serve()


def test_garbage_at_every_door(tmp_path: Path) -> None:
    async def work(here: World) -> None:
        target = here.honest[0]
        await open_all(target)
        peer = target.node.peer_id
        for verb in DOORS:
            for name, data, reason in GARBAGE:
                answer = await here.liar.say(peer, verb, data)
                assert reason is not None
                # What is not read to its end may cost the liar the answer: its stream is reset.
                assert not answer or loads(answer, 9999)["refused"] == reason.value, (verb, name, answer)
                assert target.refused() == {reason.value: 1}, (verb, name)
                target.node.refusals.clear()
            for data in ENDED:
                _, writer = await here.liar.open(peer, verb)
                writer.write(data)
                writer.close()
        await until(lambda: closed(target))
        assert target.refused() == {}
        here.agreed(await here.play(here.next(), idle()))

    go(fought(tmp_path, 2, work), timeout_s=100)


def test_a_head_has_room_for_what_belongs_there(tmp_path: Path) -> None:
    """Of a vote, for the digests of its parts; of anything else for much less."""

    async def work(here: World) -> None:
        target = here.honest[0]
        await open_all(target)
        for verb in DOORS:
            most = limits.VOTE_BYTES if verb == "vote" else limits.HEAD_BYTES
            for size, reason in ((most, Reason.UNKNOWN_FIELD), (most + 1, Reason.TOO_LARGE)):
                await here.liar.say(target.node.peer_id, verb, framed({"a": "b" * (size - len('{"a":""}'))}))
                assert target.refused() == {reason.value: 1}, (verb, size)
                target.node.refusals.clear()

    go(fought(tmp_path, 2, work))


def test_a_vote_for_no_parts_waits_for_no_roster(tmp_path: Path) -> None:
    """Truly signed, in a roster that nobody holds: it is refused for what is wrong with itself before that roster is waited for."""

    async def work(here: World) -> None:
        target = here.honest[0]
        roster = here.liar.roster(here.rules, 0, "ab" * 32, {here.liar.peer: BLANK})
        digests = [f"{part:064x}" for part in range(limits.ROSTER_MEMBERS + 1)]
        vote = here.liar.vote(roster, digests)
        for parts in ([{}] * 9000, [], digests, digests[1:], ["x", *digests[:9]]):
            async with asyncio.timeout(meeting._EARLY_S / 2):
                answer = await here.liar.ask(target.node.peer_id, "vote", vote | {"parts": parts})
            assert loads(answer[0], 9999)["refused"] == "bad_digest"
        assert target.refused() == {"bad_digest": 5}

    go(fought(tmp_path, 2, work))


def test_messages_bent_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True heads of every verb with something of them altered; the seed is in the name of the fault."""
    monkeypatch.setattr(meeting, "_EARLY_S", 1.0)  # how long a roster that nobody knows is waited for
    true: dict[str, Json] = {
        "call": {"round": 0, "before": "00" * 32, "claim": BLANK.to_body()},
        "reduce": {"roster": "00" * 32},
        "part": {"roster": "00" * 32, "part": 0},
        "snapshots": {"base": ""},
        "piece": {"base": "00" * 32, "piece": 0},
        "entry": {"height": 1, "offset": 0, "bytes": 1000},
    }

    async def work(here: World) -> None:
        target = here.honest[0]
        await open_all(target)
        reasons = {reason.value for reason in Reason}
        doors = asyncio.Semaphore(16)  # half of what one peer may have open: they close at their own pace

        async def bend(verb: str, seed: int) -> None:
            head = dumps(true[verb])
            raw = BENT[seed % len(BENT)](random.Random(f"{verb} {seed}"), head)
            async with doors:
                try:
                    answer = await here.liar.ask(target.node.peer_id, verb, raw)
                except EOFError:  # now and then libp2p loses one stream of many that are opened at once
                    answer = await here.liar.ask(target.node.peer_id, verb, raw)
            said = loads(answer[0], 9999)
            assert said.get("refused") in reasons or (verb, said) == ("call", {"accepted": True}), (verb, seed, raw[:99], said)

        await asyncio.gather(*(bend(verb, seed) for verb, seeds in SEEDS.items() for seed in range(seeds)))
        assert set(target.refused()) <= reasons
        here.agreed(await here.play(here.next(), idle()))

    go(fought(tmp_path, 2, work), timeout_s=100)


def _flip(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def _cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def _swap(rng: random.Random, raw: bytes) -> bytes:
    """One value becomes another kind of thing."""
    head = loads(raw, 1 << 20)
    head[rng.choice(sorted(head))] = rng.choice(
        [None, -1, 1 << 53, True, "", "x" * 5000, [], [[]], {}, {"a": {}}, "\x00", "../../etc/passwd"]
    )
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode()


def _drop(rng: random.Random, raw: bytes) -> bytes:
    head = loads(raw, 1 << 20)
    del head[rng.choice(sorted(head))]
    return dumps(head)


SEEDS = {"call": 100, "snapshots": 50, "piece": 50, "entry": 50, "reduce": 30, "part": 30}

BENT: list[Callable[[random.Random, bytes], bytes]] = [_flip, _cut, _swap, _drop]


def test_a_stream_without_end_is_not_read_without_end(tmp_path: Path) -> None:
    """Whoever goes on writing is no longer read: what it gets rid of is what sockets hold, and not a message's worth."""

    async def work(here: World) -> None:
        target = here.honest[0]
        await open_all(target)
        for verb in DOORS:
            for start in (b"", LENGTHS.pack(limits.HEAD_BYTES, 0), framed({}), b"\xff" * 64):
                _, writer = await here.liar.open(target.node.peer_id, verb)
                sent = 0
                try:
                    writer.write(start)
                    while sent < 1 << 26:
                        writer.write(b"[" * (1 << 16))
                        async with asyncio.timeout(2):
                            await writer.drain()
                        sent += 1 << 16
                except (OSError, TimeoutError):
                    pass
                writer.close()
                assert sent < 1 << 24, (verb, start[:12], sent)
        here.agreed(await here.play(here.next(), idle()))

    go(fought(tmp_path, 2, work), timeout_s=200)


def test_an_offer_by_drops_ends_with_the_round(tmp_path: Path) -> None:
    """The round is reduced without it; and when the round is over, its stream is."""

    async def work(here: World) -> None:
        turn = here.next()
        offer = here.offer(turn)
        held = []

        async def drips() -> None:
            roster = await here.joins(turn, here.liar.claim(offer))
            for reducer, (start, stop) in zip(roster.reducers, roster.slices(offer.owed.numel(), here.rules.codec.block), strict=True):
                reader, writer = await here.liar.open(reducer, "reduce")
                held.append(writer)
                writer.write(framed({"roster": roster.digest}))
                await read(reader)
                writer.write(framed({}, offer.part(start, stop))[:20])
            while True:
                await asyncio.sleep(0.2)
                for writer in held:
                    writer.write(b"\0")

        here.agreed(await here.play(turn, drips()))
        await until(lambda: all_closed(here), 8)  # a third of the window was left, and there are 10 s of patience
        for writer in held:
            writer.close()
        assert here.counted() == [{"stalled": 1}] * 3

    go(fought(tmp_path, 3, work, average_ms=6000))


async def all_closed(here: World) -> bool:
    return not any(peer.node._open for peer in here.honest)


async def closed(peer: Peer) -> bool:
    return not peer.node._open
