"""How much sooner our training reaches the validation loss of the original's.

    python -m tests.benchmarks.time_to_loss [--json] [--steps 24]

Both start from the same encoder, with the same clips, features, losses and learning rate. The original's procedure
(``naive.py``) gets a budget of steps and keeps its best validation; ours trains until its validation is as good.
Validation is not timed. Ours is timed twice: with an empty cache, where rendering the training clips, hearing them with
Whisper and rendering windows count too, and with a warm one, as every trial of a sweep after the first has it. (The
original's reads its features from the cache: Whisper is not counted there.)
"""

import argparse
import json
import tempfile
import time
from itertools import count, cycle
from pathlib import Path

import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import plan
from nuanced_core.training.run import Run
from nuanced_core.weights.store import cache_dir
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
    config = validate(RunConfig, SETTINGS, "time to loss")
    with tempfile.TemporaryDirectory() as folder:
        run = _run(config, dataset, Path(folder) / "naive")
        initial = {name: tensor.clone() for name, tensor in run.encoder.state_dict().items()}
        start = _val_loss(run)
        naive_seconds, target = _naive(run, arguments.steps)
        cold = Dataset(dataset.models, Path(folder) / "cache")
        voices, phonemizer = dataset.models.voices, dataset.models.phonemizer
        started = time.perf_counter()
        cold.clips(plan(config.data, config.mixes, voices, phonemizer)[0])
        rendering = time.perf_counter() - started
        times = {}
        for name in ("cold", "warm"):
            run = _run(config, cold, Path(folder) / name)
            run.encoder.load_state_dict(initial)
            times[name], steps, reached = _ours(run, target)
    result = {
        "start_loss": start,
        "target_loss": target,
        "reached_loss": reached,
        "naive_seconds": naive_seconds,
        "cold_seconds": rendering + times["cold"],
        "warm_seconds": times["warm"],
        "our_steps": steps,
        "cold_ratio": naive_seconds / (rendering + times["cold"]),
        "warm_ratio": naive_seconds / times["warm"],
    }
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k:14} {v:.4g}" for k, v in result.items()))
    if reached > target:
        raise SystemExit(f"ours did not reach {target:.4f} in {GIVE_UP} steps")


def _run(config: RunConfig, dataset: Dataset, folder: Path) -> Run:
    return Run(config, dataset, folder, lambda step, scalars: None)


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
