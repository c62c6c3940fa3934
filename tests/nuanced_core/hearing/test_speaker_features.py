"""Speaker embeddings and pitch as inputs of a StyleEncoder."""

import math

import pytest
import torch
from torch import Tensor

from nuanced_core.config.settings import Features
from nuanced_core.hearing.speaker_features import (
    PITCH_SCALE,
    USUAL_PITCH,
    heard_voice,
    speaker_channels,
    speaker_features,
)

NAMES = {"none": (), "campplus": ("campplus",), "resemblyzer": ("resemblyzer",), "all": ("campplus", "resemblyzer")}
SETTINGS = [Features(speaker=speaker, pitch=pitch) for speaker in NAMES for pitch in (False, True)]


def _embeddings(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"resemblyzer": 256, "campplus": 192}  # not in the order of the input
    return {
        name: torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)
        for name, size in sizes.items()
    }


def _clip(embeddings: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: vectors[index] for name, vectors in embeddings.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.speaker}-{s.pitch}")
def test_channels_are_those_of_the_settings_and_are_heard_again(settings: Features) -> None:
    embeddings, pitch = _embeddings(3), torch.tensor([[7.0, 0.1], [7.7, 0.3], [8.1, 0.25]])
    inputs = torch.stack([speaker_features(settings, _clip({**embeddings, "pitch": pitch}, i)) for i in range(3)])
    sizes = {"none": 0, "campplus": 192, "resemblyzer": 256, "all": 448}
    assert inputs.shape[1] == speaker_channels(settings) == sizes[settings.speaker] + 2 * settings.pitch
    assert settings.speaker_parts == NAMES[settings.speaker] + ("pitch",) * settings.pitch
    found, found_pitch = heard_voice(settings, inputs)
    assert tuple(found) == NAMES[settings.speaker]
    for name, vectors in found.items():
        torch.testing.assert_close(vectors, embeddings[name])
    expected = pitch if settings.pitch else torch.full((3, 2), torch.nan)
    torch.testing.assert_close(found_pitch, expected, equal_nan=True)


def test_parts_are_in_order_and_their_channels_of_the_order_of_1() -> None:
    embeddings = _clip(_embeddings(1), 0)
    pitch = torch.tensor(USUAL_PITCH) + torch.tensor([1.0, -2.0]) * torch.tensor(PITCH_SCALE)
    inputs = speaker_features(Features(speaker="all", pitch=True), {**embeddings, "pitch": pitch})
    torch.testing.assert_close(inputs[:192], embeddings["campplus"] * math.sqrt(192))
    torch.testing.assert_close(inputs[192:448], embeddings["resemblyzer"] * math.sqrt(256))
    torch.testing.assert_close(inputs[448:], torch.tensor([1.0, -2.0]), rtol=1e-4, atol=1e-4)
    for part in (inputs[:192], inputs[192:448]):
        assert float(part.square().mean()) == pytest.approx(1, rel=1e-4)


def test_unvoiced_clip_has_the_usual_pitch() -> None:
    settings = Features(speaker="campplus", pitch=True)
    for pitch, expected in (
        ([torch.nan, torch.nan], USUAL_PITCH),
        ([8.0, torch.nan], (8.0, USUAL_PITCH[1])),
    ):
        parts = {**_clip(_embeddings(1), 0), "pitch": torch.tensor(pitch)}
        inputs = speaker_features(settings, parts)
        assert torch.isfinite(inputs).all()
        torch.testing.assert_close(heard_voice(settings, inputs[None])[1], torch.tensor([expected]))
