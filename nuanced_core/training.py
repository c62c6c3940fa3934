"""One training run: a StyleEncoder learns to make Kokoro speak as a clip was spoken.

A step: features of some clips → styles → style loss; at some steps a few of the clips are spoken through Kokoro, a
window of each → audio loss; the weighted sum's gradient, through frozen Kokoro, moves the encoder. After each epoch the
validation voices are scored and a checkpoint is written.
"""

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, write_audio
from nuanced_core.config import Models, RunConfig
from nuanced_core.dataset import Batch, Clip, Dataset, content_key, plan, windows
from nuanced_core.errors import DiskError, TrainingError, WeightsError
from nuanced_core.evaluation import Validation, skill
from nuanced_core.losses import MelSTFTLoss, style_loss
from nuanced_core.memory import peak_memory, reset_peak_memory
from nuanced_core.model_set import ModelSet, resolve_device
from nuanced_core.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.weights import cache_dir

__all__ = ["BEST", "LAST", "Report", "Run", "prepare", "start_run", "train"]

Report = Callable[[int, Mapping[str, float]], None]  # (step, scalars by name)
Say = Callable[[str], None]

LAST, BEST = Path("checkpoints/last.safetensors"), Path("checkpoints/best.safetensors")
TELL_EVERY = 10  # seconds between lines while clips are rendered
PER_EPOCH = ("val/loss", "val/stft", "val/style", "val/skill", "train/steps_per_second", "train/peak_memory_gb")
KEPT_TARGETS = 1024  # reference spectra, 0.2 MB each at 40 frames


class _Drawn(NamedTuple):
    """What a step hears, and the generator of what else is random in it."""

    generator: torch.Generator
    clips: list[Clip]
    batch: Batch


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
        train_utterances, val_utterances = plan(config.data, voices, dataset.models.phonemizer)
        self.clips = dataset.clips(train_utterances)
        val_clips = dataset.clips(val_utterances)
        self.layers = dataset.layers(config.features.layers, self.clips[0])
        self.mel = MelSTFTLoss().to(self.device)
        self.validation = Validation(dataset, val_clips, config.objective, self.mel)
        self.baselines = self.validation.baselines(_baseline_pack(config, dataset.models))
        self._val_batch = dataset.batch(val_clips, self.layers)

        torch.manual_seed(config.train.seed)
        channels = self._val_batch.features.shape[-1]
        encoder_config = StyleEncoderConfig(config.encoder, config.models.whisper, self.layers, channels)
        self.encoder = StyleEncoder(encoder_config).to(self.device)
        names = tuple(dict.fromkeys(clip.utterance.voice for clip in self.clips))
        styles = torch.stack([voices.pack(name) for name in names])  # (V, 510, 256)
        spread = (styles - styles.mean(dim=0)).square().mean(dim=(0, 1)).sqrt().clamp(min=1e-3)
        self.encoder.calibrate(dataset.statistics(self.clips, self.layers), styles.mean(dim=0), spread)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=config.train.learning_rate)
        self.epoch = 0  # epochs finished
        self.step = 0  # steps finished
        self.best_loss = math.inf
        self._targets: OrderedDict[tuple[str, tuple[int, int]], list[Tensor]] = OrderedDict()
        # On the CPU a second thread would only take cores from the first one (measured: 10 % slower steps).
        self._reader = ThreadPoolExecutor(1) if self.device.type == "cuda" else None
        self._next: tuple[int, Future[_Drawn]] | None = None
        _make_folder(folder / LAST.parent)
        if (folder / LAST).is_file():
            self.load(folder / LAST)

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, score the validation voices, write checkpoints and sound; returns the scalars.

        Raises:
            TrainingError: a loss is not finite.
            DiskError: the folder cannot be written.
        """
        self.encoder.train()
        reset_peak_memory(self.device)
        started = time.perf_counter()
        values: dict[str, list[float]] = {}
        steps = self.config.train.steps_per_epoch
        for _ in range(steps):
            for name, value in self.train_step().items():
                values.setdefault(name, []).append(value)
        means = {name: sum(found) / len(found) for name, found in values.items()}
        means["train/steps_per_second"] = steps / (time.perf_counter() - started)
        means["train/peak_memory_gb"] = peak_memory(self.device) / 1e9
        self.epoch += 1
        scalars = self.validate()
        self._write_sound()
        once = {name: value for name, value in {**means, **scalars}.items() if name in PER_EPOCH}
        self._report(self.step, once)
        if scalars["val/loss"] < self.best_loss:
            self.best_loss = scalars["val/loss"]
            self.save(self.folder / BEST)
        self.save(self.folder / LAST)
        return {**means, **scalars}

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
        except (OSError, SafetensorError, KeyError, ValueError) as error:
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
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.best_loss = math.inf if progress["best_loss"] is None else progress["best_loss"]

    def close(self) -> None:
        """Let go of what the run keeps in memory."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._next = None
        self._targets.clear()

    def train_step(self) -> dict[str, float]:
        """Take one step; returns its scalars.

        Raises:
            TrainingError: a loss is not finite.
        """
        settings, weights = self.config.train, self.config.loss
        draw, clips, batch = self._drawn()
        torch.manual_seed(draw.initial_seed())  # of dropout
        styles = self.encoder(batch.features, batch.mask, batch.phoneme_counts)
        spoken_frames = 0
        terms = {"style": style_loss(styles, batch.styles)}
        if weights.stft and self.step % settings.speak_every == 0:
            spoken = clips[: settings.spoken]
            choices = [windows(clip.frames, settings.window_frames) for clip in spoken]
            picks = [c[int(torch.randint(len(c), (), generator=draw))] for c in choices]
            spoken_frames = sum(frames for _, frames in picks)
            terms["stft"] = self._stft_loss(spoken, picks, styles[: len(spoken)])
        total = sum(
            (getattr(weights, name) * term for name, term in terms.items()),
            torch.zeros((), device=self.device),
        )
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), settings.gradient_clip)
        # One transfer to the host a step, and the check of it before the weights are touched.
        names = ["loss/total", *(f"loss/{name}" for name in terms), "train/gradient_norm"]
        values = torch.stack([total.detach(), *(t.detach() for t in terms.values()), norm]).tolist()
        scalars = {**dict(zip(names, values, strict=True)), "train/speech_seconds": spoken_frames / FRAMES_PER_SECOND}
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: {name} is {value}; lower train.learning_rate")
        self.optimizer.step()
        self.step += 1
        self._report(self.step, {**scalars, "train/learning_rate": settings.learning_rate})
        return scalars

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
        order = torch.randperm(len(self.clips), generator=draw)[: settings.batch_size].tolist()
        clips = [self.clips[i] for i in order]
        return _Drawn(draw, clips, self.dataset.batch(clips, self.layers))

    def _stft_loss(self, clips: Sequence[Clip], picks: Sequence[tuple[int, int]], styles: Tensor) -> Tensor:
        settings = self.config.train
        speech = self.dataset.speak(
            clips, styles, picks, precision=settings.precision, checkpointing=settings.checkpointing
        )
        losses = [
            self.mel(self.mel.spectra(speech.item(i)[None]), self._target(clip, pick))
            for i, (clip, pick) in enumerate(zip(clips, picks, strict=True))
        ]
        return torch.stack(losses).mean()

    def _target(self, clip: Clip, window: tuple[int, int]) -> list[Tensor]:
        """The reference's spectra, computed once as long as there is room."""
        if (clip.key, window) not in self._targets:
            reference = self.dataset.reference(clip, window).to(self.device)
            self._targets[clip.key, window] = self.mel.spectra(reference[None])
            if len(self._targets) > KEPT_TARGETS:
                self._targets.popitem(last=False)
        return self._targets[clip.key, window]

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


