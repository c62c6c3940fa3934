import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch

from nuanced_core.encoder import checkpoint as checkpoint_module
from nuanced_core.encoder.checkpoint import read_checkpoint
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import DiskError, StoppedError, TrainingError, WeightsError
from nuanced_core.exhibits.exhibition import Exhibition, Exhibits
from nuanced_core.training import run as run_module
from nuanced_core.training.run import BEST, LAST, Run, train
from nuanced_core.training.validation import Scores
from tests.nuanced_core.training.conftest import RunFactory

WHILE_RUNNING = ("train/steps_per_second", "train/peak_memory_gb")  # scalars that differ between equal runs


def test_epoch_reports_scalars_and_writes_checkpoints(new_run: RunFactory) -> None:
    run = new_run("a")
    scalars = run.run_epoch()
    steps = [s for step, s in new_run.reported if "loss/style" in s]
    assert [step for step, s in new_run.reported if "loss/style" in s] == [1, 2, 3]
    for s in steps:
        assert s["train/gradient_norm"] > 0
        parts = [s[f"gradient/{part}"] for part in ("trunks", "heads")]
        assert math.hypot(*parts) == pytest.approx(s["train/gradient_norm"], rel=1e-5)
    last_step, epoch = new_run.reported[-1]
    assert last_step == 3
    names = {"val/loss", "val/stft", "val/style", "val/skill"}
    rows = ("baseline", "nearest", "ridge", "oracle")
    others = {"loss/total", *(f"{row}/loss" for row in rows), *WHILE_RUNNING}
    assert {name for name in epoch if not name.startswith("val_groups/")} == {*names, *others}
    assert {*names, "loss/total", *(f"{row}/{term}" for row in rows for term in ("loss", "stft", "style"))} <= set(
        scalars
    )
    assert epoch["val/loss"] == pytest.approx(epoch["val/stft"] + epoch["val/style"])
    assert epoch["train/steps_per_second"] > 0
    files = {str(p.relative_to(run.folder)) for p in run.folder.rglob("*") if p.is_file()}
    assert files == {str(LAST), str(BEST)}


def test_the_total_is_reported_as_the_mean_of_an_epoch(new_run: RunFactory) -> None:
    """Terms that are computed at some steps only would make a saw of it."""
    new_run("a", "train.speak_every=3", "train.steps_per_epoch=6").run_epoch()
    steps = [s for _, s in new_run.reported if "loss/style" in s]
    assert [("loss/stft" in s) for s in steps] == [True, False, False, True, False, False]
    assert not any("loss/total" in s for s in steps)
    total = sum(value for s in steps for name, value in s.items() if name.startswith("weighted/"))
    assert new_run.reported[-1][1]["loss/total"] == pytest.approx(total / 6, rel=1e-5)


def test_validation_is_reported_by_group(new_run: RunFactory) -> None:
    run = new_run("a", "objective.conditions=[clean, room]")
    epoch = run.run_epoch()
    groups = {name.partition("/")[2]: value for name, value in epoch.items() if name.startswith("val_groups/")}
    voices = {clip.utterance.voice for clip in run.data.validation.clips}
    assert voices == {"af_sky", "bm_lewis"}
    kinds = ("sex_female", "sex_male", "accent_american", "accent_british", "condition_clean", "condition_room")
    assert set(groups) == set(kinds)
    for a, b in (kinds[:2], kinds[2:4], kinds[4:]):  # of equal numbers of clips
        assert (groups[a] + groups[b]) / 2 == pytest.approx(epoch["val/loss"], rel=1e-5)
    assert groups["sex_female"] == groups["accent_american"] != groups["sex_male"]


def test_weights_of_a_learned_mix_of_layers_are_reported(new_run: RunFactory) -> None:
    epoch = new_run("a", "features.layers=all", "features.combine=mix", "train.learning_rate=0.1").run_epoch()
    weights = [epoch[f"layers/{layer}"] for layer in range(3)]
    assert sum(weights) == pytest.approx(1)
    assert len(set(weights)) > 1
    assert new_run.reported[-1][1]["layers/0"] == weights[0]


