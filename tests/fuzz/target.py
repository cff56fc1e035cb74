"""What a parser is to whoever throws bytes at it."""

from collections.abc import Callable
from dataclasses import dataclass

from protocols import limits
from protocols.refusal import Refused


def as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """`check` reads bytes as production code does and looks at what came of it; it raises nothing but `faults`, anything else is
    a finding. `seeds`: real input, as production code writes it. `most_bytes`: production reads no more. `seal` makes the digests
    inside right again, as whoever sends them would: without it nothing altered would get past the first of them. `heap_bytes`:
    what reading may hold beside 40 times its input."""

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    most_bytes: int
    faults: tuple[type[Exception], ...] = (Refused,)
    seal: Callable[[bytes], bytes] = as_it_is
    heap_bytes: int = 1 << 20

    def run(self, data: bytes) -> bool:
        """Whether it was taken. A refusal must be fit for a log: one line, printable, short."""
        try:
            self.check(data)
        except Refused as refused:
            said = refused.detail
        except self.faults:
            return False
        else:
            return True
        assert Refused in self.faults, said
        assert said.isprintable(), f"not fit for a log: {said[:200]!r}"
        assert len(said) <= limits.REFUSAL_CHARS, f"a refusal of {len(said)} characters"
        return False
