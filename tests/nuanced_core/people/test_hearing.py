"""nuanced_core.people.hearing with fakes: which recordings are heard, how often, and which are left out."""

import logging
import math
import re
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nuanced_core.audio import WHISPER_RATE, load_audio
from nuanced_core.config.settings import PITCH, Augment, Data
from nuanced_core.data import cache as cache_module
from nuanced_core.data.cache import Cache
from nuanced_core.errors import AudioError
from nuanced_core.hearing.augmentation import augmented, degraded
from nuanced_core.hearing.pitch import pitch_statistics, track_pitch
from nuanced_core.people.corpus import find_people
from nuanced_core.people.hearing import Hearing, hear
from nuanced_core.people.recordings import HeardRecording, HearingSettings, RecordingHearer
from tests.nuanced_core.people.conftest import buzz, write

SETTINGS = Data(people_recordings=2, people_seconds=5)


def hear_folder(
    folder: Path, models: SimpleNamespace, cache: Cache, settings: Data = SETTINGS, **more: object
) -> Hearing:
    return hear(find_people(folder), models, cache, settings, workers=1, **more)  # type: ignore[arg-type]


def names(heard: Hearing) -> list[str]:
    return [f"{recording.speaker}/{recording.file.name}" for recording in heard.recordings]


def work(models: SimpleNamespace) -> tuple[int, int]:
    """How much Whisper has heard, and the speaker encoders have embedded."""
    return models.whisper.heard, models.speakers.embedded


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def test_everything_is_heard_once_and_the_second_run_only_reads(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache, logged: pytest.LogCaptureFixture
) -> None:
    heard = hear_folder(buzzing, fakes, cache)
    assert len(heard.recordings) == 10 and not heard.skipped and not logged.records
    assert {r.speaker for r in heard.of_split("validation")} == {"felix"}
    assert {r.speaker for r in heard.of_split("test")} == {"ben"}
    done = work(fakes)
    assert done == (10, 10 * 2 * 3)
    again = hear_folder(buzzing, fakes, Cache(cache.folder))
    assert work(fakes) == done
    for one, other in zip(heard.recordings, again.recordings, strict=True):
        assert (one.speaker, one.file, one.key, one.voice, one.rate) == (
            other.speaker,
            other.file,
            other.key,
            other.voice,
            other.rate,
        )
        assert one.embeddings.keys() == {"campplus", "resemblyzer"}
        for name in one.embeddings:
            assert torch.equal(one.embeddings[name], other.embeddings[name])
            assert torch.equal(one.half_embeddings[name], other.half_embeddings[name])
        assert torch.equal(heard.states(one, (0, 2)), again.states(other, (0, 2)))
    assert work(fakes) == done


def test_what_is_known_of_a_recording_is_that_of_its_file(buzzing: Path, fakes: SimpleNamespace, cache: Cache) -> None:
    heard = hear_folder(buzzing, fakes, cache)
    recording = heard.recordings[-1]
    audio = load_audio(recording.file, WHISPER_RATE)
    assert recording.seconds == 3.0 and recording.rate == 14.0
    pitch = track_pitch(audio, WHISPER_RATE)
    assert [recording.f0_median, recording.f0_spread] == pytest.approx([float(x) for x in pitch_statistics(pitch)])
    assert recording.f0_median == pytest.approx(math.log2(190), abs=0.05)
    for name in ("campplus", "resemblyzer"):
        encoder = fakes.speaker_encoder(name)
        torch.testing.assert_close(recording.embeddings[name], encoder.embed(audio, WHISPER_RATE))
        # The speech is steady, so its middle is that of the clip, within a syllable.
        halves = torch.stack([encoder.embed(half, WHISPER_RATE) for half in audio.tensor_split(2)])
        assert float((recording.half_embeddings[name] * halves).sum(dim=1).min()) > 0.98
    torch.testing.assert_close(heard.states(recording, (2, 1)), fakes.whisper(audio).half()[[2, 1]])


def test_the_choice_of_recordings_is_fixed_and_independent_of_the_place(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache, tmp_path: Path
) -> None:
    one, two, all_of_them = (
        names(hear_folder(buzzing, fakes, cache, Data(people_recordings=n, people_seconds=5))) for n in (1, 2, 9)
    )
    assert (len(one), len(two), len(all_of_them)) == (5, 10, 15)
    assert set(one) < set(two) < set(all_of_them)
    assert len({name.split("/")[1] for name in one}) > 1  # not the first of each
    shutil.copytree(buzzing, tmp_path / "moved" / "deep" / "people")
    done = work(fakes)
    assert names(hear_folder(tmp_path / "moved" / "deep" / "people", fakes, cache)) == two
    assert work(fakes) == done


