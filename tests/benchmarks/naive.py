"""The original project's training step, written as it was, for comparison with this project's.

Kokoro is in train mode with gradients for all its weights, and takes one sentence at a time. Phonemes, text side and
reference audio are computed again at each step. One style is expanded over the 510 rows of a pack. Durations are
predicted, so prediction and reference are cut to the shorter one before they are compared.
"""

import json
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.data.dataset import Batch
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.losses.reference import MelSTFTLoss, style_loss
from nuanced_core.text.phonemes import make_phonemizer

__all__ = ["NaiveTraining"]


class NaiveTraining:
    """The original's steps, with this project's encoder and losses."""

    def __init__(self, models: ModelSet, encoder: StyleEncoder, learning_rate: float) -> None:
        from kokoro.model import KModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = json.loads(models.kokoro_files.config.read_text(encoding="utf-8"))
            self.kokoro = KModel("hexgrad/Kokoro-82M", config=config, model=str(models.kokoro_files.model)).train()
        self.kokoro.to(models.device)
        # The package disables gradients by a decorator on this method only; the undecorated one is the original's.
        self._forward: Callable[..., tuple[Tensor, Tensor]] = type(self.kokoro).forward_with_tokens.__wrapped__
        self.encoder = encoder
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
        self.mel = MelSTFTLoss().to(models.device)

    def step(self, utterance: Utterance, batch: Batch) -> tuple[float, float]:
        """Take one step on an utterance.

        Args:
            batch: the utterance's features, a batch of one.

        Returns:
            The loss, and the seconds of speech of the reference.
        """
        phonemes = make_phonemizer()(utterance.text)
        ids = [self.kokoro.vocab[p] for p in phonemes if p in self.kokoro.vocab]
        tokens = torch.tensor([[0, *ids, 0]], device=batch.styles.device)
        row = len(phonemes) - 1
        with torch.no_grad():
            reference, _ = self._forward(self.kokoro, tokens, utterance.style.unsqueeze(0).to(tokens.device))
        style = self.encoder(batch.features, batch.mask, batch.phoneme_counts)
        pack = style.unsqueeze(0).expand(PACK_ROWS, 1, 256)
        audio, _ = self._forward(self.kokoro, tokens, pack[row])
        shorter = min(len(audio), len(reference))
        spectra = (self.mel.spectra(a[None, :shorter]) for a in (audio, reference))
        loss = self.mel(*spectra) + style_loss(style, batch.styles)
        self.optimizer.zero_grad()
        self.kokoro.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach()), len(reference) / KOKORO_RATE
