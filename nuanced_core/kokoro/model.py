"""Kokoro-82M, frozen and differentiable: text and style in, audio out, gradient back to the style.

The package is not edited: the layers of its ``KModel`` are called in its order, for padded batches. What does not
depend on style (PL-BERT, text encoder) is computed once per sentence. The house's vocabulary: a *frame* is 600
samples at 24 kHz (25 ms); F0 and energy have 2 values a frame.

Dimensions: B batch, N tokens (phonemes and the two ends), F frames, S = 256 style.
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
PACK_ROWS = 510  # styles of a voice: row n - 1 speaks n phonemes
TIMBRE_SIZE = 128  # the first half of a style speaks to the decoder, the second to the prosody predictor
CACHED_SENTENCES = 512  # about 0.4 MB each
CACHED_ALIGNMENTS = 8192  # about 2 kB each


@dataclass(frozen=True)
class TextStates:
    """What Kokoro knows of a batch of sentences before it knows the style."""

    prosody: Tensor  # (B, 512, N), of PL-BERT
    acoustic: Tensor  # (B, 512, N), of the text encoder
    lengths: tuple[int, ...]  # tokens of each sentence

    def items(self) -> "list[TextStates]":
        """Each sentence alone, without padding."""
        return [
            TextStates(self.prosody[i : i + 1, :, :n], self.acoustic[i : i + 1, :, :n], (n,))
            for i, n in enumerate(self.lengths)
        ]


@dataclass(frozen=True)
class Prosody:
    """When and how high each sentence is spoken."""

    durations: Tensor  # (B, N) frames per token before rounding, differentiable
    token_frames: Tensor  # (B, N) on the CPU: whole frames per token, as spoken; 0 behind a sentence's end
    f0: Tensor  # (B, 2F) Hz, about 0 where unvoiced, differentiable
    energy: Tensor  # (B, 2F) log norm, differentiable
    frames: tuple[int, ...]  # length of each sentence


@dataclass(frozen=True)
class Speech:
    """A batch of spoken windows."""

    audio: Tensor  # (B, samples) at 24 kHz, 0 behind an item's end
    frames: tuple[int, ...]  # length of each item

    def item(self, index: int) -> Tensor:
        """The samples of one item, without padding."""
        return self.audio[index, : self.frames[index] * SAMPLES_PER_FRAME]


class DifferentiableKokoro:
    """A frozen ``kokoro.KModel`` that speaks batches and lets gradients through to the style.

    Args:
        model: a KModel, which this object takes over: weight norms folded, no parameter with a gradient, in eval
            mode (on CUDA its LSTMs alone are in train mode, which cuDNN's backward needs; nothing in them drops out).
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model: Any = model.to(self.device).eval()
        for module in self.model.modules():
            if hasattr(module, "weight_g"):
                remove_weight_norm(module)
            if isinstance(module, nn.LSTM):
                module.train(self.device.type == "cuda")
        # After the weight norms are folded: folding makes new parameters, which would ask for gradients.
        self.model.requires_grad_(False)
        prepare_decoder(self.model.decoder)
        # Of the LSTMs: packed batches leave oneDNN's fast path on the CPU, where a batch gains nothing else either.
        self.item_by_item = self.device.type == "cpu"
        self.vocabulary: dict[str, int] = self.model.vocab
        self.max_phonemes: int = self.model.context_length - 2
        generator = self.model.decoder.generator
        self.stft = RealSTFT(generator.post_n_fft, generator.stft.hop_length).to(self.device)
        self._sentences: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @classmethod
    def load(cls, config: Path, model: Path, device: torch.device | str = "cpu") -> "DifferentiableKokoro":
        """Kokoro from its ``config.json`` and weights (see ``nuanced_core.weights``)."""
        from kokoro.model import KModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about Kokoro's way of building LSTMs and weight norms
            settings = json.loads(config.read_text(encoding="utf-8"))
            return cls(KModel("hexgrad/Kokoro-82M", config=settings, model=str(model)), device)

    def tokens(self, phonemes: str) -> list[int]:
        """Token numbers of a sentence, between the two ends; phonemes that Kokoro does not know are left out.

        Raises:
            TextError: nothing is left to say, or more than Kokoro can say at once.
        """
        known = [self.vocabulary[p] for p in phonemes if p in self.vocabulary]
        if not known:
            raise TextError(f"phonemes {phonemes!r}: Kokoro knows none of them; give a text with words")
        if len(known) > self.max_phonemes:
            raise TextError(
                f"phonemes {phonemes[:40]!r}…: {len(known)} are more than the {self.max_phonemes} "
                "that Kokoro can say at once; split the sentence"
            )
        return [0, *known, 0]

    @torch.no_grad()
    def encode_text(self, phonemes: Sequence[str]) -> TextStates:
        """What does not depend on style, for a batch of sentences; each sentence is computed once and kept."""
        states = [self._sentence(p) for p in phonemes]
        prosody, acoustic = (pad_sequence([s[i].T for s in states], batch_first=True) for i in (0, 1))
        lengths = tuple(s[0].shape[1] for s in states)
        return TextStates(prosody.transpose(1, 2), acoustic.transpose(1, 2), lengths)

    def prosody(
        self, text: TextStates, style: Tensor, token_frames: Tensor | None = None, speed: float = 1.0
    ) -> Prosody:
        """Durations, F0 and energy of sentences in a style (B, 256), differentiable to its prosody half.

        ``token_frames`` (B, N) forces the alignment; without it the predicted durations, rounded, are used.
        """
        if self.item_by_item and len(text.lengths) > 1:
            return _stacked(
                [
                    self.prosody(
                        one, style[i : i + 1], None if token_frames is None else token_frames[i : i + 1, :n], speed
                    )
                    for i, (one, n) in enumerate(zip(text.items(), text.lengths, strict=True))
                ]
            )
        half = style[:, TIMBRE_SIZE:]
        lengths = torch.tensor(text.lengths)
        behind = (torch.arange(int(lengths.max())) >= lengths[:, None]).to(self.device)
        predictor = self.model.predictor
        states = predictor.text_encoder(text.prosody, half, lengths, behind)  # (B, N, 640)
        hidden = _run_lstm(predictor.lstm, states, text.lengths)
        durations = torch.sigmoid(predictor.duration_proj(hidden)).sum(dim=-1) / speed
        durations = durations.masked_fill(behind, 0.0)
        if token_frames is None:
            token_frames = durations.detach().round().clamp(min=1).long().masked_fill(behind, 0)
        # On the CPU, where the alignment is laid out: durations that are forced then cost no wait for the GPU.
        token_frames = token_frames.cpu()
        frames = tuple(token_frames.sum(dim=1).tolist())
        aligned = _align(states.transpose(1, 2), token_frames)  # (B, 640, F)
        shared = _run_lstm(predictor.shared, aligned.transpose(1, 2), frames).transpose(1, 2)
        f0 = self._curve(predictor.F0, predictor.F0_proj, shared, half, frames)
        energy = self._curve(predictor.N, predictor.N_proj, shared, half, frames)
        return Prosody(durations, token_frames, f0, energy, frames)

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
        """Audio of sentences in a style (B, 256), differentiable to the style.

        ``seeds`` are the items' noise: the same seed, style and window give the same samples. ``windows`` are
        (first frame, frames) of each item to be spoken alone, or None for whole sentences. ``bf16`` rounds the
        decoder's convolutions; ``checkpointing`` trades time for memory.
        """
        if windows is None:
            windows = [(0, n) for n in prosody.frames]
        aligned = _align(text.acoustic, prosody.token_frames)
        cut = [slice(start, start + n) for start, n in windows]
        cut2 = [slice(2 * start, 2 * (start + n)) for start, n in windows]
        frames = tuple(n for _, n in windows)
        audio = decode(
            self.model.decoder,
            self.stft,
            _windows(aligned, cut),
            _windows(prosody.f0.unsqueeze(1), cut2).squeeze(1),
            _windows(prosody.energy.unsqueeze(1), cut2).squeeze(1),
            style[:, :TIMBRE_SIZE],
            frames,
            seeds,
            precision,
            checkpointing,
        )
        return Speech(audio, frames)

    def _sentence(self, phonemes: str) -> tuple[Tensor, Tensor]:
        if phonemes in self._sentences:
            self._sentences.move_to_end(phonemes)
            return self._sentences[phonemes]
        ids = torch.tensor([self.tokens(phonemes)], device=self.device)
        lengths = torch.tensor([ids.shape[1]])
        nothing = torch.zeros_like(ids, dtype=torch.bool)
        bert = self.model.bert(ids, attention_mask=torch.ones_like(ids))
        states = self.model.bert_encoder(bert)[0].T, self.model.text_encoder(ids, lengths, nothing)[0]
        self._sentences[phonemes] = states
        if len(self._sentences) > CACHED_SENTENCES:
            self._sentences.popitem(last=False)
        return states

    def _curve(self, blocks: nn.ModuleList, projection: Any, x: Tensor, half: Tensor, frames: Sequence[int]) -> Tensor:
        """F0 or energy (B, 2F) of the predictor's shared states (B, 512, F)."""
        lengths = list(frames)
        for block in blocks:
            x, lengths = residual_block(block, x, half, lengths)
        curve: Tensor = projection(x)
        mask = lengths_mask(lengths, x.device)
        return (curve if mask is None else curve * mask).squeeze(1)


def _align(states: Tensor, token_frames: Tensor) -> Tensor:
    """States per token (B, C, N) repeated for the frames of each token: (B, C, F), 0 behind an item's end."""
    indices = [_alignment(tuple(row)) for row in token_frames.tolist()]
    # Behind an item's end stands the number of a token that is 0.
    index = pad_sequence(indices, batch_first=True, padding_value=states.shape[2]).to(states.device)
    return F.pad(states, (0, 1)).gather(2, index.unsqueeze(1).expand(-1, states.shape[1], -1))


@lru_cache(maxsize=CACHED_ALIGNMENTS)
def _alignment(token_frames: tuple[int, ...]) -> Tensor:
    """The token of each frame, (F,)."""
    return torch.repeat_interleave(torch.tensor(token_frames))


def _windows(x: Tensor, cuts: Sequence[slice]) -> Tensor:
    """One slice of time of each item of x (B, C, T), padded with 0 to the longest."""
    return pad_sequence([item[:, cut].T for item, cut in zip(x, cuts, strict=True)], batch_first=True).transpose(1, 2)


def _stacked(items: Sequence[Prosody]) -> Prosody:
    """Sentences that were computed alone, as a batch."""

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
    """A bidirectional LSTM on x (B, T, C), whose backward direction starts at each item's own end."""
    if len(set(lengths)) == 1:
        out, _ = lstm(x)
    else:
        packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True)
    result: Tensor = out
    return result
