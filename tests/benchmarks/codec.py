"""Speed of the codec, the outer step and the mean: prints a table, asserts nothing. `python -m tests.benchmarks.codec [elements]`."""

import sys
import time
from collections.abc import Callable

import torch

from tapestryd.training.aggregate import aggregate
from tapestryd.training.codec import decode, encode
from tapestryd.training.outer import outer_step


def best(work: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the fastest of `runs`."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    elements = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    parts = torch.stack([x, x, x, x])
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        for bits in (4, 8, 32):
            data = encode(x, bits, 256)
            up, down = best(lambda bits=bits: encode(x, bits, 256)), best(lambda bits=bits, data=data: decode(data, elements, bits, 256))
            print(f"threads={threads} bits={bits} elements={elements} encode={up * 1e3:.0f}ms decode={down * 1e3:.0f}ms")
        print(f"threads={threads} outer_step={best(lambda: outer_step(x, x, x, lr=1.0, momentum=0.5)) * 1e3:.0f}ms")
        for kind in ("mean", "trimmed", "median"):
            took = best(lambda kind=kind: aggregate(kind, parts, torch.ones(4), torch.ones(4)))
            print(f"threads={threads} {kind} of 4={took * 1e3:.0f}ms")


if __name__ == "__main__":
    main()
