"""Kokoro-82M as a frozen, differentiable model: text and style to audio, with gradients to the style.

The kokoro package stays unmodified: this module calls the layers of its ``KModel`` in the same order, for padded
batches. What does not depend on style (PL-BERT, text encoder) is computed once per sentence. A *frame* is 600 samples
at 24 kHz (25 ms); F0 and energy have 2 values per frame.

Dimensions: B batch, N tokens (phonemes, and a boundary token at either end), F frames, S = 256 style.
"""

import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import remove_weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from nuanced_core.audio import SAMPLES_PER_FRAME
from nuanced_core.errors import TextError
from nuanced_core.kokoro.decoder import Precision, decode, lengths_mask, prepare_decoder, residual_block
from nuanced_core.kokoro.stft import RealSTFT

__all__ = ["PACK_ROWS", "STYLE_SIZE", "TIMBRE_SIZE", "DifferentiableKokoro", "Prosody", "Speech", "TextStates"]

STYLE_SIZE = 256
PACK_ROWS = 510  # styles of a voice: row n - 1 is for n phonemes
TIMBRE_SIZE = 128  # the decoder reads the first half of a style, the prosody predictor the second
CACHED_SENTENCES = 512  # text states, about 0.4 MB each
CACHED_ALIGNMENTS = 8192  # about 2 kB each


@dataclass(frozen=True)
class TextStates:
    """Text-side states of a batch of sentences, which do not depend on style."""

    prosody: Tensor  # (B, 512, N), from PL-BERT
    acoustic: Tensor  # (B, 512, N), from the text encoder
    lengths: tuple[int, ...]  # number of tokens of each sentence

    def items(self) -> "list[TextStates]":
        """Split into single sentences without padding."""
        return [
            TextStates(self.prosody[i : i + 1, :, :n], self.acoustic[i : i + 1, :, :n], (n,))
            for i, n in enumerate(self.lengths)
        ]


@dataclass(frozen=True)
class Prosody:
    """Durations, F0 and energy of a batch of sentences."""

    durations: Tensor  # (B, N) frames per token before rounding, differentiable
    token_frames: Tensor  # (B, N) int64 on the CPU: frames per token as spoken; 0 in the padding
    f0: Tensor  # (B, 2F) Hz, about 0 where unvoiced, differentiable
    energy: Tensor  # (B, 2F) log norm, differentiable
    frames: tuple[int, ...]  # length of each sentence in frames


@dataclass(frozen=True)
class Speech:
    """Audio of a batch of sentences or of windows of them."""

    audio: Tensor  # (B, samples) at 24 kHz, 0 in the padding
    frames: tuple[int, ...]  # length of each item in frames

    def item(self, index: int) -> Tensor:
        """Return the samples of one item, without padding."""
        return self.audio[index, : self.frames[index] * SAMPLES_PER_FRAME]


