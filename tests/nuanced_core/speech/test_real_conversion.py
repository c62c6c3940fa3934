"""A conversion with the real models: two sentences of a stock voice, one of them slow and low, one fast and high."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, load_audio, resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.judges.words import word_errors
from nuanced_core.kokoro.model import Prosody
from nuanced_core.speech.conversion import Conversion, convert
from nuanced_core.transfer.loudness import loudness
from nuanced_core.transfer.words import Transcriber

pytestmark = pytest.mark.real

TEXTS = ("Nobody knew the answer.", "Bring me the blue book.")
MANNERS = ((0.8, -0.3, 0.4), (1.2, 0.3, 1.0))  # speed, octaves, level
PAUSE = 0.7  # seconds


@pytest.fixture(scope="module")
def source(models: ModelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = []
    for text, (speed, octaves, level) in zip(TEXTS, MANNERS, strict=True):
        phonemes = models.phonemizer(text)
        states, style = models.kokoro.encode_text([phonemes]), models.voices.style("af_sky", len(phonemes))[None]
        with torch.no_grad():
            said = models.kokoro.prosody(states, style, speed=speed)
            moved = Prosody(said.durations, said.token_frames, said.f0 * 2**octaves, said.energy, said.frames)
            parts += [level * models.kokoro.speak(states, moved, style, [0]).item(0), torch.zeros(int(PAUSE * 24_000))]
    file = tmp_path_factory.mktemp("conversion") / "source.flac"
    soundfile.write(file, torch.stack([torch.cat(parts)] * 2, dim=1).numpy(), KOKORO_RATE)
    return file


@pytest.fixture(scope="module")
def transcriber(models: ModelSet) -> Transcriber:
    return Transcriber(models.whisper_file.path, models.whisper_file.name)


@pytest.fixture(scope="module")
def conversion(models: ModelSet, source: Path, transcriber: Transcriber) -> Conversion:
    encoder = StyleEncoder.from_pretrained(Path(__file__).parents[3] / "models" / "default")
    speech: Any = type("Speech", (), {"encoder": encoder, "models": models})()
    return convert(source, source.with_name("target.ogg"), speech=speech, hearer=transcriber)


def _parts(conversion: Conversion) -> list[Tensor]:
    audio = load_audio(conversion.target)
    return [audio[int(s.spoken_start * KOKORO_RATE) : int(s.spoken_end * KOKORO_RATE)] for s in conversion.segments]


def test_the_words_are_heard_with_their_times_and_spoken_again(
    conversion: Conversion, transcriber: Transcriber
) -> None:
    assert [" ".join(word.text for word in segment.words) for segment in conversion.segments] == list(TEXTS)
    heard = transcriber.words(resample(load_audio(conversion.target), KOKORO_RATE, 16_000))
    errors, _ = word_errors(" ".join(word.text for word in heard), " ".join(TEXTS))
    assert errors == 0
    for segment in conversion.segments:
        assert segment.spoken_start == pytest.approx(segment.start, abs=0.1)
        assert segment.spoken_end == pytest.approx(segment.end, abs=0.15)


def test_pitch_rate_and_level_differ_as_in_the_source(conversion: Conversion, source: Path) -> None:
    first, second = (clip_pitch(part, KOKORO_RATE)[0] for part in _parts(conversion))
    assert float(second - first) == pytest.approx(MANNERS[1][1] - MANNERS[0][1], abs=0.3)
    low, high = conversion.segments
    assert high.phonemes / (high.end - high.start) > 1.2 * low.phonemes / (low.end - low.start)
    assert high.phonemes / (high.spoken_end - high.spoken_start) > 1.2 * low.phonemes / (
        low.spoken_end - low.spoken_start
    )
    quiet, loud = (loudness(part, KOKORO_RATE) for part in _parts(conversion))
    assert 3 < loud - quiet < 10
    whole = [loudness(load_audio(file), KOKORO_RATE) for file in (source, conversion.target)]
    assert whole[1] == pytest.approx(whole[0], abs=1.5)
