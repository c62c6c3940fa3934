"""Two sentences of a Kokoro voice, spoken once."""

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet

SENTENCE = "She opened the old door."


@pytest.fixture(scope="package")
def spoken(models: ModelSet) -> Tensor:
    """SENTENCE in the voice af_heart, at 24 kHz."""
    phonemes = models.phonemizer(SENTENCE)
    text = models.kokoro.encode_text([phonemes])
    style = models.voices.style("af_heart", len(phonemes))[None]
    with torch.no_grad():
        return models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
