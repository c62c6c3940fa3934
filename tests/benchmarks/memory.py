"""How much memory a training step takes, over seconds of speech, clips a step and windows.

    python -m tests.benchmarks.memory

Each row is a process of its own, as a trial is: the largest resident memory after three steps with the real models.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.training.memory import peak_memory
from nuanced_core.training.run import Run
from nuanced_core.weights.store import cache_dir

LONG = (
    "The old lighthouse keeper climbed the winding stairs every evening, lit the great lamp with a steady hand, "
    "and watched the ships go by until the morning came, cold and grey and full of gulls."
)
# spoken, window frames, checkpointing
ROWS = (
    (1, 40, False),
    (2, 40, False),
    (4, 40, False),
    (8, 40, False),
    (4, 80, False),
    (8, 80, False),
    (1, "full", False),
    (2, "full", False),
    (8, 80, True),
    (2, "full", True),
)


def main() -> None:
    """Measure each row in a process of its own, and print."""
    if len(sys.argv) > 1:
        print(_measure(*json.loads(sys.argv[1])))
        return
    print("clips  window  checkpointing  seconds spoken  peak GB")
    for row in ROWS:
        command = [sys.executable, "-m", "tests.benchmarks.memory", json.dumps(row)]
        seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
        print(f"{row[0]:5}  {row[1]:>6}  {row[2]!s:13}  {float(seconds):14.1f}  {float(peak):7.2f}", flush=True)


def _measure(spoken: int, window: int | str, checkpointing: bool) -> str:
    models = ModelSet.fetch(RunConfig().models, "cpu", lambda line: None)
    voices = models.voices.training_voices("all", ("af_sky",))[: max(spoken, 2)]
    data = {
        "data": {
            "voices": voices,
            "sentences": [LONG],
            "val_voices": ["af_sky"],
            "val_sentences": ["He ran.", "Where is it?"],
        },
        "train": {"spoken": spoken, "window_frames": window, "checkpointing": checkpointing},
        "objective": {"window_frames": 16},
    }
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(models, cache_dir())
        run = Run(validate(RunConfig, data, "memory"), dataset, Path(folder), lambda step, scalars: None)
        seconds = max(run.train_step()["train/speech_seconds"] for _ in range(3))
    return f"{seconds} {peak_memory(torch.device('cpu')) / 1e9}"


if __name__ == "__main__":
    main()
