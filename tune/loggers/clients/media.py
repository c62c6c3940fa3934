"""Sounds and pictures as files: WAV of 16 bits, and PNG."""

import io
import wave
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.exhibits.exhibit import Exhibit, Sound

__all__ = ["wav", "write_exhibits"]


def wav(audio: Tensor, rate: int) -> bytes:
    """Return the WAV file (mono, 16 bits) of ``audio`` (samples,) from -1 to 1 at ``rate`` Hz; louder is clipped."""
    samples = torch.round(audio.detach().cpu().float().clamp(-1, 1) * 32767).to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.numpy().astype("<i2").tobytes())
    return file.getvalue()


def write_exhibits(folder: Path, exhibits: Iterable[Exhibit]) -> dict[str, Path]:
    """Write each exhibit to ``folder`` as ``NAME.wav`` or ``NAME.png``; return the files by name."""
    files = {}
    for exhibit in exhibits:
        ending, content = (
            ("wav", wav(exhibit.audio, exhibit.rate)) if isinstance(exhibit, Sound) else ("png", exhibit.png)
        )
        file = folder / f"{exhibit.name}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        files[exhibit.name] = file
    return files
