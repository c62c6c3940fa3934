"""Speaking of a text of any length, sentence by sentence, with silence where the pieces are joined."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.errors import ConfigError, TextError
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE
from nuanced_core.machine_limits import release_memory
from nuanced_core.speech.models import SpokenModels
from nuanced_core.text.phonemes import MAX_PHONEMES
from nuanced_core.text.splitting import split_sentences

__all__ = ["FASTEST", "SLOWEST", "Speaker"]

logger = logging.getLogger(__name__)

SLOWEST, FASTEST = 0.5, 2.0
FRAME = KOKORO_RATE // 200  # samples, 5 ms
SILENT_SHARE = 0.01  # of the peak of a piece, -40 dB: quieter frames at its ends are silence
LEAST_PEAK = 1e-3  # of a piece that is not silence altogether
HEAD_SECONDS, TAIL_SECONDS = 0.04, 0.10  # of a piece that are kept outside its speech: breath, the end of a fricative
FADE_SECONDS = 0.006
# Silence after a piece, by how it ends, with the head and tail that are kept.
SENTENCE_PAUSE, CLAUSE_PAUSE, WORD_PAUSE = 0.30, 0.10, 0.0  # s
_CLOSING = "\"'”’)] "


@dataclass(frozen=True)
class _Piece:
    phonemes: str
    ends_with: str  # last character of its text, closing quotes and brackets left out


class Speaker:
    """Speaks texts in the voices of packs.

    Args:
        speech: has ``models``; an encoder is not needed.
    """

    def __init__(self, speech: SpokenModels) -> None:
        self.models = speech.models

    def say(self, text: str, pack: Tensor, *, speed: float = 1.0) -> Iterator[Tensor]:
        """Speak a text in the voice of a pack (510, 1, 256), one piece (samples,) at 24 kHz for each sentence.

        A sentence that is too long for Kokoro is split. Each piece begins and ends with silence, so that they can be
        joined as they are. Sentences with nothing that English can speak are left out with a warning.

        Args:
            text: of any length.
            speed: 0.5 to 2; durations are divided by it.

        Raises:
            ConfigError: ``speed`` is out of range.
            TextError: the text has nothing to speak; raised before the first piece.
        """
        if not SLOWEST <= speed <= FASTEST:
            raise ConfigError(f"speed: {speed:g} is not between {SLOWEST:g} and {FASTEST:g}")
        if pack.numel() != PACK_ROWS * STYLE_SIZE:
            raise ValueError(f"a pack has the shape (510, 1, 256), not {tuple(pack.shape)}")
        rows = pack.reshape(PACK_ROWS, STYLE_SIZE).to(self.models.device)
        silent: list[TextError] = []
        pieces = self._pieces(text, silent)
        piece = next(pieces, None)
        if piece is None:
            raise silent[0]
        return self._spoken(piece, pieces, silent, rows, speed)

    def _spoken(
        self, piece: _Piece, rest: Iterator[_Piece], silent: list[TextError], rows: Tensor, speed: float
    ) -> Iterator[Tensor]:
        following: _Piece | None = piece
        while following is not None:
            piece, following = following, next(rest, None)
            while silent:
                logger.warning("%s; left out", str(silent.pop(0)).partition(":")[0])
            audio = shaped(self.render(piece.phonemes, rows, speed))
            if following is not None:
                audio = torch.cat([audio, torch.zeros(round(_pause(piece.ends_with) / speed * KOKORO_RATE))])
            release_memory()
            yield audio

    @torch.no_grad()
    def render(self, phonemes: str, rows: Tensor, speed: float = 1.0, seed: int = 0) -> Tensor:
        """Render phonemes in the style that the rows (510, 256) of a pack have for them: (samples,) at 24 kHz."""
        kokoro = self.models.kokoro
        style = rows[min(len(phonemes), PACK_ROWS) - 1][None]
        text = kokoro.encode_text([phonemes])
        prosody = kokoro.prosody(text, style, speed=speed)
        return kokoro.speak(text, prosody, style, [seed]).item(0).cpu()

    def _pieces(self, text: str, silent: list[TextError]) -> Iterator[_Piece]:
        """Split a text; why sentences cannot be spoken is appended to ``silent``."""
        for sentence in split_sentences(text):
            yield from self._pieces_of(sentence, silent)

    def _pieces_of(self, sentence: str, silent: list[TextError]) -> Iterator[_Piece]:
        try:
            phonemes = self.models.phonemizer(sentence)
        except TextError as error:
            if not _is_too_long(error) or len(sentence) < 2:
                silent.append(error)
                return
            for half in _halves(sentence):
                yield from self._pieces_of(half, silent)
        else:
            yield _Piece(phonemes, sentence.rstrip(_CLOSING)[-1:])


def _is_too_long(error: TextError) -> bool:
    return f"at most {MAX_PHONEMES}" in str(error)


def _halves(sentence: str) -> tuple[str, str]:
    """Cut a sentence at the space nearest to its middle, or in its middle if it has none."""
    middle = len(sentence) // 2
    spaces = [place for place, character in enumerate(sentence) if character == " "]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return sentence[:cut].strip(), sentence[cut:].strip()


def _pause(ends_with: str) -> float:
    """Return the seconds of silence after a piece."""
    if ends_with in ".!?…":
        return SENTENCE_PAUSE
    return CLAUSE_PAUSE if ends_with in ",;:—–-" else WORD_PAUSE


def shaped(audio: Tensor) -> Tensor:
    """Return rendered audio (samples,) at 24 kHz with short silence at its ends, and faded to 0 there.

    Audio beyond full scale is scaled down to it.
    """
    audio = audio / audio.abs().max().clamp(min=1.0)
    audio = torch.nn.functional.pad(audio, (0, max(0, FRAME - len(audio))))
    whole = len(audio) // FRAME * FRAME
    peaks = audio[:whole].reshape(-1, FRAME).abs().amax(dim=1)
    loud = (peaks > max(LEAST_PEAK, SILENT_SHARE * float(peaks.max()))).nonzero()
    if len(loud):
        start = int(loud[0]) * FRAME - round(HEAD_SECONDS * KOKORO_RATE)
        end = (int(loud[-1]) + 1) * FRAME + round(TAIL_SECONDS * KOKORO_RATE)
        audio = audio[max(0, start) : end].clone()
    fade = min(round(FADE_SECONDS * KOKORO_RATE), len(audio) // 2)
    ramp = torch.linspace(0, 1, fade) if fade else torch.zeros(0)
    audio[:fade] *= ramp
    audio[len(audio) - fade :] *= ramp.flip(0)
    return audio
