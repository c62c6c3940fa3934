"""The voices of a server, and what it makes of clips and texts; called from the threads of its queue."""

import io
import re
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.errors import NuancedError, VoiceError
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.kokoro.voices import VoiceBank
from nuanced_core.serving.errors import ApiError
from nuanced_core.serving.work import Deadline, Limits
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.packs import resolve_voice
from nuanced_core.speech.speaking import Speaker
from nuanced_core.speech.voices import voice_from_clips

__all__ = ["MadeVoice", "Studio", "Upload"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_EXPRESSION_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,39}(?:\([0-9.]{1,9}\))?"
# No member is a path: a client must not read files. Eight members are enough.
_EXPRESSION = re.compile(rf"{_EXPRESSION_NAME}(?:\+{_EXPRESSION_NAME}){{0,7}}")


@dataclass(frozen=True)
class Upload:
    """A clip that a client sent: the name that it gave, and the content."""

    name: str
    content: bytes


@dataclass(frozen=True, eq=False)
class MadeVoice:
    """A voice made of clips, kept until the server ends."""

    name: str
    pack: Tensor  # (510, 1, 256)
    created: int  # seconds since 1970
    nearest: str  # stock voice with the most similar style
    similarity: float  # cosine of the two styles' offsets from the mean voice
    notes: tuple[str, ...]  # what was noticed in the clips


class _Bank(VoiceBank):
    """The stock voices, and those made of clips."""

    def __init__(self, stock: VoiceBank, made: dict[str, Tensor]) -> None:
        self._stock, self._made = stock, made

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._made, *self._stock.names)

    def pack(self, name: str, setting: str = "voice") -> Tensor:
        return self._made[name][:, 0] if name in self._made else self._stock.pack(name, setting)


