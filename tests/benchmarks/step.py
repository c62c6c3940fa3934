"""Speed of a training step: the original's, this project's with whole sentences and with windows, and the floor.

    python -m tests.benchmarks.step [--json] [--rounds 3] [--device cpu]

All kinds of step take turns in one process, on the same sentences and voices, with the real models. A row is printed
after each turn; the last table has the medians over the rounds. Columns:

- ``speech_s_per_s``: seconds of speech in the audio loss per second; ``ratio``: divided by the original's.
- ``sentence_s_per_s``, ``sentence_ratio``: the same, but a sentence counts whole if a window of it is rendered.
- ``floor_fraction``: the time that the step's FLOPs take at this machine's matrix-multiply rate, divided by the step's
  time.
- ``peak_mb``: the largest resident memory of the process during the step, on a GPU of its tensors. All models of all
  kinds of step are loaded; ``memory.py`` measures a trial alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nuanced_core.audio import FRAMES_PER_SECOND
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import windows
from nuanced_core.training.memory import peak_memory, reset_peak_memory
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Run, start_run
from tests.benchmarks.naive import NaiveTraining
from tests.benchmarks.progress import Bench, benchmark

VOICES = ("af_heart", "am_michael", "af_bella", "am_fenrir")
SENTENCES = (
    "The harbor lights went out one by one, and the last ferry turned slowly toward the open sea.",
    "Could you tell me whether the early train still stops at the old station on market days?",
)
LEARNING_RATE = 1e-3
BASE: dict[str, dict[str, Any]] = {
    "data": {"voices": VOICES, "sentences": SENTENCES, "sentences_per_voice": 1, "val_voices": ["af_sky"],
             "val_sentences": ["He walked home.", "Where is it?"]},
    "augment": {"copies": 0},
    "features": {"layers": [1, 2]},
    "train": {"batch_size": 4, "learning_rate": LEARNING_RATE},
    "objective": {"window_frames": 40},
}  # fmt: skip
# Settings of the section "train" by kind of step.
OURS: dict[str, dict[str, Any]] = {
    "full": {"spoken": 1, "window_frames": "full"},
    "windowed": {"spoken": 4, "window_frames": 40},
    "full_bf16": {"spoken": 1, "window_frames": "full", "precision": "bf16"},
    "windowed_bf16": {"spoken": 4, "window_frames": 40, "precision": "bf16"},
}
STEPS_PER_ROUND = {"naive": 2, "full": 2, "full_bf16": 2, "windowed": 4, "windowed_bf16": 4}


@dataclass
class StepTimes:
    """How to take one kind of step, and what was measured of it."""

    device: torch.device
    step: Callable[[], float]  # returns the seconds of speech in the audio loss
    sentence_seconds: float  # mean length of a step's sentences, added up
    seconds: list[float] = field(default_factory=list)  # per step, by round
    speech: list[float] = field(default_factory=list)  # seconds of speech per second, by round
    peak_mb: float = 0.0
    flops: float = 0.0  # of one step

    def run_round(self, steps: int) -> None:
        """Time some steps."""
        reset_peak_memory(self.device)
        started = time.perf_counter()
        speech_seconds = sum(self.step() for _ in range(steps))
        _wait_for(self.device)
        elapsed = time.perf_counter() - started
        self.seconds.append(elapsed / steps)
        self.speech.append(speech_seconds / elapsed)
        self.peak_mb = max(self.peak_mb, peak_memory(self.device) / 2**20)

    def count_flops(self) -> None:
        """Count the FLOPs of one step."""
        counter = FlopCounterMode(display=False)
        # The counter's own module tracker fails on Kokoro's source, which runs without gradients.
        counter.mod_tracker = _NoModuleTracker()  # type: ignore[assignment]
        with counter:
            self.step()
        self.flops = counter.get_total_flops()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    with benchmark(arguments.json) as bench, tempfile.TemporaryDirectory() as folder:
        _measure(bench, torch.device(arguments.device), arguments.rounds, Path(folder))


def _measure(bench: Bench, device: torch.device, rounds: int, folder: Path) -> None:
    kinds = _kinds(bench, device, folder)
    for name, times in kinds.items():
        bench.doing(f"warming up, counting FLOPs: a step of {name}")
        times.count_flops()
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    rates: list[float] = []
    naive = kinds["naive"]
    bench.repeat = True
    bench.summary = lambda: [f"medians; matrix-multiply rate {statistics.median(rates) / 1e9:.0f} GFLOP/s, {where}"]
    for number in range(1, rounds + 1):
        rates.append(_matmul_rate(device))
        for name, times in kinds.items():
            bench.doing(f"round {number} of {rounds}: {name}")
            times.run_round(STEPS_PER_ROUND[name])
            bench.rows[name] = _row(times, naive, statistics.median(rates))
            bench.print(*bench.lines({f"{name}, {number}": _row(times, naive, rates[-1], number - 1)}))


def _kinds(bench: Bench, device: torch.device, folder: Path) -> dict[str, StepTimes]:
    """Return the kinds of step, ready to run: runs are started, references are in the cache."""
    base = {**BASE["train"], "device": str(device)}
    configs = {name: validate(RunConfig, {**BASE, "train": {**base, **train}}, name) for name, train in OURS.items()}
    bench.doing("loading models, rendering clips")
    models = prepare([*configs.values()])[0]
    runs = {}
    for name in bench.each("starting runs", [*configs]):
        runs[name] = start_run(configs[name], folder / name, lambda *reported: None, models)
    references = {
        (clip.key, window): (run, clip, window)
        for run in runs.values()
        for clip in run.data.clips
        for window in windows(clip.frames, run.config.train.window_frames)
    }
    for run, clip, window in bench.each("rendering windows", [*references.values()]):
        run.data.dataset.reference(clip, window)  # rendered now, so that no step has to
    clips = runs["full"].data.clips
    mean_seconds = sum(clip.frames for clip in clips) / len(clips) / FRAMES_PER_SECOND
    kinds = {"naive": StepTimes(models.device, _naive_step(runs["full"]), mean_seconds)}
    for name, run in runs.items():
        kinds[name] = StepTimes(models.device, _our_step(run), run.config.train.spoken * mean_seconds)
    return kinds


def _naive_step(run: Run) -> Callable[[], float]:
    """Return a function that takes the original's step on the next clip of a run, with the run's encoder."""
    data = run.data
    training = NaiveTraining(data.dataset.models, run.encoder, LEARNING_RATE)
    turns = cycle([(clip.utterance, data.dataset.batch([clip], data.layers)) for clip in data.clips])
    return lambda: training.step(*next(turns))[1]


def _our_step(run: Run) -> Callable[[], float]:
    return lambda: run.train_step()["train/speech_seconds"]


def _row(times: StepTimes, naive: StepTimes, rate: float, number: int | None = None) -> dict[str, float]:
    """Return the table's row of a kind of step: medians, or one round; ``rate`` in FLOP/s."""
    rounds = slice(None) if number is None else slice(number, number + 1)
    seconds, naive_seconds = (statistics.median(kind.seconds[rounds]) for kind in (times, naive))
    speech = [*zip(times.speech[rounds], naive.speech[rounds], strict=False)]  # naive is a round ahead at most
    return {
        "steps_per_s": 1 / seconds,
        "speech_s_per_s": statistics.median(own for own, _ in speech),
        "ratio": statistics.median(own / other for own, other in speech),
        "sentence_s_per_s": times.sentence_seconds / seconds,
        "sentence_ratio": times.sentence_seconds / seconds * naive_seconds / naive.sentence_seconds,
        "floor_fraction": times.flops / rate / seconds,
        "peak_mb": times.peak_mb,
    }


def _matmul_rate(device: torch.device, size: int = 2048, repeats: int = 6) -> float:
    """Return the FLOP/s of this machine's matrix multiply, the best of some repeats."""
    a, b = torch.randn(2, size, size, device=device)
    best = 0.0
    for _ in range(repeats):
        _wait_for(device)
        started = time.perf_counter()
        a @ b
        _wait_for(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _NoModuleTracker:
    """Attributes all operations to the top level."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


if __name__ == "__main__":
    main()
