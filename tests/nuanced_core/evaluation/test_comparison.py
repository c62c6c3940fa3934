"""nuanced_core.evaluation.comparison against each utterance measured alone by NumPy and SciPy."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.utterances import Utterance
from nuanced_core.evaluation.comparison import Comparison
from nuanced_core.losses.reference import MelSTFTLoss
from tests.fakes import LivelyKokoro, band_embedding, loudness_pitch

NAMES = ("af_bella", "am_fenrir", "bf_alice")
PHONEMES = ("abcd", "abcdefghi")  # of different lengths, so that batches are padded
STYLES = torch.randn(6, 256, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def models(fakes: SimpleNamespace) -> SimpleNamespace:
    fakes.kokoro = LivelyKokoro()
    return fakes


@pytest.fixture
def dataset(models: SimpleNamespace, tmp_path: Path) -> Dataset:
    return Dataset(models, tmp_path / "cache")


@pytest.fixture
def clips(dataset: Dataset) -> list[Clip]:
    pairs = [(voice, phonemes) for voice in NAMES for phonemes in PHONEMES]
    return dataset.clips(
        Utterance(voice, phonemes, phonemes, len(phonemes), dataset.models.voices.style(voice, len(phonemes)), seed)
        for seed, (voice, phonemes) in enumerate(pairs)
    )


def _speak_alone(clip: Clip, style: torch.Tensor, noise: int = 0):  # type: ignore[no-untyped-def]
    """Speak one clip's sentence in a style on the clip's alignment; returns audio, F0, energy, length in frames."""
    kokoro = LivelyKokoro()
    text = kokoro.encode_text([clip.utterance.phonemes])
    prosody = kokoro.prosody(text, style[None], clip.token_frames[None])
    audio = kokoro.speak(text, prosody, style[None], [clip.utterance.seed + noise]).item(0)
    return audio, prosody.f0[0].double().numpy(), prosody.energy[0].double().numpy(), float(prosody.durations.sum())


def _semitones(x: np.ndarray, y: np.ndarray) -> float:
    both = (x > 10) & (y > 10)
    return float(np.mean(np.abs(12 * np.log2(x[both] / y[both]))))


def test_input_clips_have_the_same_voice_and_another_sentence(dataset: Dataset, clips: list[Clip]) -> None:
    comparison = Comparison(dataset, clips, 2)
    assert comparison.shape == (3, 2)
    for target, given in zip(comparison.target_clips, comparison.input_clips, strict=True):
        assert target.utterance.voice == given.utterance.voice
        assert target.utterance.text != given.utterance.text
    assert {clip.key for clip in comparison.input_clips} == {clip.key for clip in clips}
    assert comparison.phoneme_counts == [4, 9] * 3
    assert torch.equal(comparison.styles, torch.stack([clip.utterance.style for clip in clips]))


def test_batched_measures_equal_those_of_each_utterance_alone(dataset: Dataset, clips: list[Clip]) -> None:
    found = Comparison(dataset, clips, 2, band_embedding, loudness_pitch).measure(STYLES, noise=3)
    mel = MelSTFTLoss()
    for i, clip in enumerate(clips):
        style, true = STYLES[i], clip.utterance.style
        audio, f0, energy, length = _speak_alone(clip, style, noise=3)
        true_audio, true_f0, true_energy, true_length = _speak_alone(clip, true)
        assert torch.equal(true_audio, clip.audio)
        s, t = style.double().numpy(), true.double().numpy()
        cosines = [s[h] @ t[h] / np.linalg.norm(s[h]) / np.linalg.norm(t[h]) for h in (slice(128), slice(128, 256))]
        whole = s @ t / np.linalg.norm(s) / np.linalg.norm(t)
        input_audio = clips[i + 1 if i % 2 == 0 else i - 1].audio
        voiced = f0 > 10
        expected = {
            "stft": float(mel(mel.spectra(audio[None]), mel.spectra(clip.audio[None]))),
            "style": 1 - whole + np.mean((s - t) ** 2),
            "style_cosine": whole,
            "timbre_cosine": cosines[0],
            "prosody_cosine": cosines[1],
            "f0_semitones": _semitones(f0, true_f0),
            "f0_spread": np.std(12 * np.log2(f0[voiced])),
            "energy_correlation": stats.pearsonr(energy, true_energy)[0],
            "duration_error": abs(length - true_length) / true_length,
            "f0_crepe_semitones": _semitones(loudness_pitch(audio).numpy(), loudness_pitch(clip.audio).numpy()),
            "heard_cosine": float(band_embedding(audio, KOKORO_RATE) @ band_embedding(input_audio, KOKORO_RATE)),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].shape == (3, 2)
            assert found[name].flat[i] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, i)


def test_true_style_differs_only_in_audio_and_only_with_other_noise(dataset: Dataset, clips: list[Clip]) -> None:
    comparison = Comparison(dataset, clips, 2, band_embedding, loudness_pitch)
    same, other = comparison.measure(comparison.styles), comparison.measure(comparison.styles, noise=1)
    perfect = {"stft": 0, "style": 0, "f0_semitones": 0, "duration_error": 0, "f0_crepe_semitones": 0}
    perfect |= dict.fromkeys(("style_cosine", "timbre_cosine", "prosody_cosine", "energy_correlation"), 1)
    for name, value in perfect.items():
        np.testing.assert_allclose(same[name], value, atol=1e-5, err_msg=name)
    assert (other["stft"] > 0.01).all()
    for name in perfect.keys() - {"stft", "f0_crepe_semitones"}:
        np.testing.assert_array_equal(other[name], same[name], err_msg=name)
    np.testing.assert_array_equal(same["f0_spread"], comparison.bounds()["f0_spread"])


def test_bounds_compare_the_input_clip_with_the_same_voice_and_with_the_other_voices(
    dataset: Dataset, clips: list[Clip]
) -> None:
    found = Comparison(dataset, clips, 2, band_embedding).bounds()
    embeddings = np.array([band_embedding(clip.audio, KOKORO_RATE).double().numpy() for clip in clips]).reshape(
        3, 2, -1
    )
    for v in range(3):
        for u in range(2):
            given = embeddings[v, 1 - u]  # the voice's other sentence
            assert found["same_speaker_cosine"][v, u] == pytest.approx(given @ embeddings[v, u], abs=1e-6)
            others = [given @ embeddings[w, u] for w in range(3) if w != v]
            assert found["other_speaker_cosine"][v, u] == pytest.approx(np.mean(others), abs=1e-6)
            f0 = _speak_alone(clips[2 * v + u], clips[2 * v + u].utterance.style)[1]
            assert found["f0_spread"][v, u] == pytest.approx(np.std(12 * np.log2(f0[f0 > 10])), rel=1e-5)


def test_input_clip_is_the_next_sentence_and_for_the_last_one_the_first(dataset: Dataset) -> None:
    three = dataset.clips(
        Utterance("af_sky", text, text, len(text), dataset.models.voices.style("af_sky", len(text)), 7)
        for text in ("ab", "abc", "abcde")
    )
    comparison = Comparison(dataset, [*three, *three], 3, band_embedding)
    assert [clip.utterance.text for clip in comparison.input_clips] == ["abc", "abcde", "ab"] * 2
    embeddings = [band_embedding(clip.audio, KOKORO_RATE).double().numpy() for clip in three]
    expected = [embeddings[i] @ embeddings[j] for i, j in ((1, 0), (2, 1), (0, 2))]
    for bound in ("same_speaker_cosine", "other_speaker_cosine"):  # both voices are the same here
        np.testing.assert_allclose(comparison.bounds()[bound], [expected, expected], atol=1e-6)


def test_speaker_and_pitch_measures_need_a_speaker_encoder_and_a_pitch_tracker(
    dataset: Dataset, clips: list[Clip]
) -> None:
    comparison = Comparison(dataset, clips, 2)
    assert not {"heard_cosine", "f0_crepe_semitones"} & comparison.measure(STYLES).keys()
    assert comparison.bounds().keys() == {"f0_spread"}
    assert "heard_cosine" in Comparison(dataset, clips, 2, band_embedding).measure(STYLES)
    assert "f0_crepe_semitones" in Comparison(dataset, clips, 2, track_pitch=loudness_pitch).measure(STYLES)


def test_measures_are_cached_by_styles_noise_and_clips(
    dataset: Dataset, clips: list[Clip], models: SimpleNamespace
) -> None:
    first = Comparison(dataset, clips, 2).measure(STYLES)
    before = models.kokoro.spoken
    again = Comparison(dataset, clips, 2).measure(STYLES.clone())
    assert models.kokoro.spoken == before
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
    other_style = STYLES.clone()
    other_style[5, 200] += 0.5
    for comparison, styles, noise in (
        (Comparison(dataset, clips, 2), other_style, 0),
        (Comparison(dataset, clips, 2), STYLES, 1),
        (Comparison(dataset, clips[:4] + clips[5:3:-1], 2), STYLES, 0),
    ):
        before = models.kokoro.spoken
        found = comparison.measure(styles, noise)
        assert models.kokoro.spoken == before + 6
        assert any(not np.array_equal(found[name], first[name]) for name in first)


def test_pitch_measures_of_an_unvoiced_utterance_are_nan_and_the_others_unchanged(
    dataset: Dataset, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    voiced = Comparison(dataset, clips, 2).measure(STYLES)
    prosody_of = LivelyKokoro.prosody

    def mute(self, text, style, token_frames=None):  # type: ignore[no-untyped-def]
        prosody = prosody_of(self, text, style, token_frames)
        prosody.f0[(style == STYLES[2]).all(dim=1)] = 3.0  # Hz, below the voicing threshold of Kokoro's source
        return prosody

    monkeypatch.setattr(LivelyKokoro, "prosody", mute)
    found = Comparison(Dataset(dataset.models, dataset.folder.with_name("other")), clips, 2).measure(STYLES)
    for name in ("f0_semitones", "f0_spread"):
        assert np.isnan(found[name][1, 0])
        np.testing.assert_allclose(np.delete(found[name], 2), np.delete(voiced[name], 2), rtol=1e-6)
