"""How well the gradient of a window approximates the gradient of the whole sentence.

    python -m tests.benchmarks.window_gradient [--pairs 2]

For pairs of a sentence in one voice and a predicted style (another voice's), the gradient of the audio loss with
respect to the style is computed on the whole sentence and on windows of it.

Rows: frames of a window; frames of context on either side, which are rendered but excluded from the loss; windows per
step; statistics of the instance norms, either those of the window (``own``) or those of the whole ``sentence`` in the
reference style, held constant.

Columns: ``frames`` rendered per step; ``cosine``, the mean cosine of a step's gradient with the whole sentence's;
``bias``, the cosine of the mean over all windows of a sentence; ``spread``, the standard deviation of a step's gradient
around that mean, divided by the norm of the mean.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nuanced_core.audio import SAMPLES_PER_FRAME
from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Clip, Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.kokoro import decoder as kokoro_decoder
from nuanced_core.losses.reference import MelSTFTLoss
from nuanced_core.text.sentences import load_sentences
from nuanced_core.weights.store import cache_dir
from tests.benchmarks.progress import benchmark, render_missing

VOICES = ("af_heart", "am_michael", "bf_emma", "am_puck", "ff_siwis", "jm_kumo", "af_bella", "bm_george")
STEPS = 64  # random steps per sentence and row


class Row(NamedTuple):
    """A way to choose what a step renders."""

    window: int  # frames
    context: int  # frames on either side
    windows: int  # per step
    statistics: str  # of the instance norms: "own" or "sentence"


class Comparison(NamedTuple):
    """Gradients of a row's steps compared with the whole sentence's."""

    frames: float
    cosine: float
    bias: float
    spread: float


ROWS = (
    Row(20, 0, 1, "own"),
    Row(40, 0, 1, "own"),
    Row(40, 8, 1, "own"),
    Row(40, 20, 1, "own"),
    Row(40, 0, 2, "own"),
    Row(40, 0, 4, "own"),
    Row(80, 0, 1, "own"),
    Row(80, 8, 1, "own"),
    Row(40, 0, 1, "sentence"),
    Row(40, 8, 1, "sentence"),
    Row(80, 0, 1, "sentence"),
)


def main() -> None:
    """Measure and print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2)
    arguments = parser.parse_args()
    with benchmark() as bench:
        bench.doing("loading models, rendering clips")
        dataset, mel = Dataset(ModelSet.fetch(RunConfig().models, "cpu"), cache_dir()), MelSTFTLoss()
        pairs = _pairs(dataset, arguments.pairs)
        whole = [
            _gradient(dataset, mel, clip, style, (0, clip.frames), 0)
            for clip, style in bench.each("whole sentences", pairs)
        ]
        # Gradients of all windows of each pair; rows with more windows per step use the same ones.
        by_windows: dict[Row, list[Tensor]] = {}
        for row in ROWS:
            key = row._replace(windows=1)
            if key not in by_windows:
                what = f"windows of {row.window} frames, context {row.context}, {row.statistics} statistics"
                by_windows[key] = [_window_gradients(dataset, mel, *pair, row) for pair in bench.each(what, pairs)]
            of_pairs = [_compare(*gradients, row) for gradients in zip(by_windows[key], whole, strict=True)]
            mean = Comparison(*(statistics.mean(values) for values in zip(*of_pairs, strict=True)))
            name = f"{row.window} + {row.context}, {row.windows} a step"
            bench.add(name if row.statistics == "own" else f"{name}, {row.statistics}", mean._asdict())


def _window_gradients(dataset: Dataset, mel: MelSTFTLoss, clip: Clip, style: Tensor, row: Row) -> Tensor:
    """Return the gradients (windows, 256) of all of a row's windows of a clip at a predicted style (256,)."""
    with _SentenceStatistics(dataset, clip) if row.statistics == "sentence" else nullcontext():
        found = [_gradient(dataset, mel, clip, style, w, row.context) for w in windows(clip.frames, row.window)]
    return torch.stack(found)


