"""The books of egress: what our programs handed over, against what the kernel counted. Pure numbers; who read them is elsewhere."""

from dataclasses import dataclass

from protocols.egress import Balance


@dataclass(frozen=True, slots=True)
class Carried:
    """What one layer carried one way. `pieces`: segments of TCP, packets of an interface; `headers`: what this layer put before all
    of them; `again`: bytes that went a second time."""

    size: int = 0
    pieces: int = 0
    headers: int = 0
    again: int = 0

    def __add__(self, other: "Carried") -> "Carried":
        return Carried(self.size + other.size, self.pieces + other.pieces, self.headers + other.headers, self.again + other.again)


def balance(payload: int, tcp: Carried, wire: Carried) -> Balance:
    """`wire.size` is what is explained, and counts all headers. Where the network card cuts the segments, an interface counts fewer
    packets than TCP does, and one header each; where others use it, it counts more. Ours are the fewer of the two."""
    ours = min(tcp.pieces, wire.pieces)
    headers = round((tcp.headers / tcp.pieces + wire.headers / wire.pieces) * ours) if ours else 0
    return Balance(
        payload=payload,
        libp2p=tcp.size - payload,
        resent=tcp.again,
        headers=headers,
        rest=wire.size - tcp.size - tcp.again - headers,
        interfaces=wire.size,
    )
