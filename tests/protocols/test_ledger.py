"""The ledger's lines: the vector both ways, each refusal, and that no change of a ledger goes unseen."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import protocols
from protocols import ledger
from protocols.canonical import digest
from protocols.ledger import HEADS, LINE_BYTES, START, Chain, Entry, Heads, Opened, Recovered, Released, What, Withheld, line, parse
from protocols.refusal import Refused
from protocols.trainer import Withhold
from tests.people import RUN, Person, verify

VECTOR = json.loads((Path(protocols.__file__).parent / "vectors" / "ledger.json").read_text())
KEY, OTHER = Person("data side"), Person("somebody else")

COUNTS = st.integers(0, 1 << 53)
AMOUNTS = st.floats(0, allow_infinity=False, allow_nan=False)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
WHATS: st.SearchStrategy[What] = st.one_of(
    st.builds(Opened, st.just(KEY.peer), COUNTS, COUNTS, AMOUNTS, AMOUNTS, COUNTS),
    st.builds(Recovered, COUNTS, DIGESTS),
    st.builds(Released, DIGESTS, *[COUNTS] * 7, DIGESTS, *[AMOUNTS] * 4),
    st.builds(
        Withheld, DIGESTS, COUNTS, COUNTS, st.sampled_from([reason.name.lower() for reason in Withhold]), COUNTS, COUNTS, COUNTS
    ),
)  # fmt: skip


def written(whats: list[What], key: Person = KEY) -> list[bytes]:
    lines: list[bytes] = []
    for number, what in enumerate(whats, 1):
        lines.append(line(Entry(number, digest(lines[-1]) if lines else START, number, what), key.sign))
    return lines


def followed(lines: list[bytes]) -> Chain:
    chain = Chain(verify)
    for one in lines:
        chain.follow(one)
    return chain


LEDGER = written([
    Opened(KEY.peer, 32, 256, 0.0, 0.0, 60),
    *(Released(RUN, round, round % 4, 128, 1 << 17, 1000, 128 * round, 1 << 20, digest(b"v"), 0.5, 1.0, 0.0, 0.0) for round in range(4)),
    Withheld(RUN, 5, 1, "rate", 128, 1000, 3),
])  # fmt: skip


def test_reads_and_writes_the_vector() -> None:
    assert (VECTOR["seed"], VECTOR["key"]) == (KEY.seed.hex(), KEY.peer)
    chain = Chain(verify)
    for number, case in enumerate(VECTOR["entries"], 1):
        what = getattr(ledger, case["kind"])(**case["fields"])
        entry = Entry(number, chain.head, VECTOR["first_ms"] + number - 1, what)
        assert line(entry, KEY.sign).decode() == case["line"]
        assert chain.follow(case["line"].encode()) == entry
    assert (chain.number, chain.head, chain.key) == (len(VECTOR["entries"]), VECTOR["head"], KEY.peer)
    assert {case["kind"] for case in VECTOR["entries"]} == {kind.__name__ for kind in ledger._KINDS.values()}
    witness = Heads.parse(VECTOR["witness"].encode())
    assert witness.to_bytes().decode() == VECTOR["witness"]
    assert witness.lost({number: digest(case["line"].encode()) for number, case in enumerate(VECTOR["entries"], 1)}) is None


def test_what_is_signed_is_as_in_the_vector() -> None:
    seen: list[bytes] = []
    line(parse(VECTOR["entries"][1]["line"].encode()), lambda message: seen.append(message) or bytes(64))  # type: ignore[func-returns-value]
    assert seen == [VECTOR["signed"].encode()]


@pytest.mark.parametrize("case", VECTOR["refused"], ids=lambda case: case["name"])
def test_what_is_no_line_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        parse(case["line"].encode())
    assert refused.value.reason.value == case["reason"]


@given(WHATS, COUNTS.filter(bool), DIGESTS, COUNTS)
def test_every_entry_reads_back_and_fits(what: What, number: int, prev: str, time_ms: int) -> None:
    entry = Entry(number, prev, time_ms, what)
    data = line(entry, KEY.sign)
    assert len(data) < LINE_BYTES / 2
    assert parse(data) == entry


@given(st.lists(WHATS, max_size=6).map(lambda whats: [Opened(KEY.peer, 1, 1, 0.0, 0.0, 1), *whats]))
def test_a_ledger_as_written_is_a_chain(whats: list[What]) -> None:
    chain = followed(written(whats))
    assert (chain.number, chain.key) == (len(whats), KEY.peer)


@given(st.data())
def test_any_edit_is_noticed(data: st.DataObject) -> None:
    """Whatever is done to the lines, what still follows is the beginning of the ledger as it was written; and who remembers more
    sees that the rest is gone."""
    lines = list(LEDGER)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "swap", "again", "forge"])):
            case "byte":
                at, bit = data.draw(st.integers(0, len(lines[place]) - 1)), data.draw(st.integers(0, 7))
                changed = bytearray(lines[place])
                changed[at] ^= 1 << bit
                lines[place] = bytes(changed)
            case "cut" if len(lines) > 1:
                del lines[place]
            case "swap":
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[place], lines[other] = lines[other], lines[place]
            case "again":
                lines.insert(place, lines[place])
            case "forge":
                forged = Entry(place + 1, digest(lines[place - 1]) if place else START, 7, data.draw(WHATS))
                lines[place] = line(forged, OTHER.sign)
    chain = Chain(verify)
    digests: dict[int, str] = {}
    try:
        for one in lines:
            digests[chain.follow(one).number] = digest(one)
    except Refused:
        pass
    assert list(digests.values()) == [digest(one) for one in LEDGER[: len(digests)]]
    witness = Heads().with_(len(LEDGER), digest(LEDGER[-1]))
    assert witness.lost(digests) == (None if len(digests) == len(LEDGER) else len(LEDGER))


def test_a_ledger_begun_by_another_key_is_another_ledger() -> None:
    """It is a chain of its own; who remembers the first one notices."""
    forged = written([parse(one).what for one in LEDGER[1:]], OTHER)
    with pytest.raises(Refused, match="names no key"):
        followed(forged)
    with pytest.raises(Refused, match="is not signed by the ledger's key"):
        followed(written([parse(one).what for one in LEDGER], OTHER))
    own = followed(written([Opened(OTHER.peer, 1, 1, 0.0, 0.0, 1)], OTHER))
    assert Heads().with_(1, digest(LEDGER[0])).lost({1: own.head}) == 1
    two = line(Entry(2, digest(LEDGER[0]), 2, Opened(OTHER.peer, 1, 1, 0.0, 0.0, 1)), OTHER.sign)
    with pytest.raises(Refused, match="names another key"):
        followed([LEDGER[0], two])


def test_a_witness_remembers_the_latest() -> None:
    heads = Heads()
    for number in range(1, HEADS + 10):
        heads = heads.with_(number, digest(b"%d" % number))
    assert [number for number, _ in heads.heads] == list(range(10, HEADS + 10))
    assert Heads.parse(heads.to_bytes()) == heads
    assert heads.lost(dict(heads.heads)) is None
    assert heads.lost({}) == 10
    assert heads.with_(3, "00" * 32).lost(dict(heads.heads)) == 3


@pytest.mark.parametrize(
    "wrong",
    ["", "{}", '{"heads":{}}', '{"heads":[1]}', '{"heads":[[0,"%s"]]}', '{"heads":[[true,"%s"]]}', '{"heads":[[1,"00"]]}',
     '{"heads":[' + ",".join(['[1,"%s"]'] * (HEADS + 1)) + "]}"],
)  # fmt: skip
def test_what_is_no_witness_is_refused(wrong: str) -> None:
    with pytest.raises(Refused):
        Heads.parse(wrong.replace("%s", "0" * 64).encode())
