"""One training run: a StyleEncoder learns to predict the style in which a clip was spoken.

A step computes the style loss on a batch of clips. At some steps Kokoro also renders a window of a few of these clips
in the predicted styles, for the audio losses. The gradient of the weighted sum, through frozen Kokoro, updates the
encoder. After each epoch the encoder is scored on the validation voices and a checkpoint is written.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND
from nuanced_core.config.settings import RunConfig, Train, result_settings
from nuanced_core.data.dataset import Batch, windows
from nuanced_core.data.model_set import ModelSet, loaded_models, resolve_device
from nuanced_core.encoder.checkpoint import Checkpoint, encoder_of_checkpoint, read_checkpoint, write_checkpoint
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import DiskError, StoppedError, TrainingError, WeightsError
from nuanced_core.exhibits.exhibit import Exhibit
from nuanced_core.exhibits.exhibition import StylePoint
from nuanced_core.exhibits.listening import LISTENING
from nuanced_core.losses.reference import style_loss
from nuanced_core.losses.spoken import SpokenLosses
from nuanced_core.training.batches import BatchSampler, TrainingBatch
from nuanced_core.training.memory import peak_memory, reset_peak_memory
from nuanced_core.training.people import PeopleLosses
from nuanced_core.training.run_setup import RunData, build_encoder, load_data
from nuanced_core.training.validation import skill
from nuanced_core.weights.store import cache_dir

__all__ = ["BEST", "LAST", "Report", "Run", "start_run", "train"]

logger = logging.getLogger(__name__)


class Report(Protocol):
    """What a run calls with the scalars of each step, and with those and the exhibits of each epoch."""

    def __call__(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        """Take scalars by name, and exhibits; raises StoppedError to stop the run."""


LAST, BEST = Path("checkpoints/last.safetensors"), Path("checkpoints/best.safetensors")
# Scalars that are reported once an epoch; the others of an epoch are means of what each step reports.
EPOCH_SCALARS = (
    *("loss/total", "val/loss", "val/stft", "val/style", "val/skill", "val/identity", "val/pitch"),
    *("baseline/loss", "nearest/loss", "ridge/loss", "oracle/loss"),
    *("train/steps_per_second", "train/peak_memory_gb"),
)
EPOCH_GROUPS = ("val_groups/", "layers/")  # what their names begin with
# Parts of a StyleEncoder by the first part of a parameter's name; all others are what reduces frames to a vector.
PARTS = {"trunks": "trunks", "heads": "heads"}
WARM_UP_STEPS = 50  # until the full learning rate: attention that starts too fast never recovers


def start_run(
    config: RunConfig, folder: Path, report: Report, models: ModelSet | None = None, cache: Path | None = None
) -> "Run":
    """Start a run in a folder, or continue it from the folder's last checkpoint.

    Args:
        folder: gets the checkpoints and the listening clips.
        report: called with the scalars of each step, and those and the exhibits of each epoch; see ``Report``.
        models: default: those of ``config``, loaded once per process and kept for the next run.
        cache: folder of the data cache; default: ``cache_dir()``.

    Raises:
        NuancedError: a model, a voice or a sentence is missing or wrong, a folder cannot be written, or the checkpoint
            is damaged or of other settings.
    """
    models = models or loaded_models(config.models, resolve_device(config.train.device))
    data = load_data(config, models, cache or cache_dir())
    encoder = build_encoder(config, data)
    return Run(config, data, encoder, folder, report)


def train(config: RunConfig, folder: Path, report: Report) -> "Run":
    """Train a run to its end and log one line an epoch.

    Clips that ``prepare`` has not rendered are rendered on first use, in this process and without a progress bar.

    Raises:
        NuancedError: as ``start_run`` and ``Run.run_epoch``.
    """
    with closing(start_run(config, folder, report)) as run:
        while not run.finished:
            scalars = run.run_epoch()
            logger.info(
                "epoch %d/%d: loss %.4f, val/loss %.4f (mean voice %.4f), val/skill %.3f",
                run.epoch,
                config.train.epochs,
                scalars.get("loss/total", math.nan),
                scalars["val/loss"],
                scalars["baseline/loss"],
                scalars["val/skill"],
            )
    return run


class Run:
    """A run in a folder, which holds its checkpoints and its listening clips.

    It continues from ``checkpoints/last.safetensors`` if there is one, with the same steps as if it had never stopped:
    everything random in a step is drawn from the run's seed and the step's number.

    Args:
        encoder: a new encoder; the checkpoint's weights replace its own.
        report: called with the scalars of each step, and those and the exhibits of each epoch; see ``Report``.

    Raises:
        DiskError: the folder cannot be created.
        WeightsError, ConfigError: the checkpoint is damaged, or of a run with other settings.
    """

    def __init__(self, config: RunConfig, data: RunData, encoder: StyleEncoder, folder: Path, report: Report) -> None:
        self.config, self.data, self.encoder, self.folder = config, data, encoder, folder
        self._report = report
        settings = config.train
        self.device = data.dataset.models.device
        self.optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.batches = BatchSampler(config, data, encoder)
        self.losses = SpokenLosses(data.dataset, config.loss, settings.precision, settings.checkpointing)
        self.people_losses = None
        if data.people is not None and config.loss.of_people:
            self.people_losses = PeopleLosses(config, data.people, data.dataset, encoder)
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps
        self.best_loss = math.inf
        self.best_epoch = 0  # the epoch after which the loss was best
        self.scalars: dict[str, float] = {}  # of the last epoch, from the checkpoint if there is one
        _create_folder(folder / LAST.parent)
        if (folder / LAST).is_file():
            self.load(folder / LAST)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last ``train.patience`` of them did not lower val/loss."""
        settings = self.config.train
        out_of_patience = 0 < settings.patience <= self.epoch - self.best_epoch
        return self.epoch >= settings.epochs or out_of_patience

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of an epoch, validate, show, write checkpoints; return the scalars.

        If ``report`` raises StoppedError, a checkpoint in the middle of the epoch is written before it is raised again.

        Raises:
            TrainingError: a loss is not finite.
            DiskError: the folder cannot be written.
            StoppedError: ``report`` raised it.
        """
        try:
            means = self._train_epoch()
        except StoppedError:
            self.save(self.folder / LAST)
            raise
        self.epoch += 1
        self.scalars = {**means, **self.validate()}
        is_best = self.scalars["val/loss"] < self.best_loss
        if is_best:
            self.best_loss, self.best_epoch = self.scalars["val/loss"], self.epoch
            self.save(self.folder / BEST)
        exhibits = self._exhibits(is_best)
        of_epoch = {
            name: value
            for name, value in self.scalars.items()
            if name in EPOCH_SCALARS or name.startswith(EPOCH_GROUPS)
        }
        # The epoch is finished: its checkpoint must be written, and after the next step ``report`` raises again.
        with suppress(StoppedError):
            self._report(self.step, of_epoch, exhibits)
        self.save(self.folder / LAST)
        return self.scalars

    def _exhibits(self, is_best: bool) -> list[Exhibit]:
        """Show the epoch if it is due, and at the end the best one; the best that was shown can be listened to."""
        exhibition = self.data.exhibition
        is_due, is_last = exhibition.is_due(self.epoch), bool(exhibition.clips) and self.finished
        if not (is_due or is_last):
            return []
        encoder, epoch, loss = self.encoder, self.epoch, self.scalars["val/loss"]
        if is_last and not is_best:
            encoder = encoder_of_checkpoint(self.folder / BEST).to(self.device)
            epoch, loss = self.best_epoch, self.best_loss
        shown = exhibition.show(encoder.eval(), self._style_points(encoder))
        if epoch == self.best_epoch:
            step = epoch * self.config.train.steps_per_epoch
            shown.write(self.folder / LISTENING, epoch=epoch, step=step, val_loss=loss)
        return shown.all(with_fixed=self.epoch == 1)

    @torch.no_grad()
    def _style_points(self, encoder: StyleEncoder) -> list[StylePoint]:
        """Return the predicted styles of the validation clips and people, for the map of styles."""
        utterances = [clip.utterance for clip in self.data.validation.clips]
        predicted = self._validation_styles(encoder)
        points = [
            StylePoint(utterance.voice, style, utterance.phoneme_count, utterance.style)
            for utterance, style in zip(utterances, predicted, strict=True)
        ]
        people = self.data.people_validation
        if people is not None:
            rows = zip(people.recordings, people.styles(encoder), people.counts.tolist(), strict=True)
            points += [StylePoint(recording.speaker, style, count) for recording, style, count in rows]
        return points

    def _train_epoch(self) -> dict[str, float]:
        """Take the epoch's remaining steps; return the means of their scalars, their speed and their memory."""
        self.encoder.train()
        reset_peak_memory(self.device)
        started = time.perf_counter()
        values: dict[str, list[float]] = {}
        first, end = self.step, (self.epoch + 1) * self.config.train.steps_per_epoch
        try:
            while self.step < end:
                for name, value in self.train_step().items():
                    values.setdefault(name, []).append(value)
        finally:
            # A run that was stopped after the epoch's last step continues with no step of it.
            seconds, known = time.perf_counter() - started, self.scalars.get("train/steps_per_second", 0.0)
            rate = (self.step - first) / seconds if self.step > first else known
            self.scalars = {**self.scalars, "train/steps_per_second": rate}
        means = {name: sum(steps) / len(steps) for name, steps in values.items()}
        means["train/steps_per_second"] = rate
        means["train/peak_memory_gb"] = peak_memory(self.device) / 1e9
        return means

    def train_step(self) -> dict[str, float]:
        """Take one step and return its scalars.

        Raises:
            TrainingError: a loss is not finite.
        """
        batch = self.batches.batch(self.step)
        torch.manual_seed(batch.generator.initial_seed())  # of dropout
        terms, speech_seconds = self._loss_terms(batch)
        weighted = {name: getattr(self.config.loss, name) * term for name, term in terms.items()}
        total = torch.stack([*weighted.values()]).sum()
        learning_rate = _learning_rate(self.config.train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        norms = self._gradient_norms()
        norm = torch.stack([*norms.values()]).norm()
        torch.nn.utils.clip_grads_with_norm_(self.encoder.parameters(), self.config.train.gradient_clip, norm)
        tensors = {
            "loss/total": total,
            **{f"loss/{name}": term for name, term in terms.items()},
            **{f"weighted/{name}": term for name, term in weighted.items()},
            "train/gradient_norm": norm,
            **{f"gradient/{part}": value for part, value in norms.items()},
        }
        # One transfer to the host a step; its values are checked before the weights change.
        values = torch.stack([value.detach() for value in tensors.values()]).tolist()
        scalars = {**dict(zip(tensors, values, strict=True)), "train/speech_seconds": speech_seconds}
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: {name} is {value}; lower train.learning_rate")
        self.optimizer.step()
        self.step += 1
        # The total consists of other terms at steps at which Kokoro speaks: only its mean over an epoch is a curve.
        of_step = {name: value for name, value in scalars.items() if name != "loss/total"}
        self._report(self.step, {**of_step, "train/learning_rate": learning_rate})
        return scalars

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Return the norm of the gradient of each part of the encoder, before it is clipped."""
        parts: dict[str, list[Tensor]] = {}
        for name, weights in self.encoder.named_parameters():
            if weights.grad is not None:
                parts.setdefault(PARTS.get(name.partition(".")[0], "pooling"), []).append(weights.grad)
        return {part: torch.nn.utils.get_total_norm(gradients) for part, gradients in parts.items()}

    def _loss_terms(self, batch: TrainingBatch) -> tuple[dict[str, Tensor], float]:
        """Compute the unweighted terms of a step's loss; also return the seconds of speech that Kokoro rendered."""
        settings, features = self.config.train, batch.features
        pooled = features if isinstance(features, Tensor) else self._pooled(features)
        terms = {"style": style_loss(self.encoder.styles(pooled, batch.target_counts), batch.targets)}
        if self.people_losses is not None:
            terms |= self.people_losses(self.step, batch.generator)
        if not self.losses.wanted or self.step % settings.speak_every:
            return terms, 0.0
        spoken = batch.clips[: settings.spoken]
        choices = [windows(clip.frames, settings.window_frames) for clip in spoken]
        chosen = [c[int(torch.randint(len(c), (), generator=batch.generator))] for c in choices]
        styles = self.encoder.styles(pooled[: len(spoken)], batch.clip_counts[: len(spoken)])
        terms |= self.losses(spoken, chosen, styles)
        speech_seconds = sum(frames for _, frames in chosen) / FRAMES_PER_SECOND if self.losses.spectral else 0.0
        return terms, speech_seconds

    def _pooled(self, batch: Batch) -> Tensor:
        return self.encoder.pooled(batch.features, batch.mask, batch.speaker)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score the encoder on the validation voices; return ``val/…``, ``baseline/…`` and ``oracle/…`` scalars.

        Raises:
            TrainingError: a score is not finite.
        """
        scores, baselines = self.data.validation.scores(self._validation_styles(self.encoder)), self.data.baselines
        people = self.data.people_validation
        of_people: dict[str, float] = {}
        if people is not None:
            found = people.scores(people.styles(self.encoder))
            noise = math.hypot(scores.noise, people.noise(found))
            scores = replace(scores, loss=scores.loss + people.loss(found), noise=noise)
            for row, values in {"val": found, **_by_row(people.baselines)}.items():
                of_people |= {f"{row}/{name}": getattr(values, name) for name in ("identity", "pitch")}
        if not math.isfinite(scores.loss):
            raise TrainingError(f"step {self.step}: val/loss is {scores.loss}; lower train.learning_rate")
        rows = {"val": scores, **_by_row({name: row for name, row in vars(baselines).items() if row is not None})}
        scalars = {f"{row}/{name}": getattr(s, name) for row, s in rows.items() for name in ("loss", "stft", "style")}
        groups = {f"val_groups/{name}": value for name, value in self.data.validation.by_group(scores).items()}
        layers = {f"layers/{layer}": weight for layer, weight in self.encoder.layer_weights.items()}
        skills = {"val/noise": scores.noise, "val/skill": skill(scores.loss, baselines)}
        return {**scalars, **of_people, **groups, **layers, **skills}

    def _validation_styles(self, encoder: StyleEncoder) -> Tensor:
        """Predict the styles (V, 256) of the validation clips, in eval mode."""
        batch = self.data.validation_batch
        predicted: Tensor = encoder.eval()(batch.features, batch.mask, batch.phoneme_counts, batch.speaker)
        return predicted

    def save(self, file: Path) -> None:
        """Write encoder, optimizer and progress to a checkpoint, atomically.

        Raises:
            DiskError: it cannot be written.
        """
        checkpoint = Checkpoint(
            epoch=self.epoch,
            step=self.step,
            best_loss=self.best_loss,
            best_epoch=self.best_epoch,
            scalars=self.scalars,
            style_encoder=self.encoder.config.to_dict(),
            run=self.config.model_dump(mode="json"),
            encoder=self.encoder.state_dict(),
            optimizer=self.optimizer.state_dict()["state"],
        )
        write_checkpoint(file, checkpoint)

    def load(self, file: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            WeightsError: it is damaged, or of a run with other settings.
            ConfigError: it is of another version of this project.
        """
        checkpoint = read_checkpoint(file)
        if result_settings(checkpoint.run) != result_settings(self.config.model_dump(mode="json")):
            raise WeightsError(f"{file}: belongs to a run with other settings; choose another folder")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": checkpoint.optimizer, "param_groups": groups})
        self.encoder.load_state_dict(checkpoint.encoder)
        self.epoch, self.step, self.scalars = checkpoint.epoch, checkpoint.step, checkpoint.scalars
        self.best_loss, self.best_epoch = checkpoint.best_loss, checkpoint.best_epoch

    def close(self) -> None:
        """Release the run's memory, except for the models."""
        self.batches.close()
        self.losses.clear()


def _by_row(baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Return baselines by the first part of their scalars' names."""
    return {{"mean": "baseline"}.get(name, name): scores for name, scores in baselines.items()}


def _learning_rate(settings: Train, step: int) -> float:
    """Return a step's learning rate: a short linear warm-up, then constant or, with the cosine schedule, down to 0."""
    steps = settings.epochs * settings.steps_per_epoch
    factor = min(1.0, (step + 1) / min(WARM_UP_STEPS, steps))
    if settings.schedule == "cosine":
        factor *= (1 + math.cos(math.pi * step / steps)) / 2
    return settings.learning_rate * factor


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be created: {error.strerror}; choose another folder") from None
