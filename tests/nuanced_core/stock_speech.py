"""Stock voices that speak, for tests of what tells voices apart."""

from collections.abc import Callable

import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet

__all__ = ["cosines_of_voices"]

NAMES = ("af_heart", "am_michael", "bf_emma")
PHONEMES = ("ðə kwˈɪk bɹˈaʊn fˈɑks ʤˈʌmps", "ʃi ˈoʊpənd ðə ˈoʊld dˈɔɹ")


def cosines_of_voices(models: ModelSet, embed: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Let three voices speak two sentences.

    Returns:
        Cosines (3, 3) of the embeddings of one sentence and of the other, by voice; of them, those of the same voice
        (3,) and of different ones (6,).
    """
    embeddings = []
    for phonemes in PHONEMES:
        text = models.kokoro.encode_text([phonemes])
        for name in NAMES:
            style = models.voices.style(name, len(phonemes))[None]
            with torch.no_grad():
                audio = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
            embeddings.append(embed(audio, 24_000))
    cosines = torch.stack(embeddings[:3]) @ torch.stack(embeddings[3:]).T
    return cosines, cosines.diagonal(), cosines[~torch.eye(3, dtype=torch.bool)]
