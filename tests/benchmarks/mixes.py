"""What made-up voices are worth: the default encoder, trained on style alone, with each kind beside the stock voices.

    python -m tests.benchmarks.mixes [--json] [--voices 150] [--only steps]

Prints the style cosine on validation voices, heard saying another sentence: clean, and in the conditions of the
objective (noise, telephone, room) in turn. Nothing here looks at test voices. Clips that the cache lacks are rendered
first: 150 made-up voices take about 3 minutes on 2 CPU cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from nuanced_core.config.settings import Condition, RunConfig
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Run, start_run
from nuanced_core.training.validation import validation_inputs
from tune.config.sweep_config import load_run

KINDS = ("blends", "half_blends", "swaps", "steps", "half_steps")
MANY = (0, 300, 750, 1500, 2250)  # steps


def main() -> None:
    """Train each and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--voices", type=int, default=150, help="made-up voices of each kind")
    parser.add_argument("--only", choices=("kinds", "steps"), help="one of the two tables")
    arguments = parser.parse_args()
    rows: list[tuple[str, dict[str, int]]] = []
    if arguments.only != "steps":
        rows += [(f"{arguments.voices} {kind}", {"steps": 0, kind: arguments.voices}) for kind in KINDS]
    if arguments.only != "kinds":
        rows += [(f"{number} steps", {"steps": number}) for number in MANY]
    found = {}
    for name, mixes in rows:
        found[name] = _cosines([f"mixes.{kind}={number}" for kind, number in mixes.items()])
        if not arguments.json:
            print(f"{name:16}", "  ".join(f"{key} {value:.3f}" for key, value in found[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))


def _cosines(overrides: list[str]) -> dict[str, float]:
    config = load_run(Path("configs/style_alone.yaml"), overrides)
    prepare([config], lambda line: None)
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(config, Path(folder), lambda step, scalars: None)
        for _ in range(config.train.epochs * config.train.steps_per_epoch):
            run.train_step()
        return {
            "clean": _cosine(run, config, ("clean",)),
            "degraded": _cosine(run, config, config.objective.conditions),
        }


@torch.no_grad()
def _cosine(run: Run, config: RunConfig, conditions: tuple[Condition, ...]) -> float:
    clips = run.validation.clips
    heard = validation_inputs([clip.utterance.voice for clip in clips], conditions)
    batch = run.dataset.batch([clips[i] for i, _ in heard], run.layers, [kind for _, kind in heard], clips)
    run.encoder.eval()
    styles = run.encoder(batch.features, batch.mask, batch.phoneme_counts)
    return float(cosine_similarity(styles, batch.styles).mean())


if __name__ == "__main__":
    main()
