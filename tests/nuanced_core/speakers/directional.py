"""Gradients against finite differences."""

from collections.abc import Callable

import torch
from torch import Tensor


def slopes(f: Callable[[Tensor], Tensor], at: Tensor, seed: int = 0, step: float = 1e-10) -> tuple[float, float]:
    """The derivative of a scalar ``f`` along a random direction, by its gradient and by a central difference.

    The step, relative to the point, is so small because rectifiers have kinks.
    """
    assert at.dtype == torch.float64
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
    direction *= at.norm() / direction.norm()
    point = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(point), point)
    with torch.no_grad():
        difference = (f(at + step * direction) - f(at - step * direction)) / (2 * step)
    return float((gradient * direction).sum()), float(difference)
