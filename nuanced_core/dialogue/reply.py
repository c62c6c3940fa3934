"""A reply to a recording: its words and manner are told to a language model, whose answer is spoken in its style."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, load_audio
from nuanced_core.dialogue.chat import ChatEndpoint, Message, ask, speakable
from nuanced_core.dialogue.manner import Manner, describe, hear_phrases, measure_manner
from nuanced_core.errors import AudioError
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.speaking import Speaker
from nuanced_core.speech.voices import voice_from_clips

__all__ = ["SYSTEM", "Reply", "make_messages", "reply"]

logger = logging.getLogger(__name__)

SYSTEM = (
    "You talk with somebody. You get the words that they said, and how they said them: measures of rate, pitch and "
    "loudness against the mean of their own voice. Take the manner into account where it says something, without "
    "quoting the numbers. Your answer is spoken aloud: write one to three sentences of plain English, without lists, "
    "Markdown or emoji."
)


@dataclass(frozen=True, eq=False)
class Reply:
    """A reply.

    Attributes:
        heard: the words of the recording.
        manner: how they were said, as the model was told.
        text: the answer as it is spoken.
        audio: (samples,) at 24 kHz.
        notes: what was noticed in the recording.
    """

    heard: str
    manner: str
    text: str
    audio: Tensor
    notes: tuple[str, ...]


def reply(
    speech: SpeechModels,
    recording: Path,
    endpoint: ChatEndpoint,
    *,
    system: str = SYSTEM,
    usual: Path | None = None,
    speed: float = 1.0,
) -> Reply:
    """Answer a recording in its speaker's style.

    Args:
        recording: English speech, together with ``usual`` 3 s to 10 min.
        system: what the model is told beforehand.
        usual: another recording of the speaker, against which the manner is measured instead of the mean of this one,
            and from which the voice is taken too.
        speed: of the answer, 0.5 to 2.

    Raises:
        AudioError: a recording cannot be read, or has no words.
        EndpointError: the endpoint gives no answer.
    """
    # It checks the recordings, also for their length; the model is asked last, since that may cost money.
    voice = voice_from_clips(speech, [recording] if usual is None else [recording, usual])
    audio = load_audio(recording, WHISPER_RATE)
    try:
        phrases = hear_phrases(speech.models, audio)
    except AudioError as error:
        raise AudioError(f"{recording}: {error}") from None
    manner = describe(phrases, audio, None if usual is None else _usual_manner(speech, usual))
    heard = " ".join(phrase.text for phrase in phrases)
    logger.info("heard: %s", heard)
    logger.debug("manner: %s", manner)
    text = speakable(ask(endpoint, make_messages(system, heard, manner)))
    logger.info("answer: %s", text)
    pieces = [*Speaker(speech).say(text, voice.pack, speed=speed)]
    return Reply(heard, manner, text, torch.cat(pieces), voice.notes)


def make_messages(system: str, heard: str, manner: str) -> list[Message]:
    """Return the messages for the model: the words, and how they were said."""
    said = f"{heard}\n\n[How it was said]\n{manner}"
    return [{"role": "system", "content": system}, {"role": "user", "content": said}]


def _usual_manner(speech: SpeechModels, recording: Path) -> Manner:
    audio = load_audio(recording, WHISPER_RATE)
    try:
        phrases = hear_phrases(speech.models, audio)
    except AudioError as error:
        raise AudioError(f"{recording}: {error}") from None
    return measure_manner(audio, " ".join(phrase.text for phrase in phrases))
