"""The outer step: mean delta → the next Shared Base, the same bits on every machine.

Nesterov momentum as in DiLoCo (arXiv 2311.08105) and torch.optim.SGD(nesterov=True, dampening=0):

    v'     = momentum * v + mean
    theta' = theta - lr * (mean + momentum * v')

One IEEE 754 binary32 operation at a time, round to nearest even, no fused multiply-add, subnormals kept
(gradual underflow). Element-wise, so the thread count cannot matter. Specified in protocols/aggregation.md.
"""

import torch
from torch import Tensor


def outer_step(theta: Tensor, velocity: Tensor, mean: Tensor, *, lr: float, momentum: float) -> tuple[Tensor, Tensor]:
    """theta, velocity, mean: (n,) float32 on the CPU → new (theta', velocity'); the arguments are left alone.

    `lr` and `momentum` are rounded to float32 first. Finite arguments may still overflow to infinities:
    whoever commits looks at the result. Raises ArithmeticError where this process flushes subnormals to zero.
    """
    for part in (theta, velocity, mean):
        assert (part.dtype, part.device.type, part.shape) == (torch.float32, "cpu", theta.shape)
    _refuse_flush_to_zero()
    rate = torch.tensor(lr, dtype=torch.float32)
    decay = torch.tensor(momentum, dtype=torch.float32)
    with torch.no_grad():
        # In place on our own temporaries only. Never alpha=, addcmul, lerp or torch.compile: they may fuse.
        velocity = torch.mul(velocity, decay)
        velocity.add_(mean)
        step = torch.mul(velocity, decay)
        step.add_(mean)
        step.mul_(rate)
        return torch.sub(theta, step), velocity


def _refuse_flush_to_zero() -> None:
    """Some libraries switch the CPU to flush-to-zero when they are loaded: our bits would then differ from the swarm's."""
    least = torch.tensor([1.401298464324817e-45])
    if torch.mul(least, 1.0).item() == 0.0:
        raise ArithmeticError("this process flushes subnormal numbers to zero (torch.set_flush_denormal or a -ffast-math library)")
