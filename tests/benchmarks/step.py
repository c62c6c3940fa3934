"""How fast a training step is: the original's, ours whole and windowed, and the floor that this machine sets.

    python -m tests.benchmarks.step [--json] [--rounds 3]

All steps take turns in one process, on the same sentences and voices with the real models. ``speech_s_per_s`` is
seconds of speech that the audio loss heard per second, ``ratio`` that over the original's; ``sentence_s_per_s`` and
``sentence_ratio`` count the whole of each sentence of which a window was heard. ``floor_fraction`` is the time of the
step's FLOPs at this machine's matrix-multiply rate over the step's time, ``peak_mb`` the largest resident memory of
the process while the step ran (all models of all steps are loaded; ``memory.py`` measures a trial alone).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from nuanced_core.audio import FRAMES_PER_SECOND
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.training.run import Run
from nuanced_core.weights.store import cache_dir
from tests.benchmarks.naive import NaiveTraining

VOICES = ("af_heart", "am_michael", "af_bella", "am_fenrir")
SENTENCES = (
    "The harbor lights went out one by one, and the last ferry turned slowly toward the open sea.",
    "Could you tell me whether the early train still stops at the old station on market days?",
)
BASE = {
    "data": {"voices": VOICES, "sentences": SENTENCES, "sentences_per_voice": 1, "val_voices": ["af_sky"],
             "val_sentences": ["He walked home.", "Where is it?"]},
    "features": {"layers": [1, 2]},
    "train": {"batch_size": 4, "learning_rate": 1e-3},
    "objective": {"window_frames": 40},
}  # fmt: skip
OURS = {
    "full": {"spoken": 1, "window_frames": "full"},
    "windowed": {"spoken": 4, "window_frames": 40},
    "full_bf16": {"spoken": 1, "window_frames": "full", "precision": "bf16"},
    "windowed_bf16": {"spoken": 4, "window_frames": 40, "precision": "bf16"},
}


@dataclass
class Measured:
    """One kind of step: how to take one, and what it took."""

    step: Callable[[], float]  # returns the seconds of speech that the audio loss heard
    sentence_seconds: float  # of the sentences of a step, on average
    seconds: list[float] = field(default_factory=list)  # per step
    speech: list[float] = field(default_factory=list)  # supervised per second
    peak_mb: float = 0.0
    flops: float = 0.0

    def round(self, steps: int) -> None:
        """Time some steps."""
        _reset_peak()
        started = time.perf_counter()
        spoken = sum(self.step() for _ in range(steps))
        took = time.perf_counter() - started
        self.seconds.append(took / steps)
        self.speech.append(spoken / took)
        self.peak_mb = max(self.peak_mb, _peak_mb())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = _measured(ModelSet.fetch(RunConfig().models, "cpu", lambda line: None), Path(folder))
        for one in measured.values():
            one.step()
        rates = []
        for _ in range(arguments.rounds):
            rates.append(_matmul_rate())
            for name, one in measured.items():
                one.round(steps=2 if name in ("naive", "full", "full_bf16") else 4)
        for one in measured.values():
            counter = FlopCounterMode(display=False)
            # Its tracker of modules trips over Kokoro's source, which runs without gradients.
            counter.mod_tracker = _NoTracker()
            with counter:
                one.step()
            one.flops = counter.get_total_flops()
    table = {name: _row(one, measured["naive"], statistics.median(rates)) for name, one in measured.items()}
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    print(f"matrix-multiply rate {statistics.median(rates) / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads")
    for name, row in {"": {key: key for key in table["naive"]}, **table}.items():
        print("  ".join([f"{name:14}", *(f"{v:>16.3g}" if isinstance(v, float) else f"{v:>16}" for v in row.values())]))


def _measured(models: ModelSet, folder: Path) -> dict[str, Measured]:
    dataset = Dataset(models, cache_dir())
    runs = {}
    for name, train in OURS.items():
        data = {**BASE, "train": {**BASE["train"], **train}}
        runs[name] = Run(validate(RunConfig, data, name), dataset, folder / name, lambda step, scalars: None)
    first = runs["full"]
    naive = NaiveTraining(models, first.encoder, 1e-3)
    clips = first.clips
    batches = [dataset.batch([clip], first.layers) for clip in clips]
    turn = iter(range(10**9))

    def naive_step() -> float:
        i = next(turn) % len(clips)
        return naive.step(clips[i].utterance, batches[i])[1]

    def our_step(run: Run) -> Callable[[], float]:
        return lambda: run.train_step()["train/speech_seconds"]

    for run in runs.values():
        for clip in run.clips:
            for window in windows(clip.frames, run.config.train.window_frames):
                dataset.reference(clip, window)  # once for all steps, and kept in the cache
    mean_seconds = sum(clip.frames for clip in clips) / len(clips) / FRAMES_PER_SECOND
    found = {"naive": Measured(naive_step, mean_seconds)}
    for name, run in runs.items():
        found[name] = Measured(our_step(run), run.config.train.spoken * mean_seconds)
    return found


def _row(one: Measured, naive: Measured, rate: float) -> dict[str, float]:
    seconds = statistics.median(one.seconds)
    return {
        "steps_per_s": 1 / seconds,
        "speech_s_per_s": statistics.median(one.speech),
        "ratio": statistics.median(a / b for a, b in zip(one.speech, naive.speech, strict=True)),
        "sentence_s_per_s": one.sentence_seconds / seconds,
        "sentence_ratio": one.sentence_seconds / seconds * statistics.median(naive.seconds) / naive.sentence_seconds,
        "floor_fraction": one.flops / rate / seconds,
        "peak_mb": one.peak_mb,
    }


def _matmul_rate(size: int = 2048, repeats: int = 6) -> float:
    """FLOP/s of this machine's matrix multiply, the best of some."""
    a, b = torch.randn(2, size, size)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


class _NoTracker:
    """Says that all happens at the top."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