def prepare(config: RunConfig, say: Say) -> ModelSet:
    """Fetch the models, render all clips of a run, and compute its baselines; what is cached is not repeated.

    Windows are rendered when a step first hears them: short runs hear few of them.

    Raises:
        NuancedError: a model file, a voice or a sentence is missing, or the cache cannot be written.
    """
    models = _models(config.models, str(resolve_device(config.train.device)), say)
    dataset = Dataset(models, cache_dir())
    train_utterances, val_utterances = plan(config.data, models.voices, models.phonemizer)
    missing = dataset.missing([*train_utterances, *val_utterances])
    if missing:
        say(f"rendering {len(missing)} clips, once")
    told = time.monotonic()
    for count, utterance in enumerate(missing, 1):
        dataset.clips([utterance])
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            say(f"rendered {count} of {len(missing)} clips")
    val_clips = dataset.clips(val_utterances)
    dataset.layers(config.features.layers, val_clips[0])
    mel = MelSTFTLoss().to(models.device)
    Validation(dataset, val_clips, config.objective, mel).baselines(_baseline_pack(config, models))
    return models


def start_run(config: RunConfig, folder: Path, report: Report) -> Run:
    """A run in a folder; models are loaded once per process and kept for the next run."""
    models = _models(config.models, str(resolve_device(config.train.device)), _silent)
    return Run(config, Dataset(models, cache_dir()), folder, report)


def train(config: RunConfig, folder: Path, report: Report, say: Say) -> Run:
    """Train a run to its end, saying one line an epoch; what ``prepare`` would have rendered is rendered silently."""
    run = start_run(config, folder, report)
    while run.epoch < config.train.epochs:
        scalars = run.run_epoch()
        say(
            f"epoch {run.epoch}/{config.train.epochs}: loss {scalars['loss/total']:.4f}, "
            f"val/loss {scalars['val/loss']:.4f} (mean voice {scalars['baseline/loss']:.4f}), "
            f"val/skill {scalars['val/skill']:.3f}"
        )
    run.close()
    return run


_loaded: dict[tuple[Models, str], ModelSet] = {}


def _models(settings: Models, device: str, say: Say) -> ModelSet:
    """The models of this process: loading Kokoro takes longer than a short trial should."""
    if (settings, device) not in _loaded:
        _loaded[settings, device] = ModelSet.fetch(settings, device, say)
    return _loaded[settings, device]


def _silent(line: str) -> None:
    """Say nothing: a trial's models were told of when they were prepared."""


def _baseline_pack(config: RunConfig, models: ModelSet) -> Tensor:
    """The mean voice, of all voices that may be trained on: the same for every trial, whatever it trains on."""
    voices = models.voices
    return voices.mean_pack(voices.training_voices("all", config.data.val_voices))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made: {error.strerror}; take another folder") from None
