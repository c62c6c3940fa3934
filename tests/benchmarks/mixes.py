"""The style cosine that the default encoder reaches with synthetic voices of each kind added to the stock voices.

    python -m tests.benchmarks.mixes [--json] [--voices 150] [--only steps] [--set KEY=VALUE …]

The encoder is trained on the style loss alone (``configs/style_alone.yaml``) for each kind of synthetic voices, and for
several numbers of those of the kind ``steps``. Prints the style cosine on the validation voices, where the encoder's
input is another sentence of the same voice: ``clean``, and ``degraded`` by the conditions of the objective (noise,
telephone, room) in turn. Test voices are not used. Clips that the cache lacks are rendered first: 150 synthetic voices
take about 3 minutes on 2 CPU cores.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from nuanced_core.config.settings import Condition
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Run, start_run
from nuanced_core.training.validation import validation_inputs
from tune.config.sweep_config import load_run

KINDS = ("blends", "half_blends", "swaps", "steps", "half_steps")
STEP_COUNTS = (0, 300, 750, 1500, 2250)  # numbers of voices of the kind "steps"


def main() -> None:
    """Train an encoder for each row and print its cosines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--voices", type=int, default=150, help="number of synthetic voices of each kind")
    parser.add_argument("--only", choices=("kinds", "steps"), help="print only one of the two tables")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    rows: list[tuple[str, dict[str, int]]] = []
    if arguments.only != "steps":
        rows += [(f"{arguments.voices} {kind}", {"steps": 0, kind: arguments.voices}) for kind in KINDS]
    if arguments.only != "kinds":
        rows += [(f"{count} steps", {"steps": count}) for count in STEP_COUNTS]
    cosines = {}
    for name, mixes in rows:
        overrides = [f"mixes.{kind}={count}" for kind, count in mixes.items()]
        cosines[name] = _train_and_score([*arguments.overrides, *overrides])
        if not arguments.json:
            print(f"{name:16}", "  ".join(f"{key} {value:.3f}" for key, value in cosines[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(cosines, indent=2))


def _train_and_score(overrides: Sequence[str]) -> dict[str, float]:
    config = load_run(Path("configs/style_alone.yaml"), overrides)
    prepare([config])
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(config, Path(folder), lambda *reported: None)
        for _ in range(config.train.epochs * config.train.steps_per_epoch):
            run.train_step()
        return {"clean": _cosine(run, ("clean",)), "degraded": _cosine(run, config.objective.conditions)}


@torch.no_grad()
def _cosine(run: Run, conditions: tuple[Condition, ...]) -> float:
    """Return the mean cosine of predicted and true styles of the validation clips."""
    data, clips = run.data, run.data.validation.clips
    inputs = validation_inputs([clip.utterance.voice for clip in clips], conditions)
    input_clips, versions = [clips[index] for index, _ in inputs], [condition for _, condition in inputs]
    batch = data.dataset.batch(input_clips, data.layers, versions, clips)
    run.encoder.eval()
    styles = run.encoder(batch.features, batch.mask, batch.phoneme_counts)
    return float(cosine_similarity(styles, batch.styles).mean())


if __name__ == "__main__":
    main()
