"""Coordinates of styles in which the stock voices have mean 0 and variance 1.

Dimensions: B batch, V voices, S = 256 style.
"""

from torch import Tensor, nn

from nuanced_core.kokoro.model import PACK_ROWS

__all__ = ["StyleFrame"]

MIN_SPREAD = 1e-3
OUTSIDE_WEIGHT = 10.0


class StyleFrame(nn.Module):
    """Coordinates of styles: offsets from the mean voice, row by row, in standard deviations of the voices.

    Args:
        packs: (V, 510, S) of the stock voices that may be trained on.
    """

    mean_pack: Tensor
    std: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, packs: Tensor) -> None:
        super().__init__()
        offsets = packs - packs.mean(dim=0)
        std = offsets.square().mean(dim=(0, 1)).sqrt().clamp(min=MIN_SPREAD)
        voices = (offsets / std).mean(dim=1)  # (V, S)
        for name, value in {
            "mean_pack": packs.mean(dim=0),
            "std": std,
            "lowest": voices.amin(dim=0),
            "highest": voices.amax(dim=0),
        }.items():
            self.register_buffer(name, value)

    def offsets(self, styles: Tensor, counts: Tensor) -> Tensor:
        """Return the offsets (B, S) of styles (B, S) for phoneme counts (B,)."""
        return (styles - self.mean_pack[counts.clamp(1, PACK_ROWS) - 1]) / self.std

    def styles(self, offsets: Tensor, counts: Tensor) -> Tensor:
        """Return the styles (B, S) of offsets (B, S) for phoneme counts (B,)."""
        return self.mean_pack[counts.clamp(1, PACK_ROWS) - 1] + offsets * self.std

    def priors(self, offsets: Tensor, centre: Tensor | float = 0.0) -> Tensor:
        """Compute how far offsets (B, S) are from the stock voices, near which Kokoro speaks well: (B,).

        It is the mean square of their distance from ``centre``, by default the mean voice, plus ``OUTSIDE_WEIGHT``
        times the mean square of how far each channel lies outside the range of the stock voices.
        """
        outside = (self.lowest - offsets).clamp(min=0) + (offsets - self.highest).clamp(min=0)
        return (offsets - centre).square().mean(dim=1) + OUTSIDE_WEIGHT * outside.square().mean(dim=1)

    def priors_slope(self, offsets: Tensor, centre: Tensor | float = 0.0) -> Tensor:
        """Return the gradient (B, S) of ``priors`` with respect to offsets (B, S)."""
        outside = (offsets - self.highest).clamp(min=0) - (self.lowest - offsets).clamp(min=0)
        return 2 / offsets.shape[1] * (offsets - centre + OUTSIDE_WEIGHT * outside)
