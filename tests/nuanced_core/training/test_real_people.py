"""A run with the real models hears people: stock voices in rooms and noise, of whom it never sees a true style."""

from pathlib import Path

import pytest
import torch

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.training.run import start_run
from tests.nuanced_core.people.conftest import write

pytestmark = pytest.mark.real

# Three of them are for validation. None of the voices is that of a training clip.
PEOPLE = {
    "felix": "am_puck",
    "olga": "af_sky",
    "quinn": "bm_lewis",
    "anna": "bf_alice",
    "hugo": "am_michael",
}
HELD_OUT = (*PEOPLE.values(),)
SENTENCE = "We walked along the river until it was too dark to see."


@pytest.fixture(scope="module")
def people(models: ModelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "people"
    phonemes = models.phonemizer(SENTENCE)
    text = models.kokoro.encode_text([phonemes])
    for number, (name, voice) in enumerate(PEOPLE.items()):
        style = models.voices.style(voice, len(phonemes))[None]
        with torch.no_grad():
            audio = models.kokoro.speak(text, models.kokoro.prosody(text, style), style, [0]).item(0)
        heard = resample(audio, KOKORO_RATE, WHISPER_RATE)
        room = degraded(degraded(heard, WHISPER_RATE, "room", number), WHISPER_RATE, "snr20", number)
        write(folder / name / "one.flac", 0.3 * room)
    return folder


def _identity(models: ModelSet, folder: Path, people: Path, **sections: dict[str, object]) -> float:
    settings: dict[str, dict[str, object]] = {
        "data": {
            "people": str(people),
            "voices": models.voices.training_voices("all", HELD_OUT)[::4],  # some of them, for speed
            "val_voices": HELD_OUT[:1],
            "sentences_per_voice": 1,
            "val_sentences_per_voice": 2,
            "max_phonemes": 24,
        },
        "augment": {"copies": 0},
        "loss": {"stft": 0.0},
        "objective": {"people": 1.0, "window_frames": 20, "conditions": ["clean"]},
        "train": {"epochs": 1, "steps_per_epoch": 20, "batch_size": 16, "speak_every": 1000, "people": 2},
        "show": {"clips": 0, "people": 0},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    config = validate(RunConfig, settings, "real people")
    run = start_run(config, folder, lambda *reported: None, models, folder.parent / "cache")
    return run.run_epoch()["val/identity"]


def test_a_run_that_hears_people_speaks_more_like_them_than_one_that_ignores_them(
    models: ModelSet, people: Path, tmp_path: Path
) -> None:
    hears = _identity(
        models,
        tmp_path / "hears",
        people,
        features={"speaker": "campplus", "pitch": True},
        encoder={"surrogate_steps": 100},
        loss={"stft": 0.0, "surrogate": 0.5, "pitch": 0.3, "prior": 0.05},
    )
    ignores = _identity(models, tmp_path / "ignores", people)
    assert hears > ignores + 0.1
