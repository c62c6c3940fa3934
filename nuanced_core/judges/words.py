"""Word errors of speech: what Whisper hears, compared with the text that was to be spoken."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import TextError

__all__ = ["SpokenWords", "word_errors"]


class SpokenWords:
    """A Whisper that transcribes English, greedily.

    Args:
        whisper: a checkpoint in openai-whisper's format (see ``fetch_whisper``).
        device: device that it runs on.
    """

    def __init__(self, whisper: Path, device: torch.device | str = "cpu") -> None:
        self.path, self.device = whisper, device

    @cached_property
    def _model(self) -> Any:
        import whisper

        return whisper.load_model(str(self.path), device=self.device)

    def transcribe(self, audio: Tensor, rate: int) -> str:
        """Return the words of audio (samples,) at ``rate`` Hz."""
        samples = resample(audio.detach().float().cpu(), rate, WHISPER_RATE).numpy()
        # One temperature: with several, a transcript that Whisper doubts is drawn at random.
        heard = self._model.transcribe(
            samples, language="en", temperature=0.0, condition_on_previous_text=False, fp16=False
        )
        return str(heard["text"]).strip()

    def __call__(self, audio: Tensor, rate: int, text: str) -> float:
        """Return the word error rate of audio (samples,) at ``rate`` Hz against ``text``; it may exceed 1.

        Raises:
            TextError: the text has no words.
        """
        errors, words = word_errors(self.transcribe(audio, rate), text)
        return errors / words


def word_errors(heard: str, text: str) -> tuple[int, int]:
    """Return the least number of words to replace, insert or remove in ``heard`` to get ``text``, and its words.

    Both are normalised as by Whisper's authors: case, punctuation, numbers, spellings and contractions do not count.

    Raises:
        TextError: the text has no words.
    """
    from whisper.normalizers import EnglishTextNormalizer

    normalize = EnglishTextNormalizer()
    found, wanted = (
        [word for word in normalize(words).split() if any(map(str.isalnum, word))] for words in (heard, text)
    )
    if not wanted:
        raise TextError(f"{text!r} has no words whose errors could be counted; name a sentence")
    costs = list(range(len(wanted) + 1))  # of the words found so far, for each beginning of the text
    for count, word in enumerate(found, start=1):
        diagonal, costs[0] = costs[0], count
        for index, other in enumerate(wanted, start=1):
            replaced = diagonal + (word != other)
            diagonal = costs[index]
            costs[index] = min(replaced, costs[index] + 1, costs[index - 1] + 1)
    return costs[-1], len(wanted)
