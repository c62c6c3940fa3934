"""The style cosine that the default encoder reaches with synthetic voices of each kind added to the stock voices.

    python -m tests.benchmarks.mixes [--json] [--whole] [--voices 6] [--only steps] [--set KEY=VALUE …]

The encoder is trained on the style loss alone (``configs/style_alone.yaml``) for each kind of synthetic voices, and for
several numbers of those of the kind ``steps``. Prints the style cosine on the validation voices, where the encoder's
input is another sentence of the same voice: ``clean``, and ``degraded`` by the conditions of the objective (noise,
telephone, room) in turn. Test voices are not used. Clips that the cache lacks are rendered first.

By default few voices speak one short sentence each, which takes minutes and shows that it works; ``--whole`` takes all
of the configuration, 150 voices of each kind and up to 2,250 of the kind ``steps``, which takes hours.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from nuanced_core.config.settings import Condition, RunConfig
from nuanced_core.training.preparation import prepare
from nuanced_core.training.run import Run, start_run
from nuanced_core.training.validation import validation_inputs
from tests.benchmarks.progress import Bench, benchmark
from tune.config.sweep_config import load_run

CONFIG = Path("configs/style_alone.yaml")
KINDS = ("blends", "half_blends", "swaps", "steps", "half_steps")
STEP_COUNTS = {False: (0, 12), True: (0, 300, 750, 1500, 2250)}  # numbers of voices of the kind "steps", if whole
VOICES = {False: 6, True: 150}
SMALL = (  # what makes it end in minutes
    'data.voices=["af_heart", "am_michael", "bf_emma", "bm_george", "af_bella", "am_fenrir"]',
    *("data.sentences_per_voice=1", "data.val_sentences_per_voice=2", "data.max_phonemes=36", "augment.copies=0"),
    *("train.epochs=1", "train.batch_size=16"),
)


def main() -> None:
    """Train an encoder for each row and print its cosines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the whole configuration, as for docs/LOG.md")
    parser.add_argument("--voices", type=int, help="number of synthetic voices of each kind")
    parser.add_argument("--only", choices=("kinds", "steps"), help="print only one of the two tables")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    whole, voices = arguments.whole, arguments.voices or VOICES[arguments.whole]
    mixes: dict[str, dict[str, int]] = {}
    if arguments.only != "steps":
        mixes |= {f"{voices} {kind}": {"steps": 0, kind: voices} for kind in KINDS}
    if arguments.only != "kinds":
        mixes |= {f"{count} steps, series": {"steps": count} for count in STEP_COUNTS[whole]}
    overrides = [*(() if whole else SMALL), *arguments.overrides]
    configs = {
        name: load_run(CONFIG, [*overrides, *(f"mixes.{kind}={count}" for kind, count in row.items())])
        for name, row in mixes.items()
    }
    with benchmark(arguments.json) as bench:
        if not whole:  # few clips are worth several processes only together
            bench.doing("loading models, rendering clips")
            prepare([*configs.values()])
        for name, config in configs.items():
            bench.doing(f"{name}: loading models, rendering clips")
            prepare([config])
            bench.add(name, _train_and_score(bench, name, config))


def _train_and_score(bench: Bench, name: str, config: RunConfig) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(config, Path(folder), lambda *reported: None)
        for _ in bench.each(f"{name}: training", range(config.train.epochs * config.train.steps_per_epoch)):
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
