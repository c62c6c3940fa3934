"""Pictures of speech and styles: spectrograms, curves of prosody, attention, a map of voices.

Dimensions: T samples, M frames of a spectrogram, F values of a curve, H heads, V voices, S = 256 style.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchaudio
from PIL import Image
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.exhibits.exhibit import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # imported where it draws: most processes of a search draw nothing

__all__ = ["Curves", "Word", "attention", "curves", "small_spectrogram", "spectrograms", "split_words", "style_map"]

DPI = 90
MELS, WINDOW, HOP = 80, 1024, 240  # of a spectrogram at 24 kHz: 43 and 10 ms
DECIBELS = 70.0  # below the loudest values, which are shown
CURVE_RATE = 80  # values of Kokoro's F0 and energy per second
VOICED_HZ = 10.0
# Colours that the colour-blind can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


@dataclass(frozen=True)
class Curves:
    """F0 in Hz, about 0 where unvoiced, and energy (log norm) of a sentence, each (F,)."""

    f0: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Word:
    """A word and its time in seconds."""

    text: str
    start: float
    end: float


def spectrograms(name: str, predicted: Tensor, reference: Tensor) -> Picture:
    """Draw the mel spectrograms of audio (T,) at 24 kHz, of its reference, and their difference."""
    found, wanted = _mel_decibels(predicted), _mel_decibels(reference)
    frames = min(found.shape[1], wanted.shape[1])
    found, wanted = found[:, :frames], wanted[:, :frames]
    top = float(np.quantile(wanted, 0.995))
    figure, axes = _figure(3, height=5.4)
    extent = (0, frames * HOP / KOKORO_RATE, 0, MELS)
    for axis, mel, title in zip(axes, (found, wanted), ("predicted", "reference"), strict=False):
        shown = axis.imshow(
            mel, origin="lower", aspect="auto", extent=extent, vmin=top - DECIBELS, vmax=top, cmap="viridis"
        )
        axis.set_ylabel(f"{title}\nmel band")
        figure.colorbar(shown, ax=axis, label="dB")
    limit = 30.0
    shown = axes[2].imshow(
        found - wanted, origin="lower", aspect="auto", extent=extent, vmin=-limit, vmax=limit, cmap="PuOr"
    )
    axes[2].set_ylabel("difference\nmel band")
    axes[2].set_xlabel("seconds")
    figure.colorbar(shown, ax=axes[2], label="dB")
    return _picture(name, figure)


def curves(name: str, predicted: Curves, reference: Curves) -> Picture:
    """Draw F0 and energy of a sentence as predicted and in its reference, on the same durations."""
    figure, axes = _figure(2, height=3.6)
    for axis, kind, label in ((axes[0], "f0", "F0 (Hz)"), (axes[1], "energy", "energy (log)")):
        for found, colour, style, legend in ((reference, GREY, "-", "reference"), (predicted, BLUE, "--", "predicted")):
            curve = getattr(found, kind).detach().float().cpu().numpy()
            if kind == "f0":
                curve = np.where(curve > VOICED_HZ, curve, np.nan)
            axis.plot(np.arange(len(curve)) / CURVE_RATE, curve, style, color=colour, label=legend, linewidth=1.6)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="upper right", fontsize=8)
    axes[1].set_xlabel("seconds")
    return _picture(name, figure)


def attention(name: str, weights: Tensor, words: Sequence[Word], seconds: float) -> Picture:
    """Draw how each head of a pooling weights the frames of a clip (M, H), with the words below.

    A weight is divided by that of the mean, so 1 is a frame that counts as much as the average one.
    """
    relative = (weights * len(weights)).detach().float().cpu().numpy()
    figure, (axis,) = _figure(1, height=3.0)
    time = (np.arange(len(relative)) + 0.5) * seconds / len(relative)
    palette = (BLUE, ORANGE, GREEN, GREY)
    for head in range(relative.shape[1]):
        label = f"head {head + 1}"
        axis.plot(time, relative[:, head], color=palette[head % len(palette)], alpha=0.85, linewidth=1.3, label=label)
    axis.axhline(1.0, color=GREY, linestyle=":")
    axis.set_ylabel("weight / mean weight")
    axis.set_xlim(0, seconds)
    axis.set_ylim(bottom=0)
    if relative.shape[1] > 1:
        axis.legend(loc="upper right", fontsize=8, ncols=4)
    _write_words(axis, words)
    return _picture(name, figure)


def style_map(name: str, stock: Mapping[str, Tensor], pairs: Sequence[tuple[str, Tensor, Tensor | None]]) -> Picture:
    """Draw the two principal components of the stock voices, with predicted styles and the true ones beside them.

    Args:
        stock: offset (S,) of each stock voice.
        pairs: label, predicted offset (S,) and true one (S,), None for a person, whose style nobody knows.
    """
    points = torch.stack([*stock.values()]).double()  # (V, S)
    centre = points.mean(dim=0)
    _, values, axes = torch.linalg.svd(points - centre, full_matrices=False)
    shares = values.square() / values.square().sum()

    def place(offset: Tensor) -> Any:
        return ((offset.double().cpu() - centre) @ axes[:2].T).numpy()

    figure, (axis,) = _figure(1, width=7.2, height=6.0)
    for voice, offset in stock.items():
        axis.annotate(voice, place(offset), color=GREY, fontsize=6, ha="center", va="center")
    places = np.stack([place(offset) for offset in stock.values()])
    axis.scatter(places[:, 0], places[:, 1], s=4, color=GREY, alpha=0.0)
    labelled: set[str] = set()
    for label, predicted, true in pairs:
        x, y = place(predicted)
        colour, marker = (BLUE, "o") if true is not None else (GREEN, "D")
        if true is not None:
            axis.plot(*zip((x, y), place(true), strict=True), color=BLUE, alpha=0.4, linewidth=1)
            axis.scatter(*place(true), marker="*", s=90, color=ORANGE, zorder=3)
        axis.scatter(x, y, marker=marker, s=30, color=colour, zorder=4)
        if label not in labelled:
            labelled.add(label)
            at = (x, y) if true is None else place(true)
            axis.annotate(label, at, fontsize=8, xytext=(5, 5), textcoords="offset points")
    kinds = [("*", ORANGE, "true style"), ("o", BLUE, "predicted style")]
    kinds += [("D", GREEN, "predicted for a person")] if any(true is None for *_, true in pairs) else []
    for marker, colour, legend in kinds:
        axis.scatter([], [], marker=marker, color=colour, label=legend)
    axis.legend(loc="best", fontsize=8)
    axis.set_xlabel(f"first component ({100 * float(shares[0]):.0f} % of the variance of the stock voices)")
    axis.set_ylabel(f"second component ({100 * float(shares[1]):.0f} %)")
    return _picture(name, figure)


def small_spectrogram(name: str, audio: Tensor, rate: int) -> Picture:
    """Draw a mel spectrogram of audio (T,) without axes, a pixel per band and 10 ms."""
    from matplotlib import colormaps

    mel = _mel_decibels(torchaudio.functional.resample(audio, rate, KOKORO_RATE) if rate != KOKORO_RATE else audio)
    levels = ((mel - mel.max() + DECIBELS) / DECIBELS).clip(0, 1)
    colours = (colormaps["viridis"](levels[::-1])[..., :3] * 255).astype(np.uint8)
    return _encoded(name, Image.fromarray(colours))


def _mel_decibels(audio: Tensor) -> Any:
    """Return the mel spectrogram (80, M) of audio (T,) at 24 kHz in dB, as an array."""
    transform = torchaudio.transforms.MelSpectrogram(
        KOKORO_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS, f_min=30.0, norm="slaney", mel_scale="slaney"
    )
    power = transform(audio.detach().float().cpu())
    return (10 * torch.log10(power.clamp(min=1e-10))).numpy()


def _figure(rows: int, *, width: float = 8.0, height: float) -> "tuple[Figure, Any]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]


def _write_words(axis: Any, words: Sequence[Word]) -> None:
    """Write words below an axis, each at its time, in two rows where they are close together."""
    axis.set_xlabel("seconds", labelpad=40)
    place = axis.get_xaxis_transform()
    for index, word in enumerate(words):
        axis.axvline(word.start, color=GREY, alpha=0.35, linewidth=0.8)
        middle = (word.start + word.end) / 2
        axis.text(middle, -0.20 - 0.11 * (index % 2), word.text, transform=place, ha="center", va="center", fontsize=8)


def _picture(name: str, figure: "Figure") -> Picture:
    canvas: Any = figure.canvas
    canvas.draw()
    return _encoded(name, Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))


def _encoded(name: str, image: Image.Image) -> Picture:
    """Encode a picture as PNG with at most 128 colours, which takes a third of the space."""
    content = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(content, format="PNG", optimize=True)
    return Picture(name, content.getvalue(), *image.size)


def split_words(phonemes: str, text: str, token_seconds: Sequence[float]) -> list[Word]:
    """Return the words of a sentence with their times.

    Args:
        phonemes: of the sentence, as Kokoro knows them, words separated by spaces.
        text: the sentence; its words stand for those of the phonemes if there are as many.
        token_seconds: of each phoneme, with the boundary token at either end.
    """
    written, spoken = text.split(), phonemes.split(" ")
    names = written if len(written) == len([word for word in spoken if word]) else [word for word in spoken if word]
    words: list[Word] = []
    time, start = token_seconds[0], token_seconds[0]
    inside = False
    for phoneme, seconds in zip(f"{phonemes} ", (*token_seconds[1:-1], math.nan), strict=True):
        if phoneme == " ":
            if inside:
                words.append(Word(names[len(words)], start, time))
            inside = False
        elif not inside:
            inside, start = True, time
        time += 0.0 if math.isnan(seconds) else seconds
    return words
