import math

import pytest
import torch

from nuanced_core.losses.reference import MelSTFTLoss
from nuanced_core.training.validation import (
    Baselines,
    FittedBaselines,
    Scores,
    Validation,
    skill,
    standard_error,
    validation_inputs,
)
from tests.nuanced_core.training.conftest import RunFactory


def test_input_is_the_next_utterance_of_the_same_voice() -> None:
    assert validation_inputs(["a", "b", "a", "a"], ("clean", "room")) == [
        (2, "clean"),
        (1, "room"),
        (3, "clean"),
        (0, "room"),
    ]


def test_objective_does_not_depend_on_what_a_trial_may_change(new_run: RunFactory) -> None:
    base = new_run("a").data
    other = new_run("b", "loss.style=9", "train.window_frames=32", "data.voices=[af_nicole]", "encoder.width=16").data
    assert (other.baselines.mean, other.baselines.oracle) == (base.baselines.mean, base.baselines.oracle)
    styles = torch.randn(len(base.validation.clips), 256, generator=torch.Generator().manual_seed(0))
    assert other.validation.scores(styles) == base.validation.scores(styles)


def test_skill_is_0_for_the_mean_voice_and_1_for_the_oracle(new_run: RunFactory) -> None:
    baselines = new_run("a").data.baselines
    assert skill(baselines.mean.loss, baselines) == 0
    assert skill(baselines.oracle.loss, baselines) == 1
    assert baselines.oracle.style == pytest.approx(0, abs=1e-6)
    assert 0 < baselines.oracle.stft < baselines.mean.stft
    assert skill(2.0, Baselines(Scores(3.0, 0, 0), Scores(1.0, 0, 0))) == 0.5


def test_noise_is_what_a_bootstrap_over_voices_finds(new_run: RunFactory) -> None:
    validation = new_run("a").data.validation
    styles = torch.randn(len(validation.clips), 256, generator=torch.Generator().manual_seed(0))
    scores = validation.scores(styles)
    voices = sorted({clip.utterance.voice for clip in validation.clips})
    by_voice = []
    for voice in voices:
        index = [i for i, clip in enumerate(validation.clips) if clip.utterance.voice == voice]
        alone = Validation(
            validation.dataset, [validation.clips[i] for i in index], validation.objective, MelSTFTLoss()
        )
        by_voice.append(alone.scores(styles[index]).loss)
    drawn = torch.randint(len(voices), (4000, len(voices)), generator=torch.Generator().manual_seed(1))
    bootstrap = torch.tensor(by_voice)[drawn].mean(dim=1)
    assert scores.noise == pytest.approx(float(bootstrap.std()), rel=0.1)
    assert scores.noise > 0


def test_standard_error_ignores_what_is_unknown() -> None:
    assert standard_error([1.0, 3.0, float("nan")]) == pytest.approx(2**-0.5)
    assert standard_error([float("nan")]) == 0


def test_baselines_are_computed_once(new_run: RunFactory, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="nuanced_core.training.validation"):
        data = new_run("a").data
        names = ("mean", "oracle", "nearest", "ridge")
        computed = [f"computing the baseline {name} on 4 validation clips" for name in names]
        computed.insert(2, "fitting the nearest voice and ridge regression to 8 clips")
        assert sorted(caplog.messages) == sorted(computed)
        before = new_run.fakes.kokoro.spoken
        assert new_run("b").data.baselines == data.baselines
    assert new_run.fakes.kokoro.spoken == before
    assert len(caplog.messages) == len(computed)


def test_nearest_and_ridge_predict_from_what_the_encoder_hears(new_run: RunFactory) -> None:
    data = new_run("a", "objective.conditions=[clean, room]").data
    validation, dataset = data.validation, data.dataset
    names = new_run.fakes.voices.training_voices("all", ("af_sky", "bm_lewis"))
    mean_pack = new_run.fakes.voices.mean_pack(names)
    fitted = FittedBaselines(dataset, data.clips, mean_pack)
    styles = fitted.of_clips(validation.clips, validation.inputs)
    nearest = fitted.nearest_of_clips(validation.clips, validation.inputs)
    counts = [clip.utterance.phoneme_count for clip in validation.clips]
    for style, name, count in zip(styles["nearest"], nearest, counts, strict=True):
        assert torch.equal(style, new_run.fakes.voices.style(name, count))
    assert validation.scores(styles["nearest"]) == data.baselines.nearest
    assert validation.scores(styles["ridge"]).loss == data.baselines.ridge.loss
    # Another version is heard, so something else is predicted.
    clean = [(index, "clean") for index, _ in validation.inputs]
    others = fitted.of_clips(validation.clips, clean)["ridge"]
    assert torch.equal(others[0], styles["ridge"][0]) and not torch.equal(others[1], styles["ridge"][1])


def test_one_training_voice_has_baselines_too(new_run: RunFactory) -> None:
    baselines = new_run("a", "data.voices=[af_nicole]").data.baselines
    assert baselines.nearest is not None and math.isfinite(baselines.nearest.loss)
    assert baselines.ridge is not None and math.isfinite(baselines.ridge.loss)
