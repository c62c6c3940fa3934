"""A surrogate corrected by what Kokoro speaks in the voices that are found on it for one person.

A surrogate is fitted to clips of many voices, and is least sure of a voice that looks best on it. Clips in just such
voices say where it is wrong: it becomes what it would be if it had been fitted to them too.

Dimensions: N clips of the surrogate, K clips that were added, C predicted channels, E speaker embedding, S = 256 style.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nuanced_core.encoder.surrogate import PENALTY, Surrogate, kernel

__all__ = ["CorrectedSurrogate"]

# Of the added clips. It is less than that of the surrogate's own, since they are all of one person's voices.
ADDED_PENALTY = 0.3


class CorrectedSurrogate:
    """A surrogate and clips that are added to it.

    Args:
        surrogate: fitted by ``fit_surrogate``; it is not changed.
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self.base = surrogate
        self._points = surrogate.points * surrogate.scales  # (N, S)
        ridge = self._kernel(self._points, self._points)
        ridge.diagonal().add_(PENALTY)
        self._inverse = torch.linalg.inv(ridge)  # (N, N)
        self._offsets: list[Tensor] = []
        self._errors: list[Tensor] = []

    @torch.no_grad()
    def add(self, offset: Tensor, embeddings: Mapping[str, Tensor], pitch: Tensor) -> None:
        """Add what was heard of a clip that was spoken with an offset (S,).

        Args:
            embeddings: (E,) of norm 1, by each of the surrogate's speaker encoders.
            pitch: (2,) median in log2 Hz and spread in octaves of F0; NaN where it is unknown.
        """
        predicted = self.base.outputs(offset[None])[0]
        heard = torch.cat([*(embeddings[name] for name in self.base.sizes), pitch])
        self._offsets.append(offset)
        self._errors.append(torch.where(heard.isnan(), 0.0, heard - predicted))

    @torch.no_grad()
    def corrected(self) -> Surrogate:
        """Return a surrogate of all clips, those that were added included."""
        base, offsets, errors = self.base, torch.stack(self._offsets), torch.stack(self._errors).double()
        added = offsets * base.scales
        across = self._kernel(added, self._points)  # (K, N)
        known = across @ self._inverse  # (K, N)
        unknown = self._kernel(added, added) - known @ across.T
        unknown.diagonal().add_(ADDED_PENALTY)
        coefficients = torch.linalg.solve(unknown, errors)  # (K, C)
        found = Surrogate(base.frame, base.sizes, len(base.points) + len(offsets)).to(offsets.device)
        found.points.copy_(torch.cat([base.points, offsets]))
        found.coefficients.copy_(torch.cat([base.coefficients.double() - known.T @ coefficients, coefficients]))
        for name in ("mean", "scales", "linear"):
            getattr(found, name).copy_(getattr(base, name))
        return found

    def _kernel(self, points: Tensor, others: Tensor) -> Tensor:
        return kernel(points.double(), others.double(), self.base.linear.double())
