"""The report of nuanced_core.evaluation.test_split against measures computed by NumPy and SciPy, one utterance at a
time."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import rendering
from nuanced_core.hearing.augmentation import DEGRADATIONS, degraded
from nuanced_core.kokoro.voices import TEST_VOICES
from nuanced_core.losses.reference import MelSTFTLoss
from tests.fakes import VOICES, FakeWhisper, LivelyKokoro, band_embedding, loudness_pitch
from tests.nuanced_core.evaluation.conftest import SplitSetup

PREDICTORS = ("mean", "nearest", "ridge", "encoder", "oracle")
TRAINING_VOICES = sorted({*VOICES} - {"af_sky", "bm_lewis"})


# The report with all measures is made once for all tests that read it.
@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SplitSetup, dict[str, Any]]]:
    data = {
        "data": {"voices": ["af_heart", "am_fenrir"], "val_voices": ["af_sky", "bm_lewis"]},
        "encoder": {"width": 8, "depth": 1},
        "objective": {"stft": 0.5, "style": 2.0},
    }
    setup = SplitSetup(tmp_path_factory.mktemp("full"), validate(RunConfig, data, "full"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "worker_count", lambda requests, models: 1)
        yield setup, setup.report(embed=band_embedding, track_pitch=loudness_pitch)


@pytest.fixture(scope="module")
def expected(full: tuple[SplitSetup, dict[str, Any]]) -> "ExpectedMeasures":
    return ExpectedMeasures(*full)


class ExpectedMeasures:
    """The report's measures recomputed one utterance at a time, with NumPy and the fakes."""

    def __init__(self, setup: SplitSetup, report: dict[str, Any]) -> None:
        self.clips = setup.clips(report["texts"])
        self.input_index = [i + 1 if i % 2 == 0 else i - 1 for i in range(18)]  # the voice's other sentence
        self.encoder, self.report = setup.encoder, report
        packs = np.array([np.load(setup.folder / "voices" / f"{name}.npy")[:, 0] for name in TRAINING_VOICES])
        self.mean_pack = packs.mean(axis=0)
        self.styles = {name: [self._style(name, i) for i in range(18)] for name in ("mean", "encoder", "oracle")}

    def encoded_style(self, audio: Tensor, phoneme_count: int) -> np.ndarray:
        """The encoder's style for audio at 16 kHz."""
        features = FakeWhisper()(audio)[None].half().float()
        mask = torch.ones(1, features.shape[2], dtype=torch.bool)
        with torch.no_grad():
            return self.encoder(features[:, [2, 0]], mask, torch.tensor([phoneme_count]))[0].numpy()

    @cache  # noqa: B019 (one object per module)
    def measured(self, predictor: str) -> dict[str, np.ndarray]:
        """Each measure, (9, 2)."""
        found: dict[str, list[float]] = {}
        mel, kokoro = MelSTFTLoss(), LivelyKokoro()
        for i, clip in enumerate(self.clips):
            style = torch.tensor(self.styles[predictor][i])
            text = kokoro.encode_text([clip.utterance.phonemes])
            now, true = (kokoro.prosody(text, s[None], clip.token_frames[None]) for s in (style, clip.utterance.style))
            seed = clip.utterance.seed + (predictor == "oracle")
            audio = kokoro.speak(text, now, style[None], [seed]).item(0)
            f0, true_f0 = now.f0[0].numpy(), true.f0[0].numpy()
            voiced = (f0 > 10) & (true_f0 > 10)
            s, t = style.double().numpy(), clip.utterance.style.double().numpy()
            one = {
                "stft": float(mel(mel.spectra(audio[None]), mel.spectra(clip.audio[None]))),
                "style_cosine": _cosine(s, t),
                "timbre_cosine": _cosine(s[:128], t[:128]),
                "prosody_cosine": _cosine(s[128:], t[128:]),
                "style": 1 - _cosine(s, t) + np.mean((s - t) ** 2),
                "f0_semitones": np.mean(np.abs(12 * np.log2(f0[voiced] / true_f0[voiced]))),
                "spread": np.std(12 * np.log2(f0[f0 > 10])),
                "true_spread": np.std(12 * np.log2(true_f0[true_f0 > 10])),
                "energy_correlation": stats.pearsonr(now.energy[0].numpy(), true.energy[0].numpy())[0],
                "duration_error": abs(float(now.durations.sum() / true.durations.sum()) - 1),
                "speaker_cosine": float(band_embedding(audio, 24_000) @ self.embedding(self.input_index[i])),
            }
            for name, value in one.items():
                found.setdefault(name, []).append(float(value))
        return {name: np.array(values).reshape(9, 2) for name, values in found.items()}

    def embedding(self, index: int) -> Tensor:
        return band_embedding(self.clips[index].audio, 24_000)

    def _style(self, predictor: str, i: int) -> np.ndarray:
        utterance = self.clips[i].utterance
        if predictor == "oracle":
            return utterance.style.numpy()
        if predictor == "mean":
            return self.mean_pack[len(utterance.phonemes) - 1]
        input_audio = self.clips[self.input_index[i]].audio
        return self.encoded_style(resample(input_audio, 24_000, 16_000), len(utterance.phonemes))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_report_has_each_measure_of_each_predictor_with_its_interval(
    full: tuple[SplitSetup, dict[str, Any]],
) -> None:
    _, report = full
    json.dumps(report, allow_nan=False)
    assert tuple(report["rows"]) == PREDICTORS
    measures = {
        "stft", "style_cosine", "timbre_cosine", "prosody_cosine", "skill", "f0_semitones", "f0_crepe_semitones",
        "f0_spread_correlation", "energy_correlation", "duration_error", "identity",
    }  # fmt: skip
    for row in report["rows"].values():
        assert set(row) == measures | {f"{name}_ci" for name in measures}
        for name in measures - {"f0_spread_correlation"}:  # undefined for the mean voice, whose spread is constant
            low, high = row[f"{name}_ci"]
            assert low <= row[name] <= high, name
    assert report["voices"] == sorted(TEST_VOICES) and report["sentences"] == len(report["texts"]) == 2
    assert report["whisper"] == "fake"


