"""A StyleEncoder that hears speaker embeddings and pitch beside Whisper's frames, and its steps on a surrogate."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core import StyleEncoder
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.errors import ConfigError
from nuanced_core.hearing.speaker_features import heard_voice, speaker_features
from nuanced_core.kokoro.style_frame import StyleFrame
from tests.nuanced_core.encoder.small_encoders import (
    OUTPUTS,
    SURROGATE_CLIPS,
    randomised_encoder,
    small_clips,
    small_encoder,
    small_packs,
)
from tests.nuanced_core.encoder.test_loading import SHIPPED, save

EVERYTHING = {"speaker": "all", "pitch": True}
SIZES = {"campplus": 192, "resemblyzer": 256}


def _encoder(**settings: Any) -> StyleEncoder:
    """Make a random encoder of moderate styles, with a random surrogate if it has one."""
    encoder = randomised_encoder(**settings)
    with torch.no_grad():
        for weights in encoder.heads.parameters():
            weights *= 0.05
    if encoder.surrogate is not None:
        sizes = {name: SIZES[name] for name in encoder.config.features.speaker_encoders}
        surrogate = Surrogate(StyleFrame(small_packs()), sizes, SURROGATE_CLIPS)
        generator = torch.Generator().manual_seed(5)
        for buffer in (surrogate.points, surrogate.coefficients, surrogate.mean):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        surrogate.mean[-2:] += torch.tensor([7.3, 0.2])
        encoder.surrogate.load_state_dict(surrogate.state_dict())
    return encoder


def _speaker(encoder: StyleEncoder, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    embeddings = {
        name: torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)
        for name, size in SIZES.items()
    }
    pitch = torch.tensor([7.3, 0.2]) + torch.rand(count, 2, generator=generator) * 0.2
    return torch.stack(
        [
            speaker_features(encoder.config.features, {n: x[i] for n, x in {**embeddings, "pitch": pitch}.items()})
            for i in range(count)
        ]
    )


def test_styles_depend_on_each_part_of_what_is_heard() -> None:
    encoder = _encoder(**EVERYTHING)
    inputs, speaker = small_clips(), _speaker(encoder)
    styles = encoder(*inputs, speaker)
    for part in (slice(0, 192), slice(192, 448), slice(448, 449), slice(449, 450)):
        changed = speaker.clone()
        changed[:, part] += 1
        assert ((encoder(*inputs, changed) - styles).abs().amax(dim=1) > 1e-3).all()
    features, mask, counts = inputs
    assert (encoder(features + 1, mask, counts, speaker) - styles).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "channels", "expected"),
    [
        (EVERYTHING, None, "speaker: 0 channels are not the 450 that features.speaker all and features.pitch True"),
        (EVERYTHING, 448, "speaker: 448 channels are not the 450"),
        ({"speaker": "campplus"}, 256, "speaker: 256 channels are not the 192 .* campplus and features.pitch False"),
        ({}, 192, "speaker: 192 channels are not the 0 that features.speaker none"),
    ],
)
def test_missing_or_wrong_input_is_one_clear_error(
    settings: dict[str, Any], channels: int | None, expected: str
) -> None:
    encoder = _encoder(**settings)
    features, mask, counts = small_clips()
    speaker = None if channels is None else torch.zeros(3, channels)
    one = None if speaker is None else speaker[:1]
    for call in (
        lambda: encoder(features, mask, counts, speaker),
        lambda: encoder.pack(features[:1], mask[:1], one),
        lambda: encoder.pooled_blocks(lambda: [features[0]], one),
    ):
        with pytest.raises(ConfigError, match=expected) as error:
            call()
        assert "\n" not in str(error.value) and "nuanced_core.hearing.speaker_features" in str(error.value)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("settings", OUTPUTS, ids=lambda s: "-".join(s.values()))
def test_pack_holds_the_style_of_each_count(settings: dict[str, Any], steps: int) -> None:
    encoder = _encoder(**EVERYTHING, **settings, surrogate_steps=steps)
    features, mask, _ = small_clips()
    speaker = _speaker(encoder)[:1]
    pooled = encoder.pooled(features[:1], mask[:1], speaker)
    pack = encoder.pack(features[:1], mask[:1], speaker)
    torch.testing.assert_close(encoder.pack_of(pooled), pack)
    tolerance = 1e-3 if steps else 1e-5  # a step is 30e-3, in standard deviations of voices
    counts = torch.tensor([1, 2, 40, 300, 510])
    torch.testing.assert_close(encoder(features[:1], mask[:1], counts[2:3], speaker), pack[39], rtol=0, atol=tolerance)
    together = encoder.styles(pooled.expand(5, -1), counts)
    torch.testing.assert_close(together, pack[counts - 1, 0], rtol=0, atol=tolerance)


def test_blocks_are_pooled_with_the_speaker() -> None:
    encoder = _encoder(**EVERYTHING, channel="mean", pooling="mean_std")
    features, mask, _ = small_clips()
    speaker = _speaker(encoder)[:1]
    blocks = encoder.pooled_blocks(lambda: [features[0, :, :3], features[0, :, 3:]], speaker)
    torch.testing.assert_close(blocks, encoder.pooled(features[:1], mask[:1], speaker), rtol=1e-4, atol=1e-4)


def test_steps_approach_what_is_heard_and_are_not_taken_in_training() -> None:
    encoder = _encoder(**EVERYTHING, surrogate_steps=20)
    plain = copy.deepcopy(encoder)
    plain.surrogate = None
    inputs, speaker = small_clips(), _speaker(encoder)
    counts = torch.full_like(inputs[2], 40)
    start, moved = (e(*inputs[:2], counts, speaker) for e in (plain, encoder))
    surrogate = encoder.surrogate
    assert surrogate is not None
    heard = heard_voice(encoder.config.features, speaker)
    before, after = (surrogate.loss(surrogate.frame.offsets(x, counts), *heard) for x in (start, moved))
    assert (after < before - 0.05).all()
    # The same offset is added for each phoneme count.
    others = [e(*inputs[:2], torch.full_like(counts, 300), speaker) for e in (plain, encoder)]
    torch.testing.assert_close(others[1] - others[0], moved - start, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        encoder.train()(*inputs[:2], counts, speaker), plain.train()(*inputs[:2], counts, speaker)
    )


def test_steps_start_at_the_style_for_40_phonemes_and_keep_to_the_settings() -> None:
    settings = {"surrogate_steps": 6, "surrogate_prior": 0.4, "surrogate_anchor": 0.3}
    encoder = _encoder(**EVERYTHING, **settings)
    surrogate, (features, mask, counts), speaker = encoder.surrogate, small_clips(), _speaker(encoder)
    assert surrogate is not None
    plain = copy.deepcopy(encoder)
    plain.surrogate = None
    of_40 = torch.full_like(counts, 40)
    start = surrogate.frame.offsets(plain(features, mask, of_40, speaker), of_40).detach()
    assert start.abs().mean() > 0.1
    heard = heard_voice(encoder.config.features, speaker)
    moved = surrogate.approach(start, *heard, 6, 0.4, 0.3)
    expected = plain(features, mask, counts, speaker) + (moved - start) * surrogate.frame.std
    torch.testing.assert_close(encoder(features, mask, counts, speaker), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pitch", [False, True])
def test_steps_can_do_without_gradient_and_without_pitch(pitch: bool) -> None:
    encoder = _encoder(speaker="campplus", pitch=pitch, surrogate_steps=3)
    inputs, speaker = small_clips(), _speaker(encoder)
    with torch.no_grad():
        inside = encoder(*inputs, speaker)
    assert torch.isfinite(inside).all()
    torch.testing.assert_close(inside, encoder(*inputs, speaker))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_the_trunk(training: bool) -> None:
    encoder = _encoder(**EVERYTHING, surrogate_steps=2).train(training)
    inputs, speaker = small_clips(), _speaker(encoder).requires_grad_()
    encoder(*inputs, speaker).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-5, name
    assert speaker.grad is not None and (speaker.grad.abs().amax(dim=1) > 1e-6).all()


def test_surrogate_does_not_change_the_initial_weights() -> None:
    plain, encoder = small_encoder(**EVERYTHING), small_encoder(**EVERYTHING, surrogate_steps=2)
    weights = encoder.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())
    assert {name.split(".")[0] for name in weights.keys() - plain.state_dict().keys()} == {"surrogate"}


def test_loading_keeps_the_surrogate(tmp_path: Path) -> None:
    encoder = _encoder(**EVERYTHING, surrogate_steps=3)
    save(encoder, tmp_path)
    loaded = StyleEncoder.from_pretrained(tmp_path)
    assert loaded.config == encoder.config
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())
    inputs, speaker = small_clips(), _speaker(encoder)
    assert torch.equal(loaded(*inputs, speaker), encoder(*inputs, speaker))


def test_export_of_before_speakers_loads(tmp_path: Path) -> None:
    """Its configuration has none of the settings, and it reads no speaker."""
    save(randomised_encoder(), tmp_path)
    for folder in (SHIPPED, tmp_path):
        old = tmp_path / "old"
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        shutil.copy(folder / "model.safetensors", old)
        data = json.loads((folder / "config.json").read_text())
        config = data["style_encoder"]
        if config["features"].get("speaker", "none") != "none":
            continue  # a newer one
        for section, name in (
            (config, "speaker_channels"),
            (config, "surrogate_clips"),
            *((config["features"], n) for n in ("speaker", "pitch")),
        ):
            section.pop(name, None)
        config["encoder"].pop("surrogate_steps", None)
        (old / "config.json").write_text(json.dumps(data))
        encoder = StyleEncoder.from_pretrained(old)
        assert encoder.surrogate is None and encoder.config.speaker_channels == 0
        new = StyleEncoder.from_pretrained(folder)
        shape = (1, len(new.config.layers), 9, new.config.channels)
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        mask = torch.ones(1, 9, dtype=torch.bool)
        assert torch.equal(encoder.pack(features, mask), new.pack(features, mask))