class Studio:
    """Makes voices and speaks.

    Args:
        speech: encoder and models.
    """

    def __init__(self, speech: SpeechModels, limits: Limits) -> None:
        self._speech, self._limits = speech, limits
        self._stock = speech.models.voices
        self._speaker = Speaker(speech)
        self._made: OrderedDict[str, MadeVoice] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def stock_voices(self) -> tuple[str, ...]:
        """Names of the stock voices."""
        return self._stock.names

    @property
    def made_voices(self) -> list[MadeVoice]:
        """The voices made of clips, oldest first."""
        with self._lock:
            return [*self._made.values()]

    def check_name(self, name: str | None) -> str:
        """Return the name for a new voice, a random one for None.

        Raises:
            ApiError: 400, it is no name; 409, a voice has it.
        """
        if name is None:
            return f"voice_{secrets.token_hex(4)}"
        if not _NAME.fullmatch(name):
            message = f"name {name[:60]!r}: give at most 40 letters, digits, _ and -, a letter first"
            raise ApiError(400, message, "invalid_name", "name")
        if name in self._stock.names or name in self._made:
            raise ApiError(409, f"name {name!r}: there is a voice of this name; give another", "name_taken", "name")
        return name

    def make_voice(self, uploads: Sequence[Upload], name: str | None, deadline: Deadline) -> MadeVoice:
        """Make a voice of clips of one person. If the server has too many voices, the oldest one is forgotten.

        Raises:
            ApiError: 400, 409, or 504; then there is no voice.
        """
        name = self.check_name(name)
        with tempfile.TemporaryDirectory(prefix="nuanced-serve-") as folder:
            files = []
            for number, upload in enumerate(uploads):
                self._check_sound(upload)
                files.append(Path(folder) / f"clip-{number}")
                files[-1].write_bytes(upload.content)
            deadline.check()
            try:
                voice = voice_from_clips(self._speech, files)
            except NuancedError as error:
                raise ApiError(400, _with_names(str(error), files, uploads), "invalid_clip", "files") from None
            notes = tuple(_with_names(note, files, uploads) for note in voice.notes)
        nearest, similarity = self._nearest(voice.pack)
        made = MadeVoice(name, voice.pack, int(time.time()), nearest, similarity, notes)
        with self._lock:
            deadline.check()  # nobody would know that there is a voice
            if name in self._made:
                raise ApiError(409, f"name {name!r}: there is a voice of this name; give another", "name_taken", "name")
            self._made[name] = made
            while len(self._made) > self._limits.voices:
                self._made.popitem(last=False)
        return made

    def forget(self, name: str) -> None:
        """Remove a voice that was made of clips.

        Raises:
            ApiError: 404, there is none of this name.
        """
        with self._lock:
            if self._made.pop(name, None) is None:
                message = f"voice {name[:60]!r} was not made here; only such voices can be removed"
                raise ApiError(404, message, "voice_not_found", "voice")

    def pack(self, voice: str) -> Tensor:
        """Return the pack (510, 1, 256) of a voice, or of a mix such as ``my_voice(2)+af_sky(1)``.

        Raises:
            ApiError: 404, there is no such voice; 400, it is no mix.
        """
        if not _EXPRESSION.fullmatch(voice):
            message = f"voice {voice[:100]!r} is neither a voice nor a mix such as af_bella(2)+af_sky(1)"
            raise ApiError(400, message, "invalid_voice", "voice")
        bank = _Bank(self._stock, {made.name: made.pack for made in self.made_voices})
        try:
            return resolve_voice(voice, bank)
        except VoiceError as error:
            raise ApiError(404, str(error), "voice_not_found", "voice") from None

    def say(self, text: str, pack: Tensor, speed: float, deadline: Deadline) -> Iterator[Tensor]:
        """Speak a text: pieces (samples,) at 24 kHz, one for each sentence.

        Raises:
            ApiError: 400, it cannot be spoken; 504.
        """
        try:
            for piece in self._speaker.say(text, pack, speed=speed):
                yield piece
                deadline.check()
        except NuancedError as error:
            raise ApiError(400, str(error), "invalid_input", "input") from None

    def _check_sound(self, upload: Upload) -> None:
        """Check that libsndfile can read a clip, and that it is not too long, before anything is decoded.

        Other formats would be given to ffmpeg, which can be made to open other files and addresses.
        """
        name, most = upload.name, self._limits.clip_seconds
        if not upload.content:
            raise ApiError(400, f"{name}: is empty (0 bytes)", "invalid_clip", "files")
        try:
            found = soundfile.info(io.BytesIO(upload.content))
        except (soundfile.LibsndfileError, RuntimeError, ValueError):
            message = f"{name}: not a sound file that can be read here; send WAV, FLAC, OGG, Opus, MP3 or AIFF"
            raise ApiError(400, message, "invalid_clip", "files") from None
        if found.frames == 0:  # of which reading would find out that there are more
            raise ApiError(
                400, f"{name}: has no sound by its header; save or convert it again", "invalid_clip", "files"
            )
        if found.samplerate <= 0 or found.frames > most * found.samplerate:
            message = f"{name}: is longer than {most:g} s, or does not say how long it is; cut it"
            raise ApiError(413, message, "clip_too_long", "files")
        if found.frames * found.channels > self._limits.clip_samples:
            message = f"{name}: {found.channels} channels at {found.samplerate} Hz are too much; send mono at 48 kHz"
            raise ApiError(413, message, "clip_too_large", "files")

    def _nearest(self, pack: Tensor) -> tuple[str, float]:
        """Return the stock voice whose style is the most similar to a pack's (510, 1, 256), and the cosine."""
        names = self._stock.names
        packs = torch.stack([self._stock.pack(name) for name in names])  # (V, 510, 256)
        frame = StyleFrame(packs)
        offsets = ((packs - frame.mean_pack) / frame.std).mean(dim=1)
        own = ((pack[:, 0] - frame.mean_pack) / frame.std).mean(dim=0)
        cosines = F.cosine_similarity(offsets, own[None])
        best = int(cosines.argmax())
        return names[best], float(cosines[best])


def _with_names(message: str, files: Sequence[Path], uploads: Sequence[Upload]) -> str:
    """Return a message with the client's names of clips in place of the server's paths."""
    for file, upload in zip(files, uploads, strict=True):
        message = message.replace(str(file), upload.name)
    return message