def test_only_what_is_new_is_computed(buzzing: Path, fakes: SimpleNamespace, cache: Cache) -> None:
    def computed(**changes: object) -> tuple[int, int]:
        before = work(fakes)
        hear_folder(buzzing, fakes, cache, **changes)  # type: ignore[arg-type]
        return work(fakes)[0] - before[0], work(fakes)[1] - before[1]

    assert computed(encoders=()) == (10, 30)  # one speaker encoder is always needed
    assert computed(encoders=("resemblyzer",)) == (0, 30)
    assert computed(augment=Augment(copies=2)) == (20, 0)
    assert computed(augment=Augment(copies=1)) == (0, 0)
    assert computed(augment=Augment(copies=1), parts=(PITCH, "campplus")) == (0, 10)
    assert computed(augment=Augment(copies=1, noise=1.0)) == (10, 0)
    assert computed(settings=Data(people_recordings=3, people_seconds=5)) == (5, 30)
    fakes.whisper_file.sha256 = "another"
    assert computed() == (10, 0)
    fakes.speakers.hashes["resemblyzer"] = "another"
    assert computed() == (0, 30)
    assert computed(settings=Data(people_recordings=2, people_seconds=2)) == (10, 60)
    (buzzing / "anna" / "0.flac").touch()
    assert computed() == (0, 0)
    for take in range(3):
        write(buzzing / "anna" / f"{take}.flac", buzz(0, 10 + take))
    assert computed() == (2, 12)


def test_copies_and_conditions_of_a_recording(buzzing: Path, fakes: SimpleNamespace, cache: Cache) -> None:
    augment = Augment(copies=1, noise=1.0)
    heard = hear_folder(buzzing, fakes, cache, augment=augment, parts=(PITCH,))
    recording = heard.recordings[0]
    audio = load_audio(recording.file, WHISPER_RATE)
    clean, copy, telephone = (heard.states(recording, (1,), version) for version in (0, 1, "telephone"))
    assert clean.shape == copy.shape == telephone.shape == (1, 150, 4)
    assert not torch.allclose(clean, copy) and not torch.allclose(clean, telephone)
    torch.testing.assert_close(clean, heard.states(recording, (1,), "clean"))
    torch.testing.assert_close(telephone[0], fakes.whisper(degraded(audio, WHISPER_RATE, "telephone", 0))[1].half())
    assert heard.part(recording, PITCH).tolist() == pytest.approx([recording.f0_median, recording.f0_spread])
    assert torch.equal(heard.part(recording, "campplus"), recording.embeddings["campplus"])
    noisy = heard.part(recording, "campplus", 1)
    assert float(noisy @ recording.embeddings["campplus"]) < 0.999
    done = work(fakes)
    assert torch.equal(heard.part(recording, "campplus", 1), noisy) and work(fakes) == done
    # Without noise, room and so on a copy has another level only, which changes no pitch.
    quiet = Augment(copies=1, equaliser_db=0, noise=0, reverb=0, codec=0, band_limit=0)
    louder = hear_folder(buzzing, fakes, cache, augment=quiet)
    assert louder.part(recording, PITCH, 1).tolist() == pytest.approx(heard.part(recording, PITCH).tolist(), abs=1e-3)
    assert not torch.equal(augmented(audio, WHISPER_RATE, quiet, 0), audio)


