"""The shipped encoder, and the voice of a clip that a stock voice spoke, each made once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.judges.words import SpokenWords
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.packs import write_pack
from nuanced_core.speech.speaking import Speaker
from nuanced_core.speech.voices import Voice, voice_from_clips
from tests.speech_models import shipped_speech

CLIP = "The river was wide and quiet that evening."
TEXT = "Open the old door."


@pytest.fixture(scope="session")
def speech(models: ModelSet) -> SpeechModels:
    return shipped_speech(models)


@pytest.fixture(scope="session")
def clip(speech: SpeechModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file in which am_michael speaks CLIP, in stereo at 24 kHz."""
    import soundfile

    pack = speech.models.voices.pack("am_michael")[:, None]
    audio = torch.cat([*Speaker(speech).say(CLIP, pack)]).repeat(2).numpy()
    path = tmp_path_factory.mktemp("clip") / "michael.wav"
    soundfile.write(path, [[a, a] for a in audio], 24_000)
    return path


@pytest.fixture(scope="session")
def voice(speech: SpeechModels, clip: Path) -> Voice:
    return voice_from_clips(speech, [clip])


@pytest.fixture(scope="session")
def packs(voice: Voice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the voice in all formats, named my_voice."""
    folder = tmp_path_factory.mktemp("packs")
    for suffix in ("pt", "npz", "bin"):
        write_pack(folder / f"my_voice.{suffix}", voice.pack)
    return folder


@pytest.fixture(scope="session")
def hear(models: ModelSet):  # type: ignore[no-untyped-def]
    """Return what Whisper hears of audio (samples,) at 24 kHz."""
    words = SpokenWords(models.whisper_file.path)

    def transcript(audio: Tensor) -> str:
        return words.transcribe(audio, 24_000)

    return transcript
