"""One training run: a StyleEncoder learns to make Kokoro speak as a clip was spoken.

A step: features of some clips → styles → style loss; at some steps a few of the clips are spoken through Kokoro, a
window of each → audio loss; the weighted sum's gradient, through frozen Kokoro, moves the encoder. After each epoch the
validation voices are scored and a checkpoint is written.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, write_audio
from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Batch, Clip, Dataset, Version, windows
from nuanced_core.data.model_set import loaded_models, resolve_device
from nuanced_core.data.utterances import plan, styles
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.errors import DiskError, StoppedError, TrainingError, WeightsError
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.training.losses import MelSTFTLoss, style_loss
from nuanced_core.training.memory import peak_memory, reset_peak_memory
from nuanced_core.training.spoken_losses import SpokenLosses
from nuanced_core.training.validation import Validation, baseline_pack, skill, validation_inputs
from nuanced_core.weights.store import cache_dir

__all__ = ["BEST", "LAST", "Report", "Run", "start_run", "train"]

logger = logging.getLogger(__name__)

Report = Callable[[int, Mapping[str, float]], None]  # (step, scalars by name)

LAST, BEST = Path("checkpoints/last.safetensors"), Path("checkpoints/best.safetensors")
PER_EPOCH = ("val/loss", "val/stft", "val/style", "val/skill", "train/steps_per_second", "train/peak_memory_gb")
CALIBRATED = 128  # clips at most of which pooled channels are standardised
KEPT_POOLED = 2**30  # bytes
WARM_UP = 50  # steps until the learning rate is whole: attention that starts too fast never recovers


class _Drawn(NamedTuple):
    """What a step hears, and the generator of what else is random in it."""

    generator: torch.Generator
    clips: list[Clip]
    heard: Batch | Tensor  # already pooled, (B, P), where the encoder learns nothing of how it pools
    own_counts: Tensor  # (B,) phonemes of what is heard
    counts: Tensor  # (B,) phonemes for which the style loss asks
    targets: Tensor  # (B, 256) the styles for them


class Run:
    """A run in a folder, which holds its checkpoints and the sound of each epoch.

    It goes on from ``checkpoints/last.safetensors`` if there is one: step by step as if it had never stopped, since
    all that is random in a step is drawn from the run's seed and the step's number.

    Args:
        report: called with the step's number and the scalars of each step and each epoch.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: Path, report: Report) -> None:
        self.config, self.dataset, self.folder, self._report = config, dataset, folder, report
        self.device = dataset.models.device
        voices = dataset.models.voices
        train_utterances, val_utterances = plan(config.data, config.mixes, voices, dataset.models.phonemizer)
        self.clips = dataset.clips(train_utterances)
        val_clips = dataset.clips(val_utterances)
        self.layers = dataset.layers(config.features.layers, self.clips[0])
        self.mel = MelSTFTLoss().to(self.device)
        self.validation = Validation(dataset, val_clips, config.objective, self.mel)
        self.baselines = self.validation.baselines(baseline_pack(config, dataset.models))
        heard = validation_inputs([clip.utterance.voice for clip in val_clips], config.objective.conditions)
        self._val_batch = dataset.batch(
            [val_clips[index] for index, _ in heard], self.layers, [condition for _, condition in heard], val_clips
        )
        # For the style loss a voice may be asked for the style of any phoneme count.
        self._styles = styles(config.data, config.mixes, voices) if config.train.rows == "any" else None

        torch.manual_seed(config.train.seed)
        channels = self._val_batch.features.shape[-1]
        names = voices.training_voices(config.data.voices, config.data.val_voices)
        encoder_config = StyleEncoderConfig(
            encoder=config.encoder,
            features=config.features,
            whisper=config.models.whisper,
            layers=self.layers,
            channels=channels,
            voices=len(names),
        )
        self.encoder = StyleEncoder(encoder_config).to(self.device)
        packs = torch.stack([voices.pack(name) for name in names])  # (V, 510, 256)
        self.encoder.calibrate(dataset.statistics(self.clips, self.layers), packs)
        self._kept_pooled: dict[tuple[str, Version], Tensor] = {}
        self._made_up = sum(clip.utterance.voice not in names for clip in self.clips)  # they come last
        self._calibrate_pooled()
        train = config.train
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self.epoch = 0  # epochs finished
        self.step = 0  # steps finished
        self.best_loss = math.inf
        self.best_epoch = 0  # after which the loss was best
        self.scalars: dict[str, float] = {}  # of the last epoch, from the checkpoint if there is one
        self.losses = SpokenLosses(dataset, config.loss, train.precision, train.checkpointing)
        # On the CPU a second thread would only take cores from the first one (measured: 10 % slower steps).
        self._reader = ThreadPoolExecutor(1) if self.device.type == "cuda" else None
        self._next: tuple[int, Future[_Drawn]] | None = None
        _make_folder(folder / LAST.parent)
        if (folder / LAST).is_file():
            self.load(folder / LAST)

    def _calibrate_pooled(self) -> None:
        every = -(-len(self.clips) // CALIBRATED)
        some, versions = self.clips[::every], self.dataset.versions
        pooled = [self._pooled(clip, versions[index % len(versions)]) for index, clip in enumerate(some)]
        self.encoder.calibrate_pooled(torch.stack(pooled))
        if not self.encoder.pools_without_learning:
            self._kept_pooled.clear()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or ``train.patience`` of them brought nothing better."""
        train = self.config.train
        stuck = 0 < train.patience <= self.epoch - self.best_epoch
        return self.epoch >= train.epochs or stuck

    def run_epoch(self) -> dict[str, float]:
        """Train to the end of an epoch, score the validation voices, write checkpoints and sound; returns the scalars.

        Where ``report`` raises StoppedError, a checkpoint of the middle of the epoch is written first.

        Raises:
            TrainingError: a loss is not finite.
            DiskError: the folder cannot be written.
            StoppedError: ``report`` asked to stop.
        """
        self.encoder.train()
        reset_peak_memory(self.device)
        started = time.perf_counter()
        values: dict[str, list[float]] = {}
        first, end = self.step, (self.epoch + 1) * self.config.train.steps_per_epoch
        try:
            while self.step < end:
                for name, value in self.train_step().items():
                    values.setdefault(name, []).append(value)
        except StoppedError:
            self.save(self.folder / LAST)
            raise
        means = {name: sum(found) / len(found) for name, found in values.items()}
        means["train/steps_per_second"] = (end - first) / (time.perf_counter() - started)
        means["train/peak_memory_gb"] = peak_memory(self.device) / 1e9
        self.epoch += 1
        scalars = self.validate()
        self._write_sound()
        once = {name: value for name, value in {**means, **scalars}.items() if name in PER_EPOCH}
        with suppress(StoppedError):  # the epoch is done: its checkpoint comes first, and the next step asks again
            self._report(self.step, once)
        self.scalars = {**means, **scalars}
        if scalars["val/loss"] < self.best_loss:
            self.best_loss, self.best_epoch = scalars["val/loss"], self.epoch
            self.save(self.folder / BEST)
        self.save(self.folder / LAST)
        return self.scalars

    def save(self, file: Path) -> None:
        """Write encoder, optimizer and progress to one file, whole or not at all.

        Raises:
            DiskError: it cannot be written.
        """
        tensors = {f"encoder.{name}": tensor for name, tensor in self.encoder.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        progress = {
            "epoch": self.epoch,
            "step": self.step,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.best_epoch,
            "scalars": self.scalars,
            "style_encoder": self.encoder.config.to_dict(),
            "run": self.config.model_dump(mode="json"),
        }
        part = file.with_name(file.name + ".part")
        try:
            contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contents, part, {"progress": json.dumps(progress)})
            part.replace(file)
        except (OSError, SafetensorError) as error:
            raise DiskError(f"{file}: cannot be written: {error}; free some disk") from None

    def load(self, file: Path) -> None:
        """Go on from a checkpoint that ``save`` wrote.

        Raises:
            WeightsError: it is damaged, or of a run with other settings.
        """
        try:
            with safe_open(file, framework="pt") as checkpoint:
                progress = json.loads(checkpoint.metadata()["progress"])
                tensors = {name: checkpoint.get_tensor(name) for name in checkpoint.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{file}: not a checkpoint: {error}; remove it to train from the start") from None
        if progress["run"] != self.config.model_dump(mode="json"):
            raise WeightsError(f"{file}: is of a run with other settings; take another folder")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.encoder.load_state_dict(
            {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
        )
        self.epoch, self.step, self.best_epoch = progress["epoch"], progress["step"], progress["best_epoch"]
        self.scalars = progress["scalars"]
        self.best_loss = math.inf if progress["best_loss"] is None else progress["best_loss"]

    def close(self) -> None:
        """Let go of what the run keeps in memory."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._next = None
        self.losses.clear()
        self._kept_pooled.clear()

    def train_step(self) -> dict[str, float]:
        """Take one step; returns its scalars.

        Raises:
            TrainingError: a loss is not finite.
        """
        settings, weights = self.config.train, self.config.loss
        draw, clips, heard, own_counts, counts, targets = self._drawn()
        torch.manual_seed(draw.initial_seed())  # of dropout
        pooled = heard if isinstance(heard, Tensor) else self.encoder.pooled(heard.features, heard.mask)
        terms = {"style": style_loss(self.encoder.styles(pooled, counts), targets)}
        speech_seconds = 0.0
        if self.losses.wanted and self.step % settings.speak_every == 0:
            spoken = clips[: settings.spoken]
            choices = [windows(clip.frames, settings.window_frames) for clip in spoken]
            picks = [c[int(torch.randint(len(c), (), generator=draw))] for c in choices]
            said = self.encoder.styles(pooled[: len(spoken)], own_counts[: len(spoken)])
            terms |= self.losses(spoken, picks, said)
            if self.losses.spectral:
                speech_seconds = sum(frames for _, frames in picks) / FRAMES_PER_SECOND
        weighted = {name: getattr(weights, name) * term for name, term in terms.items()}
        total = torch.stack([*weighted.values()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad()
        torch.autograd.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), settings.gradient_clip)
        # One transfer to the host a step, and the check of it before the weights are touched.
        found = {
            "loss/total": total,
            **{f"loss/{name}": term for name, term in terms.items()},
            **{f"weighted/{name}": term for name, term in weighted.items()},
            "train/gradient_norm": norm,
        }
        values = torch.stack([value.detach() for value in found.values()]).tolist()
        scalars = {**dict(zip(found, values, strict=True)), "train/speech_seconds": speech_seconds}
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: {name} is {value}; lower train.learning_rate")
        self.optimizer.step()
        self.step += 1
        self._report(self.step, {**scalars, "train/learning_rate": self.optimizer.param_groups[0]["lr"]})
        return scalars

    def _learning_rate(self) -> float:
        """Of this step: from a short warm-up to its largest, then, with the cosine schedule, down to 0."""
        train = self.config.train
        steps = train.epochs * train.steps_per_epoch
        factor = min(1.0, (self.step + 1) / min(WARM_UP, steps))
        if train.schedule == "cosine":
            factor *= (1 + math.cos(math.pi * self.step / steps)) / 2
        return train.learning_rate * factor

    def _drawn(self) -> "_Drawn":
        """What this step hears; the next step's is read from the cache meanwhile."""
        if self._reader is None:
            return self._draw(self.step)
        waiting = self._next
        ready = waiting[1].result() if waiting and waiting[0] == self.step else self._draw(self.step)
        self._next = self.step + 1, self._reader.submit(self._draw, self.step + 1)
        return ready

    def _draw(self, step: int) -> "_Drawn":
        settings = self.config.train
        draw = torch.Generator().manual_seed(int(content_key(settings.seed, step)[:15], 16))
        clips = self._drawn_clips(draw)
        versions = torch.randint(len(self.dataset.versions), (len(clips),), generator=draw).tolist()
        heard: Batch | Tensor
        if self.encoder.pools_without_learning:
            heard = torch.stack([self._pooled(clip, version) for clip, version in zip(clips, versions, strict=True)])
        else:
            heard = self.dataset.batch(clips, self.layers, versions)
        own = torch.tensor([clip.utterance.phoneme_count for clip in clips], device=self.device)
        if self._styles is None:
            targets = torch.stack([clip.utterance.style for clip in clips]).to(self.device)
            return _Drawn(draw, clips, heard, own, own, targets)
        # Even in the logarithm: rows differ most for few phonemes.
        counts = torch.rand(len(clips), generator=draw).mul(math.log(PACK_ROWS)).exp().round().long()
        asked = [self._styles[c.utterance.voice](n) for c, n in zip(clips, counts.tolist(), strict=True)]
        return _Drawn(draw, clips, heard, own, counts.to(self.device), torch.stack(asked).to(self.device))

    def _drawn_clips(self, draw: torch.Generator) -> list[Clip]:
        """A batch, of which made-up voices speak the share that ``mixes.share`` says."""
        size, share = self.config.train.batch_size, self.config.mixes.share
        if share is None or not self._made_up:
            order = torch.randperm(len(self.clips), generator=draw)[:size]
            return [self.clips[i] for i in order.tolist()]
        mixed = round(size * share)
        stock = len(self.clips) - self._made_up
        chosen = torch.cat(
            [
                torch.randperm(stock, generator=draw)[: size - mixed],
                stock + torch.randperm(self._made_up, generator=draw)[:mixed],
            ]
        )
        order = chosen[torch.randperm(len(chosen), generator=draw)]  # the first ones are those that Kokoro speaks
        return [self.clips[i] for i in order.tolist()]

    @torch.no_grad()
    def _pooled(self, clip: Clip, version: Version) -> Tensor:
        """What the encoder pools of a version of a clip (P,), kept as long as there is room for it."""
        found = self._kept_pooled.get((clip.key, version))
        if found is None:
            batch = self.dataset.batch([clip], self.layers, [version])
            found = self.encoder.pooled(batch.features, batch.mask)[0]
            if len(self._kept_pooled) * found.nbytes < KEPT_POOLED:
                self._kept_pooled[clip.key, version] = found
        return found

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Score the validation voices as the encoder is now: ``val/…`` beside ``baseline/…`` and ``oracle/…``.

        Raises:
            TrainingError: a score is not finite.
        """
        self.encoder.eval()
        batch = self._val_batch
        styles = self.encoder(batch.features, batch.mask, batch.phoneme_counts)
        scores = self.validation.scores(styles)
        if not math.isfinite(scores.loss):
            raise TrainingError(f"step {self.step}: val/loss is {scores.loss}; lower train.learning_rate")
        found = {"val": scores, "baseline": self.baselines.mean, "oracle": self.baselines.oracle}
        scalars = {f"{row}/{name}": getattr(s, name) for row, s in found.items() for name in ("loss", "stft", "style")}
        return {**scalars, "val/skill": skill(scores.loss, self.baselines)}

    @torch.no_grad()
    def _write_sound(self) -> None:
        """The shortest validation sentence, whole, as predicted and as the reference."""
        clips, batch = self.validation.clips, self._val_batch
        styles = self.encoder(batch.features, batch.mask, batch.phoneme_counts)
        index = min(range(len(clips)), key=lambda i: clips[i].frames)
        speech = self.dataset.speak([clips[index]], styles[index : index + 1], [(0, clips[index].frames)])
        write_audio(self.folder / f"epoch_{self.epoch}_predicted.wav", speech.item(0))
        write_audio(self.folder / f"epoch_{self.epoch}_reference.wav", clips[index].audio)


def start_run(config: RunConfig, folder: Path, report: Report) -> Run:
    """A run in a folder; models are loaded once per process and kept for the next run."""
    models = loaded_models(config.models, str(resolve_device(config.train.device)))
    return Run(config, Dataset(models, cache_dir(), config.augment), folder, report)


def train(config: RunConfig, folder: Path, report: Report) -> Run:
    """Train a run to its end, saying one line an epoch; what ``prepare`` would have rendered is rendered silently."""
    run = start_run(config, folder, report)
    while not run.finished:
        scalars = run.run_epoch()
        logger.info(
            "epoch %s/%s: loss %.4f, val/loss %.4f (mean voice %.4f), val/skill %.3f",
            run.epoch,
            config.train.epochs,
            scalars.get("loss/total", math.nan),
            scalars["val/loss"],
            scalars["baseline/loss"],
            scalars["val/skill"],
        )
    run.close()
    return run


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made: {error.strerror}; take another folder") from None
