"""How well a window's gradient stands for the whole sentence's.

    python -m tests.benchmarks.window_gradient [--pairs 6]

For pairs of a sentence in one voice and a predicted style (another voice's), the gradient of the audio loss to the
style is computed on the whole sentence and on windows. Rows: window frames, context frames on either side (spoken,
but outside of the loss), windows a step, and whose statistics the instance norms use: the window's ``own``, or those
of the whole ``sentence`` as the reference spoke it, held still. ``cosine`` is the mean over windows of the cosine with
the whole gradient, ``bias`` the cosine of the mean over all windows of a sentence, ``spread`` the standard deviation
of a window's gradient around that mean over the mean's norm, ``frames`` what is spoken per step.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Clip, Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.kokoro import decoder as kokoro_decoder
from nuanced_core.text.sentences import load_sentences
from nuanced_core.training.losses import MelSTFTLoss
from nuanced_core.weights.store import cache_dir

VOICES = ("af_heart", "am_michael", "bf_emma", "am_puck", "ff_siwis", "jm_kumo", "af_bella", "bm_george")
ROWS = (
    (20, 0, 1, "own"),
    (40, 0, 1, "own"),
    (40, 8, 1, "own"),
    (40, 20, 1, "own"),
    (40, 0, 2, "own"),
    (40, 0, 4, "own"),
    (80, 0, 1, "own"),
    (80, 8, 1, "own"),
    (40, 0, 1, "sentence"),
    (40, 8, 1, "sentence"),
    (80, 0, 1, "sentence"),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=6)
    arguments = parser.parse_args()
    dataset = Dataset(ModelSet.fetch(RunConfig().models, "cpu", lambda line: None), cache_dir())
    mel = MelSTFTLoss()
    tiled: dict[tuple[int, int, str], Tensor] = {}
    found: dict[tuple[int, int, int, str], list[tuple[float, float, float, float]]] = {row: [] for row in ROWS}
    for clip, style in _pairs(dataset, arguments.pairs):
        whole = _gradient(dataset, mel, clip, style, (0, clip.frames), 0)
        for size, context, count, whose in ROWS:
            tiles = windows(clip.frames, size)
            if count == 1:
                with _Statistics(dataset, clip) if whose == "sentence" else nullcontext():
                    gradients = [_gradient(dataset, mel, clip, style, tile, context) for tile in tiles]
                tiled[size, context, whose] = torch.stack(gradients)
            compared = _compare(tiled[size, context, whose], whole, count, size + 2 * context)
            found[size, context, count, whose].append(compared)
    print("window  context  a step  statistics  frames  cosine   bias  spread")
    for (size, context, count, whose), values in found.items():
        cosine, bias, spread, frames = (statistics.mean(v) for v in zip(*values, strict=True))
        print(f"{size:6}  {context:7}  {count:6}  {whose:10}  {frames:6.0f}  {cosine:6.2f}  {bias:5.2f}  {spread:6.2f}")


class _Statistics:
    """While it is entered, the decoder's norms use what they measured when the clip was spoken whole."""

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

    def _patched(self, look_up: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> ExitStack:
        def adain(norm: Any, x: Tensor, style: Tensor, mask: Tensor | None) -> Tensor:
            scale, shift = kokoro_decoder._affine(norm, style)
            var, mean = look_up(norm, x)
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
    models, draw = dataset.models, random.Random(0)
    texts = [t for t in load_sentences("train") if 60 <= len(models.phonemizer(t)) <= 90]
    pairs = []
    for n in range(count):
        speaker, other = draw.sample(VOICES, 2)
        phonemes = models.phonemizer(draw.choice(texts))
        utterance = Utterance(speaker, "", phonemes, len(phonemes), models.voices.style(speaker, len(phonemes)), n)
        pairs.append((dataset.clips([utterance])[0], models.voices.style(other, len(phonemes))))
    return pairs


def _gradient(
    dataset: Dataset, mel: MelSTFTLoss, clip: Clip, style: Tensor, window: tuple[int, int], context: int
) -> Tensor:
    start, frames = window
    first, last = max(0, start - context), min(clip.frames, start + frames + context)
    spoken = (first, last - first)
    cut = slice((start - first) * 600, (start - first + frames) * 600)
    predicted = style.unsqueeze(0).clone().requires_grad_()
    audio = dataset.speak([clip], predicted, [spoken]).audio[:, cut]
    with torch.no_grad():  # not the cached one: its norms may have used other statistics
        reference = dataset.speak([clip], clip.utterance.style[None], [spoken]).audio[:, cut]
    (gradient,) = torch.autograd.grad(mel(mel.spectra(audio), mel.spectra(reference)), predicted)
    return gradient[0]


def _compare(gradients: Tensor, whole: Tensor, count: int, frames: int) -> tuple[float, float, float, float]:
    """Cosine, bias, spread and frames of steps that each take ``count`` of the windows' gradients."""
    draw = random.Random(0)
    count = min(count, len(gradients))
    steps = torch.stack([gradients[draw.sample(range(len(gradients)), count)].mean(dim=0) for _ in range(64)])
    mean = gradients.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity(steps, whole[None]).mean()
    bias = torch.nn.functional.cosine_similarity(mean, whole, dim=0)
    spread = (steps - mean).square().sum(dim=1).mean().sqrt() / mean.norm()
    return float(cosine), float(bias), float(spread), float(frames * count)


if __name__ == "__main__":
    main()
