"""The real models together: speech of the imported Kokoro, transcribed by the imported Whisper."""

import jiwer
import numpy as np
import pytest
import torch
import torchaudio
import whisper
from misaki.espeak import EspeakG2P
from whisper.normalizers import EnglishTextNormalizer

from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices, fetch_whisper

pytestmark = pytest.mark.real

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "She opened the old door and looked into the garden.",
)
VOICES = ("af_heart", "am_michael", "bf_emma")
KOKORO_HZ, WHISPER_HZ = 24_000, 16_000


@pytest.fixture(scope="module")
def recordings() -> dict[tuple[str, str], np.ndarray]:
    """Every sentence in every voice, at 16 kHz."""
    from kokoro import KModel

    files, voices = fetch_kokoro(), fetch_voices()
    model = KModel(repo_id="hexgrad/Kokoro-82M", config=str(files.config), model=str(files.model)).eval()
    g2p = EspeakG2P("en-us")
    spoken = {}
    for voice in VOICES:
        pack = torch.from_numpy(np.load(voices.packs[voice]))
        for sentence in SENTENCES:
            phonemes = g2p(sentence)[0]
            torch.manual_seed(0)
            audio = model(phonemes, pack[len(phonemes) - 1])
            assert audio.isfinite().all()
            spoken[voice, sentence] = torchaudio.functional.resample(audio, KOKORO_HZ, WHISPER_HZ).numpy()
    return spoken


@pytest.mark.parametrize(("name", "voices"), [("tiny.en", VOICES), ("base", VOICES[:1])])
def test_whisper_transcribes_every_word(recordings, name, voices):
    model = whisper.load_model(str(fetch_whisper(name).path), device="cpu")
    clean = EnglishTextNormalizer()
    for voice in voices:
        for sentence in SENTENCES:
            audio = recordings[voice, sentence]
            text = model.transcribe(audio, language="en", fp16=False, temperature=0.0)["text"]
            assert jiwer.wer(clean(sentence), clean(text)) == 0, f"{name}, {voice}: {text!r}"
