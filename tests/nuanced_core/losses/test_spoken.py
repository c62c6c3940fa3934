from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.config.settings import Loss
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.utterances import Utterance
from nuanced_core.losses import spoken as spoken_losses
from nuanced_core.losses.reference import MelSTFTLoss, STFTLoss
from nuanced_core.losses.spoken import SpokenLosses
from tests.fakes import LivelyKokoro

ALL = Loss(stft=1, linear_stft=1, f0=1, energy=1, duration=1)
STYLES = torch.randn(3, 256, generator=torch.Generator().manual_seed(3))
PHONEMES = ("abc", "abcdefg", "abcde")
WINDOWS = [(0, 20), (4, 12), (3, 16)]  # the first is the whole clip


@pytest.fixture
def dataset(fakes: SimpleNamespace, tmp_path: Path) -> Dataset:
    fakes.kokoro = LivelyKokoro()
    return Dataset(fakes, tmp_path / "cache")


@pytest.fixture
def clips(dataset: Dataset) -> list[Clip]:
    return dataset.clips(
        Utterance(voice, text, text, len(text), dataset.models.voices.style(voice, len(text)), seed)
        for seed, (voice, text) in enumerate(zip(("af_sky", "am_fenrir", "bf_alice"), PHONEMES, strict=True))
    )


def _losses(dataset: Dataset, weights: Loss = ALL) -> SpokenLosses:
    return SpokenLosses(dataset, weights, "float32", checkpointing=False)


def _alone(clip: Clip, window: tuple[int, int], style: Tensor):  # type: ignore[no-untyped-def]
    """Render one clip's window in a style: audio, and F0, energy and durations of the whole clip."""
    kokoro = LivelyKokoro()
    text = kokoro.encode_text([clip.utterance.phonemes])
    prosody = kokoro.prosody(text, style[None], clip.token_frames[None])
    audio = kokoro.speak(text, prosody, style[None], [clip.utterance.seed], [window]).item(0)
    return audio, *(curve[0].double().numpy() for curve in (prosody.f0, prosody.energy, prosody.durations))


def _octaves(f0: np.ndarray) -> np.ndarray:
    """Base-2 logarithm, below 50 Hz its tangent."""
    return np.where(f0 >= 50, np.log2(np.maximum(f0, 50)), np.log2(50) + (f0 - 50) / (50 * np.log(2)))


def _expected(clip: Clip, window: tuple[int, int], style: Tensor) -> dict[str, float]:
    audio, f0, energy, durations = _alone(clip, window, style)
    true_audio, true_f0, true_energy, true_durations = _alone(clip, window, clip.utterance.style)
    mel, linear = MelSTFTLoss(), STFTLoss()
    voiced = true_f0 > 10
    return {
        "stft": float(mel(mel.spectra(audio[None]), mel.spectra(true_audio[None]))),
        "linear_stft": float(linear(linear.spectra(audio[None]), linear.spectra(true_audio[None]))),
        "f0": np.abs(_octaves(f0) - _octaves(true_f0))[voiced].mean(),
        "energy": np.abs(energy - true_energy).mean(),
        "duration": np.abs(durations - true_durations)[1:-1].mean(),
    }


def test_each_term_is_the_mean_over_clips(dataset: Dataset, clips: list[Clip]) -> None:
    found = _losses(dataset)(clips, WINDOWS, STYLES)
    alone = [_expected(*one) for one in zip(clips, WINDOWS, STYLES, strict=True)]
    assert found.keys() == alone[0].keys()
    for name, term in found.items():
        assert term.shape == ()
        assert float(term) == pytest.approx(np.mean([one[name] for one in alone]), rel=1e-4), name
        assert float(term) > 0.01


def test_terms_are_0_for_the_true_styles(dataset: Dataset, clips: list[Clip]) -> None:
    true = torch.stack([clip.utterance.style for clip in clips])
    for name, term in _losses(dataset)(clips, WINDOWS, true).items():
        assert float(term) == pytest.approx(0, abs=1e-5), name


def test_prosody_terms_do_not_depend_on_the_window(dataset: Dataset, clips: list[Clip]) -> None:
    losses = _losses(dataset)
    here, there = (losses(clips[1:2], [window], STYLES[:1]) for window in ((0, 8), (20, 16)))
    for name in ("f0", "energy", "duration"):
        assert here[name] == there[name]
    for name in ("stft", "linear_stft"):
        assert here[name] != there[name]


