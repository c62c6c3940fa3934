"""Hearing with the real Whisper and speaker encoders: stock voices in rooms and noise are the people."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, load_audio
from nuanced_core.config.settings import Data
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import AudioError
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.hearing.pitch import pitch_statistics, track_pitch
from nuanced_core.people.corpus import find_people
from nuanced_core.people.hearing import Hearing, hear
from tests.nuanced_core.people.conftest import PEOPLE, SENTENCES, write

SETTINGS = Data(people_seconds=6)


@pytest.fixture(scope="module")
def heard(models: ModelSet, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Hearing:
    return hear(find_people(recorded), models, Cache(tmp_path_factory.mktemp("cache")), SETTINGS, workers=1)


def test_people_in_rooms_are_heard_as_they_spoke(
    heard: Hearing, models: ModelSet, speak: Callable[[str, str], Tensor]
) -> None:
    assert [recording.speaker for recording in heard.recordings] == sorted(PEOPLE) and not heard.skipped
    for number, recording in enumerate(heard.recordings):
        clean = speak(PEOPLE[recording.speaker], SENTENCES[number % 2])
        median, _ = pitch_statistics(track_pitch(clean, WHISPER_RATE))
        assert recording.f0_median == pytest.approx(float(median), abs=1.5 / 12)
        assert 0.1 < recording.f0_spread < 0.6 and 0.3 < recording.voice.voiced < 0.95
        # Of the second of silence before the speech, a tenth is kept.
        assert recording.seconds == pytest.approx(min(len(clean) / WHISPER_RATE, 6.0), abs=0.5)
        spoken = len(models.phonemizer(SENTENCES[number % 2])) / (len(clean) / WHISPER_RATE - 0.6)
        assert recording.rate == pytest.approx(spoken, rel=0.2)


def test_embeddings_are_those_of_the_encoders_and_tell_people_apart(heard: Hearing, models: ModelSet) -> None:
    for name in ("campplus", "resemblyzer"):
        halves = torch.stack([recording.half_embeddings[name] for recording in heard.recordings])  # (people, 2, E)
        cosines = halves[:, 0] @ halves[:, 1].T
        others = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
        assert float(cosines.diagonal().min()) > float(others.max())
        whole = torch.stack([recording.embeddings[name] for recording in heard.recordings])
        assert whole.shape == (4, models.speaker_encoder(name).size)
        assert float((whole * halves[:, 0]).sum(dim=1).min()) > 0.7
        recording = heard.recordings[0]
        encoded = models.speaker_encoder(name).embed(load_audio(recording.file, WHISPER_RATE), WHISPER_RATE)
        assert float(encoded @ recording.embeddings[name]) > 0.97  # there, the silence before the speech is longer


def test_states_are_those_of_whisper(heard: Hearing, models: ModelSet) -> None:
    recording = heard.recordings[0]
    states = heard.states(recording, (0, 2, 4))
    assert states.dtype == torch.float16
    audio = load_audio(recording.file, WHISPER_RATE)[-round(recording.seconds * WHISPER_RATE) :]
    torch.testing.assert_close(states, models.whisper(audio)[[0, 2, 4]].half())


def test_the_second_run_loads_no_model(heard: Hearing, models: ModelSet, recorded: Path) -> None:
    unloaded = replace(models)
    again = hear(find_people(recorded), unloaded, heard.hearer.cache, SETTINGS)
    assert [r.rate for r in again.recordings] == [r.rate for r in heard.recordings]
    assert "whisper" not in vars(unloaded) and not unloaded._speaker_encoders


def test_two_people_in_one_recording_are_found_and_noise_does_not_look_like_it(
    heard: Hearing, models: ModelSet, speak: Callable[[str, str], Tensor], tmp_path: Path
) -> None:
    one, other = (speak(voice, SENTENCES[0])[:40_000] for voice in ("af_heart", "bf_emma"))
    mixed = write(tmp_path / "two" / "a.flac", torch.cat([one, other]))
    with pytest.raises(
        AudioError, match=r"two/a\.flac \(its halves sound like two people \(similarity -?0\.\d\d, below"
    ):
        hear({"two": [mixed]}, models, heard.hearer.cache, SETTINGS, workers=1)
    noisy = degraded(speak("af_heart", SENTENCES[0]), WHISPER_RATE, "snr10", 1)
    file = write(tmp_path / "noisy" / "a.flac", 0.5 * noisy)
    assert hear(
        {"noisy": [file]}, models, heard.hearer.cache, SETTINGS, workers=1, for_training=False, encoders=()
    ).recordings
