"""How a style heard in recordings of people speaks: whose voice it is, and how far the recordings lie from training.

Nobody knows a person's true style, so only the voice can be compared: each row of the table speaks one test sentence
in the style that it hears in a recording, with its own durations.

Dimensions: R recordings, L layers, T feature frames, D Whisper channels, S = 256 style, E speaker channels.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, QUIETEST, WHISPER_RATE, load_audio
from nuanced_core.data.dataset import Dataset
from nuanced_core.errors import AudioError
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.comparison import Embed, Floats
from nuanced_core.evaluation.metrics import as_json, estimate
from nuanced_core.evaluation.predictors import StylePredictors, rendered
from nuanced_core.evaluation.test_split import held_out_sentences, held_out_utterances

__all__ = ["evaluate_recordings", "recordings_in"]

logger = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SHORTEST = 3.0  # seconds: each half of a recording is compared, and Resemblyzer hears 1.6 s at a time


def recordings_in(folder: Path) -> list[Path]:
    """The sound files of a folder, by name.

    Raises:
        AudioError: there is no such folder, or no sound file in it.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder; name one that holds recordings")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise AudioError(f"{folder}: holds no {', '.join(SUFFIXES)} file; put recordings in it")
    return files


def evaluate_recordings(rows: StylePredictors, dataset: Dataset, files: Sequence[Path], embed: Embed) -> dict[str, Any]:
    """Of each row but the oracle ``identity``, as ``nuanced evaluate --clips DIR --json`` prints it.

    It is the speaker cosine of what the row says to either half of the recording, where 0 is a stranger, the test
    voices saying the same sentence, and 1 one half of the recording to the other. So 0 is what a voice of Kokoro gets
    by chance; 1 is hard to reach, since the halves share microphone and room. ``distance`` is how far the recording's
    pooled features lie from those of the training clips, whose own distance from their mean is 1. Intervals of 95 %
    are over recordings.

    Raises:
        AudioError: a file cannot be read, is silent, or is shorter than 3 s.
    """
    text, phonemes = next(iter(held_out_sentences(dataset.models.phonemizer, 2).items()))
    strangers = torch.stack(
        [
            embed(clip.audio, KOKORO_RATE).double()
            for clip in rendered(dataset, held_out_utterances(dataset.models.voices, {text: phonemes}))
        ]
    )
    clips, cosines, bounds = [], [], []
    for file in files:
        logger.info("%s", file.name)
        audio = load_audio(file, WHISPER_RATE)
        if len(audio) < SHORTEST * WHISPER_RATE:
            seconds = len(audio) / WHISPER_RATE
            raise AudioError(
                f"{file}: {seconds:.1f} s is too short to tell a voice; at least {SHORTEST:g} s are needed"
            )
        features = dataset.models.whisper(audio)[None].float()
        mask = torch.ones(1, features.shape[2], dtype=torch.bool, device=features.device)
        if min(float(half.abs().max()) for half in audio.tensor_split(2)) < QUIETEST:
            raise AudioError(f"{file}: one half of it is silent, and the halves are compared; cut the silence off")
        halves = torch.stack([embed(half, WHISPER_RATE).double() for half in audio.tensor_split(2)])  # (2, E)
        found = {
            name: float((halves @ embed(_spoken(dataset, phonemes, style), KOKORO_RATE).double()).mean())
            for name, style in rows(features, mask, [len(phonemes)]).items()
        }
        stranger, same = float((halves @ strangers.T).mean()), float(halves[0] @ halves[1])
        cosines.append(found)
        bounds.append((stranger, same))
        clips.append(
            {
                "file": file.name,
                "distance": float(rows.distance(features, mask)),
                "identity": {name: _one(value, stranger, same) for name, value in found.items()},
            }
        )
    limits = [_column(values) for values in zip(*bounds, strict=True)]
    return {
        "rows": {
            name: as_json({"identity": estimate(metrics.normalised, _column([c[name] for c in cosines]), *limits)})
            for name in cosines[0]
        },
        "clips": clips,
        "text": text,
        "whisper": rows.encoder.config.whisper,
    }


@torch.no_grad()
def _spoken(dataset: Dataset, phonemes: str, style: Tensor) -> Tensor:
    """A sentence in a style (1, 256), with its own durations: samples at 24 kHz."""
    kokoro = dataset.models.kokoro
    text = kokoro.encode_text([phonemes])
    style = style.to(dataset.models.device)
    return kokoro.speak(text, kokoro.prosody(text, style), style, [0]).item(0).cpu()


def _one(cosine: float, stranger: float, same: float) -> float | None:
    value = float(metrics.normalised(*(np.array([x]) for x in (cosine, stranger, same))))
    return None if np.isnan(value) else value


def _column(values: Sequence[float]) -> Floats:
    return np.array(values)[:, None]  # (R, 1)
