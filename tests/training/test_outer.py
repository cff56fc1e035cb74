"""The outer step against protocols/vectors/outer.json bit for bit, against torch's SGD nearly, and for any thread count."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import protocols
from tapestryd.training.outer import outer_step

VECTORS = json.loads((Path(protocols.__file__).parent / "vectors" / "outer.json").read_text())


def floats(data: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(data), "<f4").copy())


@pytest.mark.parametrize("case", VECTORS["outer"], ids=lambda case: case["name"])
@pytest.mark.parametrize("times", [1, 1000])
def test_gives_the_bits_of_the_vectors(case: dict[str, str], times: int) -> None:
    """Repeated 1000 times, so that vectorised and parallel kernels are used too, whose tails are others."""
    theta, velocity, mean = (floats(case[name]).repeat(times) for name in ("theta", "velocity", "mean"))
    before = theta.clone(), velocity.clone(), mean.clone()
    theta_next, velocity_next = outer_step(theta, velocity, mean, lr=float(case["lr"]), momentum=float(case["momentum"]))
    assert theta_next.numpy().tobytes().hex() == case["theta_next"] * times
    assert velocity_next.numpy().tobytes().hex() == case["velocity_next"] * times
    assert all(torch.equal(a, b) for a, b in zip(before, (theta, velocity, mean), strict=True))


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.5), (0.7, 0.9), (1.0, 0.0)])
def test_is_torchs_nesterov(lr: float, momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator)
    theta, velocity = start, torch.zeros(1000)
    parameter = torch.nn.Parameter(start.clone())
    sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=momentum > 0)
    for _ in range(5):
        mean = torch.randn(1000, generator=generator)
        theta, velocity = outer_step(theta, velocity, mean, lr=lr, momentum=momentum)
        parameter.grad = mean
        sgd.step()
    torch.testing.assert_close(theta, parameter.detach(), rtol=1e-5, atol=1e-5)


def test_the_thread_count_does_not_matter() -> None:
    theta, velocity, mean = torch.randn(3, 300_001, generator=torch.Generator().manual_seed(2)).unbind()
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            found.append(torch.stack(outer_step(theta, velocity, mean, lr=0.7, momentum=0.9)).numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_flush_to_zero_is_noticed() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        with pytest.raises(ArithmeticError, match="flushes subnormal"):
            outer_step(torch.ones(1), torch.ones(1), torch.ones(1), lr=1.0, momentum=0.5)
    finally:
        torch.set_flush_denormal(False)
