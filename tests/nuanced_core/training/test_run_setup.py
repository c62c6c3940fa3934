import json

import pytest
import torch

from nuanced_core.training.run_setup import build_encoder
from tests.nuanced_core.training.conftest import RunFactory


def test_validation_input_is_another_sentence_of_the_voice_in_each_condition_in_turn(new_run: RunFactory) -> None:
    conditions = ["clean", "telephone", "snr10"]
    data = new_run("a", f"objective.conditions={json.dumps(conditions)}").data
    clips, batch = data.validation.clips, data.validation_batch
    assert [c.utterance.voice for c in clips] == ["af_sky", "af_sky", "bm_lewis", "bm_lewis"]
    inputs = [(clips[1], "clean"), (clips[0], "telephone"), (clips[3], "snr10"), (clips[2], "clean")]
    for i, (clip, condition) in enumerate(inputs):
        expected = data.dataset.batch([clip], data.layers, [condition])  # type: ignore[list-item]
        frames = expected.features.shape[2]
        assert torch.equal(batch.features[i : i + 1, :, :frames], expected.features)
        assert batch.mask[i].sum() == frames
    assert torch.equal(batch.styles, torch.stack([c.utterance.style for c in clips]))
    assert batch.phoneme_counts.tolist() == [c.utterance.phoneme_count for c in clips]


@pytest.mark.slow
def test_training_data_cannot_leak_into_validation(new_run: RunFactory) -> None:
    """Inputs, targets and baselines of validation are the same, whatever the training data."""
    run = new_run("a")
    validation, before = run.data.validation, run.validate()
    for i, override in enumerate(
        (
            'data.sentences=["A blue window.", "Red door."]',
            'data.voices=["af_bella", "am_michael", "af_heart", "am_fenrir"]',
            'data.voices=["af_nicole", "bf_alice"]',
            'data.sentences=["Something else entirely.", "And more of it."]',
            "data.sentences_per_voice=1",
            "mixes.swaps=3",
            "augment.copies=2",
            "train.seed=5",
        )
    ):
        other = new_run(f"b{i}", override)
        assert torch.equal(other.data.validation_batch.features, run.data.validation_batch.features)
        assert torch.equal(other.data.validation_batch.styles, run.data.validation_batch.styles)
        assert [clip.key for clip in other.data.validation.clips] == [clip.key for clip in validation.clips]
        assert other.data.baselines.mean == run.data.baselines.mean
        assert other.data.baselines.oracle == run.data.baselines.oracle
        scalars = other.validate()
        assert {k: v for k, v in scalars.items() if k.startswith(("baseline", "oracle"))} == {
            k: v for k, v in before.items() if k.startswith(("baseline", "oracle"))
        }
        styles = torch.stack([clip.utterance.style for clip in validation.clips])
        assert other.data.validation.scores(styles) == validation.scores(styles)
        assert not {clip.key for clip in other.data.clips} & {clip.key for clip in validation.clips}


def test_mixes_are_the_last_training_clips(new_run: RunFactory) -> None:
    data = new_run("a", "mixes.swaps=3", "mixes.sentences=2").data
    assert data.mix_clips == 6
    is_mix = [clip.utterance.voice.startswith("swap") for clip in data.clips]
    assert is_mix == [False] * (len(is_mix) - 6) + [True] * 6


def test_encoder_is_calibrated_on_clips_at_even_intervals_in_each_version(new_run: RunFactory) -> None:
    run = new_run("a", "encoder.pooling=mean_std", "augment.copies=2")
    data, encoder = run.data, run.encoder
    pooled = []
    for i, clip in enumerate(data.clips):  # fewer than 128
        batch = data.dataset.batch([clip], data.layers, [i % 3])
        pooled.append(encoder.pooled(batch.features, batch.mask)[0])
    torch.testing.assert_close(encoder.pooled_mean, torch.stack(pooled).mean(dim=0))
    torch.testing.assert_close(encoder.feature_mean, data.dataset.statistics(data.clips, data.layers).mean)


def test_initial_weights_depend_only_on_the_seed(new_run: RunFactory) -> None:
    run, other = new_run("a"), new_run("b", "train.seed=1")
    torch.manual_seed(99)
    again = build_encoder(run.config, run.data).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in run.encoder.state_dict().items())
    assert any(not torch.equal(tensor, again[name]) for name, tensor in other.encoder.state_dict().items())
