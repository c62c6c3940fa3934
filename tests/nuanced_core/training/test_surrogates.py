"""Runs whose encoder hears speakers and takes steps on a surrogate."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core import StyleEncoder
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data.cache import Cache
from nuanced_core.export.folder import export_encoder
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.training import preparation, surrogates
from nuanced_core.training.run import BEST, Run
from nuanced_core.training.surrogates import load_frame, load_surrogate
from tests.nuanced_core.training.conftest import RunFactory

SPEAKERS = ("features.speaker=all", "features.pitch=true", "encoder.surrogate_steps=3", "augment.copies=1")
POOLINGS = ("mean", "attentive")  # the pooled features are kept in memory, or not


def _weights(run: Run) -> dict[str, Tensor]:
    return run.encoder.state_dict()


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _forbid_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: object) -> None:
        raise AssertionError("a surrogate was fitted again")

    monkeypatch.setattr(surrogates, "fit_surrogate", fit)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_run_trains_and_resumes_as_if_it_had_never_stopped(new_run: RunFactory, pooling: str) -> None:
    settings = (*SPEAKERS, f"encoder.pooling={pooling}")
    whole = new_run("whole", *settings)
    untrained = {name: tensor.clone() for name, tensor in _weights(whole).items()}
    expected = [whole.run_epoch(), whole.run_epoch()][1]
    new_run("parts", *settings).run_epoch()
    resumed = new_run("parts", *settings)
    assert resumed.step == 3
    assert resumed.run_epoch()["val/loss"] == expected["val/loss"]
    assert _equal(_weights(resumed), _weights(whole))
    changed = {name for name, tensor in _weights(whole).items() if not torch.equal(tensor, untrained[name])}
    learned = {name for name, _ in whole.encoder.named_parameters()}
    assert changed == learned and not any(name.startswith("surrogate") for name in learned)


def test_validation_takes_the_steps_with_what_is_heard_of_each_voice(new_run: RunFactory) -> None:
    run = new_run("a", *SPEAKERS)
    batch, encoder = run.data.validation_batch, run.encoder
    assert batch.speaker is not None
    styles = run._validation_styles(encoder)
    assert not encoder.training and encoder.surrogate is not None
    mean = encoder.mean_pack[batch.phoneme_counts - 1]  # what an untrained encoder predicts without the steps
    assert ((styles - mean).abs().amax(dim=1) > 0.01).all()
    other = encoder(batch.features, batch.mask, batch.phoneme_counts, batch.speaker.flip(0))
    assert ((other - styles).abs().amax(dim=1) > 1e-3).all()
    run.train_step()
    assert torch.isfinite(torch.tensor(list(run.validate().values()))).all()


def test_validation_hears_other_sentences_than_it_scores_in_their_conditions(new_run: RunFactory) -> None:
    data = new_run("a", *SPEAKERS, f"objective.conditions={json.dumps(['clean', 'telephone'])}").data
    clips, batch = data.validation.clips, data.validation_batch
    settings = validate(RunConfig, {"features": {"speaker": "all", "pitch": True}}, "x").features
    inputs = [(clips[1], "clean"), (clips[0], "telephone"), (clips[3], "clean"), (clips[2], "telephone")]
    expected = torch.stack([data.dataset.speaker(clip, version, settings) for clip, version in inputs])  # type: ignore[arg-type]
    assert batch.speaker is not None and torch.equal(batch.speaker, expected)


def test_second_start_fits_and_embeds_nothing(new_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_run("a", *SPEAKERS)
    first.run_epoch()
    speakers = new_run.fakes.speakers
    speakers.used.clear()
    _forbid_fitting(monkeypatch)
    second = new_run("b", *SPEAKERS)
    second.run_epoch()
    assert speakers.used == {}
    assert _equal(_weights(first), _weights(second))


def test_run_without_speakers_asks_for_no_speaker_encoder(new_run: RunFactory, tmp_path: Path) -> None:
    run = new_run("a")
    run.run_epoch()
    assert new_run.fakes.speakers.used == {}
    assert run.data.encoder_surrogate is None and run.data.validation_batch.speaker is None
    assert not {"speakers", "surrogates"} & {entry.kind for entry in Cache(tmp_path / "cache").entries()}


def test_pitch_alone_asks_for_no_speaker_encoder(new_run: RunFactory) -> None:
    run = new_run("a", "features.pitch=true")
    run.run_epoch()
    assert new_run.fakes.speakers.used == {}
    assert run.data.validation_batch.speaker is not None and run.data.validation_batch.speaker.shape == (4, 2)


def test_surrogate_is_fitted_again_for_other_weights_clips_or_voices(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = new_run("a", *SPEAKERS).data
    fits = []
    fit = surrogates.fit_surrogate
    monkeypatch.setattr(surrogates, "fit_surrogate", lambda *a: fits.append(a) or fit(*a))
    val_voices = ("af_sky", "bm_lewis")
    load_surrogate(data.dataset, data.clips, ("campplus", "resemblyzer"), val_voices)
    assert len(fits) == 0
    load_surrogate(data.dataset, data.clips, ("campplus",), val_voices)
    load_surrogate(data.dataset, data.clips[1:], ("campplus",), val_voices)
    load_surrogate(data.dataset, data.clips, ("campplus",), ("af_sky",))
    assert len(fits) == 3
    new_run.fakes.speakers.hashes["campplus"] = "another"
    load_surrogate(data.dataset, data.clips, ("campplus",), val_voices)
    assert len(fits) == 4


def test_surrogate_is_fitted_again_where_stock_voices_that_its_clips_lack_are_others(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The coordinates are those of all stock voices, also of those that a run's clips have not."""
    dataset, clips = (data := new_run("a", *SPEAKERS).data).dataset, data.clips
    arguments = ("campplus", "resemblyzer"), ("af_sky", "bm_lewis")
    bank = new_run.fakes.voices
    assert len({clip.utterance.voice for clip in clips}) < len(bank.names)

    def with_pack(scale: float) -> VoiceBank:
        np.save(tmp_path / f"am_new{scale}.npy", scale * bank.pack(bank.names[0]).numpy())
        return VoiceBank({**bank._paths, "am_new": tmp_path / f"am_new{scale}.npy"})

    before = load_surrogate(dataset, clips, *arguments)
    fits = []
    fit = surrogates.fit_surrogate
    monkeypatch.setattr(surrogates, "fit_surrogate", lambda *a: fits.append(a) or fit(*a))
    for number, scale in enumerate((2.0, 3.0), start=1):
        new_run.fakes.voices = with_pack(scale)
        for _ in range(2):
            found = load_surrogate(dataset, clips, *arguments)
            assert len(fits) == number
            assert torch.equal(found.frame.std, load_frame(dataset, arguments[1]).std)
        assert not torch.equal(found.frame.std, before.frame.std)
    new_run.fakes.voices = bank
    load_surrogate(dataset, clips, *arguments)
    assert len(fits) == 2


