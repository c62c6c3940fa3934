"""How the output of the last layer becomes a style: offset, blend and span, and the interpolation between knots."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from nuanced_core import StyleEncoder
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing.whisper_features import FeatureStatistics
from tests.nuanced_core.encoder.small_encoders import (
    HALVES,
    VOICES,
    randomised_encoder,
    small_clips,
    small_config,
    small_encoder,
    small_packs,
)


def test_offset_is_in_standard_deviations_of_the_training_voices() -> None:
    encoder = small_encoder(output="offset")
    encoder.heads[0].bias.data.fill_(2)
    spread = (small_packs() - small_packs().mean(dim=0)).square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(encoder(*small_clips()), small_packs().mean(dim=0)[[0, 39, 509]] + 2 * spread)


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_blend_is_convex_plus_a_bounded_residual(trunk: str) -> None:
    encoder = small_encoder(output="blend", trunk=trunk, residual_bound=0.5)
    generator = torch.Generator().manual_seed(5)
    biases = [torch.randn(head.bias.shape, generator=generator) * 3 for head in encoder.heads]
    for head, bias in zip(encoder.heads, biases, strict=True):
        head.bias.data = bias
    parts = [slice(0, 256)] if trunk == "shared" else HALVES
    spread = (small_packs() - small_packs().mean(dim=0)).square().mean(dim=(0, 1)).sqrt()
    expected = [
        torch.tensordot(torch.softmax(bias[:VOICES], dim=0), small_packs()[..., part], 1)
        + 0.5 * spread[part] * torch.tanh(bias[VOICES:])
        for bias, part in zip(biases, parts, strict=True)
    ]
    features, mask, _ = small_clips()
    found = encoder.pack(features[:1], mask[:1]).squeeze(1)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=3e-3)


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_span_contains_each_training_voice_and_each_pair_of_halves(trunk: str) -> None:
    encoder = small_encoder(output="span", trunk=trunk)
    packs = small_packs()
    for timbre, prosody in ((2, 2), (0, 4)):
        weights = torch.zeros(2, VOICES)
        weights[0, timbre] = weights[1, prosody] = 1
        biases = [weights.flatten()] if trunk == "shared" else list(weights)
        for head, bias in zip(encoder.heads, biases, strict=True):
            head.bias.data = bias
        expected = torch.cat([packs[timbre, :, :128], packs[prosody, :, 128:]], dim=1)
        features, mask, _ = small_clips()
        found = encoder.pack(features[:1], mask[:1]).squeeze(1)
        assert cosine_similarity(found, expected).min() > 0.9999


def test_span_is_an_affine_combination_of_each_half() -> None:
    encoder = small_encoder(output="span")
    weights = torch.randn(2, VOICES, generator=torch.Generator().manual_seed(4))
    encoder.heads[0].bias.data = weights.flatten()
    mean, offsets = small_packs().mean(dim=0), small_packs() - small_packs().mean(dim=0)
    half = [mean[:, part] + torch.tensordot(w, offsets[..., part], 1) for w, part in zip(weights, HALVES, strict=True)]
    features, mask, _ = small_clips()
    found = encoder.pack(features[:1], mask[:1]).squeeze(1)
    torch.testing.assert_close(found, torch.cat(half, dim=1), rtol=0, atol=3e-3)


@pytest.mark.real
def test_knots_reproduce_the_stock_voices(models: ModelSet) -> None:
    names = models.voices.training_voices("all", ("af_sky",))
    packs = torch.stack([models.voices.pack(name) for name in names])
    config = small_config(output="span").model_copy(update={"voices": len(names)})
    encoder = StyleEncoder(config).eval()
    encoder.calibrate(FeatureStatistics(encoder.feature_mean, encoder.feature_std), packs)
    assert encoder.voice_offsets.nbytes < 1e6
    features, mask, _ = small_clips()
    for voice, pack in enumerate(packs):
        weights = torch.zeros(2, len(names))
        weights[:, voice] = 1
        encoder.heads[0].bias.data = weights.flatten()
        with torch.no_grad():
            found = encoder.pack(features[:1], mask[:1]).squeeze(1)
        for half in HALVES:
            cosine = cosine_similarity(found[:, half], pack[:, half])
            assert cosine.min() > 0.999 and cosine.mean() > 0.99999, names[voice]


def test_attention_weights_are_those_with_which_frames_are_pooled() -> None:
    encoder = randomised_encoder(pooling="attentive", heads=1).eval()
    features, mask, _ = small_clips()
    weights = encoder.attention_weights(features, mask)
    assert weights is not None
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(mask), 1))
    assert not weights[~mask].any()
    frames = encoder.frames(features, mask).masked_fill(~mask.unsqueeze(2), 0)
    torch.testing.assert_close(torch.einsum("bth,btc->bc", weights, frames), encoder.pooled(features, mask))
    assert randomised_encoder(pooling="mean").attention_weights(features, mask) is None
