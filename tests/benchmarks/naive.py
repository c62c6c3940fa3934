"""The original's training step, written as it was, to be measured beside ours.

Kokoro in train mode with gradients for all its weights, one sentence at a time; phonemes, text side and reference
again at each step; one style expanded over the 510 rows of a pack; predicted durations, so prediction and
reference are cut to the shorter one before they are compared.
"""

import json
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nuanced_core.data.dataset import Batch
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.text.phonemes import make_phonemizer
from nuanced_core.training.losses import MelSTFTLoss, style_loss

__all__ = ["NaiveTraining"]


class NaiveTraining:
    """Steps over utterances in turn, with the encoder and the losses of ours."""

    def __init__(self, models: ModelSet, encoder: StyleEncoder, learning_rate: float) -> None:
        from kokoro.model import KModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = json.loads(models.kokoro_files.config.read_text(encoding="utf-8"))
            self.kokoro = KModel("hexgrad/Kokoro-82M", config=config, model=str(models.kokoro_files.model)).train()
        # The package forbids gradients in this function alone; under its decorator it is as it was written.
        self._forward: Callable[..., tuple[Tensor, Tensor]] = type(self.kokoro).forward_with_tokens.__wrapped__
        self.encoder = encoder
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
        self.mel = MelSTFTLoss()

    def step(self, utterance: Utterance, batch: Batch) -> tuple[float, float]:
        """One step on an utterance and its features (a batch of one): its loss, and the seconds it spoke."""
        phonemes = make_phonemizer()(utterance.text)
        ids = [self.kokoro.vocab[p] for p in phonemes if p in self.kokoro.vocab]
        tokens = torch.tensor([[0, *ids, 0]])
        row = len(phonemes) - 1
        with torch.no_grad():
            reference, _ = self._forward(self.kokoro, tokens, utterance.style.unsqueeze(0))
        style = self.encoder(batch.features, batch.mask, batch.phoneme_counts)
        pack = style.unsqueeze(0).expand(510, 1, 256)
        audio, _ = self._forward(self.kokoro, tokens, pack[row])
        shorter = min(len(audio), len(reference))
        spectra = (self.mel.spectra(a[None, :shorter]) for a in (audio, reference))
        loss = self.mel(*spectra) + style_loss(style, batch.styles)
        self.optimizer.zero_grad()
        self.kokoro.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach()), len(reference) / 24_000

    def epoch(self, utterances: Sequence[Utterance], batches: Sequence[Batch]) -> float:
        """One step on each utterance; returns the seconds spoken."""
        return sum(self.step(u, b)[1] for u, b in zip(utterances, batches, strict=True))