class _SentenceStatistics:
    """Context in which the decoder's norms use the statistics that they had when the whole clip was rendered."""

    def __init__(self, dataset: Dataset, clip: Clip) -> None:
        self._measured: dict[int, tuple[Tensor, Tensor]] = {}
        style = clip.utterance.style.unsqueeze(0)
        with torch.no_grad(), self._patched(self._measure):
            dataset.speak([clip], style, [(0, clip.frames)])

    def __enter__(self) -> None:
        self._active = self._patched(lambda norm, x: self._measured[id(norm)])
        self._active.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._active.__exit__(*error)

    def _measure(self, norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        self._measured[id(norm)] = var, mean
        return var, mean

    def _patched(self, get_statistics: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> ExitStack:
        """Replace the decoder's norms by norms with the variance and mean that ``get_statistics`` returns."""

        def adain(norm: Any, x: Tensor, style: Tensor, mask: Tensor | None) -> Tensor:
            scale, shift = kokoro_decoder._scale_and_shift(norm, style)
            var, mean = get_statistics(norm, x)
            return (x - mean) * (scale * torch.rsqrt(var + kokoro_decoder.EPS)) + shift

        def adain_snake(
            norm: Any, x: Tensor, style: Tensor, alpha: Tensor, mask: Tensor | None, _: torch.dtype
        ) -> Tensor:
            y = adain(norm, x, style, mask)
            return y + torch.sin(alpha * y).square() / alpha

        stack = ExitStack()
        for name, function in (("_adain", adain), ("_adain_snake", adain_snake)):
            stack.enter_context(patch.object(kokoro_decoder, name, function))
        return stack


def _pairs(dataset: Dataset, count: int) -> list[tuple[Clip, Tensor]]:
    """Draw clips, each with the style (256,) of another voice."""
    models, draw = dataset.models, random.Random(0)
    texts = [t for t in load_sentences("train") if 60 <= len(models.phonemizer(t)) <= 90]
    utterances, others = [], []
    for n in range(count):
        speaker, other = draw.sample(VOICES, 2)
        phonemes = models.phonemizer(draw.choice(texts))
        style = models.voices.style(speaker, len(phonemes))
        utterances.append(Utterance(speaker, "", phonemes, len(phonemes), style, n))
        others.append(models.voices.style(other, len(phonemes)))
    render_missing(dataset, utterances)
    return [*zip(dataset.clips(utterances), others, strict=True)]


def _gradient(
    dataset: Dataset, mel: MelSTFTLoss, clip: Clip, style: Tensor, window: tuple[int, int], context: int
) -> Tensor:
    """Return the gradient (256,) of the audio loss on a window (first frame, frames) with respect to ``style``."""
    start, frames = window
    first, last = max(0, start - context), min(clip.frames, start + frames + context)
    rendered = (first, last - first)
    samples = slice((start - first) * SAMPLES_PER_FRAME, (start - first + frames) * SAMPLES_PER_FRAME)
    predicted = style.unsqueeze(0).clone().requires_grad_()
    audio = dataset.speak([clip], predicted, [rendered]).audio[:, samples]
    with torch.no_grad():  # not the cached reference: its norms may have used other statistics
        reference = dataset.speak([clip], clip.utterance.style[None], [rendered]).audio[:, samples]
    (gradient,) = torch.autograd.grad(mel(mel.spectra(audio), mel.spectra(reference)), predicted)
    return gradient[0]


def _compare(gradients: Tensor, whole: Tensor, row: Row) -> Comparison:
    """Compare steps on random windows with the whole sentence.

    Args:
        gradients: (windows, 256), of all windows of the sentence.
        whole: (256,), of the whole sentence.
    """
    draw = random.Random(0)
    count = min(row.windows, len(gradients))
    steps = torch.stack([gradients[draw.sample(range(len(gradients)), count)].mean(dim=0) for _ in range(STEPS)])
    mean = gradients.mean(dim=0)
    return Comparison(
        frames=float((row.window + 2 * row.context) * count),
        cosine=float(cosine_similarity(steps, whole[None]).mean()),
        bias=float(cosine_similarity(mean, whole, dim=0)),
        spread=float((steps - mean).square().sum(dim=1).mean().sqrt() / mean.norm()),
    )


if __name__ == "__main__":
    main()
