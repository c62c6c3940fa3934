"""The words of a recording with their times, heard by Whisper in chunks of at most 30 s.

Times are in seconds. Whisper stretches words over the pauses beside them, so their ends are moved to where it is loud.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE
from nuanced_core.errors import AudioError
from nuanced_core.hearing.pitch import loud_frames
from nuanced_core.transfer.alignment import partners

__all__ = ["MAX_CHUNK_SECONDS", "Transcriber", "Word", "place_text", "trim_to_loud"]

MAX_CHUNK_SECONDS = 29.0  # Whisper hears 30 s at once
MIN_WORD_SECONDS = 0.06
INSIDE = 1e-3  # of a letter: from its edge to what is surely inside of it
LEAST_PROBABILITY = 0.3  # of another language than English, from which a recording is refused
LEAST_WORD_PROBABILITY = 0.3  # of a word that is said to lie where nothing is loud


@dataclass(frozen=True)
class Word:
    """A word with its punctuation, and its time in seconds."""

    text: str
    start: float
    end: float
    probability: float = 1.0


class Transcriber:
    """A Whisper that transcribes English with the times of words, greedily.

    Args:
        whisper: a checkpoint in openai-whisper's format (see ``fetch_whisper``).
        name: of the model, which says how its decoder attends to words.
        device: device that it runs on.
    """

    def __init__(self, whisper: Path, name: str, device: torch.device | str = "cpu") -> None:
        self.path, self.name, self.device = whisper, name, device

    @cached_property
    def _model(self) -> Any:
        import whisper

        model = whisper.load_model(str(self.path), device=self.device)
        if heads := whisper._ALIGNMENT_HEADS.get(self.name):  # load_model sets them of models that it knows by name
            model.set_alignment_heads(heads)
        return model

    def words(self, audio: Tensor) -> list[Word]:
        """Return the words of audio (samples,) at 16 kHz of at most 30 s; none where nothing is loud."""
        with _threads_kept():
            heard = self._model.transcribe(
                audio.detach().float().cpu().numpy(),
                language="en",
                temperature=0.0,  # with several, a transcript that Whisper doubts is drawn at random
                condition_on_previous_text=False,
                fp16=False,
                word_timestamps=True,
                verbose=None,
            )
        found: list[Word] = []
        for word in (word for segment in heard["segments"] for word in segment.get("words", ())):
            text = str(word["word"])
            if found and not text.startswith(" "):  # the second part of a word, such as that after a hyphen
                found[-1] = replace(found[-1], text=found[-1].text + text, end=float(word["end"]))
            elif text.strip():
                found.append(Word(text.strip(), float(word["start"]), float(word["end"]), float(word["probability"])))
        return trim_to_loud(found, loud_frames(audio), len(audio) / WHISPER_RATE)

    def check_language(self, audio: Tensor, place: str) -> None:
        """Check that speech (samples,) at 16 kHz is English; a model for English only cannot tell.

        Raises:
            AudioError: it is in another language; the message names ``place``.
        """
        import whisper
        from whisper.tokenizer import LANGUAGES

        if not self._model.is_multilingual:
            return
        samples = whisper.pad_or_trim(audio.detach().float().cpu())
        mel = whisper.log_mel_spectrogram(samples, self._model.dims.n_mels).to(self._model.device)
        _, probabilities = self._model.detect_language(mel)
        language = max(probabilities, key=probabilities.get)
        if language != "en" and probabilities[language] >= LEAST_PROBABILITY > probabilities["en"]:
            name = LANGUAGES.get(language, language).title()
            raise AudioError(
                f"{place}: the speech sounds like {name} ({100 * probabilities[language]:.0f} %), and only English can "
                "be spoken; give a recording in English"
            )


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Keep torch's number of threads, which Numba, which computes the times, sets to the number of CPU cores."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def trim_to_loud(words: Sequence[Word], loud: Tensor, seconds: float) -> list[Word]:
    """Return words whose times end where it is loud (P,), in frames of 25 ms; times do not go back.

    Words that Whisper doubts are left out if nothing is loud where they are said to be.
    """
    trimmed: list[Word] = []
    before = 0.0
    for word in words:
        start, end = max(before, min(word.start, seconds)), min(word.end, seconds)
        first, last = (
            int(start * FRAMES_PER_SECOND),
            max(int(start * FRAMES_PER_SECOND) + 1, round(end * FRAMES_PER_SECOND)),
        )
        inside = torch.nonzero(loud[first : last + 1])[:, 0]
        if len(inside):
            start = max(start, (first + int(inside[0])) / FRAMES_PER_SECOND)
            end = min(end, (first + int(inside[-1]) + 1) / FRAMES_PER_SECOND)
        elif word.probability < LEAST_WORD_PROBABILITY:
            continue
        end = min(max(end, start + MIN_WORD_SECONDS), max(seconds, start + MIN_WORD_SECONDS))
        trimmed.append(replace(word, start=start, end=end))
        before = end
    return trimmed


def place_text(text: str, heard: Sequence[Word]) -> list[Word]:
    """Return the words of a text with the times at which they, or what was taken for them, were heard.

    The words that both have in common keep their times; those between are placed in between, in proportion to their
    letters.

    Args:
        text: with at least one word.
        heard: at least one word.
    """
    wanted, said = text.split(), [word.text for word in heard]
    keys, others = [_key(word) for word in wanted], [_key(word) for word in said]
    letters, letters_heard = ([0, *np.cumsum([len(word) + 1 for word in words])] for words in (wanted, said))
    # Each heard word once. Words inserted at the beginning have the first one as their partner too, which the last has.
    common = {j: i for i, j in enumerate(partners(keys, others)) if keys[i] == others[j]}
    # From letters of the text to letters of what was heard, and from these to seconds, which jump between two words.
    at, place = [0.0], [0.0]
    for partner, index in common.items():
        at += [letters[index], letters[index + 1]]
        place += [letters_heard[partner], letters_heard[partner + 1]]
    at.append(letters[-1])
    place.append(letters_heard[-1])
    ends = np.interp([x for a, b in pairwise(letters) for x in (a + INSIDE, b - INSIDE)], at, place)
    edges = [x for a, b in pairwise(letters_heard) for x in (a + INSIDE / 100, b - INSIDE / 100)]
    placed = np.interp(ends, edges, [time for word in heard for time in (word.start, word.end)])
    return [Word(word, float(placed[2 * i]), float(placed[2 * i + 1])) for i, word in enumerate(wanted)]


def _key(word: str) -> str:
    return "".join(filter(str.isalnum, word.lower()))
