from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.config import Data, RunConfig, validate
from nuanced_core.dataset import Dataset, plan, windows
from nuanced_core.errors import ConfigError, DiskError, TextError, VoiceError


@pytest.fixture
def dataset(fakes: SimpleNamespace, tmp_path: Path) -> Dataset:
    return Dataset(fakes, tmp_path / "cache")


def _plan(fakes: SimpleNamespace, tiny_run: RunConfig, **changes: object):  # type: ignore[no-untyped-def]
    data = validate(Data, {**tiny_run.data.model_dump(mode="json"), **changes}, "x")
    return plan(data, fakes.voices, fakes.phonemizer)


def test_no_voice_and_no_sentence_is_on_both_sides(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = _plan(fakes, tiny_run)
    assert len(train) == 8 and len(val) == 4
    assert not {u.voice for u in train} & {u.voice for u in val}
    assert not {u.text for u in train} & {u.text for u in val}
    for u in train + val:
        assert torch.equal(u.style, fakes.voices.style(u.voice, len(u.phonemes)))
    assert len({u.seed for u in train + val}) == 12


def test_the_order_of_sentences_and_voices_changes_nothing_on_the_other_side(
    fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    _, val = _plan(fakes, tiny_run)
    for changes in (
        {"sentences": ["A blue window.", "Red door."]},
        {"voices": ["am_michael", "af_bella", "af_heart"]},
        {"sentences_per_voice": 1},
    ):
        assert [(u.voice, u.text, u.seed) for u in _plan(fakes, tiny_run, **changes)[1]] == [
            (u.voice, u.text, u.seed) for u in val
        ]


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"voices": ["af_heart", "af_sky"]}, ConfigError, "af_sky is a validation voice too"),
        ({"val_sentences": ["Red door."]}, ConfigError, "'Red door.' is a training sentence too"),
        ({"sentences": []}, TextError, "data.sentences"),
        ({"val_voices": ["af_hart"]}, VoiceError, "af_hart"),
        ({"max_phonemes": 4}, ConfigError, "data.max_phonemes: 4: no sentence"),
    ],
)
def test_bad_data_is_told(
    fakes: SimpleNamespace, tiny_run: RunConfig, changes: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        _plan(fakes, tiny_run, **changes)


def test_everything_is_rendered_once(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = _plan(fakes, tiny_run)
    first = dataset.clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    again = Dataset(fakes, dataset.folder).clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.audio, b.audio) and torch.equal(a.token_frames, b.token_frames)
    # A changed setting renders only what it changes.
    dataset.clips(_plan(fakes, tiny_run, voices=["af_heart", "af_nicole"])[0])
    assert fakes.kokoro.spoken == 14
    fakes.whisper_file.sha256 = "another"
    dataset.clips(train)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (14, 22)


def test_a_damaged_entry_is_rendered_again(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = _plan(fakes, tiny_run)
    clip = dataset.clips(train[:1])[0]
    (entry,) = (dataset.folder / "clips").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:50])
    assert torch.equal(dataset.clips(train[:1])[0].audio, clip.audio)
    assert fakes.kokoro.spoken == 2


def test_batches_are_padded_and_masked(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = _plan(fakes, tiny_run)
    clips = dataset.clips(train)
    batch = dataset.batch(clips, (0, 2))
    longest = max(-(-len(c.audio) * 2 // 3 // 320) for c in clips)
    assert batch.features.shape == (8, 2, longest, 4)
    for i, clip in enumerate(clips):
        alone = dataset.batch([clip], (0, 2))
        frames = alone.features.shape[2]
        assert batch.mask[i].sum() == frames
        torch.testing.assert_close(batch.features[i, :, :frames], alone.features[0])
        assert (batch.features[i, :, frames:] == 0).all()
    assert batch.phoneme_counts.tolist() == [len(u.phonemes) for u in train]


def test_statistics_are_those_of_all_frames(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    clips = dataset.clips(_plan(fakes, tiny_run)[0])
    batch = dataset.batch(clips, (0, 1))
    frames = torch.cat([f[:, m] for f, m in zip(batch.features, batch.mask, strict=True)], dim=1)
    statistics = dataset.statistics(clips, (0, 1))
    torch.testing.assert_close(statistics.mean, frames.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.std, frames.std(dim=1, correction=0), rtol=1e-3, atol=1e-4)


def test_layers_by_name(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    (clip,) = dataset.clips(_plan(fakes, tiny_run)[0][:1])
    assert dataset.layers("last", clip) == (2,)
    assert dataset.layers("all", clip) == (0, 1, 2)
    assert dataset.layers((1,), clip) == (1,)
    with pytest.raises(ConfigError, match=r"features.layers: \[3\]: Whisper fake has layers 0 to 2"):
        dataset.layers((3,), clip)


def test_windows_cover_a_clip() -> None:
    assert windows(100, "full") == [(0, 100)]
    assert windows(30, 40) == [(0, 30)]
    for frames, size in ((100, 40), (80, 40), (41, 40)):
        chosen = windows(frames, size)
        covered = set().union(*(range(start, start + n) for start, n in chosen))
        assert covered == set(range(frames))
        assert all(n == size for _, n in chosen)
        assert len(chosen) == -(-frames // size)


def test_a_full_disk_is_told(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nuanced_core.dataset.save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        dataset.clips(_plan(fakes, tiny_run)[0])
    assert not [p for p in dataset.folder.rglob("*") if p.is_file()]