@pytest.mark.parametrize("predictor", ["mean", "encoder", "oracle"])
def test_measures_are_means_over_utterances_in_styles_predicted_from_the_voice_s_other_sentence(
    predictor: str, expected: ExpectedMeasures
) -> None:
    found, measured = expected.report["rows"][predictor], expected.measured(predictor)
    for name in (
        "stft", "style_cosine", "timbre_cosine", "prosody_cosine", "f0_semitones", "energy_correlation",
        "duration_error",
    ):  # fmt: skip
        assert found[name] == pytest.approx(measured[name].mean(), rel=1e-3, abs=1e-5), name
    if predictor != "mean":
        correlation = stats.pearsonr(measured["spread"].ravel(), measured["true_spread"].ravel())[0]
        assert found["f0_spread_correlation"] == pytest.approx(correlation, abs=1e-3)


def test_oracle_differs_from_the_target_clips_only_by_its_noise(full: tuple[SplitSetup, dict[str, Any]]) -> None:
    oracle = full[1]["rows"]["oracle"]
    for name in ("style_cosine", "timbre_cosine", "prosody_cosine", "energy_correlation", "f0_spread_correlation"):
        assert oracle[name] == pytest.approx(1, abs=1e-5)
    assert (oracle["f0_semitones"], oracle["duration_error"]) == pytest.approx((0, 0), abs=1e-6)
    assert 0 < oracle["stft"] < full[1]["rows"]["mean"]["stft"]
    assert oracle["identity"] == pytest.approx(1, abs=0.05)


def test_skill_is_0_for_the_mean_voice_and_1_for_the_oracle_and_ignores_the_run_s_objective(
    expected: ExpectedMeasures,
) -> None:
    rows = expected.report["rows"]
    assert (rows["mean"]["skill"], *rows["mean"]["skill_ci"]) == (0, 0, 0)
    assert (rows["oracle"]["skill"], *rows["oracle"]["skill_ci"]) == (1, 1, 1)
    loss = {}
    for name in ("mean", "encoder", "oracle"):
        measured = expected.measured(name)
        loss[name] = (measured["stft"] + measured["style"]).mean()  # the run's own objective has other weights
    skill = 1 - (loss["encoder"] - loss["oracle"]) / (loss["mean"] - loss["oracle"])
    assert rows["encoder"]["skill"] == pytest.approx(skill, rel=1e-3)


@pytest.mark.parametrize("predictor", ["mean", "encoder"])
def test_identity_is_0_for_the_other_test_voices_and_1_for_the_same_voice(
    predictor: str, expected: ExpectedMeasures
) -> None:
    cosine = expected.measured(predictor)["speaker_cosine"].mean()
    same, other = [], []
    for i in range(18):
        input_embedding, same_sentence = expected.embedding(expected.input_index[i]), range(i % 2, 18, 2)
        same.append(float(input_embedding @ expected.embedding(i)))
        other.append(np.mean([float(input_embedding @ expected.embedding(j)) for j in same_sentence if j != i]))
    identity = (cosine - np.mean(other)) / (np.mean(same) - np.mean(other))
    assert expected.report["rows"][predictor]["identity"] == pytest.approx(identity, rel=1e-3, abs=1e-4)


