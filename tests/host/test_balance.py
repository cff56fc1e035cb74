"""The table of a reconciliation, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.egress import Balance
from tapestryd.host.balance import Carried, balance


@pytest.mark.parametrize(
    ("payload", "tcp", "wire", "result"),
    [
        # Ten segments, each a packet of 52 bytes of TCP and IP and 14 of the link, and 28 bytes of somebody else's in one more.
        (9_000, Carried(10_000, 10, 520), Carried(10_702, 11, 154), Balance(9_000, 1_000, 0, 660, 42, 10_702)),
        # The card cuts: TCP counts ten segments, the interface two packets with one header each.
        (9_000, Carried(10_000, 10, 520), Carried(10_132, 2, 28), Balance(9_000, 1_000, 0, 132, 0, 10_132)),
        # A tunnel: no header of a link. Something was sent again.
        (9_000, Carried(10_000, 10, 520, 1_000), Carried(11_520, 10, 0), Balance(9_000, 1_000, 1_000, 520, 0, 11_520)),
        # Handed over, and cut off before it went.
        (9_000, Carried(8_000, 10, 520), Carried(8_660, 10, 140), Balance(9_000, -1_000, 0, 660, 0, 8_660)),
        # Nothing yet, or no interface known.
        (0, Carried(), Carried(), Balance(0, 0, 0, 0, 0, 0)),
        (10, Carried(20, 1, 52), Carried(), Balance(10, 10, 0, 0, -20, 0)),
    ],
)
def test_the_table(payload: int, tcp: Carried, wire: Carried, result: Balance) -> None:
    assert balance(payload, tcp, wire) == result


sizes = st.integers(0, 1 << 50)
carried = st.builds(Carried, sizes, st.integers(0, 1 << 40), sizes, sizes)


@given(sizes, carried, carried)
def test_the_parts_are_the_whole(payload: int, tcp: Carried, wire: Carried) -> None:
    found = balance(payload, tcp, wire)
    assert found.payload + found.libp2p + found.resent + found.headers + found.rest == found.interfaces == wire.size
