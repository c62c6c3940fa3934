"""How much sooner our training reaches the validation loss of the original's.

    python -m tests.benchmarks.time_to_loss [--json] [--steps 24]

Both start from the same encoder, with the same clips, features, losses and learning rate. The original's procedure
(``naive.py``) gets a budget of steps and keeps its best validation; ours trains until its validation is as good.
Only training is timed, not validation.
"""

import argparse
import json
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

import torch

from nuanced_core.config import RunConfig, validate
from nuanced_core.dataset import Dataset, windows
from nuanced_core.model_set import ModelSet
from nuanced_core.training import Run
from nuanced_core.weights import cache_dir
from tests.benchmarks.naive import NaiveTraining

LEARNING_RATE = 1e-3
SETTINGS = {
    "data": {"voices": "english", "sentences_per_voice": 1, "max_phonemes": 60},
    "features": {"layers": [1, 2]},
    "encoder": {"pooling": "mean_std"},
    "train": {"batch_size": 22, "spoken": 2, "speak_every": 4, "window_frames": 40, "learning_rate": LEARNING_RATE},
    "objective": {"window_frames": 40},
}
NAIVE_EVERY, OURS_EVERY = 6, 4  # steps between validations
GIVE_UP = 400  # steps of ours


def main() -> None:
    """Train both and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=24, help="budget of the original's procedure")
    arguments = parser.parse_args()
    dataset = Dataset(ModelSet.fetch(RunConfig().models, "cpu", lambda line: None), cache_dir())
    with tempfile.TemporaryDirectory() as folder:
        run = Run(validate(RunConfig, SETTINGS, "x"), dataset, Path(folder), lambda step, scalars: None)
        initial = {name: tensor.clone() for name, tensor in run.encoder.state_dict().items()}
        start = _val_loss(run)
        naive_seconds, target = _naive(run, arguments.steps)
        run.encoder.load_state_dict(initial)
        our_seconds, steps, reached = _ours(run, target)
    result = {
        "start_loss": start,
        "target_loss": target,
        "naive_seconds": naive_seconds,
        "our_loss": reached,
        "our_seconds": our_seconds,
        "our_steps": steps,
        "ratio": naive_seconds / our_seconds,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"validation loss at the start {start:.4f}")
    print(f"the original's procedure: {target:.4f} after {naive_seconds:.0f} s ({arguments.steps} steps at most)")
    print(f"ours: {reached:.4f} after {our_seconds:.1f} s ({steps} steps)")
    print(f"ratio {result['ratio']:.1f}")


def _naive(run: Run, budget: int) -> tuple[float, float]:
    """Seconds until its best validation loss within the budget, and that loss."""
    training = NaiveTraining(run.dataset.models, run.encoder, LEARNING_RATE)
    order = torch.randperm(len(run.clips), generator=torch.Generator().manual_seed(0)).tolist()
    seconds, best = 0.0, (0.0, float("inf"))
    for step, index in zip(range(1, budget + 1), cycle(order), strict=False):
        clip = run.clips[index]
        batch = run.dataset.batch([clip], run.layers)
        started = time.perf_counter()
        training.step(clip.utterance, batch)
        seconds += time.perf_counter() - started
        if step % NAIVE_EVERY == 0 or step == budget:
            loss = _val_loss(run)
            if loss < best[1]:
                best = seconds, loss
    return best


def _ours(run: Run, target: float) -> tuple[float, int, float]:
    """Seconds and steps until the validation loss is at most ``target``, and what it is then."""
    for clip in run.clips:
        for window in windows(clip.frames, run.config.train.window_frames):
            run.dataset.reference(clip, window)  # rendered once for all trials, before the first
    seconds = 0.0
    for step in count(1):
        started = time.perf_counter()
        run.train_step()
        seconds += time.perf_counter() - started
        if step % OURS_EVERY == 0:
            loss = _val_loss(run)
            if loss <= target or step >= GIVE_UP:
                return seconds, step, loss
    raise AssertionError("unreachable")


def _val_loss(run: Run) -> float:
    run.encoder.eval()
    loss = run.validate()["val/loss"]
    run.encoder.train()
    return loss


if __name__ == "__main__":
    main()