@pytest.mark.slow
def test_epochs_1_and_4_and_the_best_at_the_end_are_shown(new_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run("a", "show.clips=2", "train.epochs=6", "train.steps_per_epoch=1")
    losses = iter([3.0, 2.0, 1.0, 4.0, 5.0, 6.0])
    clips = len(run.data.validation.clips)
    monkeypatch.setattr(
        run.data.validation, "scores", lambda styles: Scores(next(losses), 1.0, 1.0, clips=(1.0,) * clips)
    )
    encoders = []
    show = Exhibition.show

    def noted(self: Exhibition, encoder: StyleEncoder, points: object) -> Exhibits:
        encoders.append({name: weights.clone() for name, weights in encoder.state_dict().items()})
        return show(self, encoder, points)  # type: ignore[arg-type]

    monkeypatch.setattr(Exhibition, "show", noted)
    listening = run.folder / "listening" / "listening.json"
    kept = []
    while not run.finished:
        run.run_epoch()
        kept.append(json.loads(listening.read_text())["epoch"] if listening.exists() else None)
    assert [step for step, _ in new_run.exhibits] == [1, 4, 6]
    assert kept == [1, 1, 1, 1, 1, 3]  # the fourth epoch is not the best one
    best = read_checkpoint(run.folder / BEST).encoder
    assert all(torch.equal(encoders[-1][name], best[name]) for name in best)
    assert any(not torch.equal(encoders[1][name], best[name]) for name in best)
    first, second, _ = ({exhibit.name for exhibit in exhibits} for _, exhibits in new_run.exhibits)
    assert {name.partition("/")[2] for name in first - second} == {"heard", "reference", "mean", "nearest"}
    for voice in ("af_sky, clean", "bm_lewis, "):
        assert any(name.startswith(voice) and name.endswith("/spoken") for name in second)
        assert any(name.startswith(voice) and name.endswith("/spectrograms") for name in second)
    assert "styles/map" in second


def test_every_term_is_reported_unweighted_and_weighted(new_run: RunFactory) -> None:
    weights = {"stft": 0.5, "linear_stft": 0.25, "style": 2.0, "f0": 3.0, "energy": 4.0, "duration": 0.125}
    total = new_run("a", *(f"loss.{name}={weight}" for name, weight in weights.items())).train_step()["loss/total"]
    ((_, scalars),) = new_run.reported
    for name, weight in weights.items():
        assert scalars[f"loss/{name}"] > 0, name
        assert scalars[f"weighted/{name}"] == pytest.approx(weight * scalars[f"loss/{name}"], rel=1e-5)
    assert total == pytest.approx(sum(scalars[f"weighted/{name}"] for name in weights), rel=1e-5)


def test_prosody_losses_render_no_audio(new_run: RunFactory) -> None:
    run = new_run("a", "loss.stft=0", "loss.f0=1", "loss.duration=1")
    before = new_run.fakes.kokoro.spoken
    scalars = run.train_step()
    assert new_run.fakes.kokoro.spoken == before
    assert scalars["loss/f0"] > 0 and scalars["loss/duration"] > 0 and scalars["train/speech_seconds"] == 0
    assert "loss/energy" not in scalars and "loss/stft" not in scalars


def test_learning_rate_warms_up_and_follows_its_schedule(new_run: RunFactory) -> None:
    def rates(schedule: str) -> list[float]:
        new_run.reported.clear()
        new_run(schedule, f"train.schedule={schedule}", "train.steps_per_epoch=40", "loss.stft=0").run_epoch()
        return [s["train/learning_rate"] for _, s in new_run.reported if "train/learning_rate" in s]

    constant, cosine = rates("constant"), rates("cosine")
    assert constant == pytest.approx([1e-3 * (n + 1) / 50 for n in range(40)])
    assert cosine == pytest.approx([r * (1 + math.cos(math.pi * n / 80)) / 2 for n, r in enumerate(constant)])


def test_patience_finishes_a_run_whose_loss_does_not_improve(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("a", "train.patience=2", "train.epochs=9", "train.steps_per_epoch=1")
    losses = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(run.data.validation, "scores", lambda styles: Scores(next(losses), 1.0, 1.0))
    finished = []
    for _ in range(4):
        run.run_epoch()
        finished.append(run.finished)
    assert finished == [False, False, False, True]
    assert new_run("a", "train.patience=2", "train.epochs=9", "train.steps_per_epoch=1").finished
    without_patience = new_run("b", "train.epochs=1")
    assert not without_patience.finished
    without_patience.run_epoch()
    assert without_patience.finished


def test_training_lowers_the_loss(new_run: RunFactory) -> None:
    run = new_run("a", "train.learning_rate=0.03", "train.steps_per_epoch=60", "train.spoken=1", "encoder.width=64")
    losses = [run.run_epoch()["loss/total"] for _ in range(3)]
    assert losses[2] < 0.7 * losses[0], losses


def test_same_seed_gives_the_same_losses_and_another_seed_does_not(new_run: RunFactory) -> None:
    losses = [new_run(n, f"train.seed={s}").run_epoch()["loss/total"] for n, s in (("a", 1), ("b", 1), ("c", 2))]
    assert losses[0] == losses[1] != losses[2]


def test_resumed_run_continues_as_if_it_had_never_stopped(new_run: RunFactory) -> None:
    whole = new_run("whole")
    expected = [whole.run_epoch(), whole.run_epoch()][1]
    new_run("parts").run_epoch()
    resumed = new_run("parts")
    assert (resumed.epoch, resumed.step) == (1, 3)
    scalars = resumed.run_epoch()
    for name, value in expected.items():
        if name not in WHILE_RUNNING:
            assert scalars[name] == pytest.approx(value, rel=1e-6), name
    assert resumed.best_loss == whole.best_loss


def stop_at_step(run: Run, last: int) -> None:
    """Train until a stop is asked for after a step within the first epoch."""

    def stop(step: int, scalars: object, exhibits: object = ()) -> None:
        if step == last:
            raise StoppedError("stopped")

    run._report = stop
    with pytest.raises(StoppedError):
        run.run_epoch()


def test_stop_within_an_epoch_writes_a_checkpoint_first(new_run: RunFactory) -> None:
    whole = new_run("whole", "encoder.dropout=0.5")
    whole.run_epoch()
    run = new_run("parts", "encoder.dropout=0.5")
    stop_at_step(run, 2)
    resumed = new_run("parts", "encoder.dropout=0.5")
    assert (resumed.epoch, resumed.step) == (0, 2)
    resumed.run_epoch()
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(resumed.encoder.state_dict()[name], tensor), name


def test_stop_after_the_last_step_of_an_epoch_keeps_the_epoch(new_run: RunFactory) -> None:
    run = new_run("a")

    def stop(step: int, scalars: dict[str, float], exhibits: object = ()) -> None:
        if "val/loss" in scalars:
            raise StoppedError("stopped")

    run._report = stop  # type: ignore[assignment]
    run.run_epoch()
    assert new_run("a").epoch == 1


def test_checkpoint_of_other_settings_or_damaged_is_an_error(new_run: RunFactory) -> None:
    run = new_run("a")
    run.run_epoch()
    with pytest.raises(WeightsError, match="other settings"):
        new_run("a", "train.learning_rate=0.5")
    (run.folder / LAST).write_bytes(b"junk" * 10)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        new_run("a")


def test_best_checkpoint_is_that_of_the_lowest_loss(new_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run("a")
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(run.data.validation, "scores", lambda styles: Scores(next(losses), 1.0, 1.0))
    for _ in range(3):
        run.run_epoch()
    best = new_run("b")
    best.load(run.folder / BEST)
    assert (best.epoch, best.best_loss) == (2, 1.0)


def test_loss_that_is_not_finite_is_an_error_before_the_weights_change(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("a")
    monkeypatch.setattr(run_module, "style_loss", lambda p, t: (p * float("nan")).sum())
    with pytest.raises(TrainingError, match=r"step 0: loss/total is nan; lower train\.learning_rate"):
        run.run_epoch()
    assert all(torch.isfinite(p).all() for p in run.encoder.parameters())


def test_full_disk_leaves_the_last_checkpoint_intact(new_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run("a")
    run.run_epoch()
    before = (run.folder / LAST).read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        run.run_epoch()
    assert (run.folder / LAST).read_bytes() == before


def test_without_audio_losses_kokoro_renders_only_in_validation(new_run: RunFactory) -> None:
    run = new_run("a", "loss.stft=0")
    before = new_run.fakes.kokoro.spoken
    run.run_epoch()
    assert new_run.fakes.kokoro.spoken - before == len(run.data.validation.clips)
    assert not [s for _, s in new_run.reported if "loss/stft" in s]


def test_kokoro_renders_at_every_nth_step(new_run: RunFactory) -> None:
    new_run("a", "train.speak_every=2", "train.steps_per_epoch=5").run_epoch()
    assert [step for step, s in new_run.reported if "loss/stft" in s] == [1, 3, 5]
    assert [step for step, s in new_run.reported if "loss/style" in s] == [1, 2, 3, 4, 5]


def test_closed_run_is_freed_without_garbage_collection(new_run: RunFactory) -> None:
    run = new_run("a")
    run.train_step()
    gone = weakref.ref(run)
    gc.disable()
    try:
        run.close()
        del run
        assert gone() is None
    finally:
        gc.enable()


def test_train_logs_one_line_an_epoch_and_closes_the_run(
    new_run: RunFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new = new_run("a")
    monkeypatch.setattr(run_module, "start_run", lambda config, folder, report: new)
    closed = []
    monkeypatch.setattr(new.batches, "close", lambda: closed.append(True))
    with caplog.at_level("INFO", logger=run_module.__name__):
        run = train(new.config, new.folder, lambda *reported: None)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert f"val/loss {run.scalars['val/loss']:.4f}" in lines[1]
    assert run.finished and closed == [True]


def test_folder_that_cannot_be_created_is_an_error(new_run: RunFactory) -> None:
    (new_run.folder / "a").write_text(json.dumps({}))
    with pytest.raises(DiskError, match="cannot be created"):
        new_run("a")


def test_an_epoch_that_continues_after_its_last_step_keeps_its_speed(new_run: RunFactory) -> None:
    run = new_run("a")
    stop_at_step(run, 3)
    resumed = new_run("a")
    assert (resumed.epoch, resumed.step) == (0, 3)
    assert resumed.run_epoch()["train/steps_per_second"] == run.scalars["train/steps_per_second"] > 0


def test_a_checkpoint_continues_where_only_what_changes_no_result_is_other(new_run: RunFactory) -> None:
    new_run("a").run_epoch()
    assert new_run("a", "show.clips=0", "models.source=hub").epoch == 1
