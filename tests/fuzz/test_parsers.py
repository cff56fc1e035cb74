"""Every parser against whatever may arrive: what was found before, arbitrary bytes, altered real input, and bait at full size.

The long search, guided by coverage, is tests/fuzz/fuzz.py.
"""

import tracemalloc
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
NAMES = list(TARGETS)
_ALTERED_BYTES = 1 << 14
_BAIT_BYTES = 1 << 16

BAIT = {
    "brackets": lambda n: b"[" * n,
    "braces": lambda n: b'{"a":' * (n // 5),
    "quotes": lambda n: b'"' * n,
    "backslashes": lambda n: b'"' + b"\\" * (n - 1),
    "digits": lambda n: b'{"a":' + b"9" * (n - 6) + b"}",
    "empty objects": lambda n: b'{"a":[' + b"{}," * ((n - 16) // 3) + b"{}]}",
    "keys": lambda n: b"{" + b",".join(b'"%05d":0' % i for i in range(n // 10)) + b"}",
    "nested in text": lambda n: b'{"a":"' + b"[" * (n - 8) + b'"}',
    "settings": lambda n: b"schema_version = 1\n[node]\n" + b"".join(b"k%d = 1\n" % i for i in range(n // 12)),
    "sections": lambda n: b"schema_version = 1\n" + b"".join(b"[s%d]\n" % i for i in range(n // 9)),
    "dots": lambda n: b"a" + b".a" * (n // 2 - 3) + b" = 1",
    "peers": lambda n: b"tapestry:" + b"0" * 64 + b"?" + b"&peer=/p2p/1" * ((n - 80) // 12),
    "durations": lambda n: b"trust.ban_time=" + b"1h" * ((n - 20) // 2),
    "lines": lambda n: b"\n" * n,
    "ff": lambda n: b"\xff" * n,
    "zeros": lambda n: b"\0" * n,
}
"""What drives a careless parser into the square of its input, into recursion, or into memory. n: bytes."""

_TOML = ("run_toml", "daemon_toml", "trainer_toml", "data_manifest")
"""Whoever runs the node writes their input. tomllib keeps the square of a dotted key's length: 4 GiB for 64 KiB of dots."""


@pytest.mark.parametrize("name", NAMES)
def test_real_input_is_taken(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert sum(map(target.run, seeds))
    assert sum(target.run(target.seal(seed)) for seed in seeds)


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*/*")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_was_found_before(file: Path) -> None:
    TARGETS[file.parent.name].run(file.read_bytes())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(choice=st.integers(0, (1 << 64) - 1), sealed=st.booleans())
def test_altered_input(name: str, choice: int, sealed: bool) -> None:
    target, chance = TARGETS[name], Random(choice)
    most_bytes = min(target.most_bytes, _ALTERED_BYTES)
    data = mutated(chance.choice(target.seeds()), chance, most_bytes)
    if sealed:
        data = target.seal(data)[: target.most_bytes]
    note(f"{name}: {data.hex()}")
    target.run(data)


@pytest.mark.parametrize(("name", "bait"), [(name, bait) for name in NAMES for bait in BAIT if bait != "dots" or name not in _TOML])
@pytest.mark.timeout(60)
def test_bait_is_met_in_bounded_time_and_memory(name: str, bait: str) -> None:
    target = TARGETS[name]
    data = BAIT[bait](min(target.most_bytes, _BAIT_BYTES))[: target.most_bytes]
    target.run(data[:64])  # what is made once and kept is not the input's
    tracemalloc.start()
    try:
        target.run(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes <= 40 * len(data) + target.heap_bytes
