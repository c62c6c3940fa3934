"""The listening clips of a run: sounds as MP3 files, small spectrograms of them, and a list in JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from nuanced_core.errors import DiskError
from nuanced_core.exhibits.pictures import small_spectrogram

__all__ = ["LISTENING", "ListeningClip", "write_listening"]

LISTENING = "listening"  # the folder, in that of a run; its list is the file listening.json
_COMPRESSION = 0.4  # of libsndfile's MP3: 0 is the largest file, 1 the smallest


@dataclass(frozen=True)
class ListeningClip:
    """A clip as it can be heard.

    Attributes:
        sounds: samples (T,) and rate by kind: ``heard``, ``reference`` (not of a person), ``mean``, ``nearest``,
            ``spoken``.
    """

    name: str
    voice: str
    condition: str
    text: str
    nearest_voice: str
    sounds: dict[str, tuple[Tensor, int]]


def write_listening(folder: Path, clips: Sequence[ListeningClip], *, epoch: int, step: int, val_loss: float) -> None:
    """Write clips into a folder, over those of an earlier epoch; each file is replaced at once, the list last.

    Raises:
        DiskError: the folder cannot be written.
    """
    entries: list[dict[str, Any]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, clip in enumerate(clips):
            entry: dict[str, Any] = {
                "name": clip.name, "voice": clip.voice, "condition": clip.condition, "text": clip.text,
                "nearest_voice": clip.nearest_voice, "files": {}, "spectrograms": {},
            }  # fmt: skip
            for kind, (audio, rate) in clip.sounds.items():
                entry["files"][kind], entry["spectrograms"][kind] = f"{number}_{kind}.mp3", f"{number}_{kind}.png"
                _write_mp3(folder / entry["files"][kind], audio, rate)
                _replace(folder / entry["spectrograms"][kind], small_spectrogram(kind, audio, rate).png)
            entries.append(entry)
        content = {"epoch": epoch, "step": step, "val_loss": val_loss, "clips": entries}
        _replace(folder / f"{LISTENING}.json", json.dumps(content, ensure_ascii=False, indent=1).encode())
    except (OSError, soundfile.LibsndfileError) as error:
        raise DiskError(f"{folder}: cannot be written: {error}") from None


def _write_mp3(file: Path, audio: Tensor, rate: int) -> None:
    samples = audio.detach().float().cpu().numpy()
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    part = file.with_name(f"{file.name}.part")
    soundfile.write(part, samples / peak, rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=_COMPRESSION)
    part.replace(file)


def _replace(file: Path, content: bytes) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
