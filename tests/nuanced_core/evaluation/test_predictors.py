"""nuanced_core.evaluation.predictors: its baselines against NumPy, exported encoders, and rendered clips."""

import json
import logging
import pickle
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data import rendering
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.rendering import RenderJob
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.baselines import pooled_features
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.evaluation import predictors
from nuanced_core.evaluation.predictors import StylePredictors, load_export, render_clips
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.text.sentences import load_sentences
from nuanced_core.weights.fetch import KokoroFiles, VoiceFiles, WhisperFile
from tests.fakes import VOICES, FakeWhisper, held_out_models, random_encoder

TRAINING_VOICES = tuple(sorted(set(VOICES) - {"af_sky", "bm_lewis"}))  # all but the run's validation voices


class PredictorSetup:
    """Predictors for runs with various settings; ``fitted_clips`` are those that the last ones were fitted to."""

    def __init__(self, models: SimpleNamespace, config: RunConfig, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.models, self.config, self.folder = models, config, folder
        self.fitted_clips: list[Clip] = []

        def record(dataset: Dataset, utterances: Sequence[Utterance]) -> list[Clip]:
            self.fitted_clips = dataset.clips(utterances)
            return self.fitted_clips

        patch.setattr(predictors, "render_clips", record)

    def predictors(self, *overrides: str, encoder: StyleEncoder | None = None) -> StylePredictors:
        run = validate(RunConfig, apply_overrides(self.config.model_dump(mode="json"), overrides), "test")
        dataset = Dataset(self.models, self.folder / "cache")  # type: ignore[arg-type]
        return StylePredictors(encoder or random_encoder(self.models, run), run, dataset)

    def pooled(self) -> np.ndarray:
        """Pooled features (N, C) of the fitted clips by the fake Whisper."""
        whisper = FakeWhisper()
        return np.array([_pooled(whisper(resample(clip.audio, 24_000, 16_000)).half()) for clip in self.fitted_clips])


@pytest.fixture
def setup(tmp_path: Path, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> PredictorSetup:
    return PredictorSetup(held_out_models(tmp_path / "voices"), tiny_run, tmp_path, monkeypatch)


def _pooled(features: Tensor) -> np.ndarray:
    """Mean and standard deviation over time (C,) of one clip's features (L, T, D)."""
    x = features.double().numpy()
    return np.concatenate([x.mean(axis=1).ravel(), x.std(axis=1).ravel()])


def _random_features(clips: int = 5, frames: int = 12) -> tuple[Tensor, Tensor]:
    """Features (B, L, T, D) in the range of the fake Whisper's, and their mask (B, T)."""
    level = torch.rand(clips, 1, 1, 4, generator=torch.Generator().manual_seed(1)) * 4
    noise = torch.rand(clips, 1, frames, 4, generator=torch.Generator().manual_seed(2))
    features = (level + noise) * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    return features, torch.ones(clips, frames, dtype=torch.bool)


@pytest.mark.parametrize("own_sentences", [1, 6])
def test_baselines_are_fitted_to_all_voices_and_sentences_that_are_not_held_out(
    setup: PredictorSetup, own_sentences: int
) -> None:
    setup.predictors("data.voices=[af_heart]", f"data.sentences_per_voice={own_sentences}")
    utterances = [clip.utterance for clip in setup.fitted_clips]
    assert Counter(u.voice for u in utterances) == {voice: max(4, own_sentences) for voice in TRAINING_VOICES}
    assert not {u.voice for u in utterances} & {"af_sky", "bm_lewis", *TEST_VOICES}
    assert {u.text for u in utterances} <= set(load_sentences("train"))
    assert not {u.text for u in utterances} & {*load_sentences("validation"), *load_sentences("test")}
    for u in utterances:
        assert torch.equal(u.style, setup.models.voices.pack(u.voice)[len(u.phonemes) - 1])


def test_baselines_do_not_depend_on_the_data_that_the_run_used(setup: PredictorSetup) -> None:
    features, mask = _random_features()
    expected = setup.predictors()(features, mask, [7] * 5)
    for overrides in (
        ["data.voices=[am_michael, af_bella, am_fenrir, af_heart]"],
        ["data.voices=[bf_alice]", "mixes.swaps=3"],
        ["data.sentences=['A blue window.', 'Red door.']"],
        ["data.sentences=[Other.]", "data.val_sentences=['No rain.', 'Green hills.']"],
        ["data.val_voices=[bm_lewis, af_sky]"],
        ["augment.copies=3", "train.seed=5"],
    ):
        found = setup.predictors(*overrides)(features, mask, [7] * 5)
        for name, styles in expected.items():
            assert torch.equal(found[name], styles), (overrides, name)


def test_predictions_do_not_depend_on_held_out_voices(setup: PredictorSetup, tmp_path: Path) -> None:
    features, mask = _random_features()
    expected = setup.predictors()(features, mask, [7] * 5)
    paths = {name: tmp_path / "voices" / f"{name}.npy" for name in setup.models.voices.names}
    for held_out in ("af_sky", "bm_lewis", *TEST_VOICES):
        np.save(paths[held_out], np.full((510, 1, 256), 1e6, np.float32))
    setup.models.voices = VoiceBank(paths)
    found = setup.predictors()(features, mask, [7] * 5)
    assert all(torch.equal(found[name], styles) for name, styles in expected.items())
    for name in paths.keys() - {"af_sky", "bm_lewis", *TEST_VOICES}:  # training voices do change them
        np.save(paths[name], np.load(paths[name]) + 1)
    setup.models.voices = VoiceBank(paths)
    found = setup.predictors()(features, mask, [7] * 5)
    assert all(not torch.equal(found[name], expected[name]) for name in ("mean", "nearest", "ridge"))


def test_mean_is_the_mean_style_of_the_training_voices_for_the_phoneme_count(setup: PredictorSetup) -> None:
    features, mask = _random_features(3)
    found = setup.predictors()(features, mask, [1, 20, 510])["mean"]
    packs = np.array([np.load(setup.folder / "voices" / f"{name}.npy")[:, 0] for name in TRAINING_VOICES])
    np.testing.assert_allclose(found, packs.mean(axis=0)[[0, 19, 509]], atol=1e-6)


def test_nearest_is_the_style_of_the_voice_with_the_nearest_centroid_of_scaled_features(setup: PredictorSetup) -> None:
    style_predictors, counts = setup.predictors(), [3, 4, 5, 6, 7, 8, 9, 10, 500]
    styles = [setup.models.voices.style(name, 6) for name in TEST_VOICES]
    queries = [Utterance("x", "abcdef", "abcdef", 6, style, 1) for style in styles]
    audio = [
        resample(clip.audio, 24_000, 16_000) for clip in Dataset(setup.models, setup.folder / "cache").clips(queries)
    ]  # type: ignore[arg-type]
    features = torch.stack([FakeWhisper()(samples) for samples in audio])
    found = style_predictors(features, torch.ones(9, features.shape[2], dtype=torch.bool), counts)["nearest"]
    x = setup.pooled()
    names = [clip.utterance.voice for clip in setup.fitted_clips]
    mean, std = x.mean(axis=0), x.std(axis=0)
    centroids = {v: ((x[[n == v for n in names]] - mean) / std).mean(axis=0) for v in TRAINING_VOICES}
    chosen = []
    for clip, count, style in zip(features, counts, found, strict=True):
        scaled = (_pooled(clip) - mean) / std
        chosen.append(min(centroids, key=lambda v, scaled=scaled: np.linalg.norm(scaled - centroids[v])))
        assert torch.equal(style, setup.models.voices.pack(chosen[-1])[count - 1])
    assert len(set(chosen)) > 1


def test_ridge_is_the_closed_form_from_pooled_features_to_offsets_from_the_mean_voice(setup: PredictorSetup) -> None:
    style_predictors = setup.predictors()
    features, mask = _random_features()
    found = style_predictors(features, mask, [9] * 5)["ridge"].double().numpy()
    x = setup.pooled()
    mean, std = x.mean(axis=0), x.std(axis=0)
    x = (x - mean) / std
    packs = np.array([np.load(setup.folder / "voices" / f"{name}.npy")[:, 0] for name in TRAINING_VOICES]).astype(
        np.float64
    )
    voice = packs.mean(axis=0)
    utterances = [clip.utterance for clip in setup.fitted_clips]
    targets = np.array([u.style.double().numpy() - voice[u.phoneme_count - 1] for u in utterances])
    queries = (np.array([_pooled(clip) for clip in features]) - mean) / std
    for half, penalty in zip((slice(128), slice(128, 256)), style_predictors.baselines.ridge.penalties, strict=True):
        y = targets[:, half]
        strength = penalty * (x**2).sum(axis=1).mean() * np.eye(x.shape[1])
        weight = np.linalg.solve(x.T @ x + strength, x.T @ (y - y.mean(axis=0)))
        np.testing.assert_allclose(found[:, half], voice[8, half] + y.mean(axis=0) + queries @ weight, atol=2e-3)


def test_encoder_reads_its_own_layers_in_eval_mode(setup: PredictorSetup) -> None:
    encoder = random_encoder(
        setup.models,
        setup.config.model_copy(update={"encoder": setup.config.encoder.model_copy(update={"dropout": 0.5})}),
        layers=(2, 0),
    )
    features, mask = _random_features(3)
    found = setup.predictors(encoder=encoder.train())(features, mask, [3, 4, 40])["encoder"]
    with torch.no_grad():
        expected = encoder.eval()(features[:, [2, 0]], mask, torch.tensor([3, 4, 40]))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert not torch.allclose(found[0] - encoder.mean_pack[2], torch.zeros(256), atol=0.1)


def test_prediction_does_not_depend_on_padding_or_on_other_clips_of_the_batch(setup: PredictorSetup) -> None:
    style_predictors = setup.predictors()
    features, mask = _random_features(3)
    mask[1, 5:] = False
    features[1, :, 5:] = torch.nan
    together = style_predictors(features, mask, [4, 9, 30])
    for i, (frames, count) in enumerate(zip((12, 5, 12), (4, 9, 30), strict=True)):
        alone = style_predictors(features[i : i + 1, :, :frames], mask[i : i + 1, :frames], [count])
        for name, styles in together.items():
            torch.testing.assert_close(styles[i], alone[name][0], rtol=1e-4, atol=1e-4, msg=name)


def test_distance_is_in_standard_deviations_of_the_training_clips(setup: PredictorSetup) -> None:
    style_predictors = setup.predictors()
    features, mask = _random_features()
    x = setup.pooled()
    queries = np.array([_pooled(clip) for clip in features])
    expected = np.sqrt(np.mean(((queries - x.mean(axis=0)) / x.std(axis=0)) ** 2, axis=1))
    np.testing.assert_allclose(
        style_predictors.baselines.nearest.scaler.distance(pooled_features(features, mask)), expected, rtol=1e-3
    )


def test_layer_that_whisper_lacks_raises(setup: PredictorSetup) -> None:
    with pytest.raises(ConfigError, match=r"features\.layers: \[0, 3\]: Whisper fake has layers 0 to 2"):
        setup.predictors(encoder=random_encoder(setup.models, setup.config, layers=(0, 3)))


def _utterances(models: SimpleNamespace, count: int) -> list[Utterance]:
    return [
        Utterance("af_sky", f"{n}", "a" * (3 + n), 3 + n, models.voices.style("af_sky", 3 + n), n) for n in range(count)
    ]


def test_render_clips_keeps_the_order_and_renders_only_missing_clips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = held_out_models(tmp_path / "voices")
    dataset = Dataset(models, tmp_path / "cache")  # type: ignore[arg-type]
    wanted = _utterances(models, 5)
    dataset.clips(wanted[1:3])
    caplog.set_level(logging.INFO)
    before = models.kokoro.spoken
    clips = render_clips(dataset, reversed(wanted))
    assert models.kokoro.spoken == before + 3
    assert [message for message in caplog.messages if "3 clips" in message]
    caplog.clear()
    assert [clip.utterance for clip in clips] == wanted[::-1]
    assert render_clips(dataset, wanted)[0].key == clips[-1].key
    assert models.kokoro.spoken == before + 3 and not caplog.messages


def test_worker_processes_open_the_same_dataset_without_the_loaded_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = held_out_models(tmp_path / "voices")
    models = ModelSet(
        KokoroFiles(tmp_path, tmp_path, "kokoro", "folder"),
        VoiceFiles({}, {}, "folder"),
        WhisperFile("fake", tmp_path, "whisper", "folder"),
        torch.device("cpu"),
    )
    vars(models).update(kokoro=fakes.kokoro, whisper=fakes.whisper, voices=fakes.voices, large=lambda: None)
    calls = []

    def render_jobs(jobs: list[RenderJob]) -> None:
        calls.extend((len(job.requests), pickle.loads(pickle.dumps(job.open_dataset))(), job.workers) for job in jobs)

    monkeypatch.setattr(predictors, "render_jobs", render_jobs)
    monkeypatch.setattr(rendering, "worker_count", lambda requests, models: 2)
    render_clips(Dataset(models, tmp_path / "cache"), _utterances(fakes, 5))
    ((count, opened, workers),) = calls
    assert (count, workers, opened.folder) == (5, 2, tmp_path / "cache")
    assert opened.models == models and not {"kokoro", "whisper", "large"} & vars(opened.models).keys()


def test_load_export_restores_the_weights_and_the_run(exported: Path, tiny_run: RunConfig) -> None:
    encoder, run = load_export(exported)
    assert run == tiny_run
    assert not encoder.training
    expected = StyleEncoder.from_pretrained(exported).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda config: config.pop("run"), ConfigError, r"config\.json: run: .* missing; export the encoder again"),
        (lambda config: config["run"]["data"].update(voises=1), ConfigError, r"json: run: data\.voises: unknown"),
        (lambda config: config["run"]["train"].update(epochs=0), ConfigError, r"config\.json: run: train\.epochs: 0:"),
        (lambda config: config["style_encoder"].update(layers=[0, 1]), WeightsError, r"does not fit config\.json"),
        (lambda config: config.pop("style_encoder"), ConfigError, "not a StyleEncoder's configuration"),
    ],
)  # fmt: skip
def test_load_export_raises_for_an_incomplete_configuration(
    change: Any, error: type[Exception], message: str, exported: Path
) -> None:
    file = exported / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load_export(exported)


