import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.encoder.export import export_encoder
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, VoiceError, WeightsError
from nuanced_core.evaluation import predictors as style_rows
from nuanced_core.evaluation import test_split as held_out
from nuanced_core.evaluation.test_split import evaluate, held_out_sentences, held_out_utterances, load_export
from nuanced_core.hearing.augmentation import DEGRADATIONS, degraded
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences
from nuanced_core.training.losses import MelSTFTLoss
from nuanced_core.training.run import BEST, Run
from tests.fakes import (
    VOICES,
    FakeWhisper,
    LivelyKokoro,
    band_embedding,
    fake_models,
    held_out_models,
    loudness_pitch,
    random_encoder,
)

ROWS = ("mean", "nearest", "ridge", "encoder", "oracle")
LETTERS = Phonemizer("letters", lambda text: text)


class Lab:
    """Evaluations of one encoder with the fakes; what Whisper heard and what was said is kept."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder, self.run = folder, run
        self.models = held_out_models(folder / "voices")
        self.encoder = random_encoder(self.models, run)
        self.said: list[str] = []

    @property
    def dataset(self) -> Dataset:
        return Dataset(self.models, self.folder / "cache")  # type: ignore[arg-type]

    def report(self, *overrides: str, **options: Any) -> dict[str, Any]:
        run = validate(RunConfig, apply_overrides(self.run.model_dump(mode="json"), overrides), "test")
        return evaluate(self.encoder, run, self.dataset, sentences=2, say=self.said.append, **options)

    def clips(self, texts: list[str]) -> list[Clip]:
        """Each test voice saying each text, rendered apart from the evaluation's own cache."""
        utterances = held_out_utterances(self.models.voices, {text: self.models.phonemizer(text) for text in texts})
        return Dataset(self.models, self.folder / "apart").clips(utterances)  # type: ignore[arg-type]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_rows, "worker_count", lambda orders, models: 1)


@pytest.fixture
def lab(tmp_path: Path, tiny_run: RunConfig, one_process: None) -> Lab:
    return Lab(tmp_path, tiny_run)


