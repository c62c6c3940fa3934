"""Small encoders, clips and settings for the tests of the StyleEncoder."""

import itertools
import random
from collections.abc import Iterator
from typing import Any, get_args

import torch

from nuanced_core import StyleEncoder
from nuanced_core.config.settings import Encoder, Features, Settings
from nuanced_core.encoder.style_encoder import StyleEncoderConfig
from nuanced_core.hearing.speaker_features import speaker_channels
from nuanced_core.hearing.whisper_features import FeatureStatistics

__all__ = [
    "HALVES",
    "OUTPUTS",
    "PAIRWISE",
    "SPACE",
    "SURROGATE_CLIPS",
    "VOICES",
    "randomised_encoder",
    "small_clips",
    "small_config",
    "small_encoder",
    "small_packs",
]

VOICES = 5
LAYERS, CHANNELS = (1, 2), 4
SURROGATE_CLIPS = 20
HALVES = (slice(0, 128), slice(128, 256))  # of a style: timbre, prosody


def small_config(**settings: Any) -> StyleEncoderConfig:
    """Make the configuration of a small encoder; ``settings`` are fields of Encoder or Features."""
    features = {name: settings.pop(name) for name in list(settings) if name in Features.model_fields}
    return StyleEncoderConfig(
        encoder=Encoder(**{"width": 8, **settings}),
        features=Features(**features),
        whisper="tiny.en",
        layers=LAYERS,
        channels=CHANNELS,
        voices=VOICES,
        speaker_channels=speaker_channels(Features(**features)),
        surrogate_clips=SURROGATE_CLIPS if settings.get("surrogate_steps") else 0,
    )


def small_packs() -> torch.Tensor:
    """Make packs (5, 510, 256) that change linearly from the first row to the last."""
    ends = torch.randn(VOICES, 2, 256, generator=torch.Generator().manual_seed(1))
    return torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, 510).reshape(1, 510, 1))


def small_encoder(**settings: Any) -> StyleEncoder:
    """Make an untrained encoder in eval mode, calibrated with ``small_packs`` and random feature statistics."""
    torch.manual_seed(0)
    encoder = StyleEncoder(small_config(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    shape = (len(LAYERS), CHANNELS)
    statistics = FeatureStatistics(torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) + 1)
    encoder.calibrate(statistics, small_packs())
    return encoder


def randomised_encoder(**settings: Any) -> StyleEncoder:
    """Make an encoder as ``small_encoder`` does, with all weights and running statistics random."""
    encoder = small_encoder(**settings)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return encoder


def small_clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make features (3, 2, 7, 4) of clips of 7, 4 and 1 frames, their mask and their phoneme counts."""
    features = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(2))
    return features, torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.tensor([1, 40, 600])


def _choices(settings: type[Settings], name: str) -> list[Any]:
    return (
        [False, True] if name in ("residual", "standardise") else list(get_args(settings.model_fields[name].annotation))
    )


SPACE = {
    **{name: _choices(Features, name) for name in ("combine", "channel")},
    **{
        name: _choices(Encoder, name)
        for name in (
            "activation",
            "pooling",
            "normalisation",
            "residual",
            "standardise",
            "trunk",
            "output",
            "phoneme_count",
        )
    },
    "standardise": [False, True],
    "bound": [0.0, 4.0],
    "frame_width": [0, 6],
    "heads": [1, 3],
    "depth": [1, 3],
    "dropout": [0.0, 0.3],
    "residual_bound": [0.0, 0.5],
}


def _pairwise() -> Iterator[dict[str, Any]]:
    """Generate settings that contain every pair of choices of two settings at least once."""
    wanted = {
        ((a, x), (b, y)) for a, b in itertools.combinations(SPACE, 2) for x, y in itertools.product(SPACE[a], SPACE[b])
    }
    draw = random.Random(0)
    while wanted:
        (a, x), (b, y) = next(iter(sorted(wanted, key=str)))
        # Of some random settings with a missing pair, keep the one with the most missing pairs.
        tries = [{n: draw.choice(choices) for n, choices in SPACE.items()} | {a: x, b: y} for _ in range(30)]
        best = max(tries, key=lambda settings: len(wanted & set(itertools.combinations(settings.items(), 2))))
        wanted -= set(itertools.combinations(best.items(), 2))
        yield best


PAIRWISE = list(_pairwise())
OUTPUTS = [
    {"output": output, "trunk": trunk, "phoneme_count": count}
    for output, trunk, count in itertools.product(*(SPACE[name] for name in ("output", "trunk", "phoneme_count")))
]
