"""The StyleEncoder as a whole: padding, gradients, phoneme counts, and the layers of its network."""

from typing import Any

import pytest
import torch

from nuanced_core.config.settings import Encoder, Features, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.errors import ConfigError
from nuanced_core.hearing.whisper_features import FeatureStatistics
from tests.nuanced_core.encoder.small_encoders import (
    OUTPUTS,
    PAIRWISE,
    SPACE,
    randomised_encoder,
    small_clips,
    small_encoder,
    small_packs,
)


def test_pairwise_settings_cover_all_fields() -> None:
    others = {"layers", "width", "speaker", "pitch"}
    others |= {"surrogate_steps", "surrogate_prior", "surrogate_anchor"}  # test_speakers.py, test_surrogate.py
    assert {*SPACE, *others} == {*Features.model_fields, *Encoder.model_fields}
    assert 28 <= len(PAIRWISE) < 50  # 7 poolings with 4 activations each


@pytest.mark.parametrize("settings", PAIRWISE, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_padding_does_not_change_styles(settings: dict[str, Any]) -> None:
    encoder = randomised_encoder(**settings)
    features, mask, counts = small_clips()
    styles = encoder(features, mask, counts)
    assert torch.isfinite(styles).all()
    junk = features.masked_fill(~mask[:, None, :, None], float("nan"))
    torch.testing.assert_close(encoder(junk, mask, counts), styles)
    alone = encoder(features[1:2, :, :4], mask[1:2, :4], counts[1:2])
    torch.testing.assert_close(styles[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", PAIRWISE, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_gradients_reach_every_parameter(settings: dict[str, Any]) -> None:
    pools_nothing = settings["pooling"] == "mean" and settings["channel"] != "none" and not settings["frame_width"]
    encoder = randomised_encoder(**{**settings, **({"channel": "none"} if pools_nothing else {})}).train()
    features, mask, counts = small_clips()
    features = features.repeat(4, 1, 1, 1) + torch.randn(12, 2, 7, 4, generator=torch.Generator().manual_seed(3))
    mask = mask.repeat(4, 1)
    features = features.masked_fill(~mask[:, None, :, None], float("nan"))
    encoder(features, mask, counts.repeat(4)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-5, name
    assert all((head.bias.grad != 0).all() for head in encoder.heads)  # each output has an effect


@pytest.mark.parametrize("settings", OUTPUTS, ids=lambda s: "-".join(s.values()))
def test_untrained_encoder_returns_the_mean_voice(settings: dict[str, Any]) -> None:
    encoder = small_encoder(**settings)
    mean = small_packs().mean(dim=0)
    if settings["phoneme_count"] == "none":
        mean = mean.mean(dim=0, keepdim=True).expand(510, 256)
    torch.testing.assert_close(encoder(*small_clips()), mean[[0, 39, 509]])
    features, mask, _ = small_clips()
    torch.testing.assert_close(encoder.pack(features[:1], mask[:1]).squeeze(1), mean)


@pytest.mark.parametrize("settings", OUTPUTS, ids=lambda s: "-".join(s.values()))
def test_pack_holds_the_style_of_each_phoneme_count(settings: dict[str, Any]) -> None:
    encoder = randomised_encoder(**settings)
    features, mask, _ = small_clips()
    pack = encoder.pack(features[:1], mask[:1])
    assert pack.shape == (510, 1, 256)
    styles = encoder(features[:1].expand(510, -1, -1, -1), mask[:1].expand(510, -1), torch.arange(1, 511))
    torch.testing.assert_close(pack.squeeze(1), styles)
    rows_differ = (pack[1:] - pack[:-1]).abs().amax(dim=(1, 2)) > 1e-5
    assert not rows_differ.any() if settings["phoneme_count"] == "none" else rows_differ.all()


def test_offset_varies_with_the_phoneme_count_only_with_an_embedding() -> None:
    features, mask, _ = small_clips()
    for phoneme_count in ("rows", "embedding"):
        encoder = randomised_encoder(phoneme_count=phoneme_count)
        offsets = encoder.pack(features[:1], mask[:1]).squeeze(1) - encoder.mean_pack
        assert torch.allclose(offsets, offsets[:1], atol=1e-5) == (phoneme_count == "rows")
        steps = (offsets[1:] - offsets[:-1]).abs().amax(dim=1)
        assert steps[300:].max() < 0.1 * offsets.abs().max()


def test_separate_trunk_affects_only_its_half() -> None:
    for output in SPACE["output"]:
        encoder = randomised_encoder(trunk="separate", output=output)
        before = encoder(*small_clips())
        for parameter in [*encoder.trunks[0].parameters(), *encoder.heads[0].parameters()]:
            torch.nn.init.zeros_(parameter)
        moved = (encoder(*small_clips()) - before).abs().amax(dim=0)
        assert (moved[:128] > 0).all() and (moved[128:] == 0).all()


def test_residual_connections_require_equal_shapes() -> None:
    encoder = randomised_encoder(residual=True, depth=3, width=8)
    first, second, third = encoder.trunks[0]
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(7))
    plain = lambda layer, x: torch.nn.functional.gelu(x @ layer.linear.weight.T + layer.linear.bias)  # noqa: E731
    y = x + plain(first, x)
    y = y + plain(second, y)
    torch.testing.assert_close(encoder.trunks[0](x), y + plain(third, y))
    projecting = randomised_encoder(residual=True, depth=1, width=5).trunks[0]
    torch.testing.assert_close(projecting(x), plain(projecting[0], x))


def test_batch_normalisation_accepts_a_batch_of_one() -> None:
    encoder = randomised_encoder(normalisation="batch")
    features, mask, counts = small_clips()
    one = (features[:1], mask[:1], counts[:1])
    expected = encoder(*one)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    torch.testing.assert_close(encoder.train()(*one), expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    encoder(features, mask, counts)
    norm = encoder.trunks[0][0].normalisation
    assert not torch.equal(norm.running_mean, before["trunks.0.0.normalisation.running_mean"])


def test_dropout_applies_only_in_training() -> None:
    encoder = randomised_encoder(dropout=0.5)
    assert torch.equal(encoder(*small_clips()), encoder(*small_clips()))
    encoder.train()
    assert not torch.equal(encoder(*small_clips()), encoder(*small_clips()))


def test_packs_of_another_number_of_voices_raise() -> None:
    encoder = small_encoder()
    statistics = FeatureStatistics(encoder.feature_mean, encoder.feature_std)
    with pytest.raises(ConfigError, match=r"packs: shape \(1, 510, 256\) is not \(5, 510, 256\)"):
        encoder.calibrate(statistics, small_packs()[:1])


def test_more_heads_than_channels_raise() -> None:
    with pytest.raises(ConfigError, match=r"encoder: .*4 heads cannot share 2 channels"):
        validate(RunConfig, {"encoder": {"pooling": "attentive", "heads": 4, "frame_width": 2}}, "x.yaml")