@pytest.mark.parametrize(
    ("weights", "terms", "spectral"),
    [
        (Loss(stft=0, style=1), set(), False),
        (Loss(stft=0, duration=0.1), {"duration"}, False),
        (Loss(stft=0, f0=1, energy=2), {"f0", "energy"}, False),
        (Loss(stft=0.5, style=0), {"stft"}, True),
        (Loss(stft=0, linear_stft=1, energy=1), {"linear_stft", "energy"}, True),
    ],
)
def test_only_terms_with_a_weight_are_computed_and_none_is_weighted(
    dataset: Dataset, clips: list[Clip], weights: Loss, terms: set[str], spectral: bool
) -> None:
    losses = _losses(dataset, weights)
    assert (losses.wanted, losses.spectral) == (bool(terms), spectral)
    before = dataset.models.kokoro.spoken
    found = losses(clips[:1], [(0, 20)], STYLES[:1])
    assert dataset.models.kokoro.spoken - before == int(spectral)  # the reference is the clip itself
    expected = _expected(clips[0], (0, 20), STYLES[0])
    assert {name: float(term) for name, term in found.items()} == pytest.approx(
        {name: expected[name] for name in terms}, rel=1e-4
    )


def test_gradient_to_a_style_equals_finite_differences(dataset: Dataset, clips: list[Clip]) -> None:
    losses = _losses(dataset)
    step = 1e-2
    for name in ("stft", "linear_stft", "f0", "energy", "duration"):
        styles = STYLES.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(clips, WINDOWS, styles)[name], styles)
        channel = int(gradient[1].abs().argmax())
        moved = []
        for sign in (1, -1):
            other = STYLES.clone()
            other[1, channel] += sign * step
            moved.append(float(losses(clips, WINDOWS, other)[name]))
        assert float(gradient[1, channel]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.05), name
        assert gradient[1, channel] != 0
        assert not gradient[:, 200:].any()  # channels that this Kokoro does not use


class CountingKokoro(LivelyKokoro):
    """Counts the styles whose prosody was predicted."""

    predicted = 0

    def prosody(self, text, style, token_frames=None):  # type: ignore[no-untyped-def]
        self.predicted += len(style)
        return super().prosody(text, style, token_frames)


def _work(dataset: Dataset, losses: SpokenLosses, clips: list[Clip]) -> tuple[dict[str, float], int, int]:
    """Compute the terms; return them, the number of rendered windows, and the number of predicted prosodies."""
    kokoro = dataset.models.kokoro
    spoken, predicted = kokoro.spoken, kokoro.predicted
    found = losses(clips, WINDOWS[: len(clips)], STYLES[: len(clips)])
    return {n: float(t) for n, t in found.items()}, kokoro.spoken - spoken, kokoro.predicted - predicted


def test_references_are_computed_once_until_they_are_cleared(dataset: Dataset, clips: list[Clip]) -> None:
    dataset.models.kokoro = CountingKokoro()
    losses = _losses(dataset)
    first, spoken, predicted = _work(dataset, losses, clips)
    assert (spoken, predicted) == (3 + 2, 3 + 3 + 2)  # predictions; windows that are not the whole clip; their prosody
    assert _work(dataset, losses, clips) == (first, 3, 3)
    losses.clear()
    assert _work(dataset, losses, clips) == (first, 3, 3 + 3)  # the windows are in the cache


def test_references_without_room_are_computed_again_with_the_same_result(
    dataset: Dataset, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.models.kokoro = CountingKokoro()
    expected, _, _ = _work(dataset, _losses(dataset), clips)
    monkeypatch.setattr(spoken_losses, "PROSODY_CACHE_CLIPS", 1)
    monkeypatch.setattr(spoken_losses, "SPECTRA_CACHE_BYTES", 1)
    losses = _losses(dataset)
    for _ in range(2):
        assert _work(dataset, losses, clips) == (expected, 3, 3 + 3)


def test_rendering_settings_reach_kokoro(dataset: Dataset, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    speak = LivelyKokoro.speak

    def spy(self, text, prosody, style, seeds, windows=None, **options):  # type: ignore[no-untyped-def]
        calls.append(options)
        return speak(self, text, prosody, style, seeds, windows, **options)

    monkeypatch.setattr(LivelyKokoro, "speak", spy)
    SpokenLosses(dataset, Loss(), "bf16", checkpointing=True)(clips[1:2], [(2, 8)], STYLES[:1])
    # The prediction uses the run's settings; the reference, which all runs share, always uses the same.
    assert calls == [
        {"precision": "bf16", "checkpointing": True},
        {"precision": "float32", "checkpointing": False},
    ]
