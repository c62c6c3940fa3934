"""nuanced_core.speakers.ge2e with the real parameters, against the package resemblyzer."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.speakers.ge2e import GE2E, window_starts
from nuanced_core.weights.fetch import fetch_speaker_encoder
from tests.nuanced_core.speakers.directional import slopes
from tests.nuanced_core.speakers.sounds import voice


@pytest.fixture(scope="module")
def model() -> GE2E:
    checkpoint = torch.load(fetch_speaker_encoder("resemblyzer").path, map_location="cpu", weights_only=True)
    return GE2E(checkpoint["model_state"])


@pytest.fixture(scope="module")
def resemblyzer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("resemblyzer", reason="the extra eval is not installed")
        return package.VoiceEncoder("cpu", verbose=False)


@pytest.mark.parametrize("seconds", [0.5, 1.59, 1.6, 1.61, 2.2, 2.98, 3.0, 4.7])
def test_embedding_equals_resemblyzer_s(model: GE2E, resemblyzer: Any, seconds: float) -> None:
    audio = voice(140, seconds)
    expected = torch.from_numpy(resemblyzer.embed_utterance(audio.numpy()))
    torch.testing.assert_close(model(audio[None])[0], expected, atol=1e-5, rtol=0)


def test_windows_are_those_of_resemblyzer(resemblyzer: Any) -> None:
    for samples in range(8_000, 120_000, 701):
        _, slices = resemblyzer.compute_partial_slices(samples, 1.3, 0.75)
        assert window_starts(samples) == [one.start for one in slices], samples


def test_windows_of_known_lengths() -> None:
    assert window_starts(8_000) == [0]
    assert window_starts(160 * 160) == [0]
    # A second window, from frame 77, is heard if the clip covers 120 of its 160 frames.
    assert window_starts((77 + 120) * 160 - 1) == [0]
    assert window_starts((77 + 120) * 160) == [0, 77]
    assert window_starts(48_000) == [0, 77, 154]


def test_a_batch_equals_its_clips(model: GE2E) -> None:
    clips = torch.stack([voice(f0, 2.5, tract) for f0, tract in ((110, 0.95), (205, 1.15), (150, 1.0))])
    torch.testing.assert_close(model(clips), torch.cat([model(clip[None]) for clip in clips]), atol=1e-5, rtol=0)


def test_gradient_equals_finite_differences(model: GE2E) -> None:
    exact = GE2E(model.state_dict()).double()
    weights = torch.randn(256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient, difference = slopes(lambda audio: exact(audio)[0] @ weights, voice(150, 2.0)[None].double(), step=1e-6)
    assert abs(difference) > 1e-3
    assert gradient == pytest.approx(difference, rel=1e-4)


def test_it_is_frozen_and_its_lstm_stays_in_training_mode(model: GE2E) -> None:
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for _ in (model.eval(), torch.nn.Sequential(model).eval()):
        assert model.lstm.training and not model.training
    with pytest.raises(RuntimeError, match=r"linear\.bias"):
        GE2E({name: value for name, value in model.state_dict().items() if name != "linear.bias"})


def test_a_clip_of_silence_has_finite_values_and_gradients(model: GE2E) -> None:
    silence: Tensor = torch.zeros(1, 16_000, requires_grad=True)
    found = model(silence)
    found.sum().backward()
    assert found.isfinite().all() and silence.grad is not None and silence.grad.isfinite().all()
