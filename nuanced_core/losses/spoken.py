"""Losses that need Kokoro: clips rendered in predicted styles, compared with the clips themselves.

Dimensions: B clips, S = 256 style.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from nuanced_core.config.settings import Loss
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.kokoro.decoder import Precision
from nuanced_core.kokoro.model import Prosody
from nuanced_core.losses.reference import MelSTFTLoss, STFTLoss, duration_loss, energy_loss, f0_loss

__all__ = ["SpokenLosses"]

SPECTRA_CACHE_BYTES = 256 * 2**20  # 1 s takes 0.2 MB on mel and 1.3 MB on linear frequency
PROSODY_CACHE_CLIPS = 8192  # about 10 kB each

Window = tuple[int, int]  # first frame, frames


class SpokenLosses:
    """The terms of a training loss that need Kokoro and have a weight.

    Spectra and prosody of the references are kept in memory as long as there is room.

    Args:
        weights: a term with weight 0 is not computed.
        precision, checkpointing: as in ``DifferentiableKokoro.speak``.
    """

    def __init__(self, dataset: Dataset, weights: Loss, precision: Precision, checkpointing: bool) -> None:
        self.dataset, self.precision, self.checkpointing = dataset, precision, checkpointing
        self.device = dataset.models.device
        spectral: dict[str, MelSTFTLoss | STFTLoss] = {"stft": MelSTFTLoss(), "linear_stft": STFTLoss()}
        self._spectral = {name: loss.to(self.device) for name, loss in spectral.items() if getattr(weights, name)}
        self._prosodic = [name for name in ("f0", "energy", "duration") if getattr(weights, name)]
        self._spectra: OrderedDict[tuple[str, str, Window], list[Tensor]] = OrderedDict()
        self._spectra_bytes = 0
        self._prosody: OrderedDict[str, Prosody] = OrderedDict()

    @property
    def wanted(self) -> bool:
        """Whether there are any terms."""
        return bool(self._spectral or self._prosodic)

    @property
    def spectral(self) -> bool:
        """Whether a term needs audio, and not only prosody."""
        return bool(self._spectral)

    def __call__(self, clips: Sequence[Clip], windows: Sequence[Window], styles: Tensor) -> dict[str, Tensor]:
        """Compute each term, unweighted, for windows of B clips in styles (B, 256); prosody is that of whole clips."""
        prosody = self.dataset.prosody(clips, styles)
        terms = self._prosodic_terms(clips, prosody)
        if self._spectral:
            speech = self.dataset.speak(
                clips, styles, windows, prosody=prosody, precision=self.precision, checkpointing=self.checkpointing
            )
            for name, loss in self._spectral.items():
                losses = [
                    loss(loss.spectra(speech.item(i)[None]), self._reference_spectra(name, clip, window))
                    for i, (clip, window) in enumerate(zip(clips, windows, strict=True))
                ]
                terms[name] = torch.stack(losses).mean()
        return terms

    def clear(self) -> None:
        """Release the kept spectra and prosody."""
        self._spectra.clear()
        self._spectra_bytes = 0
        self._prosody.clear()

    def _prosodic_terms(self, clips: Sequence[Clip], prosody: Prosody) -> dict[str, Tensor]:
        terms: dict[str, list[Tensor]] = {name: [] for name in self._prosodic}
        for i, clip in enumerate(clips if self._prosodic else ()):
            reference, frames, tokens = self._reference_prosody(clip), [clip.frames], [len(clip.token_frames)]
            item, curve = slice(i, i + 1), slice(0, 2 * clip.frames)
            if "f0" in terms:
                terms["f0"].append(f0_loss(prosody.f0[item, curve], reference.f0, frames))
            if "energy" in terms:
                terms["energy"].append(energy_loss(prosody.energy[item, curve], reference.energy, frames))
            if "duration" in terms:
                durations = prosody.durations[item, : tokens[0]]
                terms["duration"].append(duration_loss(durations, reference.durations, tokens))
        return {name: torch.stack(losses).mean() for name, losses in terms.items()}

    def _reference_prosody(self, clip: Clip) -> Prosody:
        if clip.key not in self._prosody:
            with torch.no_grad():
                self._prosody[clip.key] = self.dataset.prosody([clip], clip.utterance.style[None].to(self.device))
            if len(self._prosody) > PROSODY_CACHE_CLIPS:
                self._prosody.popitem(last=False)
        return self._prosody[clip.key]

    def _reference_spectra(self, name: str, clip: Clip, window: Window) -> list[Tensor]:
        key = (name, clip.key, window)
        if key not in self._spectra:
            reference = self.dataset.reference(clip, window).to(self.device)
            spectra = self._spectral[name].spectra(reference[None])
            self._spectra[key] = spectra
            self._spectra_bytes += _byte_count(spectra)
            while self._spectra_bytes > SPECTRA_CACHE_BYTES and len(self._spectra) > 1:
                self._spectra_bytes -= _byte_count(self._spectra.popitem(last=False)[1])
        return self._spectra[key]


def _byte_count(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
