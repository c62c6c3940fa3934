"""Time that this project's training and the original's take to reach the same validation loss.

    python -m tests.benchmarks.time_to_loss [--json] [--steps 12] [--most 60]

Both start from the same encoder, with the same clips, features, losses and learning rate. The original's procedure
(``naive.py``) takes a budget of steps and keeps its best validation loss; this project's run trains until its own is as
low. If the original's procedure never gets below the loss at the start, the run has to reach that loss, and the ratio,
of the time of the whole budget, is a lower bound. Validation is not timed. The run is timed twice: with an empty cache,
where rendering the training clips, computing their Whisper features and rendering windows count too, and with a warm
one, as for every trial of a sweep after the first. The original's procedure reads its features from the cache, so
Whisper does not count there.
"""

import argparse
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import plan_utterances
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Run, start_run
from nuanced_core.weights.store import cache_dir
from tests.benchmarks.naive import NaiveTraining
from tests.benchmarks.progress import Bench, benchmark, render_missing

LEARNING_RATE = 1e-3
SETTINGS = {
    "data": {"voices": "english", "sentences_per_voice": 1, "max_phonemes": 60},
    "augment": {"copies": 0},
    "features": {"layers": [1, 2]},
    "encoder": {"pooling": "mean_std"},
    "train": {"batch_size": 22, "spoken": 2, "speak_every": 4, "window_frames": 40, "learning_rate": LEARNING_RATE},
    "objective": {"window_frames": 40},
}
# Steps between two validations.
NAIVE_VALIDATION_INTERVAL, RUN_VALIDATION_INTERVAL = 6, 4


def main() -> None:
    """Train with both and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=12, help="budget of the original's procedure")
    parser.add_argument("--most", type=int, default=60, help="steps of this project's run before it gives up")
    arguments = parser.parse_args()
    with benchmark(arguments.json) as bench, tempfile.TemporaryDirectory() as folder:
        _measure(bench, Path(folder), arguments.steps, arguments.most)


def _measure(bench: Bench, folder: Path, naive_steps: int, most: int) -> None:
    config = validate(RunConfig, SETTINGS, "time to loss")
    bench.doing("loading models, rendering clips")
    models = prepare([config])[0]
    run = _start(config, models, cache_dir(), folder / "naive")
    initial = {name: tensor.clone() for name, tensor in run.encoder.state_dict().items()}
    bench.doing("validating")
    start = _val_loss(run)
    bench.add("start_loss", start)
    naive_seconds, best_seconds, best = _train_naive(bench, run, naive_steps)
    has_improved = best < start
    target = best if has_improved else start
    bench.add("naive_best_loss", best)
    bench.add("target_loss", target)
    naive_seconds = best_seconds if has_improved else naive_seconds
    bench.add("naive_seconds", naive_seconds)
    cache = folder / "cache"
    bench.doing("rendering clips into an empty cache")
    started = time.perf_counter()
    utterances = plan_utterances(config.data, config.mixes, models.voices, models.phonemizer)
    render_missing(Dataset(models, cache), utterances.train)
    rendering = time.perf_counter() - started
    for name, before in (("cold", rendering), ("warm", 0.0)):
        bench.doing(f"{name}: starting a run")
        run = _start(config, models, cache, folder / name)
        run.encoder.load_state_dict(initial)
        bench.doing(f"{name}: training, at most {most} steps")
        seconds, steps, reached = _train_until(run, target, most)
        bench.add(f"{name}_steps", steps)
        bench.add(f"{name}_reached_loss", reached)
        bench.add(f"{name}_seconds", before + seconds)
        if reached > target:
            raise SystemExit(f"ours did not reach {target:.4f} in {most} steps; allow more with --most")
        ratio = "ratio" if has_improved else "ratio_at_least"
        bench.add(f"{name}_{ratio}", naive_seconds / (before + seconds))


def _start(config: RunConfig, models: ModelSet, cache: Path, folder: Path) -> Run:
    return start_run(config, folder, lambda *reported: None, models, cache)


def _train_naive(bench: Bench, run: Run, budget: int) -> tuple[float, float, float]:
    """Train by the original's procedure; return all seconds, those until its best validation loss, and that loss.

    Args:
        run: gives the encoder, the clips and the validation.
        budget: number of steps.
    """
    data = run.data
    training = NaiveTraining(data.dataset.models, run.encoder, LEARNING_RATE)
    order = torch.randperm(len(data.clips), generator=torch.Generator().manual_seed(0)).tolist()
    seconds, best_seconds, best_loss = 0.0, 0.0, float("inf")
    steps = bench.each("the original's procedure", range(1, budget + 1))
    for step, index in zip(steps, cycle(order), strict=False):
        clip = data.clips[index]
        batch = data.dataset.batch([clip], data.layers)
        started = time.perf_counter()
        training.step(clip.utterance, batch)
        seconds += time.perf_counter() - started
        if step % NAIVE_VALIDATION_INTERVAL == 0 or step == budget:
            loss = _val_loss(run)
            if loss < best_loss:
                best_seconds, best_loss = seconds, loss
    return seconds, best_seconds, best_loss


def _train_until(run: Run, target: float, most: int) -> tuple[float, int, float]:
    """Train until the validation loss is at most ``target``, or for ``most`` steps; return seconds, steps and loss."""
    seconds = 0.0
    for step in count(1):
        started = time.perf_counter()
        run.train_step()
        seconds += time.perf_counter() - started
        if step % RUN_VALIDATION_INTERVAL == 0:
            loss = _val_loss(run)
            if loss <= target or step >= most:
                return seconds, step, loss
    raise AssertionError("unreachable")


def _val_loss(run: Run) -> float:
    run.encoder.eval()
    loss = run.validate()["val/loss"]
    run.encoder.train()
    return loss


if __name__ == "__main__":
    main()
