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
from nuanced_core.training.losses import MelSTFTLoss
from tests.fakes import LivelyKokoro, band_embedding, loudness_pitch

NAMES = ("af_bella", "am_fenrir", "bf_alice")
PHONEMES = ("abcd", "abcdefghi")  # of unlike lengths: a batch is padded
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


def _alone(clip: Clip, style: torch.Tensor, noise: int = 0):  # type: ignore[no-untyped-def]
    """What one style does with one sentence on the clip's alignment: sound, F0, energy, frames in all."""
    kokoro = LivelyKokoro()
    text = kokoro.encode_text([clip.utterance.phonemes])
    prosody = kokoro.prosody(text, style[None], clip.token_frames[None])
    audio = kokoro.speak(text, prosody, style[None], [clip.utterance.seed + noise]).item(0)
    return audio, prosody.f0[0].double().numpy(), prosody.energy[0].double().numpy(), float(prosody.durations.sum())


def _semitones(x: np.ndarray, y: np.ndarray) -> float:
    both = (x > 10) & (y > 10)
    return float(np.mean(np.abs(12 * np.log2(x[both] / y[both]))))


def test_no_voice_hears_the_sentence_that_it_has_to_say_and_each_hears_itself(
    dataset: Dataset, clips: list[Clip]
) -> None:
    table = Comparison(dataset, clips, 2)
    assert table.shape == (3, 2)
    for said, heard in zip(table.clips, table.heard, strict=True):
        assert said.utterance.voice == heard.utterance.voice
        assert said.utterance.text != heard.utterance.text
    assert {clip.key for clip in table.heard} == {clip.key for clip in clips}
    assert table.counts == [4, 9] * 3
    assert torch.equal(table.styles, torch.stack([clip.utterance.style for clip in clips]))


def test_each_measure_is_that_of_the_utterance_alone(dataset: Dataset, clips: list[Clip]) -> None:
    found = Comparison(dataset, clips, 2, band_embedding, loudness_pitch).measure(STYLES, noise=3)
    mel = MelSTFTLoss()
    for i, clip in enumerate(clips):
        style, true = STYLES[i], clip.utterance.style
        audio, f0, energy, length = _alone(clip, style, noise=3)
        true_audio, true_f0, true_energy, true_length = _alone(clip, true)
        assert torch.equal(true_audio, clip.audio)
        s, t = style.double().numpy(), true.double().numpy()
        cosines = [s[h] @ t[h] / np.linalg.norm(s[h]) / np.linalg.norm(t[h]) for h in (slice(128), slice(128, 256))]
        whole = s @ t / np.linalg.norm(s) / np.linalg.norm(t)
        heard = clips[i + 1 if i % 2 == 0 else i - 1].audio
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
            "heard_cosine": float(band_embedding(audio, KOKORO_RATE) @ band_embedding(heard, KOKORO_RATE)),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].shape == (3, 2)
            assert found[name].flat[i] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, i)


def test_the_true_style_differs_by_its_noise_alone(dataset: Dataset, clips: list[Clip]) -> None:
    table = Comparison(dataset, clips, 2, band_embedding, loudness_pitch)
    same, other = table.measure(table.styles), table.measure(table.styles, noise=1)
    perfect = {"stft": 0, "style": 0, "f0_semitones": 0, "duration_error": 0, "f0_crepe_semitones": 0}
    perfect |= dict.fromkeys(("style_cosine", "timbre_cosine", "prosody_cosine", "energy_correlation"), 1)
    for name, value in perfect.items():
        np.testing.assert_allclose(same[name], value, atol=1e-5, err_msg=name)
    assert (other["stft"] > 0.01).all()
    for name in perfect.keys() - {"stft", "f0_crepe_semitones"}:
        np.testing.assert_array_equal(other[name], same[name], err_msg=name)
    np.testing.assert_array_equal(same["f0_spread"], table.bounds()["f0_spread"])