class DifferentiableKokoro:
    """Frozen ``kokoro.KModel`` that renders batches and propagates gradients to the style.

    Args:
        model: a KModel. It is modified in place: weight norms are folded, parameters require no gradient, and all
            modules are in eval mode. On CUDA the LSTMs alone are in train mode, which cuDNN's backward pass needs;
            they have no dropout.
        device: device that the model is moved to.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model: Any = model.to(self.device).eval()
        for module in self.model.modules():
            if hasattr(module, "weight_g"):
                remove_weight_norm(module)
            if isinstance(module, nn.LSTM):
                module.train(self.device.type == "cuda")
        # After folding the weight norms, which makes new parameters that require gradients.
        self.model.requires_grad_(False)
        prepare_decoder(self.model.decoder)
        # Whether prosody() computes one sentence at a time: on the CPU, LSTMs leave oneDNN's fast path for packed
        # batches, and a batch saves nothing else there.
        self.item_by_item = self.device.type == "cpu"
        self.vocabulary: dict[str, int] = self.model.vocab
        self.max_phonemes: int = self.model.context_length - 2
        generator = self.model.decoder.generator
        self.stft = RealSTFT(generator.post_n_fft, generator.stft.hop_length).to(self.device)
        self._sentences: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @classmethod
    def load(cls, config: Path, model: Path, device: torch.device | str = "cpu") -> "DifferentiableKokoro":
        """Load Kokoro from its ``config.json`` and its weights (see ``nuanced_core.weights``)."""
        from kokoro.model import KModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from torch, about how Kokoro builds LSTMs and weight norms
            settings = json.loads(config.read_text(encoding="utf-8"))
            return cls(KModel("hexgrad/Kokoro-82M", config=settings, model=str(model)), device)

    def tokens(self, phonemes: str) -> list[int]:
        """Convert phonemes to token ids, with a 0 at either end; phonemes outside the vocabulary are dropped.

        Raises:
            TextError: no phoneme is in the vocabulary, or there are more than ``max_phonemes``.
        """
        known = [self.vocabulary[p] for p in phonemes if p in self.vocabulary]
        if not known:
            raise TextError(f"phonemes {phonemes!r}: none is in Kokoro's vocabulary; give a text with words")
        if len(known) > self.max_phonemes:
            raise TextError(
                f"phonemes {phonemes[:40]!r}…: {len(known)} are more than the {self.max_phonemes} "
                "that Kokoro can speak at once; split the sentence"
            )
        return [0, *known, 0]

    @torch.no_grad()
    def encode_text(self, phonemes: Sequence[str]) -> TextStates:
        """Compute the text-side states of a batch of sentences, given as phonemes.

        The last ``CACHED_SENTENCES`` sentences are cached.

        Raises:
            TextError: see ``tokens``.
        """
        states = [self._encode_sentence(p) for p in phonemes]
        prosody, acoustic = (pad_sequence([s[i].T for s in states], batch_first=True) for i in (0, 1))
        lengths = tuple(s[0].shape[1] for s in states)
        return TextStates(prosody.transpose(1, 2), acoustic.transpose(1, 2), lengths)

    def prosody(
        self, text: TextStates, style: Tensor, token_frames: Tensor | None = None, speed: float = 1.0
    ) -> Prosody:
        """Predict durations, F0 and energy for styles (B, 256), differentiable in their prosody half.

        ``token_frames`` (B, N) forces the alignment; by default it is the predicted durations, rounded. Durations are
        divided by ``speed``.
        """
        if self.item_by_item and len(text.lengths) > 1:
            return _collate(
                [
                    self.prosody(
                        one, style[i : i + 1], None if token_frames is None else token_frames[i : i + 1, :n], speed
                    )
                    for i, (one, n) in enumerate(zip(text.items(), text.lengths, strict=True))
                ]
            )
        prosody_style = style[:, TIMBRE_SIZE:]
        predictor = self.model.predictor
        states, durations, padding = self._predict_durations(text, prosody_style, speed)
        if token_frames is None:
            token_frames = durations.detach().round().clamp(min=1).long().masked_fill(padding, 0)
        # The alignment is computed on the CPU, so that forced durations need no synchronisation with the GPU.
        token_frames = token_frames.cpu()
        frames = tuple(token_frames.sum(dim=1).tolist())
        aligned = _align(states.transpose(1, 2), token_frames)  # (B, 640, F)
        shared = _run_lstm(predictor.shared, aligned.transpose(1, 2), frames).transpose(1, 2)
        f0 = self._predict_curve(predictor.F0, predictor.F0_proj, shared, prosody_style, frames)
        energy = self._predict_curve(predictor.N, predictor.N_proj, shared, prosody_style, frames)
        return Prosody(durations, token_frames, f0, energy, frames)

    def durations(self, text: TextStates, style: Tensor, speed: float = 1.0) -> Tensor:
        """Predict durations (B, N) as ``prosody`` does, in frames per token before rounding, without F0 and energy."""
        return self._predict_durations(text, style[:, TIMBRE_SIZE:], speed)[1]

    def speak(
        self,
        text: TextStates,
        prosody: Prosody,
        style: Tensor,
        seeds: Sequence[int],
        windows: Sequence[tuple[int, int]] | None = None,
        *,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> Speech:
        """Render sentences in styles (B, 256), differentiable in the style.

        Args:
            text: states from ``encode_text``.
            prosody: from ``prosody``.
            style: (B, 256); only the timbre half is read here.
            seeds: seed of each item's noise; the same seed, style and window give the same samples.
            windows: (first frame, number of frames) to render of each item; whole sentences by default.
            precision: ``bf16`` runs the convolutions of the decoder's generator in bf16.
            checkpointing: recompute activations in the backward pass, which takes less memory and more time.
        """
        if windows is None:
            windows = [(0, n) for n in prosody.frames]
        aligned = _align(text.acoustic, prosody.token_frames)
        frame_slices = [slice(start, start + n) for start, n in windows]
        curve_slices = [slice(2 * start, 2 * (start + n)) for start, n in windows]
        frames = tuple(n for _, n in windows)
        audio = decode(
            self.model.decoder,
            self.stft,
            _cut_windows(aligned, frame_slices),
            _cut_windows(prosody.f0.unsqueeze(1), curve_slices).squeeze(1),
            _cut_windows(prosody.energy.unsqueeze(1), curve_slices).squeeze(1),
            style[:, :TIMBRE_SIZE],
            frames,
            seeds,
            precision,
            checkpointing,
        )
        return Speech(audio, frames)

    def _encode_sentence(self, phonemes: str) -> tuple[Tensor, Tensor]:
        if phonemes in self._sentences:
            self._sentences.move_to_end(phonemes)
            return self._sentences[phonemes]
        ids = torch.tensor([self.tokens(phonemes)], device=self.device)
        lengths = torch.tensor([ids.shape[1]])
        no_padding = torch.zeros_like(ids, dtype=torch.bool)
        bert = self.model.bert(ids, attention_mask=torch.ones_like(ids))
        states = self.model.bert_encoder(bert)[0].T, self.model.text_encoder(ids, lengths, no_padding)[0]
        self._sentences[phonemes] = states
        if len(self._sentences) > CACHED_SENTENCES:
            self._sentences.popitem(last=False)
        return states

    def _predict_durations(
        self, text: TextStates, prosody_style: Tensor, speed: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the predictor's states (B, N, 640), durations (B, N), and which tokens are padding (B, N)."""
        lengths = torch.tensor(text.lengths)
        padding = (torch.arange(int(lengths.max())) >= lengths[:, None]).to(self.device)
        predictor = self.model.predictor
        states = predictor.text_encoder(text.prosody, prosody_style, lengths, padding)
        hidden = _run_lstm(predictor.lstm, states, text.lengths)
        durations = torch.sigmoid(predictor.duration_proj(hidden)).sum(dim=-1) / speed
        return states, durations.masked_fill(padding, 0.0), padding

    def _predict_curve(
        self, blocks: nn.ModuleList, projection: Any, x: Tensor, prosody_style: Tensor, frames: Sequence[int]
    ) -> Tensor:
        """Predict F0 or energy (B, 2F) from the predictor's shared states (B, 512, F)."""
        lengths = list(frames)
        for block in blocks:
            x, lengths = residual_block(block, x, prosody_style, lengths)
        curve: Tensor = projection(x)
        mask = lengths_mask(lengths, x.device)
        return (curve if mask is None else curve * mask).squeeze(1)


