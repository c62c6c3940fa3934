"""Training batches: which clips a step uses, in which version, for which phoneme counts.

Everything random in a step is drawn from the run's seed and the step's number, so a run that is resumed at any step
takes the same steps as one that never stopped.

Dimensions: B batch, P pooled channels, E channels of speaker features, S = 256 style.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Batch, Clip
from nuanced_core.data.versions import Version
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.training.run_setup import RunData

__all__ = ["BatchSampler", "PooledFeatures", "TrainingBatch"]

POOLED_CACHE_BYTES = 2**30


class TrainingBatch(NamedTuple):
    """Inputs and targets of a step."""

    generator: torch.Generator  # of the step's further random choices
    clips: list[Clip]
    features: Batch | Tensor  # pooled, (B, P + E), if pooling has no parameters
    clip_counts: Tensor  # (B,) phoneme counts of the clips
    target_counts: Tensor  # (B,) phoneme counts of the targets
    targets: Tensor  # (B, 256) styles


class PooledFeatures:
    """Pooled features of clips, kept in memory as long as there is room; only for pooling without parameters."""

    def __init__(self, encoder: StyleEncoder, data: RunData) -> None:
        self._encoder, self._data = encoder, data
        self._kept: dict[tuple[str, Version], Tensor] = {}

    @torch.no_grad()
    def __call__(self, clip: Clip, version: Version) -> Tensor:
        """Return the pooled features (P + E,) of a version of a clip."""
        pooled = self._kept.get((clip.key, version))
        if pooled is None:
            settings = self._encoder.config.features
            batch = self._data.dataset.batch([clip], self._data.layers, [version], speaker=settings)
            pooled = self._encoder.pooled(batch.features, batch.mask, batch.speaker)[0]
            if len(self._kept) * pooled.nbytes < POOLED_CACHE_BYTES:
                self._kept[clip.key, version] = pooled
        return pooled

    def clear(self) -> None:
        """Release the memory."""
        self._kept.clear()


class BatchSampler:
    """Draws the batch of each step; on a GPU the next batch is read from the cache while a step is computed.

    On the CPU a second thread would only take cores from the first one (measured: 10 % slower steps).
    """

    def __init__(self, config: RunConfig, data: RunData, encoder: StyleEncoder) -> None:
        self._config, self._data = config, data
        self._device = data.dataset.models.device
        self._pooled = PooledFeatures(encoder, data) if encoder.has_fixed_pooling else None
        self._reader = ThreadPoolExecutor(1) if self._device.type == "cuda" else None
        self._next: tuple[int, Future[TrainingBatch]] | None = None

    def batch(self, step: int) -> TrainingBatch:
        """Return the batch of a step, and begin to read the next one."""
        if self._reader is None:
            return self.draw(step)
        ahead = self._next
        batch = ahead[1].result() if ahead and ahead[0] == step else self.draw(step)
        self._next = step + 1, self._reader.submit(self.draw, step + 1)
        return batch

    def draw(self, step: int) -> TrainingBatch:
        """Draw the batch of a step, which depends only on the settings and the step's number."""
        settings, data = self._config.train, self._data
        generator = torch.Generator().manual_seed(int(content_key(settings.seed, step)[:15], 16))
        clips = self._draw_clips(generator)
        versions = torch.randint(len(data.dataset.versions), (len(clips),), generator=generator).tolist()
        features: Batch | Tensor
        if self._pooled is not None:
            features = torch.stack([self._pooled(clip, version) for clip, version in zip(clips, versions, strict=True)])
        else:
            features = data.dataset.batch(clips, data.layers, versions, speaker=self._config.features)
        clip_counts = torch.tensor([clip.utterance.phoneme_count for clip in clips], device=self._device)
        if settings.rows == "own":
            targets = torch.stack([clip.utterance.style for clip in clips]).to(self._device)
            return TrainingBatch(generator, clips, features, clip_counts, clip_counts, targets)
        # Uniform in the logarithm: rows of a pack differ most for few phonemes.
        counts = torch.rand(len(clips), generator=generator).mul(math.log(PACK_ROWS)).exp().round().long()
        styles = [data.styles[c.utterance.voice](n) for c, n in zip(clips, counts.tolist(), strict=True)]
        targets = torch.stack(styles).to(self._device)
        return TrainingBatch(generator, clips, features, clip_counts, counts.to(self._device), targets)

    def close(self) -> None:
        """Stop reading ahead and release the memory."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._next = None
        if self._pooled is not None:
            self._pooled.clear()

    def _draw_clips(self, generator: torch.Generator) -> list[Clip]:
        """Draw clips in random order, ``mixes.share`` of them spoken by mixes."""
        clips, mix_clips = self._data.clips, self._data.mix_clips
        size, share = self._config.train.batch_size, self._config.mixes.share
        if share is None or not mix_clips:
            order = torch.randperm(len(clips), generator=generator)[:size]
            return [clips[i] for i in order.tolist()]
        from_mixes = round(size * share)
        stock_clips = len(clips) - mix_clips
        chosen = torch.cat(
            [
                torch.randperm(stock_clips, generator=generator)[: size - from_mixes],
                stock_clips + torch.randperm(mix_clips, generator=generator)[:from_mixes],
            ]
        )
        order = chosen[torch.randperm(len(chosen), generator=generator)]  # Kokoro renders the first ones
        return [clips[i] for i in order.tolist()]