def test_intervals_are_over_voices_not_over_utterances(expected: ExpectedMeasures) -> None:
    measured, found = expected.measured("encoder"), expected.report["rows"]["encoder"]
    for name in ("stft", "f0_semitones"):
        options: dict[str, Any] = {"method": "percentile", "n_resamples": 10_000, "rng": np.random.default_rng(0)}
        voices = stats.bootstrap((measured[name].mean(axis=1),), np.mean, **options).confidence_interval
        width = voices.high - voices.low
        np.testing.assert_allclose(found[f"{name}_ci"], [voices.low, voices.high], atol=0.08 * width)


def test_gains_are_the_encoder_s_measures_minus_a_baseline_s_paired_by_voice(
    full: tuple[SplitSetup, dict[str, Any]],
) -> None:
    _, report = full
    encoder = report["rows"]["encoder"]
    assert set(report["gains"]) == {"nearest", "ridge"}
    for baseline, gains in report["gains"].items():
        for name in ("style_cosine", "stft", "f0_semitones"):
            assert gains[name] == pytest.approx(encoder[name] - report["rows"][baseline][name], abs=1e-9)
            low, high = gains[f"{name}_ci"]
            assert low <= gains[name] <= high

    # The unpaired intervals include the differences between voices; the paired ones do not.
    def width(row: dict[str, Any]) -> float:
        return float(row["stft_ci"][1] - row["stft_ci"][0])

    assert width(report["gains"]["ridge"]) < width(encoder) + width(report["rows"]["ridge"])


def test_nearest_predicts_a_training_voice_and_ridge_is_below_the_oracle(
    full: tuple[SplitSetup, dict[str, Any]],
) -> None:
    setup, report = full
    clips = setup.clips(report["texts"])
    cosines = []  # of each target clip and each training voice
    for clip in clips:
        voices = [setup.models.voices.style(name, len(clip.utterance.phonemes)) for name in TRAINING_VOICES]
        cosines.append([_cosine(v.numpy(), clip.utterance.style.numpy()) for v in voices])
    nearest = report["rows"]["nearest"]["style_cosine"] * len(clips)
    assert np.min(cosines, axis=1).sum() <= nearest <= np.max(cosines, axis=1).sum()
    assert report["rows"]["ridge"]["skill"] < 1
    assert len(report["ridge_penalties"]) == 2


def test_robustness_has_the_cosine_of_degraded_clips_and_its_loss_against_clean_clips(
    expected: ExpectedMeasures,
) -> None:
    report = expected.report
    assert tuple(report["robustness"]) == DEGRADATIONS == ("snr20", "snr10", "telephone", "room")
    for rows in report["robustness"].values():
        assert set(rows) == {"nearest", "ridge", "encoder"}
        for name, row in rows.items():
            clean = report["rows"][name]["style_cosine"]
            assert row["loss"] == pytest.approx(clean - row["style_cosine"], abs=1e-6)
            for measure in ("style_cosine", "loss"):
                low, high = row[f"{measure}_ci"]
                assert low <= row[measure] <= high
    cosines = []
    for i, clip in enumerate(expected.clips):
        clean_audio = resample(expected.clips[expected.input_index[i]].audio, 24_000, 16_000)
        style = expected.encoded_style(degraded(clean_audio, 16_000, "telephone", 0), len(clip.utterance.phonemes))
        cosines.append(_cosine(style, clip.utterance.style.numpy()))
    found = report["robustness"]["telephone"]["encoder"]["style_cosine"]
    assert found == pytest.approx(np.mean(cosines), abs=1e-4)
    assert abs(report["robustness"]["telephone"]["encoder"]["loss"]) > 1e-4


def test_noise_is_20_and_10_db_below_the_input_clip(setup: SplitSetup) -> None:
    first = setup.report(robustness=False)
    clean = [resample(clip.audio, 24_000, 16_000) for clip in setup.clips(first["texts"])]
    whisper_inputs: list[Tensor] = []
    whisper = setup.models.whisper

    def spy(audio: Tensor) -> Tensor:
        whisper_inputs.append(audio)
        return whisper(audio)

    setup.models.whisper = spy
    assert setup.report()["rows"] == first["rows"]
    assert len(whisper_inputs) == 4 * 18  # each clip in each condition; clean clips are cached
    for start, decibels in ((0, 20), (18, 10)):
        for i, noisy in enumerate(whisper_inputs[start : start + 18]):
            signal = clean[i + 1 if i % 2 == 0 else i - 1]
            ratio = signal.square().mean() / (noisy - signal).square().mean()
            assert 10 * float(torch.log10(ratio)) == pytest.approx(decibels, abs=0.1)
