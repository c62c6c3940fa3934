from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from nuanced_core.training.batches import PooledFeatures
from tests.nuanced_core.training.conftest import RunFactory


def test_target_counts_are_the_clips_own_or_random(new_run: RunFactory) -> None:
    own, other = new_run("a", "train.rows=own").batches, new_run("b", "train.rows=any").batches
    batch = own.draw(0)
    own_styles = torch.stack([clip.utterance.style for clip in batch.clips])
    assert torch.equal(batch.target_counts, batch.clip_counts) and torch.equal(batch.targets, own_styles)
    counts = []
    for step in range(40):
        batch = other.draw(step)
        for clip, count, target in zip(batch.clips, batch.target_counts.tolist(), batch.targets, strict=True):
            assert torch.equal(target, new_run.fakes.voices.style(clip.utterance.voice, count))
            counts.append(count)
    assert min(counts) < 5 and max(counts) > 300 and max(counts) <= 510
    assert abs(sorted(counts)[len(counts) // 2] - 510**0.5) < 12


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "max"])
def test_features_pooled_without_parameters_are_kept(new_run: RunFactory, pooling: str) -> None:
    run = new_run("a", f"encoder.pooling={pooling}", "augment.copies=2", "loss.stft=0")
    dataset, layers, kept = run.data.dataset, run.data.layers, run.batches._pooled
    assert isinstance(kept, PooledFeatures)
    for step in range(3):
        batch = run.batches.draw(step)
        assert isinstance(batch.features, Tensor)
        assert {clip.key for clip in batch.clips} <= {key for key, _ in kept._kept}
        for clip, features in zip(batch.clips, batch.features, strict=True):
            inputs = [dataset.batch([clip], layers, [version]) for version in dataset.versions]
            possible = [run.encoder.pooled(one.features, one.mask)[0] for one in inputs]
            assert min(float((features - one).abs().max()) for one in possible) == 0
    before = new_run.fakes.whisper.heard
    run.batches.draw(1)
    assert new_run.fakes.whisper.heard == before


def test_kept_features_are_not_read_again(new_run: RunFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run("a")
    first = run.batches.draw(0).features
    monkeypatch.setattr(run.data.dataset, "batch", lambda *_: pytest.fail("read again"))
    assert torch.equal(run.batches.draw(0).features, first)  # type: ignore[arg-type]


def test_pooling_with_parameters_gets_frames(new_run: RunFactory) -> None:
    for override in ("encoder.pooling=attentive", "encoder.frame_width=4", "encoder.pooling=gru"):
        assert not isinstance(new_run(override, override).batches.draw(0).features, Tensor)


def test_augmented_versions_are_used_in_training_and_never_in_validation(new_run: RunFactory) -> None:
    run = new_run("a", "augment.copies=2", "loss.stft=0")
    features = [run.batches.draw(step).features for step in range(3)]
    clean = new_run("b", "augment.copies=0", "loss.stft=0")
    assert any(not torch.equal(one, clean.batches.draw(step).features) for step, one in enumerate(features))  # type: ignore[arg-type]
    assert torch.equal(run.data.validation_batch.features, clean.data.validation_batch.features)


def test_mixes_speak_their_share_of_a_batch(new_run: RunFactory) -> None:
    mixes = ["mixes.swaps=9", "train.batch_size=8"]
    run = new_run("a", *mixes, "mixes.share=0.25")
    firsts = set()
    for step in range(12):
        clips = run.batches.draw(step).clips
        is_mix = [clip.utterance.voice.startswith("swap") for clip in clips]
        assert (len(clips), sum(is_mix)) == (8, 2)
        firsts.add(is_mix[0])
    assert firsts == {True, False}  # Kokoro renders the first clips of a batch: those of mixes and of stock voices
    without = new_run("b", *mixes, "mixes.share=0").batches.draw(0).clips
    assert sum(clip.utterance.voice.startswith("swap") for clip in without) == 0


def test_reading_ahead_changes_nothing(new_run: RunFactory) -> None:
    plain, ahead = new_run("a"), new_run("b")
    ahead.batches._reader = ThreadPoolExecutor(1)
    expected, scalars = plain.run_epoch(), ahead.run_epoch()
    assert ahead.batches._next is not None and ahead.batches._next[0] == 3
    names = [name for name in expected if name.startswith(("loss/", "val/"))]
    assert names and [scalars[name] for name in names] == [expected[name] for name in names]
    ahead.close()
