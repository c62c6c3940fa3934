import gc
import json
import math
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.config.settings import Objective, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data.dataset import Dataset
from nuanced_core.errors import DiskError, TrainingError, WeightsError
from nuanced_core.training.losses import MelSTFTLoss
from nuanced_core.training.run import BEST, LAST, Run
from nuanced_core.training.validation import Baselines, Scores, Validation, skill, validation_inputs


class Lab:
    """Runs with the fakes in one temporary folder."""

    def __init__(self, fakes: SimpleNamespace, config: RunConfig, folder: Path) -> None:
        self.fakes, self.config, self.folder = fakes, config, folder
        self.reported: list[tuple[int, Mapping[str, float]]] = []

    def run(self, name: str, *overrides: str) -> Run:
        data = apply_overrides(self.config.model_dump(mode="json"), overrides)
        config = validate(RunConfig, data, name)
        dataset = Dataset(self.fakes, self.folder / "cache", config.augment)
        report = lambda step, scalars: self.reported.append((step, scalars))  # noqa: E731
        return Run(config, dataset, self.folder / name, report)


@pytest.fixture
def lab(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> Lab:
    return Lab(fakes, tiny_run, tmp_path)


def test_an_epoch_reports_and_leaves_checkpoints_and_sound(lab: Lab) -> None:
    run = lab.run("a")
    scalars = run.run_epoch()
    steps = [s for step, s in lab.reported if "loss/total" in s]
    assert [step for step, s in lab.reported if "loss/total" in s] == [1, 2, 3]
    for s in steps:
        assert s["loss/total"] == pytest.approx(s["weighted/stft"] + s["weighted/style"], rel=1e-5)
        assert s["train/gradient_norm"] > 0
    last_step, epoch = lab.reported[-1]
    assert last_step == 3
    wanted = {"val/loss", "val/stft", "val/style", "val/skill"}
    assert set(epoch) == {*wanted, "train/steps_per_second", "train/peak_memory_gb"}
    assert {*wanted, "baseline/loss", "oracle/loss", "loss/total"} <= set(scalars)
    assert epoch["val/loss"] == pytest.approx(epoch["val/stft"] + epoch["val/style"])
    assert epoch["train/steps_per_second"] > 0
    names = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    assert names == {str(LAST), str(BEST), "epoch_1_predicted.wav", "epoch_1_reference.wav"}
    predicted, rate = soundfile.read(run.folder / "epoch_1_predicted.wav")
    assert rate == 24_000 and len(predicted) == len(soundfile.read(run.folder / "epoch_1_reference.wav")[0])


def test_every_term_is_logged_unweighted_and_weighted(lab: Lab) -> None:
    weights = {"stft": 0.5, "linear_stft": 0.25, "style": 2.0, "f0": 3.0, "energy": 4.0, "duration": 0.125}
    lab.run("a", *(f"loss.{name}={weight}" for name, weight in weights.items())).train_step()
    ((_, scalars),) = lab.reported
    for name, weight in weights.items():
        assert scalars[f"loss/{name}"] > 0, name
        assert scalars[f"weighted/{name}"] == pytest.approx(weight * scalars[f"loss/{name}"], rel=1e-5)
    assert scalars["loss/total"] == pytest.approx(sum(scalars[f"weighted/{name}"] for name in weights), rel=1e-5)


def test_prosody_losses_need_no_sound(lab: Lab) -> None:
    run = lab.run("a", "loss.stft=0", "loss.f0=1", "loss.duration=1")
    before = lab.fakes.kokoro.spoken
    scalars = run.train_step()
    assert lab.fakes.kokoro.spoken == before
    assert scalars["loss/f0"] > 0 and scalars["loss/duration"] > 0 and scalars["train/speech_seconds"] == 0
    assert "loss/energy" not in scalars and "loss/stft" not in scalars


def test_the_learning_rate_warms_up_and_follows_its_schedule(lab: Lab) -> None:
    def rates(schedule: str) -> list[float]:
        lab.reported.clear()
        lab.run(schedule, f"train.schedule={schedule}", "train.steps_per_epoch=40", "loss.stft=0").run_epoch()
        return [s["train/learning_rate"] for _, s in lab.reported if "train/learning_rate" in s]

    constant, cosine = rates("constant"), rates("cosine")
    assert constant == pytest.approx([1e-3 * (n + 1) / 50 for n in range(40)])
    assert cosine == pytest.approx([r * (1 + math.cos(math.pi * n / 80)) / 2 for n, r in enumerate(constant)])


def test_patience_ends_a_run_that_brings_nothing_better(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run("a", "train.patience=2", "train.epochs=9", "train.steps_per_epoch=1")
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(run.validation, "scores", lambda styles: Scores(next(losses), 1.0, 1.0))
    finished = []
    for _ in range(4):
        run.run_epoch()
        finished.append(run.finished)
    assert finished == [False, False, False, True]
    assert lab.run("a", "train.patience=2", "train.epochs=9", "train.steps_per_epoch=1").finished
    endless = lab.run("b", "train.epochs=1")
    assert not endless.finished
    endless.run_epoch()
    assert endless.finished


def test_augmented_versions_are_heard_in_training_and_never_in_validation(lab: Lab) -> None:
    run = lab.run("a", "augment.copies=2", "loss.stft=0")
    drawn = [run._draw(step).heard for step in range(3)]
    clean = lab.run("b", "augment.copies=0", "loss.stft=0")
    assert any(not torch.equal(a, clean._draw(step).heard) for step, a in enumerate(drawn))
    assert torch.equal(run._val_batch.features, clean._val_batch.features)


def test_a_validation_voice_is_heard_saying_another_sentence_in_each_condition_in_turn(lab: Lab) -> None:
    conditions = ["clean", "telephone", "snr10"]
    run = lab.run("a", f"objective.conditions={json.dumps(conditions)}")
    clips = run.validation.clips
    assert [c.utterance.voice for c in clips] == ["af_sky", "af_sky", "bm_lewis", "bm_lewis"]
    heard = [(clips[1], "clean"), (clips[0], "telephone"), (clips[3], "snr10"), (clips[2], "clean")]
    for i, (clip, condition) in enumerate(heard):
        expected = run.dataset.batch([clip], run.layers, [condition])
        frames = expected.features.shape[2]
        assert torch.equal(run._val_batch.features[i : i + 1, :, :frames], expected.features)
        assert run._val_batch.mask[i].sum() == frames
    assert torch.equal(run._val_batch.styles, torch.stack([c.utterance.style for c in clips]))
    assert run._val_batch.phoneme_counts.tolist() == [c.utterance.phoneme_count for c in clips]


def test_what_is_heard_is_the_next_utterance_of_the_same_voice() -> None:
    assert validation_inputs(["a", "b", "a", "a"], ("clean", "room")) == [
        (2, "clean"),
        (1, "room"),
        (3, "clean"),
        (0, "room"),
    ]


def test_permuting_or_changing_training_data_cannot_leak_into_validation(lab: Lab) -> None:
    """Whatever is trained on, validation hears the same, wants the same and is compared with the same."""
    run = lab.run("a")
    before = run.validate()
    for i, override in enumerate(
        (
            'data.sentences=["A blue window.", "Red door."]',
            'data.voices=["af_bella", "am_michael", "af_heart", "am_fenrir"]',
            'data.voices=["af_nicole", "bf_alice"]',
            'data.sentences=["Something else entirely.", "And more of it."]',
            "data.sentences_per_voice=1",
            "mixes.swaps=3",
            "augment.copies=2",
            "train.seed=5",
        )
    ):
        other = lab.run(f"b{i}", override)
        assert torch.equal(other._val_batch.features, run._val_batch.features)
        assert torch.equal(other._val_batch.styles, run._val_batch.styles)
        assert [clip.key for clip in other.validation.clips] == [clip.key for clip in run.validation.clips]
        assert other.baselines == run.baselines
        found = other.validate()
        assert {k: v for k, v in found.items() if "val" not in k} == {k: v for k, v in before.items() if "val" not in k}
        styles = torch.stack([clip.utterance.style for clip in run.validation.clips])
        assert other.validation.scores(styles) == run.validation.scores(styles)
        trained = {clip.key for clip in other.clips}
        assert not trained & {clip.key for clip in run.validation.clips}


def test_the_style_loss_asks_for_any_phoneme_count_or_for_that_of_what_is_heard(lab: Lab) -> None:
    own, other = lab.run("a", "train.rows=own"), lab.run("b", "train.rows=any")
    drawn = own._draw(0)
    own_styles = torch.stack([clip.utterance.style for clip in drawn.clips])
    assert torch.equal(drawn.counts, drawn.own_counts) and torch.equal(drawn.targets, own_styles)
    counts = []
    for step in range(40):
        drawn = other._draw(step)
        for clip, count, target in zip(drawn.clips, drawn.counts.tolist(), drawn.targets, strict=True):
            assert torch.equal(target, lab.fakes.voices.style(clip.utterance.voice, count))
            counts.append(count)
    assert min(counts) < 5 and max(counts) > 300 and max(counts) <= 510
    assert abs(sorted(counts)[len(counts) // 2] - 510**0.5) < 12


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "max"])
def test_what_is_pooled_without_learning_is_kept_and_the_same(lab: Lab, pooling: str) -> None:
    run = lab.run("a", f"encoder.pooling={pooling}", "augment.copies=2", "loss.stft=0")
    for step in range(3):
        drawn = run._draw(step)
        assert isinstance(drawn.heard, Tensor)
        versions = [v for c in drawn.clips for (key, v) in run._kept_pooled if key == c.key]
        assert versions
        for clip, heard in zip(drawn.clips, drawn.heard, strict=True):
            batches = [run.dataset.batch([clip], run.layers, [version]) for version in run.dataset.versions]
            possible = [run.encoder.pooled(batch.features, batch.mask)[0] for batch in batches]
            assert min(float((heard - one).abs().max()) for one in possible) == 0
    before = lab.fakes.whisper.heard
    run._draw(1)
    assert lab.fakes.whisper.heard == before


def test_learned_pooling_hears_the_frames(lab: Lab) -> None:
    for override in ("encoder.pooling=attentive", "encoder.frame_width=4", "encoder.pooling=gru"):
        assert not isinstance(lab.run(override, override)._draw(0).heard, Tensor)


def test_made_up_voices_speak_the_share_of_a_batch_that_is_asked_for(lab: Lab) -> None:
    mixes = ["mixes.swaps=9", "train.batch_size=8"]
    run = lab.run("a", *mixes, "mixes.share=0.25")
    firsts = set()
    for step in range(12):
        clips = run._draw(step).clips
        made_up = [clip.utterance.voice.startswith("swap") for clip in clips]
        assert (len(clips), sum(made_up)) == (8, 2)
        firsts.add(made_up[0])
    assert firsts == {True, False}  # Kokoro speaks the first ones: of either
    assert sum(c.utterance.voice.startswith("swap") for c in lab.run("b", *mixes, "mixes.share=0")._draw(0).clips) == 0


def test_training_learns_the_voices_it_hears(lab: Lab) -> None:
    run = lab.run("a", "train.learning_rate=0.03", "train.steps_per_epoch=60", "train.spoken=1", "encoder.width=64")
    losses = [run.run_epoch()["loss/total"] for _ in range(3)]
    assert losses[2] < 0.7 * losses[0], losses


def test_the_same_seed_gives_the_same_losses_and_another_does_not(lab: Lab) -> None:
    losses = [lab.run(n, f"train.seed={s}").run_epoch()["loss/total"] for n, s in (("a", 1), ("b", 1), ("c", 2))]
    assert losses[0] == losses[1] != losses[2]


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(lab: Lab) -> None:
    whole = lab.run("whole")
    expected = [whole.run_epoch(), whole.run_epoch()][1]
    lab.run("parts").run_epoch()
    resumed = lab.run("parts")
    assert (resumed.epoch, resumed.step) == (1, 3)
    found = resumed.run_epoch()
    for name, value in expected.items():
        if name not in ("train/steps_per_second", "train/peak_memory_gb"):
            assert found[name] == pytest.approx(value, rel=1e-6), name
    assert resumed.best_loss == whole.best_loss


def test_a_checkpoint_of_other_settings_or_none_is_refused(lab: Lab) -> None:
    run = lab.run("a")
    run.run_epoch()
    with pytest.raises(WeightsError, match="other settings"):
        lab.run("a", "train.learning_rate=0.5")
    (run.folder / LAST).write_bytes(b"junk" * 10)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        lab.run("a")


def test_the_best_checkpoint_is_kept_not_the_last(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run("a")
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(run.validation, "scores", lambda styles: Scores(next(losses), 1.0, 1.0))
    for _ in range(3):
        run.run_epoch()
    best = lab.run("b")
    best.config = run.config
    best.load(run.folder / BEST)
    assert (best.epoch, best.best_loss) == (2, 1.0)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.run("a")
    monkeypatch.setattr("nuanced_core.training.run.style_loss", lambda p, t: (p * float("nan")).sum())
    with pytest.raises(TrainingError, match=r"step 0: loss/total is nan; lower train\.learning_rate"):
        run.run_epoch()
    assert all(torch.isfinite(p).all() for p in run.encoder.parameters())


def test_a_full_disk_leaves_the_last_checkpoint_whole(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run("a")
    run.run_epoch()
    before = (run.folder / LAST).read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nuanced_core.training.run.save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        run.run_epoch()
    assert (run.folder / LAST).read_bytes() == before


def test_without_audio_loss_kokoro_speaks_only_to_validate(lab: Lab) -> None:
    run = lab.run("a", "loss.stft=0")
    before = lab.fakes.kokoro.spoken
    run.run_epoch()
    assert lab.fakes.kokoro.spoken - before == len(run.validation.clips) + 1
    assert not [s for _, s in lab.reported if "loss/stft" in s]


def test_a_closed_run_leaves_nothing_behind(lab: Lab) -> None:
    run = lab.run("a")
    run.train_step()
    gone = weakref.ref(run)
    gc.disable()
    try:
        run.close()
        del run
        assert gone() is None
    finally:
        gc.enable()


def test_reading_ahead_changes_nothing(lab: Lab) -> None:
    plain, ahead = lab.run("a"), lab.run("b")
    ahead._reader = ThreadPoolExecutor(1)
    expected, found = plain.run_epoch(), ahead.run_epoch()
    assert ahead._next is not None and ahead._next[0] == 3
    names = [name for name in expected if name.startswith(("loss/", "val/"))]
    assert names and [found[name] for name in names] == [expected[name] for name in names]
    ahead.close()


def test_kokoro_speaks_at_every_nth_step(lab: Lab) -> None:
    lab.run("a", "train.speak_every=2", "train.steps_per_epoch=5").run_epoch()
    assert [step for step, s in lab.reported if "loss/stft" in s] == [1, 3, 5]
    assert [step for step, s in lab.reported if "loss/style" in s] == [1, 2, 3, 4, 5]


def test_the_objective_does_not_depend_on_what_a_trial_may_change(lab: Lab) -> None:
    base = lab.run("a")
    other = lab.run("b", "loss.style=9", "train.window_frames=32", "data.voices=[af_nicole]", "encoder.width=16")
    assert other.baselines == base.baselines
    styles = torch.randn(len(base.validation.clips), 256, generator=torch.Generator().manual_seed(0))
    assert other.validation.scores(styles) == base.validation.scores(styles)


def test_skill_is_0_for_the_mean_voice_and_1_for_the_oracle(lab: Lab) -> None:
    run = lab.run("a")
    baselines = run.baselines
    assert skill(baselines.mean.loss, baselines) == 0
    assert skill(baselines.oracle.loss, baselines) == 1
    assert baselines.oracle.style == pytest.approx(0, abs=1e-6)
    assert 0 < baselines.oracle.stft < baselines.mean.stft
    assert skill(2.0, Baselines(Scores(3.0, 0, 0), Scores(1.0, 0, 0))) == 0.5


def test_baselines_are_computed_once(lab: Lab) -> None:
    run = lab.run("a")
    before = lab.fakes.kokoro.spoken
    mean_pack = lab.fakes.voices.mean_pack(("af_heart", "af_bella", "af_nicole", "am_fenrir", "am_michael", "bf_alice"))
    again = Validation(run.dataset, run.validation.clips, Objective(window_frames=16), MelSTFTLoss())
    assert again.baselines(mean_pack) == run.baselines
    assert lab.fakes.kokoro.spoken == before