def _align(states: Tensor, token_frames: Tensor) -> Tensor:
    """Repeat states per token (B, C, N) for the frames of each token: (B, C, F), 0 in the padding."""
    indices = [_alignment(tuple(row)) for row in token_frames.tolist()]
    # Padding points to an additional token whose states are 0.
    index = pad_sequence(indices, batch_first=True, padding_value=states.shape[2]).to(states.device)
    return F.pad(states, (0, 1)).gather(2, index.unsqueeze(1).expand(-1, states.shape[1], -1))


@lru_cache(maxsize=CACHED_ALIGNMENTS)
def _alignment(token_frames: tuple[int, ...]) -> Tensor:
    """Return the token index of each frame, (F,)."""
    return torch.repeat_interleave(torch.tensor(token_frames))


def _cut_windows(x: Tensor, slices: Sequence[slice]) -> Tensor:
    """Cut one slice of time from each item of x (B, C, T) and pad with 0 to the longest."""
    return pad_sequence([item[:, cut].T for item, cut in zip(x, slices, strict=True)], batch_first=True).transpose(1, 2)


def _collate(items: Sequence[Prosody]) -> Prosody:
    """Collate the prosody of single sentences into a padded batch."""

    def padded(rows: list[Tensor]) -> Tensor:
        return pad_sequence([row[0] for row in rows], batch_first=True)

    return Prosody(
        padded([item.durations for item in items]),
        padded([item.token_frames for item in items]),
        padded([item.f0 for item in items]),
        padded([item.energy for item in items]),
        tuple(item.frames[0] for item in items),
    )


def _run_lstm(lstm: nn.LSTM, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Run a bidirectional LSTM on x (B, T, C); its backward direction starts at each item's own end."""
    if len(set(lengths)) == 1:
        out, _ = lstm(x)
    else:
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True)
    result: Tensor = out
    return result
