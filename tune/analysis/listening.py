"""Listening clips of a sweep's two best trials, embedded as ``data:`` URLs.

A trial's folder ``listening`` holds ``listening.json`` and the sound and picture files that it names.
"""

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from nuanced_core.errors import one_line

__all__ = ["ListenedClip", "Listening", "Source", "read_listening"]

logger = logging.getLogger(__name__)

FOLDER, FILE = "listening", "listening.json"
_TYPES = {
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
    ".opus": "audio/ogg",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
}
_SHARED = {"heard": "Heard", "reference": "Reference", "mean": "Mean voice", "nearest": "Nearest stock voice"}
_SPOKEN = "spoken"


class _Clip(BaseModel):
    name: str
    voice: str = ""
    condition: str = ""
    text: str = ""
    nearest_voice: str | None = None
    loss: float | None = None
    files: dict[str, str] = {}
    spectrograms: dict[str, str] = {}


class _ListeningFile(BaseModel):
    epoch: int | None = None
    step: int | None = None
    clips: list[_Clip] = []


@dataclass(frozen=True)
class Source:
    """One sound of a clip.

    Args:
        key: ``heard``, ``reference``, ``mean``, ``nearest``, ``best`` or ``second``.
        audio, image: ``data:`` URLs; the image is the sound's spectrogram.
    """

    key: str
    title: str
    note: str
    audio: str
    image: str | None


@dataclass(frozen=True)
class ListenedClip:
    """What there is to hear of one validation clip."""

    name: str
    voice: str
    condition: str
    text: str
    sources: list[Source]


@dataclass
class Listening:
    """The clips of the two best trials that have some.

    Args:
        trials: title by key: ``best`` and ``second``, as far as there are two.
        left_out: number of files that were left out to limit the page's size.
    """

    clips: list[ListenedClip] = field(default_factory=list)
    trials: dict[str, str] = field(default_factory=dict)
    left_out: int = 0


def read_listening(folders: Sequence[tuple[int, Path]], most_bytes: int) -> Listening:
    """Return the listening clips of the first two trials that have some; matched by name.

    Args:
        folders: number and folder of the trials, the best one first.
        most_bytes: of embedded files, as they are encoded; pictures are left out first, then sounds of the last clips.
    """
    found: list[tuple[int, int, Path, _ListeningFile]] = []
    for rank, (number, folder) in enumerate(folders):
        listened = None if len(found) == 2 else _read(folder / FOLDER)
        if listened is not None:
            found.append((rank, number, folder / FOLDER, listened))
    if not found:
        return Listening()
    keys = ("best", "second")
    titles = {key: _title(rank, number) for key, (rank, number, _, _) in zip(keys, found, strict=False)}
    embedder = _Embedder(most_bytes)
    # All sounds come before all pictures, because a picture is worth less here.
    plans = [_plan(clip, found, titles) for clip in found[0][3].clips]
    sounds = [[embedder.embed(sound) for _, _, _, sound, _ in plan] for plan in plans]
    listening = Listening(trials=titles)
    for clip, plan, embedded in zip(found[0][3].clips, plans, sounds, strict=True):
        sources = [
            Source(key, title, note, audio, None if picture is None else embedder.embed(picture))
            for (key, title, note, _, picture), audio in zip(plan, embedded, strict=True)
            if audio is not None
        ]
        if sources:
            listening.clips.append(ListenedClip(clip.name, clip.voice, clip.condition, clip.text, sources))
    listening.left_out = embedder.left_out
    return listening


def _title(rank: int, number: int) -> str:
    names = ("Best trial", "Second best trial")
    return f"{names[rank]} ({number})" if rank < len(names) else f"Trial {number}, rank {rank + 1}"


def _read(folder: Path) -> _ListeningFile | None:
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        listened = _ListeningFile.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        logger.warning("%s: cannot be read: %s", file, one_line(error))
        return None
    return listened if listened.clips else None


def _plan(
    clip: _Clip, found: Sequence[tuple[int, int, Path, _ListeningFile]], titles: dict[str, str]
) -> list[tuple[str, str, str, Path, Path | None]]:
    """Return key, title, note, sound and spectrogram of each sound that a clip has."""
    folder = found[0][2]
    plan = []
    for key, title in _SHARED.items():
        if key in clip.files:
            note = clip.nearest_voice or "" if key == "nearest" else ""
            plan.append((key, title, note, folder / clip.files[key], _picture(folder, clip, key)))
    for (_, _, other, listened), (key, title) in zip(found, titles.items(), strict=True):
        same = next((c for c in listened.clips if c.name == clip.name and _SPOKEN in c.files), None)
        if same is not None:
            note = "" if same.loss is None else f"loss {same.loss:.3f}"
            plan.append((key, title, note, other / same.files[_SPOKEN], _picture(other, same, _SPOKEN)))
    return plan


def _picture(folder: Path, clip: _Clip, key: str) -> Path | None:
    return folder / clip.spectrograms[key] if key in clip.spectrograms else None


class _Embedder:
    """Turns files into ``data:`` URLs until a number of bytes is used up."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self.left_out = 0

    def embed(self, file: Path) -> str | None:
        """Return a file as a URL; None if it is missing, of another type, in another folder, or too large."""
        kind = _TYPES.get(file.suffix.lower())
        if kind is None or file.parent.name != FOLDER or ".." in file.parts:
            return None
        try:
            size = (file.stat().st_size + 2) // 3 * 4
            if size > self._left:
                self.left_out += 1
                return None
            content = file.read_bytes()
        except OSError:
            return None
        self._left -= size
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"
