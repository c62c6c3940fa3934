"""Coordinates of styles in which the stock voices have mean 0 and variance 1."""

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.kokoro.style_frame import OUTSIDE_WEIGHT, StyleFrame

COUNTS = torch.tensor([0, 1, 40, 510, 600])  # 0 and 600 are clamped
ROWS = [0, 0, 39, 509, 509]


@pytest.fixture
def packs() -> Tensor:
    """Packs (4, 510, 256) whose rows and channels have different means and spreads."""
    generator = torch.Generator().manual_seed(0)
    voices = torch.randn(4, 1, 256, generator=generator) * torch.linspace(0.1, 2, 256)
    rows = torch.randn(1, 510, 256, generator=generator)
    return rows + voices + 0.1 * torch.randn(4, 510, 256, generator=generator)


def test_styles_are_the_inverse_of_offsets(packs: Tensor) -> None:
    frame = StyleFrame(packs)
    styles = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(frame.styles(frame.offsets(styles, COUNTS), COUNTS), styles)
    mean = packs.mean(dim=0)[ROWS]
    torch.testing.assert_close(frame.styles(torch.zeros(5, 256), COUNTS), mean)
    one = torch.zeros(5, 256).index_fill(1, torch.tensor([7]), 1.0)
    spread = (packs - packs.mean(dim=0))[:, :, 7].flatten().std(correction=0)
    torch.testing.assert_close((frame.styles(one, COUNTS) - mean)[:, 7], spread.expand(5))


@pytest.mark.real
def test_stock_voices_have_mean_0_and_variance_1(models: ModelSet) -> None:
    names = models.voices.training_voices("all", ("af_sky", "am_puck"))
    packs = torch.stack([models.voices.pack(name) for name in names])
    frame = StyleFrame(packs)
    counts = torch.arange(1, 511)
    offsets = torch.stack([frame.offsets(pack, counts) for pack in packs])  # (V, 510, 256)
    assert offsets.mean(dim=0).abs().max() < 1e-4
    torch.testing.assert_close(offsets.square().mean(dim=(0, 1)), torch.ones(256), rtol=1e-3, atol=0)
    voices = offsets.mean(dim=1)
    torch.testing.assert_close(frame.priors(voices), voices.square().mean(dim=1))  # none is outside
    assert (frame.priors(3 * voices) > 9.5 * frame.priors(voices)).all()  # and all are when they are exaggerated
    held_out = frame.offsets(models.voices.pack("am_puck"), counts)
    assert 0.3 < held_out.square().mean() < 3


def test_prior_is_0_for_the_mean_voice_and_grows_outside_the_range_of_the_voices(packs: Tensor) -> None:
    frame = StyleFrame(packs)
    assert frame.priors(torch.zeros(1, 256)).tolist() == [0]
    for side, limit in ((1.0, frame.highest[3]), (-1.0, frame.lowest[3])):
        offsets = torch.zeros(3, 256)
        offsets[:, 3] = limit + side * torch.tensor([-0.1, 0.5, 2.0])
        outside = torch.tensor([0.0, 0.5, 2.0])
        expected = (offsets[:, 3].square() + OUTSIDE_WEIGHT * outside.square()) / 256
        torch.testing.assert_close(frame.priors(offsets), expected)


def test_gradient_of_the_prior_is_right_and_finite_at_the_mean_and_the_limits(packs: Tensor) -> None:
    frame = StyleFrame(packs.double())
    offsets = 2 * torch.randn(2, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(frame.priors, offsets.requires_grad_())
    for point in (torch.zeros_like(frame.std), frame.lowest, frame.highest, 1e6 * frame.highest):
        place = point[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(frame.priors(place).sum(), place)
        assert torch.isfinite(gradient).all()


def test_a_single_voice_has_finite_coordinates(packs: Tensor) -> None:
    frame = StyleFrame(packs[:1])
    offsets = frame.offsets(packs[1, ROWS], COUNTS)
    assert torch.isfinite(offsets).all() and torch.isfinite(frame.priors(offsets)).all()
    torch.testing.assert_close(frame.styles(offsets, COUNTS), packs[1, ROWS])
