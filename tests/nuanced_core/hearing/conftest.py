"""Stock voices that speak a sentence, rendered once."""

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet

SENTENCE = "We walked along the river until it was too dark to see."


@pytest.fixture(scope="package")
def spoken_voices(models: ModelSet) -> dict[str, Tensor]:
    """SENTENCE in two voices, at 24 kHz."""
    phonemes = models.phonemizer(SENTENCE)
    text = models.kokoro.encode_text([phonemes])
    spoken = {}
    for voice in ("af_heart", "am_puck"):
        style = models.voices.style(voice, len(phonemes))[None]
        with torch.no_grad():
            spoken[voice] = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
    return spoken