def test_bounds_are_the_same_voice_and_the_other_voices_beside_the_clip_that_is_heard(
    dataset: Dataset, clips: list[Clip]
) -> None:
    found = Comparison(dataset, clips, 2, band_embedding).bounds()
    said = np.array([band_embedding(clip.audio, KOKORO_RATE).double().numpy() for clip in clips]).reshape(3, 2, -1)
    for v in range(3):
        for u in range(2):
            heard = said[v, 1 - u]  # of two sentences the other one
            assert found["same_cosine"][v, u] == pytest.approx(heard @ said[v, u], abs=1e-6)
            strangers = [heard @ said[w, u] for w in range(3) if w != v]
            assert found["stranger_cosine"][v, u] == pytest.approx(np.mean(strangers), abs=1e-6)
            f0 = _alone(clips[2 * v + u], clips[2 * v + u].utterance.style)[1]
            assert found["f0_spread"][v, u] == pytest.approx(np.std(12 * np.log2(f0[f0 > 10])), rel=1e-5)


def test_of_three_sentences_a_voice_hears_the_following_one_the_last_hears_the_first(
    dataset: Dataset, clips: list[Clip]
) -> None:
    three = dataset.clips(
        Utterance("af_sky", text, text, len(text), dataset.models.voices.style("af_sky", len(text)), 7)
        for text in ("ab", "abc", "abcde")
    )
    table = Comparison(dataset, [*three, *three], 3, band_embedding)
    assert [clip.utterance.text for clip in table.heard] == ["abc", "abcde", "ab"] * 2
    said = [band_embedding(clip.audio, KOKORO_RATE).double().numpy() for clip in three]
    expected = [said[1] @ said[0], said[2] @ said[1], said[0] @ said[2]]
    for bound in ("same_cosine", "stranger_cosine"):  # the other voice is the same one here
        np.testing.assert_allclose(table.bounds()[bound], [expected, expected], atol=1e-6)


def test_nothing_is_known_of_speakers_and_sound_without_what_measures_them(dataset: Dataset, clips: list[Clip]) -> None:
    table = Comparison(dataset, clips, 2)
    assert not {"heard_cosine", "f0_crepe_semitones"} & table.measure(STYLES).keys()
    assert table.bounds().keys() == {"f0_spread"}
    assert "heard_cosine" in Comparison(dataset, clips, 2, band_embedding).measure(STYLES)
    assert "f0_crepe_semitones" in Comparison(dataset, clips, 2, pitch=loudness_pitch).measure(STYLES)


def test_what_was_measured_is_not_spoken_again_and_what_differs_is(
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
    for table, styles, noise in (
        (Comparison(dataset, clips, 2), other_style, 0),
        (Comparison(dataset, clips, 2), STYLES, 1),
        (Comparison(dataset, clips[:4] + clips[5:3:-1], 2), STYLES, 0),
    ):
        before = models.kokoro.spoken
        found = table.measure(styles, noise)
        assert models.kokoro.spoken == before + 6
        assert any(not np.array_equal(found[name], first[name]) for name in first)


def test_a_style_without_voice_has_no_pitch_error_and_the_others_keep_theirs(
    dataset: Dataset, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Comparison(dataset, clips, 2).measure(STYLES)
    spoken = LivelyKokoro.prosody

    def mute(self, text, style, token_frames=None):  # type: ignore[no-untyped-def]
        prosody = spoken(self, text, style, token_frames)
        prosody.f0[(style == STYLES[2]).all(dim=1)] = 3.0  # Hz, below what Kokoro's source puts harmonics on
        return prosody

    monkeypatch.setattr(LivelyKokoro, "prosody", mute)
    found = Comparison(Dataset(dataset.models, dataset.folder.with_name("other")), clips, 2).measure(STYLES)
    for name in ("f0_semitones", "f0_spread"):
        assert np.isnan(found[name][1, 0])
        np.testing.assert_allclose(np.delete(found[name], 2), np.delete(plain[name], 2), rtol=1e-6)