def test_load_export_raises_for_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere.config\.json: no such file; give a folder that 'nuanced export'"):
        load_export(tmp_path / "nowhere")


class _BlocksOnly(FakeWhisper):
    """Fake Whisper that counts how many of the blocks that it made are in memory at once."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks_made: list[weakref.ref[Tensor]] = []
        self.most = 0
        self.layers_read: set[tuple[int, ...] | None] = set()

    def blocks(self, audio: Tensor, layers: Sequence[int] | None = None) -> Iterator[Tensor]:
        self.layers_read.add(layers if layers is None else tuple(layers))
        for part in audio.split(16_000):
            block = FakeWhisper()(part, layers)
            self.blocks_made.append(weakref.ref(block))
            self.most = max(self.most, sum(made() is not None for made in self.blocks_made))
            yield block


def test_a_recording_is_heard_block_by_block_with_the_result_of_the_whole(setup: PredictorSetup) -> None:
    audio = torch.randn(20 * 16_000, generator=torch.Generator().manual_seed(4)) * 0.1
    whisper, style_predictors = _BlocksOnly(), setup.predictors()
    styles, distance = style_predictors.of_recording(SimpleNamespace(whisper=whisper), audio, 7)  # type: ignore[arg-type]
    features = FakeWhisper()(audio)[None]
    mask = torch.ones(1, features.shape[2], dtype=torch.bool)
    expected = style_predictors(features, mask, [7])
    assert list(styles) == list(expected)
    for name, style in styles.items():
        torch.testing.assert_close(style, expected[name], rtol=1e-4, atol=1e-4)
    whole = style_predictors.baselines.nearest.scaler.distance(pooled_features(features, mask))
    assert distance == pytest.approx(float(whole), rel=1e-4)
    assert whisper.heard == 0
    assert whisper.layers_read == {None, style_predictors.encoder.config.layers}
    assert len(whisper.blocks_made) >= 40
    assert whisper.most <= 2
