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
from typing import Protocol

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, write_audio
from nuanced_core.config.settings import RunConfig, Train
from nuanced_core.data.dataset import Batch, windows
from nuanced_core.data.model_set import ModelSet, loaded_models, resolve_device
from nuanced_core.encoder.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import DiskError, StoppedError, TrainingError, WeightsError
from nuanced_core.exhibits.exhibit import Exhibit
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
    *("val/loss", "val/stft", "val/style", "val/skill", "val/identity", "val/pitch"),
    *("train/steps_per_second", "train/peak_memory_gb"),
)
WARM_UP_STEPS = 50  # until the full learning rate: attention that starts too fast never recovers


def start_run(
    config: RunConfig, folder: Path, report: Report, models: ModelSet | None = None, cache: Path | None = None
) -> "Run":
    """Start a run in a folder, or continue it from the folder's last checkpoint.

    Args:
        folder: gets the checkpoints and the audio of each epoch.
        report: called with the step's number and the scalars of each step and each epoch; may raise StoppedError.
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
    """A run in a folder, which holds its checkpoints and the audio of each epoch.

    It continues from ``checkpoints/last.safetensors`` if there is one, with the same steps as if it had never stopped:
    everything random in a step is drawn from the run's seed and the step's number.

    Args:
        encoder: a new encoder; the checkpoint's weights replace its own.
        report: called with the step's number and the scalars of each step and each epoch; may raise StoppedError.

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
        """Train to the end of an epoch, validate, write checkpoints and audio; return the scalars.

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
        scalars = {**means, **self.validate()}
        self._write_audio()
        # The epoch is finished: its checkpoint comes first, and after the next step ``report`` raises again.
        with suppress(StoppedError):
            self._report(self.step, {name: value for name, value in scalars.items() if name in EPOCH_SCALARS})
        self.scalars = scalars
        if scalars["val/loss"] < self.best_loss:
            self.best_loss, self.best_epoch = scalars["val/loss"], self.epoch
            self.save(self.folder / BEST)
        self.save(self.folder / LAST)
        return self.scalars

    def _train_epoch(self) -> dict[str, float]:
        """Take the epoch's remaining steps; return the means of their scalars, their speed and their memory."""
        self.encoder.train()
        reset_peak_memory(self.device)
        started = time.perf_counter()
        values: dict[str, list[float]] = {}
        first, end = self.step, (self.epoch + 1) * self.config.train.steps_per_epoch
        while self.step < end:
            for name, value in self.train_step().items():
                values.setdefault(name, []).append(value)
        means = {name: sum(steps) / len(steps) for name, steps in values.items()}
        means["train/steps_per_second"] = (end - first) / (time.perf_counter() - started)
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
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.train.gradient_clip)
        tensors = {
            "loss/total": total,
            **{f"loss/{name}": term for name, term in terms.items()},
            **{f"weighted/{name}": term for name, term in weighted.items()},
            "train/gradient_norm": norm,
        }
        # One transfer to the host a step; its values are checked before the weights change.
        values = torch.stack([value.detach() for value in tensors.values()]).tolist()
        scalars = {**dict(zip(tensors, values, strict=True)), "train/speech_seconds": speech_seconds}
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: {name} is {value}; lower train.learning_rate")
        self.optimizer.step()
        self.step += 1
        self._report(self.step, {**scalars, "train/learning_rate": learning_rate})
        return scalars

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
        scores, baselines = self.data.validation.scores(self._validation_styles()), self.data.baselines
        people = self.data.people_validation
        of_people: dict[str, float] = {}
        if people is not None:
            found = people.scores(people.styles(self.encoder))
            noise = math.hypot(scores.noise, people.noise(found))
            scores = replace(scores, loss=scores.loss + people.loss(found), noise=noise)
            for row, values in {"val": found, "baseline": people.mean}.items():
                of_people |= {f"{row}/{name}": getattr(values, name) for name in ("identity", "pitch")}
        if not math.isfinite(scores.loss):
            raise TrainingError(f"step {self.step}: val/loss is {scores.loss}; lower train.learning_rate")
        rows = {"val": scores, "baseline": baselines.mean, "oracle": baselines.oracle}
        scalars = {f"{row}/{name}": getattr(s, name) for row, s in rows.items() for name in ("loss", "stft", "style")}
        return {**scalars, **of_people, "val/noise": scores.noise, "val/skill": skill(scores.loss, baselines)}

    def _validation_styles(self) -> Tensor:
        """Predict the styles (V, 256) of the validation clips, in eval mode."""
        batch = self.data.validation_batch
        predicted: Tensor = self.encoder.eval()(batch.features, batch.mask, batch.phoneme_counts, batch.speaker)
        return predicted

    @torch.no_grad()
    def _write_audio(self) -> None:
        """Write the shortest validation sentence, whole, in the predicted style and as the reference."""
        clips, styles = self.data.validation.clips, self._validation_styles()
        index = min(range(len(clips)), key=lambda i: clips[i].frames)
        speech = self.data.dataset.speak([clips[index]], styles[index : index + 1], [(0, clips[index].frames)])
        write_audio(self.folder / f"epoch_{self.epoch}_predicted.wav", speech.item(0))
        write_audio(self.folder / f"epoch_{self.epoch}_reference.wav", clips[index].audio)

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
        if checkpoint.run != self.config.model_dump(mode="json"):
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
