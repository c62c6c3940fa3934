"""The contract that every pooling strategy keeps."""

import pytest
import torch

from nuanced_core.pooling import POOLINGS, MeanPooling, MeanStdPooling, Pooling

CHANNELS = 6


@pytest.fixture(params=sorted(POOLINGS))
def pooling(request: pytest.FixtureRequest) -> Pooling:
    torch.manual_seed(0)
    return POOLINGS[request.param](CHANNELS).eval()


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.randn(3, 9, CHANNELS, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    return frames, mask


def test_frames_behind_the_end_never_matter(pooling: Pooling, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, mask = clips
    expected = pooling(frames, mask)
    for junk in (1e6, float("nan")):
        torch.testing.assert_close(pooling(frames.masked_fill(~mask[:, :, None], junk), mask), expected)
    torch.testing.assert_close(pooling(frames[1:2, :5], mask[1:2, :5]), expected[1:2])


def test_items_do_not_touch_each_other(pooling: Pooling, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, mask = clips
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(pooling(frames[order], mask[order]), pooling(frames, mask)[order])


def test_shape_and_finite_gradients_even_for_one_frame(
    pooling: Pooling, clips: tuple[torch.Tensor, torch.Tensor]
) -> None:
    frames, mask = clips
    frames.requires_grad_()
    pooled = pooling(frames, mask)
    assert pooled.shape == (3, pooling.out_channels)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), frames)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert gradient[mask].abs().max() > 0


def test_mean_and_std_are_those_of_the_kept_frames(clips: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, mask = clips
    kept = frames[1, :5]
    torch.testing.assert_close(MeanPooling(CHANNELS)(frames, mask)[1], kept.mean(dim=0))
    expected = torch.cat([kept.mean(dim=0), kept.std(dim=0, correction=0)])
    torch.testing.assert_close(MeanStdPooling(CHANNELS)(frames, mask)[1], expected)
