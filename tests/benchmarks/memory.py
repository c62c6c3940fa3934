"""Peak memory of a training step, for several numbers of clips per step and window lengths.

    python -m tests.benchmarks.memory [--whole]

Each row is measured in its own process, as a trial would be: the largest resident memory after three steps with the
real models. By default some of the rows, which takes minutes; ``--whole`` takes all.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import loaded_models
from nuanced_core.training.memory import peak_memory
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import start_run
from tests.benchmarks.progress import benchmark

LONG_SENTENCE = (
    "The old lighthouse keeper climbed the winding stairs every evening, lit the great lamp with a steady hand, "
    "and watched the ships go by until the morning came, cold and grey and full of gulls."
)
# train.spoken, train.window_frames, train.checkpointing
ROWS = (
    (2, 40, False),
    (8, 40, False),
    (4, 80, False),
    (1, "full", False),
    (8, 80, True),
)
MORE_ROWS = (
    (1, 40, False),
    (4, 40, False),
    (8, 80, False),
    (2, "full", False),
    (2, "full", True),
)
STEPS = 3


def main() -> None:
    """Measure each row in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)  # what the process of a row measures
    parser.add_argument("--whole", action="store_true", help="all rows")
    given = parser.parse_args()
    measured = given.row
    if measured:
        print(*_measure(*measured))
        return
    with benchmark() as bench:
        bench.doing("loading models, rendering clips")
        rows = [*ROWS, *(MORE_ROWS if given.whole else ())]
        prepare([_config(*row) for row in rows])
        for row in bench.each("measuring rows in processes of their own", rows):
            command = [sys.executable, "-m", "tests.benchmarks.memory", "--row", json.dumps(row)]
            seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
            clips, window, checkpointing = row
            name = f"{clips} x {window}{', checkpointing' if checkpointing else ''}"
            bench.add(name, {"clips": clips, "seconds spoken": float(seconds), "peak GB": float(peak)})


def _config(spoken: int, window_frames: int | str, checkpointing: bool) -> RunConfig:
    voices = loaded_models(RunConfig().models, torch.device("cpu")).voices
    settings = {
        "data": {
            "voices": voices.training_voices("all", ("af_sky",))[: max(spoken, 2)],
            "sentences": [LONG_SENTENCE],
            "val_voices": ["af_sky"],
            "val_sentences": ["He ran.", "Where is it?"],
        },
        "augment": {"copies": 0},
        "train": {"spoken": spoken, "window_frames": window_frames, "checkpointing": checkpointing, "device": "cpu"},
        "objective": {"window_frames": 16},
        "show": {"clips": 0},
    }
    return validate(RunConfig, settings, "memory")


def _measure(spoken: int, window_frames: int | str, checkpointing: bool) -> tuple[float, float]:
    """Return the most seconds of speech in a step, and the peak memory of this process in GB."""
    config = _config(spoken, window_frames, checkpointing)
    models = loaded_models(config.models, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(config, Path(folder), lambda *reported: None, models)
        seconds = max(run.train_step()["train/speech_seconds"] for _ in range(STEPS))
    return seconds, peak_memory(torch.device("cpu")) / 1e9


if __name__ == "__main__":
    main()