def test_surrogate_predicts_what_is_heard_of_its_clips(new_run: RunFactory) -> None:
    """The mean of the embeddings over the versions of a clip, and the pitch of the clean one, in its own frame."""
    run = new_run("a", *SPEAKERS, "mixes.steps=20", "encoder.surrogate_steps=1")
    data, surrogate = run.data, run.data.encoder_surrogate
    assert surrogate is not None and len(surrogate.points) == len(data.clips) == 28
    frame = load_frame(data.dataset, ("af_sky", "bm_lewis"))
    names = data.dataset.models.voices.training_voices("all", ("af_sky", "bm_lewis"))
    assert not {"af_sky", "bm_lewis"} & set(names)
    packs = torch.stack([data.dataset.models.voices.pack(name) for name in names])
    assert torch.equal(frame.std, StyleFrame(packs).std)
    gains = []
    for clip in data.clips:
        count = torch.tensor([clip.utterance.phoneme_count])
        found, _ = surrogate(frame.offsets(clip.utterance.style[None], count))
        versions = torch.stack([data.dataset.part(clip, version, "campplus") for version in (0, 1)])
        heard = torch.nn.functional.normalize(versions.mean(dim=0), dim=0)
        mean = torch.nn.functional.normalize(surrogate.mean[:192], dim=0)
        gains.append(float(found["campplus"][0] @ heard - mean @ heard))
    assert sum(gains) / len(gains) > 0.02


def test_surrogate_that_knows_nothing_is_a_warning(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fit = surrogates.fit_surrogate
    cosine, mean = {"campplus": 0.5, "resemblyzer": 0.7}, {"campplus": 0.495, "resemblyzer": 0.5}
    errors = surrogates.SurrogateErrors(cosine, mean, 1.0, 2.0)
    monkeypatch.setattr(surrogates, "fit_surrogate", lambda *a: (fit(*a)[0], errors))
    new_run("a", *SPEAKERS)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name == surrogates.__name__]
    assert warning.startswith("the surrogate of campplus hardly knows more than the mean voice: 8 clips are too few")
    assert "encoder.surrogate_steps" in warning


def test_exported_encoder_has_the_surrogate(new_run: RunFactory, tmp_path: Path) -> None:
    run = new_run("a", *SPEAKERS)
    run.run_epoch()
    loaded = StyleEncoder.from_pretrained(export_encoder(tmp_path / "a" / BEST, tmp_path / "exported"))
    assert _equal(loaded.state_dict(), _weights(run))
    batch = run.data.validation_batch
    inputs = batch.features, batch.mask, batch.phoneme_counts, batch.speaker
    assert torch.equal(loaded(*inputs), run.encoder.eval()(*inputs))


def test_preparation_computes_everything_in_advance(
    new_run: RunFactory,
    fakes: SimpleNamespace,
    tiny_run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparation, "loaded_models", lambda settings, device: fakes)
    configs = [
        validate(RunConfig, apply_overrides(tiny_run.model_dump(mode="json"), overrides), "x")
        for overrides in ((), SPEAKERS, ("features.speaker=campplus", "augment.copies=1"))
    ]
    preparation.prepare(configs)
    speakers = fakes.speakers
    # Both versions of eight training clips; of four validation clips the clean one and a condition, once clean.
    assert speakers.embedded == 2 * (8 * 2 + 4 + 3)
    assert [entry.kind for entry in Cache(tmp_path / "cache").entries()].count("surrogates") == 1
    heard = speakers.embedded, fakes.whisper.heard, fakes.kokoro.spoken
    preparation.prepare(configs)
    assert (speakers.embedded, fakes.whisper.heard, fakes.kokoro.spoken) == heard
    speakers.used.clear()
    _forbid_fitting(monkeypatch)
    run = new_run("a", *SPEAKERS)
    run.run_epoch()
    assert speakers.used == {} and fakes.whisper.heard == heard[1]
