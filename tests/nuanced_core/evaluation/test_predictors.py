import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation import predictors as style_rows
from nuanced_core.evaluation.predictors import StylePredictors, rendered
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.text.sentences import load_sentences
from nuanced_core.weights.fetch import KokoroFiles, VoiceFiles, WhisperFile
from tests.fakes import VOICES, FakeWhisper, held_out_models, random_encoder

TRAINING = tuple(sorted(set(VOICES) - {"af_sky", "bm_lewis"}))  # all but the run's validation voices


class Lab:
    """Rows of runs with various settings; ``learned`` are the clips that the last ones learned from."""

    def __init__(self, models: SimpleNamespace, config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.models, self.config, self.folder = models, config, folder
        self.learned: list[Clip] = []

        def noticed(dataset: Dataset, utterances: Sequence[Utterance], say: object) -> list[Clip]:
            self.learned = dataset.clips(utterances)
            return self.learned

        patch.setattr(style_rows, "rendered", noticed)

    def rows(self, *overrides: str, encoder: StyleEncoder | None = None) -> StylePredictors:
        run = validate(RunConfig, apply_overrides(self.config.model_dump(mode="json"), overrides), "test")
        dataset = Dataset(self.models, self.folder / "cache")  # type: ignore[arg-type]
        return StylePredictors(encoder or random_encoder(self.models, run), run, dataset, lambda line: None)

    def pooled(self) -> np.ndarray:
        """Of the clips that were learned from, heard by the fake Whisper, (N, C)."""
        whisper = FakeWhisper()
        return np.array([_pooled(whisper(resample(clip.audio, 24_000, 16_000)).half()) for clip in self.learned])


@pytest.fixture
def lab(tmp_path: Path, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(held_out_models(tmp_path / "voices"), tiny_run, tmp_path, monkeypatch)


def _pooled(features: Tensor) -> np.ndarray:
    """Mean and deviation over time (C,) of one clip's features (L, T, D)."""
    x = features.double().numpy()
    return np.concatenate([x.mean(axis=1).ravel(), x.std(axis=1).ravel()])


def _heard(clips: int = 5, frames: int = 12) -> tuple[Tensor, Tensor]:
    """Features (B, L, T, D) in the range of the fake Whisper's, and their mask."""
    level = torch.rand(clips, 1, 1, 4, generator=torch.Generator().manual_seed(1)) * 4
    noise = torch.rand(clips, 1, frames, 4, generator=torch.Generator().manual_seed(2))
    features = (level + noise) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    return features, torch.ones(clips, frames, dtype=torch.bool)


@pytest.mark.parametrize("own", [1, 6])
def test_they_learn_from_all_voices_that_may_be_trained_on_and_never_from_held_out_ones(lab: Lab, own: int) -> None:
    lab.rows("data.voices=[af_heart]", f"data.sentences_per_voice={own}")
    said = [clip.utterance for clip in lab.learned]
    assert Counter(u.voice for u in said) == {voice: max(4, own) for voice in TRAINING}
    assert not {u.voice for u in said} & {"af_sky", "bm_lewis", *TEST_VOICES}
    assert {u.text for u in said} <= set(load_sentences("train"))
    assert not {u.text for u in said} & {*load_sentences("validation"), *load_sentences("test")}
    for u in said:
        assert torch.equal(u.style, lab.models.voices.pack(u.voice)[len(u.phonemes) - 1])


def test_what_the_encoder_trained_on_and_in_what_order_changes_no_baseline(lab: Lab) -> None:
    features, mask = _heard()
    expected = lab.rows()(features, mask, [7] * 5)
    for changes in (
        ["data.voices=[am_michael, af_bella, am_fenrir, af_heart]"],
        ["data.voices=[bf_alice]", "mixes.swaps=3"],
        ["data.sentences=['A blue window.', 'Red door.']"],
        ["data.sentences=[Other.]", "data.val_sentences=['No rain.', 'Green hills.']"],
        ["data.val_voices=[bm_lewis, af_sky]"],
        ["augment.copies=3", "train.seed=5"],
    ):
        found = lab.rows(*changes)(features, mask, [7] * 5)
        for name, styles in expected.items():
            assert torch.equal(found[name], styles), (changes, name)


def test_held_out_voices_leak_into_nothing(lab: Lab, tmp_path: Path) -> None:
    features, mask = _heard()
    expected = lab.rows()(features, mask, [7] * 5)
    paths = {name: tmp_path / "voices" / f"{name}.npy" for name in lab.models.voices.names}
    for held_out in ("af_sky", "bm_lewis", *TEST_VOICES):
        np.save(paths[held_out], np.full((510, 1, 256), np.nan, np.float32))
    lab.models.voices = VoiceBank(paths)
    found = lab.rows()(features, mask, [7] * 5)
    assert all(torch.equal(found[name], styles) for name, styles in expected.items())
    for name in paths.keys() - {"af_sky", "bm_lewis", *TEST_VOICES}:  # and the test can fail
        np.save(paths[name], np.load(paths[name]) + 1)
    lab.models.voices = VoiceBank(paths)
    found = lab.rows()(features, mask, [7] * 5)
    assert all(not torch.equal(found[name], expected[name]) for name in ("mean", "nearest", "ridge"))


def test_the_mean_row_is_the_mean_of_the_training_voices_styles_for_the_count(lab: Lab) -> None:
    features, mask = _heard(3)
    found = lab.rows()(features, mask, [1, 20, 510])["mean"]
    packs = np.array([np.load(lab.folder / "voices" / f"{name}.npy")[:, 0] for name in TRAINING])
    np.testing.assert_allclose(found, packs.mean(axis=0)[[0, 19, 509]], atol=1e-6)


def test_the_nearest_row_is_the_voice_whose_clips_are_nearest_in_scaled_features(lab: Lab) -> None:
    rows, counts = lab.rows(), [3, 4, 5, 6, 7, 8, 9, 10, 500]
    styles = [lab.models.voices.style(name, 6) for name in TEST_VOICES]
    asked = [Utterance("x", "abcdef", "abcdef", 6, style, 1) for style in styles]
    audio = [resample(clip.audio, 24_000, 16_000) for clip in Dataset(lab.models, lab.folder / "cache").clips(asked)]  # type: ignore[arg-type]
    features = torch.stack([FakeWhisper()(sound) for sound in audio])
    found = rows(features, torch.ones(9, features.shape[2], dtype=torch.bool), counts)["nearest"]
    x = lab.pooled()
    names = [clip.utterance.voice for clip in lab.learned]
    mean, std = x.mean(axis=0), x.std(axis=0)
    centres = {v: ((x[[n == v for n in names]] - mean) / std).mean(axis=0) for v in TRAINING}
    chosen = []
    for clip, count, style in zip(features, counts, found, strict=True):
        place = (_pooled(clip) - mean) / std
        chosen.append(min(centres, key=lambda v, place=place: np.linalg.norm(place - centres[v])))
        assert torch.equal(style, lab.models.voices.pack(chosen[-1])[count - 1])
    assert len(set(chosen)) > 1


def test_the_ridge_row_is_the_closed_form_from_pooled_features_to_offsets_from_the_mean_voice(lab: Lab) -> None:
    rows = lab.rows()
    features, mask = _heard()
    found = rows(features, mask, [9] * 5)["ridge"].double().numpy()
    x = lab.pooled()
    mean, std = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / std
    packs = np.array([np.load(lab.folder / "voices" / f"{name}.npy")[:, 0] for name in TRAINING]).astype(np.float64)
    voice = packs.mean(axis=0)
    said = [clip.utterance for clip in lab.learned]
    targets = np.array([u.style.double().numpy() - voice[u.phoneme_count - 1] for u in said])
    asked = (np.array([_pooled(clip) for clip in features]) - mean) / std
    for half, penalty in zip((slice(128), slice(128, 256)), rows.ridge.penalties, strict=True):
        y = targets[:, half]
        strength = penalty * (x**2).sum(axis=1).mean() * np.eye(x.shape[1])
        weight = np.linalg.solve(x.T @ x + strength, x.T @ (y - y.mean(axis=0)))
        np.testing.assert_allclose(found[:, half], voice[8, half] + y.mean(axis=0) + asked @ weight, atol=2e-3)


def test_the_encoder_row_hears_the_encoder_s_own_layers_in_eval_mode(lab: Lab) -> None:
    encoder = random_encoder(
        lab.models,
        lab.config.model_copy(update={"encoder": lab.config.encoder.model_copy(update={"dropout": 0.5})}),
        layers=(2, 0),
    )
    features, mask = _heard(3)
    found = lab.rows(encoder=encoder.train())(features, mask, [3, 4, 40])["encoder"]
    with torch.no_grad():
        expected = encoder.eval()(features[:, [2, 0]], mask, torch.tensor([3, 4, 40]))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert not torch.allclose(found[0] - encoder.mean_pack[2], torch.zeros(256), atol=0.1)


def test_padding_and_the_company_of_others_change_no_row(lab: Lab) -> None:
    rows = lab.rows()
    features, mask = _heard(3)
    mask[1, 5:] = False
    features[1, :, 5:] = torch.nan
    together = rows(features, mask, [4, 9, 30])
    for i, (frames, count) in enumerate(zip((12, 5, 12), (4, 9, 30), strict=True)):
        alone = rows(features[i : i + 1, :, :frames], mask[i : i + 1, :frames], [count])
        for name, styles in together.items():
            torch.testing.assert_close(styles[i], alone[name][0], rtol=1e-4, atol=1e-4, msg=name)


def test_distance_is_in_deviations_of_the_training_clips(lab: Lab) -> None:
    rows = lab.rows()
    features, mask = _heard()
    x = lab.pooled()
    asked = np.array([_pooled(clip) for clip in features])
    expected = np.sqrt(np.mean(((asked - x.mean(axis=0)) / x.std(axis=0)) ** 2, axis=1))
    np.testing.assert_allclose(rows.distance(features, mask), expected, rtol=1e-3)


def test_a_layer_that_whisper_does_not_have_is_told(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"features\.layers: \[0, 3\]: Whisper fake has layers 0 to 2"):
        lab.rows(encoder=random_encoder(lab.models, lab.config, layers=(0, 3)))


def _utterances(models: SimpleNamespace, count: int) -> list[Utterance]:
    return [
        Utterance("af_sky", f"{n}", "a" * (3 + n), 3 + n, models.voices.style("af_sky", 3 + n), n) for n in range(count)
    ]


def test_rendered_clips_are_in_order_and_only_what_is_missing_is_spoken(tmp_path: Path) -> None:
    models = held_out_models(tmp_path / "voices")
    dataset = Dataset(models, tmp_path / "cache")  # type: ignore[arg-type]
    wanted = _utterances(models, 5)
    dataset.clips(wanted[1:3])
    said: list[str] = []
    before = models.kokoro.spoken
    clips = rendered(dataset, reversed(wanted), said.append)
    assert models.kokoro.spoken == before + 3
    assert said == ["rendering 3 clips, once"]
    assert [clip.utterance for clip in clips] == wanted[::-1]
    assert rendered(dataset, wanted, said.append)[0].key == clips[-1].key
    assert models.kokoro.spoken == before + 3 and len(said) == 1


def test_processes_open_the_same_dataset_without_the_models_that_are_loaded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = held_out_models(tmp_path / "voices")
    here = torch.device("cpu")
    models = ModelSet(
        KokoroFiles(tmp_path, tmp_path, "kokoro", "folder"),
        VoiceFiles({}, {}, "folder"),
        WhisperFile("fake", tmp_path, "whisper", "folder"),
        here,
    )
    vars(models).update(kokoro=fakes.kokoro, whisper=fakes.whisper, voices=fakes.voices, large=lambda: None)
    asked = []

    def render(orders, open_dataset, workers, say):  # type: ignore[no-untyped-def]
        asked.append((len(orders), pickle.loads(pickle.dumps(open_dataset))(), workers))

    monkeypatch.setattr(style_rows, "render", render)
    monkeypatch.setattr(style_rows, "worker_count", lambda orders, models: 2)
    rendered(Dataset(models, tmp_path / "cache"), _utterances(fakes, 5), print)
    ((count, opened, workers),) = asked
    assert (count, workers, opened.folder) == (5, 2, tmp_path / "cache")
    assert opened.models == models and not {"kokoro", "whisper", "large"} & vars(opened.models).keys()
