from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nuanced_core.config.settings import Data, Mixes, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.utterances import Utterance, voice_styles
from nuanced_core.errors import ConfigError, TextError, VoiceError
from nuanced_core.kokoro.voices import VoiceBank
from tests.nuanced_core.data.conftest import plan_with

KINDS = ("blend", "half-blend", "swap", "step", "half-step")
MIXES = Mixes(blends=2, half_blends=2, swaps=2, steps=2, half_steps=2, members=3, sentences=2)


def _contents(utterances: list[Utterance]) -> list[tuple[object, ...]]:
    return [(u.voice, u.text, u.phonemes, u.seed, *u.style.tolist()) for u in utterances]


def test_training_and_validation_share_no_voice_and_no_sentence(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = plan_with(fakes, tiny_run)
    assert len(train) == 8 and len(val) == 4
    assert not {u.voice for u in train} & {u.voice for u in val}
    assert not {u.text for u in train} & {u.text for u in val}
    for u in train + val:
        assert torch.equal(u.style, fakes.voices.style(u.voice, len(u.phonemes)))
    assert len({u.seed for u in train + val}) == 12


def test_training_settings_do_not_change_the_validation_utterances(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    _, val = plan_with(fakes, tiny_run)
    for changes in (
        {"sentences": ["A blue window.", "Red door."]},
        {"voices": ["am_michael", "af_bella", "af_heart"]},
        {"sentences_per_voice": 1},
    ):
        assert [(u.voice, u.text, u.seed) for u in plan_with(fakes, tiny_run, **changes)[1]] == [
            (u.voice, u.text, u.seed) for u in val
        ]


def test_every_training_voice_has_a_style_for_each_phoneme_count(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = plan_with(fakes, tiny_run, MIXES)
    data = validate(Data, tiny_run.data.model_dump(mode="json"), "x")
    found = voice_styles(data, MIXES, fakes.voices)
    assert set(found) == {u.voice for u in train}
    for u in train:
        assert torch.equal(found[u.voice](u.phoneme_count), u.style)
    assert not torch.equal(found["blend-0000"](3), found["blend-0000"](300))


def test_mixes_speak_training_sentences_and_change_no_other_utterance(
    fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    stock, val = plan_with(fakes, tiny_run)
    train, val_beside_mixes = plan_with(fakes, tiny_run, MIXES)
    assert _contents(train[: len(stock)]) == _contents(stock) and _contents(val_beside_mixes) == _contents(val)
    mixed = train[len(stock) :]
    assert [u.voice for u in mixed[::2]] == [f"{kind}-{i:04}" for kind in KINDS for i in (0, 1)]
    assert len(mixed) == 20 and {u.text for u in mixed} == {"Red door.", "A blue window."}
    assert len({u.seed for u in train + val}) == len(train) + len(val)
    styles = torch.stack([u.style for u in train])
    assert (torch.cdist(styles, styles) + torch.eye(len(train)) > 0.1).all()


def test_a_larger_number_of_mixes_includes_the_smaller(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    few = _contents(plan_with(fakes, tiny_run, MIXES)[0])
    many = _contents(plan_with(fakes, tiny_run, MIXES.model_copy(update={"blends": 30, "steps": 9}))[0])
    assert len(many) == 8 + 2 * 45 and set(few) < set(many)


def test_mixes_do_not_depend_on_the_order_of_voices(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    voices = list(tiny_run.data.voices)
    assert set(_contents(plan_with(fakes, tiny_run, MIXES)[0])) == set(
        _contents(plan_with(fakes, tiny_run, MIXES, voices=voices[::-1])[0])
    )


@pytest.mark.parametrize("voices", ["american", ["af_heart", "am_fenrir", "am_michael", "af_bella"]])
def test_mixes_contain_no_held_out_voice(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, voices: str | list[str]
) -> None:
    paths = {name: tmp_path / "voices" / f"{name}.npy" for name in fakes.voices.names}
    paths["af_river"] = tmp_path / "af_river.npy"  # a test voice
    np.save(paths["af_river"], np.load(paths["af_heart"]))
    fakes.voices = VoiceBank(paths)
    before = _contents(plan_with(fakes, tiny_run, MIXES, voices=voices)[0])
    for held_out in ("af_river", "af_sky", "bm_lewis"):
        np.save(paths[held_out], np.full((510, 1, 256), 1e6, np.float32))
    fakes.voices = VoiceBank(paths)
    assert _contents(plan_with(fakes, tiny_run, MIXES, voices=voices)[0]) == before


def test_mixes_of_too_many_members_are_an_error(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"mixes\.members: 5: there are 4 training voices"):
        plan_with(fakes, tiny_run, Mixes(blends=1, members=5))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"voices": ["af_heart", "af_sky"]}, ConfigError, "af_sky is a validation voice too"),
        ({"val_sentences": ["Red door.", "No rain."]}, ConfigError, "'Red door.' is a training sentence too"),
        ({"val_sentences": ["No rain.", "RED, door!"]}, ConfigError, "'RED, door!' is a training sentence too"),
        ({"val_sentences": ["No rain."]}, ConfigError, r"data.val_sentences: 'No rain.' is the only one"),
        ({"sentences": "test"}, ConfigError, r"data.sentences: '.*' is a test sentence"),
        ({"val_sentences": "test"}, ConfigError, r"data.val_sentences: '.*' is a test sentence"),
        ({"val_voices": ["af_sky", "af_sky"]}, ConfigError, "val_voices: .*af_sky is listed twice"),
        ({"sentences": []}, TextError, "data.sentences"),
        ({"val_voices": ["af_hart"]}, VoiceError, "af_hart"),
        (
            {"max_phonemes": 4},
            ConfigError,
            "data.max_phonemes: 4: every sentence of data.sentences is longer; set at least",
        ),
    ],
)
def test_invalid_data_is_an_error(
    fakes: SimpleNamespace, tiny_run: RunConfig, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_with(fakes, tiny_run, **changes)