# The whole report, with all that can be measured, is made once for the tests that look at it.
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, dict[str, Any]]]:
    data = {
        "data": {"voices": ["af_heart", "am_fenrir"], "val_voices": ["af_sky", "bm_lewis"]},
        "encoder": {"width": 8, "depth": 1},
        "objective": {"stft": 0.5, "style": 2.0},
    }
    lab = Lab(tmp_path_factory.mktemp("whole"), validate(RunConfig, data, "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style_rows, "worker_count", lambda orders, models: 1)
        yield lab, lab.report(embed=band_embedding, pitch=loudness_pitch)


@pytest.fixture(scope="module")
def spoken(whole: tuple[Lab, dict[str, Any]]) -> "Spoken":
    return Spoken(*whole)


class Spoken:
    """The same measures computed anew, one utterance at a time, by NumPy and the fakes alone."""

    def __init__(self, lab: Lab, report: dict[str, Any]) -> None:
        self.clips = lab.clips(report["texts"])
        self.partner = [i + 1 if i % 2 == 0 else i - 1 for i in range(18)]  # what is heard before i is said
        self.models, self.encoder, self.report = lab.models, lab.encoder, report
        training = sorted({*VOICES} - {"af_sky", "bm_lewis"})
        packs = np.array([np.load(lab.folder / "voices" / f"{n}.npy")[:, 0] for n in training])
        self.mean_pack = packs.mean(axis=0)
        self.training_packs = dict(zip(training, packs, strict=True))
        self.styles = {row: [self._style(row, i) for i in range(18)] for row in ("mean", "encoder", "oracle")}

    def heard_style(self, audio: Tensor, count: int) -> np.ndarray:
        """The encoder's style for a sound at 16 kHz."""
        features = FakeWhisper()(audio)[None].half().float()
        mask = torch.ones(1, features.shape[2], dtype=torch.bool)
        with torch.no_grad():
            return self.encoder(features[:, [2, 0]], mask, torch.tensor([count]))[0].numpy()

    @cache  # noqa: B019 (there is one for the whole module)
    def measured(self, row: str) -> dict[str, np.ndarray]:
        """(9, 2) of each measure."""
        found: dict[str, list[float]] = {}
        mel, kokoro = MelSTFTLoss(), LivelyKokoro()
        for i, clip in enumerate(self.clips):
            style = torch.tensor(self.styles[row][i])
            text = kokoro.encode_text([clip.utterance.phonemes])
            now, true = (kokoro.prosody(text, s[None], clip.token_frames[None]) for s in (style, clip.utterance.style))
            seed = clip.utterance.seed + (row == "oracle")
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
                "heard": float(band_embedding(audio, 24_000) @ self.voice(self.partner[i])),
            }
            for name, value in one.items():
                found.setdefault(name, []).append(float(value))
        return {name: np.array(values).reshape(9, 2) for name, values in found.items()}

    def voice(self, index: int) -> Tensor:
        return band_embedding(self.clips[index].audio, 24_000)

    def _style(self, row: str, i: int) -> np.ndarray:
        utterance = self.clips[i].utterance
        if row == "oracle":
            return utterance.style.numpy()
        if row == "mean":
            return self.mean_pack[len(utterance.phonemes) - 1]
        return self.heard_style(resample(self.clips[self.partner[i]].audio, 24_000, 16_000), len(utterance.phonemes))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_test_sentences_are_of_no_other_split_and_the_same_for_every_model() -> None:
    found = held_out_sentences(LETTERS, 5)
    assert len(found) == 5 and set(found) <= set(load_sentences("test"))
    assert not set(found) & {*load_sentences("train"), *load_sentences("validation")}
    assert found == held_out_sentences(Phonemizer("again", lambda text: text), 5)
    assert all(phonemes == text for text, phonemes in found.items())


def test_test_sentences_are_of_2_to_5_seconds_and_spread_over_the_lengths() -> None:
    short = sorted(len(text) for text in load_sentences("test") if 25 <= len(text) <= 70)
    assert len(short) == 21
    lengths = [len(phonemes) for phonemes in held_out_sentences(LETTERS, 3).values()]
    thirds = [short[:7], short[7:14], short[14:]]
    assert all(length in third for length, third in zip(lengths, thirds, strict=True))
    assert sorted(held_out_sentences(LETTERS, 21)) == sorted(t for t in load_sentences("test") if 25 <= len(t) <= 70)


@pytest.mark.parametrize("count", [22, 40])
def test_more_sentences_than_there_are_short_ones_are_spread_over_all(count: int) -> None:
    found = held_out_sentences(LETTERS, count)
    assert len(found) == count
    texts = load_sentences("test")
    assert max(map(len, found)) >= sorted(map(len, texts))[-2] and min(map(len, found)) <= sorted(map(len, texts))[1]


@pytest.mark.parametrize("count", [-1, 0, 1, 41])
def test_a_number_of_sentences_that_cannot_be_is_told(count: int) -> None:
    with pytest.raises(ConfigError, match=f"^sentences: {count}: take 2 to 40"):
        held_out_sentences(LETTERS, count)


def test_each_of_the_nine_test_voices_says_each_sentence_in_the_style_for_its_length(tmp_path: Path) -> None:
    models = held_out_models(tmp_path)
    found = held_out_utterances(models.voices, {"One.": "abc", "Two.": "abcdefg"})
    assert [(u.voice, u.text) for u in found] == [(v, t) for v in sorted(TEST_VOICES) for t in ("One.", "Two.")]
    assert len(set(TEST_VOICES)) == 9
    for u in found:
        assert u.phoneme_count == len(u.phonemes)
        np.testing.assert_array_equal(u.style, np.load(tmp_path / f"{u.voice}.npy")[len(u.phonemes) - 1, 0])
    assert len({u.seed for u in found}) == 18
    again = held_out_utterances(models.voices, {"Two.": "abcdefg"})
    assert [u.seed for u in again] == [u.seed for u in found if u.text == "Two."]


def test_a_test_voice_that_is_not_at_hand_is_told(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match=r"^test voices: 'af_river' is no voice; .*run 'nuanced weights'"):
        held_out_utterances(fake_models(tmp_path).voices, {"One.": "abc"})


def test_the_report_has_each_row_with_each_measure_and_its_interval(whole: tuple[Lab, dict[str, Any]]) -> None:
    _, report = whole
    json.dumps(report, allow_nan=False)
    assert tuple(report["rows"]) == ROWS
    measures = {
        "stft", "style_cosine", "timbre_cosine", "prosody_cosine", "skill", "f0_semitones", "f0_crepe_semitones",
        "f0_spread_correlation", "energy_correlation", "duration_error", "identity",
    }  # fmt: skip
    for row in report["rows"].values():
        assert set(row) == measures | {f"{name}_ci" for name in measures}
        for name in measures - {"f0_spread_correlation"}:  # the mean voice has the same spread in every voice's place
            low, high = row[f"{name}_ci"]
            assert low <= row[name] <= high, name
    assert report["voices"] == sorted(TEST_VOICES) and report["sentences"] == len(report["texts"]) == 2
    assert report["whisper"] == "fake"


@pytest.mark.parametrize("row", ["mean", "encoder", "oracle"])
def test_measures_are_means_over_what_each_voice_says_in_the_style_that_it_heard_in_another_sentence(
    row: str, spoken: Spoken
) -> None:
    found, expected = spoken.report["rows"][row], spoken.measured(row)
    for name in (
        "stft", "style_cosine", "timbre_cosine", "prosody_cosine", "f0_semitones", "energy_correlation",
        "duration_error",
    ):  # fmt: skip
        assert found[name] == pytest.approx(expected[name].mean(), rel=1e-3, abs=1e-5), name
    if row != "mean":
        correlation = stats.pearsonr(expected["spread"].ravel(), expected["true_spread"].ravel())[0]
        assert found["f0_spread_correlation"] == pytest.approx(correlation, abs=1e-3)


def test_the_oracle_differs_from_the_truth_by_its_noise_alone(whole: tuple[Lab, dict[str, Any]]) -> None:
    oracle = whole[1]["rows"]["oracle"]
    for name in ("style_cosine", "timbre_cosine", "prosody_cosine", "energy_correlation", "f0_spread_correlation"):
        assert oracle[name] == pytest.approx(1, abs=1e-5)
    assert (oracle["f0_semitones"], oracle["duration_error"]) == pytest.approx((0, 0), abs=1e-6)
    assert 0 < oracle["stft"] < whole[1]["rows"]["mean"]["stft"]
    assert oracle["identity"] == pytest.approx(1, abs=0.05)


def test_skill_is_0_for_the_mean_voice_and_1_for_the_oracle_by_the_same_weights_for_every_run(spoken: Spoken) -> None:
    rows = spoken.report["rows"]
    assert (rows["mean"]["skill"], *rows["mean"]["skill_ci"]) == (0, 0, 0)
    assert (rows["oracle"]["skill"], *rows["oracle"]["skill_ci"]) == (1, 1, 1)
    loss = {}
    for row in ("mean", "encoder", "oracle"):
        measured = spoken.measured(row)
        loss[row] = (measured["stft"] + measured["style"]).mean()  # the run's own objective weighs them otherwise
    expected = 1 - (loss["encoder"] - loss["oracle"]) / (loss["mean"] - loss["oracle"])
    assert rows["encoder"]["skill"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("row", ["mean", "encoder"])
def test_identity_is_0_for_the_other_test_voices_and_1_for_the_voice_s_other_sentence(row: str, spoken: Spoken) -> None:
    heard = spoken.measured(row)["heard"].mean()
    same, stranger = [], []
    for i in range(18):
        own, said = spoken.voice(spoken.partner[i]), range(i % 2, 18, 2)  # all voices, saying what i says
        same.append(float(own @ spoken.voice(i)))
        stranger.append(np.mean([float(own @ spoken.voice(j)) for j in said if j != i]))
    expected = (heard - np.mean(stranger)) / (np.mean(same) - np.mean(stranger))
    assert spoken.report["rows"][row]["identity"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_intervals_are_over_voices_not_over_utterances(spoken: Spoken) -> None:
    measured, found = spoken.measured("encoder"), spoken.report["rows"]["encoder"]
    for name in ("stft", "f0_semitones"):
        options: dict[str, Any] = {"method": "percentile", "n_resamples": 10_000, "rng": np.random.default_rng(0)}
        voices = stats.bootstrap((measured[name].mean(axis=1),), np.mean, **options).confidence_interval
        wide = voices.high - voices.low
        np.testing.assert_allclose(found[f"{name}_ci"], [voices.low, voices.high], atol=0.08 * wide)


def test_gains_are_the_encoder_s_measures_less_another_row_s_voice_by_voice(whole: tuple[Lab, dict[str, Any]]) -> None:
    _, report = whole
    encoder = report["rows"]["encoder"]
    assert set(report["gains"]) == {"nearest", "ridge"}
    for row, gains in report["gains"].items():
        for name in ("style_cosine", "stft", "f0_semitones"):
            assert gains[name] == pytest.approx(encoder[name] - report["rows"][row][name], abs=1e-9)
            low, high = gains[f"{name}_ci"]
            assert low <= gains[name] <= high
    # The rows' own intervals hold what voices differ by; those of their difference do not.
    width = lambda row: row["stft_ci"][1] - row["stft_ci"][0]  # noqa: E731
    assert width(report["gains"]["ridge"]) < width(encoder) + width(report["rows"]["ridge"])


def test_nearest_speaks_in_a_training_voice_and_ridge_beats_no_oracle(whole: tuple[Lab, dict[str, Any]]) -> None:
    lab, report = whole
    clips = lab.clips(report["texts"])
    possible = []  # the best and the worst that a training voice can do
    for clip in clips:
        voices = [lab.models.voices.style(n, len(clip.utterance.phonemes)) for n in {*VOICES} - {"af_sky", "bm_lewis"}]
        possible.append([_cosine(v.numpy(), clip.utterance.style.numpy()) for v in voices])
    nearest = report["rows"]["nearest"]["style_cosine"] * len(clips)
    assert np.min(possible, axis=1).sum() <= nearest <= np.max(possible, axis=1).sum()
    assert report["rows"]["ridge"]["skill"] < 1
    assert len(report["ridge_penalties"]) == 2


def test_clips_are_degraded_before_they_are_heard_and_what_is_lost_is_the_difference(spoken: Spoken) -> None:
    report = spoken.report
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
    for i, clip in enumerate(spoken.clips):
        heard = resample(spoken.clips[spoken.partner[i]].audio, 24_000, 16_000)
        style = spoken.heard_style(degraded(heard, 16_000, "telephone", 0), len(clip.utterance.phonemes))
        cosines.append(_cosine(style, clip.utterance.style.numpy()))
    found = report["robustness"]["telephone"]["encoder"]["style_cosine"]
    assert found == pytest.approx(np.mean(cosines), abs=1e-4)
    assert abs(report["robustness"]["telephone"]["encoder"]["loss"]) > 1e-4


def test_noise_is_20_and_10_db_below_the_clip(lab: Lab) -> None:
    first = lab.report(robustness=False)
    clean = [resample(clip.audio, 24_000, 16_000) for clip in lab.clips(first["texts"])]
    heard: list[Tensor] = []
    plain = lab.models.whisper

    def spy(audio: Tensor) -> Tensor:
        heard.append(audio)
        return plain(audio)

    lab.models.whisper = spy
    assert lab.report()["rows"] == first["rows"]
    assert len(heard) == 4 * 18  # each clip in each condition, and no clip clean again
    for start, decibels in ((0, 20), (18, 10)):
        for i, noisy in enumerate(heard[start : start + 18]):
            sound = clean[i + 1 if i % 2 == 0 else i - 1]
            ratio = sound.square().mean() / (noisy - sound).square().mean()
            assert 10 * float(torch.log10(ratio)) == pytest.approx(decibels, abs=0.1)


def test_what_is_not_asked_for_is_not_in_the_report(lab: Lab) -> None:
    report = lab.report(robustness=False)
    assert "robustness" not in report
    for row in report["rows"].values():
        assert not {"identity", "f0_crepe_semitones"} & set(row)


def test_a_second_evaluation_is_the_same_and_renders_nothing(lab: Lab) -> None:
    first = lab.report()
    assert [line for line in lab.said if line.startswith("rendering")] == [
        "rendering 24 clips, once",  # six training voices, four sentences
        "rendering 18 clips, once",
    ]
    lab.said.clear()
    before = lab.models.kokoro.spoken, lab.models.whisper.heard
    assert lab.report() == first
    assert (lab.models.kokoro.spoken, lab.models.whisper.heard) == before
    assert not [line for line in lab.said if line.startswith("rendering")]


def test_what_the_run_trained_on_and_in_what_order_changes_no_row(lab: Lab) -> None:
    expected = lab.report(robustness=False)
    for changes in (
        ["data.voices=[af_bella, am_michael, am_fenrir, af_heart]", "data.sentences=['A blue window.', 'Red door.']"],
        ["data.voices=[bf_alice]", "data.sentences=train", "data.val_sentences=validation"],
        ["data.voices=all", "data.val_voices=[bm_lewis, af_sky]"],
    ):
        assert lab.report(*changes, robustness=False) == expected


def test_test_voices_change_no_style_but_the_oracle_s(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other test voices are heard and measured otherwise, but nothing has learned from them."""
    learned = []

    class Noticed(style_rows.StylePredictors):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            learned.append((self.mean_pack, self.nearest.centres, self.ridge.weight, self.ridge.bias))

    monkeypatch.setattr(held_out, "StylePredictors", Noticed)
    first = lab.report(robustness=False)["rows"]
    for name in TEST_VOICES:
        file = lab.folder / "voices" / f"{name}.npy"
        np.save(file, np.load(file)[:, :, ::-1].copy())
    lab.models.voices = VoiceBank({name: lab.folder / "voices" / f"{name}.npy" for name in lab.models.voices.names})
    second = lab.report(robustness=False)["rows"]
    assert all(torch.equal(a, b) for a, b in zip(*learned, strict=True))
    assert all(first[name]["style_cosine"] != second[name]["style_cosine"] for name in ROWS[:-1])


TEST_SENTENCE = load_sentences("test")[3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.voices=[af_heart, hm_omega]", "data.voices: hm_omega is a test voice"),
        ("data.val_voices=[af_river]", "data.val_voices: af_river is a test voice"),
        (f"data.sentences=['Red door.', '{TEST_SENTENCE}']", f"data.sentences: {TEST_SENTENCE!r} is a test sentence"),
        (f"data.val_sentences=['{TEST_SENTENCE}']", f"data.val_sentences: {TEST_SENTENCE!r} is a test sentence"),
        ("data.sentences=test", "data.sentences: 'Open your eyes.' is a test sentence"),
    ],
)
def test_an_encoder_that_saw_the_test_split_is_refused_before_anything_is_rendered(
    change: str, told: str, lab: Lab
) -> None:
    with pytest.raises(ConfigError) as caught:
        lab.report(change)
    assert str(caught.value).startswith(told)
    assert lab.models.kokoro.spoken == 0


def test_test_sentences_in_a_file_are_found_as_long_as_it_is_there(lab: Lab) -> None:
    file = lab.folder / "mine.txt"
    file.write_text(f"# mine\nRed door.\n  {TEST_SENTENCE}\n")
    with pytest.raises(ConfigError, match=r"^data\.sentences: .* is a test sentence"):
        lab.report(f"data.sentences={file}")
    file.unlink()
    assert set(lab.report(f"data.sentences={file}", robustness=False)["rows"]) == set(ROWS)


def _exported(folder: Path, tiny_run: RunConfig) -> Path:
    """An encoder that one step trained, exported."""
    models = fake_models(folder / "voices")
    run = Run(tiny_run, Dataset(models, folder / "cache"), folder / "run", lambda step, scalars: None)  # type: ignore[arg-type]
    run.train_step()
    run.best_loss = 1.0
    run.save(folder / "run" / BEST)
    return export_encoder(folder / "run" / BEST, folder / "model")


def test_an_exported_encoder_comes_back_with_its_weights_and_its_run(tmp_path: Path, tiny_run: RunConfig) -> None:
    folder = _exported(tmp_path, tiny_run)
    encoder, run = load_export(folder)
    assert run == tiny_run
    assert not encoder.training
    expected = StyleEncoder.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda config: config.pop("run"), ConfigError, r"config\.json: run: .* missing; export the encoder again"),
        (lambda config: config["run"]["data"].update(voises=1), ConfigError, r"json: run: data\.voises: unknown"),
        (lambda config: config["run"]["train"].update(epochs=0), ConfigError, r"config\.json: run: train\.epochs: 0:"),
        (lambda config: config["style_encoder"].update(layers=[0, 1]), WeightsError, r"does not fit config\.json"),
        (lambda config: config.pop("style_encoder"), ConfigError, "not a StyleEncoder's configuration"),
    ],
)  # fmt: skip
def test_an_export_that_is_not_whole_is_told(
    change: Any, error: type[Exception], told: str, tmp_path: Path, tiny_run: RunConfig
) -> None:
    file = _exported(tmp_path, tiny_run) / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(error, match=told):
        load_export(file.parent)


def test_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere.config\.json: no such file; give a folder that 'nuanced export'"):
        load_export(tmp_path / "nowhere")
