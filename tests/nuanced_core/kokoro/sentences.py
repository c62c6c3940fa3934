"""The sentences that the tests of Kokoro render."""

from torch import Tensor

__all__ = ["SENTENCES", "Sentences"]

SENTENCES = (("How are you?", "bm_lewis", 5), ("The door is open.", "af_heart", 6))  # (text, voice, noise seed)
Sentences = tuple[list[str], Tensor]  # phonemes and styles (2, 256)