def test_what_cannot_be_used_is_replaced_counted_and_named(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache, logged: pytest.LogCaptureFixture
) -> None:
    first = names(hear_folder(buzzing, fakes, cache))
    unusable = {
        "anna": (np.concatenate([buzz(0)[:WHISPER_RATE], buzz(0)[: WHISPER_RATE // 2]]), r"1\.50 s is too short"),
        "ben": (np.zeros(3 * WHISPER_RATE, np.float32), r"is silent"),
        "carla": (0.1 * np.random.default_rng(0).standard_normal(3 * WHISPER_RATE), r"no voice in it"),
        "emma": (np.concatenate([buzz(1)[:40_000], buzz(9)[:40_000]]), r"two people \(similarity -?0\.\d\d, below"),
    }
    for name, (samples, _) in unusable.items():
        file = next(n for n in first if n.startswith(name))
        write(buzzing / file, np.asarray(samples, np.float32))
    damaged = buzzing / next(n for n in first if n.startswith("felix"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    heard = hear_folder(buzzing, fakes, cache)
    reasons = {file.parent.name: reason for file, reason in heard.skipped}
    assert len(heard.skipped) == 5 and len(heard.recordings) == 10
    for name, (_, reason) in unusable.items():
        assert re.search(reason, reasons[name])
    assert re.search("damaged|not a sound file that can be read", reasons["felix"])
    (warning,) = [record.getMessage() for record in logged.records]
    assert warning.startswith(f"{buzzing}: people: 5 of 15 recordings cannot be used: anna/") and "\n" not in warning
    assert "(1.50 s is too short; at least 2 s are needed), ben/" in warning and warning.endswith(", …")
    done = work(fakes)
    again = hear_folder(buzzing, fakes, cache)
    assert again.skipped == heard.skipped and names(again) == names(heard) and work(fakes) == done


def test_too_little_speech_in_a_long_recording(fakes: SimpleNamespace, cache: Cache, tmp_path: Path) -> None:
    sound = np.concatenate([buzz(1, seconds=0.5), 1e-4 * np.random.default_rng(0).standard_normal(4 * WHISPER_RATE)])
    file = write(tmp_path / "a.wav", sound.astype(np.float32))
    with pytest.raises(
        AudioError, match=r"^people: none of 1 recordings can be used: anna/a\.wav \(only 0\.\d s of sp"
    ):
        hear({"anna": [file]}, fakes, cache, SETTINGS, workers=1)  # type: ignore[arg-type]


def test_a_file_that_is_gone_or_not_readable_is_left_out(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache, logged: pytest.LogCaptureFixture
) -> None:
    corpus = find_people(buzzing)
    for file in (buzzing / "anna").iterdir():
        file.unlink()
    heard = hear(corpus, fakes, cache, SETTINGS, workers=1)  # type: ignore[arg-type]
    assert {recording.speaker for recording in heard.recordings} == {"ben", "carla", "emma", "felix"}
    assert [reason for _, reason in heard.skipped] == ["cannot be read (No such file or directory)"] * 3


def test_of_a_long_recording_the_first_five_minutes_are_read(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache
) -> None:
    whole = np.zeros(1200 * WHISPER_RATE, np.float32)
    whole[2 * WHISPER_RATE : 8 * WHISPER_RATE] = buzz(0, seconds=6)
    whole[400 * WHISPER_RATE :] = 0.9  # beside which nothing before it would be loud
    write(buzzing / "anna" / "0.flac", whole[: 300 * WHISPER_RATE])
    settings = HearingSettings(5.0, ("campplus",))
    hearer = RecordingHearer(fakes, cache, settings)  # type: ignore[arg-type]
    found = []
    for file in (buzzing / "anna" / "0.flac", write(buzzing / "anna" / "long.flac", whole)):
        tracemalloc.start()  # NumPy's arrays are counted
        hearer.hear(file)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < whole.nbytes * 3 / 4
        found.append(hearer.find(file, "anna"))
    short, long = found
    assert isinstance(short, HeardRecording) and isinstance(long, HeardRecording)
    assert long.seconds == 5.0 and long.key != short.key
    assert torch.equal(long.embeddings["campplus"], short.embeddings["campplus"])


def test_too_few_people_left_is_an_error_that_says_why(buzzing: Path, fakes: SimpleNamespace, cache: Cache) -> None:
    for file in (buzzing / "felix").iterdir():
        write(file, np.zeros(WHISPER_RATE * 3, np.float32))
    with pytest.raises(AudioError) as caught:
        hear_folder(buzzing, fakes, cache)
    message = str(caught.value)
    assert message.startswith(f"{buzzing}: people: 3 of 11 recordings cannot be used: felix/")
    assert "of the others: none of the 4 speakers is for validation" in message and "\n" not in message
    assert len(hear_folder(buzzing, fakes, cache, for_training=False).recordings) == 8


def test_a_damaged_entry_is_computed_again(
    buzzing: Path, fakes: SimpleNamespace, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hear_folder(buzzing, fakes, cache)
    embeddings = [recording.embeddings["campplus"].clone() for recording in before.recordings]
    for kind in ("people", "features"):
        for entry in (cache.folder / kind).rglob("*.safetensors"):
            whole = entry.read_bytes()
            entry.write_bytes(whole[:-2] + bytes([whole[-2] ^ 4]) + whole[-1:])
    monkeypatch.setattr(cache_module, "_verified", set())  # as in another process
    after = hear_folder(buzzing, fakes, cache)
    for one, embedding, other in zip(before.recordings, embeddings, after.recordings, strict=True):
        assert one.voice == other.voice
        assert torch.equal(embedding, other.embeddings["campplus"])
        torch.testing.assert_close(after.states(other, (1,)), fakes.whisper(load_audio(one.file, 16_000)).half()[[1]])
