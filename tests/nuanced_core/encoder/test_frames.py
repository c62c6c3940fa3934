"""Processing of features before pooling, and standardisation after it."""

import pytest
import torch

from tests.nuanced_core.encoder.small_encoders import randomised_encoder, small_clips, small_encoder


@pytest.mark.parametrize("channel", ["none", "mean", "mean_std"])
@pytest.mark.parametrize("bound", [0.0, 1.5])
@pytest.mark.parametrize("combine", ["concat", "mix"])
def test_frames_are_normalised_and_bounded_as_the_settings_define(channel: str, bound: float, combine: str) -> None:
    encoder = randomised_encoder(channel=channel, bound=bound, combine=combine)
    features, mask, _ = small_clips()
    found = encoder.frames(features, mask)
    for i, length in enumerate((7, 4, 1)):
        x = (features[i, :, :length].double() - encoder.feature_mean[:, None]) / encoder.feature_std[:, None]
        if channel != "none":
            x = x - x.mean(dim=1, keepdim=True)
        if channel == "mean_std":
            x = x / x.std(dim=1, keepdim=True, correction=0) if length > 1 else torch.zeros_like(x)
        if bound:
            x = bound * torch.tanh(x / bound)
        if combine == "mix":
            assert encoder.layer_logits is not None
            weights = torch.softmax(encoder.layer_logits.detach().double(), dim=0)
            expected = weights[0] * x[0] + weights[1] * x[1]
        else:
            expected = torch.cat([x[0], x[1]], dim=1)
        torch.testing.assert_close(found[i, :length].detach().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channel", ["none", "mean", "mean_std"])
@pytest.mark.parametrize("combine", ["concat", "mix"])
@pytest.mark.parametrize("pooling", ["mean", "mean_std", "max", "attentive", "attentive_stats", "queries"])
def test_a_clip_in_blocks_is_pooled_as_the_whole(channel: str, combine: str, pooling: str) -> None:
    encoder = randomised_encoder(channel=channel, combine=combine, pooling=pooling, bound=1.5, frame_width=7, heads=3)
    clip = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(3)) + 1
    whole = encoder.pooled(clip[None], torch.ones(1, 50, dtype=torch.bool)).detach()
    assert torch.equal(encoder.pooled_blocks(lambda: [clip]), whole)
    in_blocks = encoder.pooled_blocks(lambda: clip.split((20, 20, 10), dim=1))
    torch.testing.assert_close(in_blocks, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channel", ["mean", "mean_std"])
def test_channels_that_do_not_change_over_a_clip_in_blocks_are_0(channel: str) -> None:
    encoder = randomised_encoder(channel=channel, pooling="mean_std")
    clip = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(3)).expand(2, 50, 4).clone()
    clip[0, :, 1] += torch.linspace(-1, 1, 50)
    whole = encoder.pooled(clip[None], torch.ones(1, 50, dtype=torch.bool)).detach()
    in_blocks = encoder.pooled_blocks(lambda: clip.split((20, 20, 10), dim=1))
    # Rounding of float32 is not small beside no deviation.
    torch.testing.assert_close(in_blocks, whole, rtol=1e-3, atol=1e-2)
    frames = encoder.frames(clip[None], torch.ones(1, 50, dtype=torch.bool))[0]
    assert frames[:, 1].abs().max() > 0.5
    assert frames[:, [n for n in range(8) if n != 1]].abs().max() < 1e-2


def test_layer_mix_starts_with_equal_weights() -> None:
    features, mask, _ = small_clips()
    mixed = small_encoder(combine="mix").frames(features, mask)
    both = small_encoder(combine="concat").frames(features, mask)
    torch.testing.assert_close(mixed[mask], ((both[..., :4] + both[..., 4:]) / 2)[mask])


def test_channel_normalisation_cancels_shift_and_scale() -> None:
    features, mask, counts = small_clips()
    generator = torch.Generator().manual_seed(6)
    shift, scale = torch.randn(3, 2, 1, 4, generator=generator), torch.rand(3, 2, 1, 4, generator=generator) + 0.5
    for channel, other in (("mean", features + shift), ("mean_std", features * scale + shift)):
        encoder = randomised_encoder(channel=channel, pooling="mean_std")
        torch.testing.assert_close(encoder(other, mask, counts), encoder(features, mask, counts), rtol=1e-3, atol=1e-3)
        plain = randomised_encoder(channel="none", pooling="mean_std")
        assert (plain(other, mask, counts) - plain(features, mask, counts)).abs().max() > 0.1


@pytest.mark.parametrize("standardise", [True, False])
def test_pooled_channels_are_standardised_if_set(standardise: bool) -> None:
    encoder = randomised_encoder(standardise=standardise, pooling="mean_std", dropout=0.0)
    features, mask, counts = small_clips()
    pooled = encoder.pooled(features, mask)
    before = encoder(features, mask, counts)
    encoder.calibrate_pooled(10 * pooled + 3)
    expected = (pooled - (10 * pooled + 3).mean(dim=0)) / (10 * pooled).std(dim=0, correction=0).clamp(min=1e-3)
    after = encoder(features, mask, counts)
    assert torch.equal(after, before) is not standardise
    encoder.pooled_mean.zero_()
    encoder.pooled_std.fill_(1)
    torch.testing.assert_close(encoder.styles(expected if standardise else pooled, counts), after)
