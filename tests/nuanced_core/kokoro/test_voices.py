"""Voice packs, named sets and the separation of training, validation and test voices."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import ConfigError, VoiceError
from nuanced_core.kokoro.voices import TEST_VOICES, VOICE_SETS, VoiceBank, read_pack, voice_traits

VAL = ("af_sky", "bm_lewis")


def test_style_is_the_row_of_the_phoneme_count(fakes: SimpleNamespace) -> None:
    bank = fakes.voices
    pack = bank.pack("af_heart")
    assert pack.shape == (510, 256)
    assert torch.equal(bank.style("af_heart", 1), pack[0])
    assert torch.equal(bank.style("af_heart", 40), pack[39])
    assert torch.equal(bank.style("af_heart", 600), pack[509])


def test_named_sets_exclude_validation_and_test_voices(fakes: SimpleNamespace) -> None:
    bank = fakes.voices
    assert bank.training_voices("british", VAL) == ("bf_alice",)
    assert set(bank.training_voices("all", VAL)) == set(bank.names) - set(VAL)
    with pytest.raises(VoiceError, match=r"am_fenrir.*not among|'original'"):
        type(bank)({"af_heart": Path("x")}).training_voices("original", ())


@pytest.mark.parametrize(
    ("voices", "error", "message"),
    [
        (
            ("af_hart",),
            VoiceError,
            "data.voices: 'af_hart' is not a voice; did you mean af_heart?; only 8 are available: install npm",
        ),
        ("britsh", VoiceError, "'britsh' is not a set of voices; did you mean british?"),
        (("af_heart", "af_sky"), ConfigError, "af_sky is a validation voice too"),
        ((), ConfigError, "list is empty"),
    ],
)
def test_invalid_voices_raise(fakes: SimpleNamespace, voices: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")):
        fakes.voices.training_voices(voices, VAL)


def test_files_that_are_not_packs_raise(tmp_path: Path) -> None:
    good = np.ones((510, 1, 256), np.float32)
    np.save(tmp_path / "short.npy", good[:5])
    np.save(tmp_path / "integers.npy", good.astype(int))
    np.save(tmp_path / "nan.npy", np.nan * good)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").touch()
    torch.save(torch.from_numpy(good), tmp_path / "torch.npy")
    for name, problem in (
        ("short", r"shape \(5, 1, 256\) is not that of a voice pack, \(510, 1, 256\)"),
        ("integers", "a voice pack has finite floating-point numbers"),
        ("nan", "a voice pack has finite floating-point numbers"),
        ("text", "not a voice pack"),
        ("empty", "not a voice pack"),
        ("torch", "not a voice pack, but a PyTorch file"),
        ("missing", "not a voice pack"),
    ):
        with pytest.raises(
            VoiceError, match=rf"{name}\.npy: {problem}.*; give the \.npy file of a voice of Kokoro-82M"
        ):
            read_pack(tmp_path / f"{name}.npy")
    for pack in (good, good[:, 0], good.astype(np.float64)):
        np.save(tmp_path / "good.npy", pack)
        assert torch.equal(read_pack(tmp_path / "good.npy"), torch.ones(510, 256))


def test_advice_about_a_missing_voice_depends_on_where_the_voices_come_from() -> None:
    packs = {"af_heart": Path("x")}
    for source, fix in (
        ("folder", "put its pack into the folder voices/ of models.source"),
        ("packages", "install npm"),
    ):
        with pytest.raises(VoiceError, match=f"only 1 are available: {fix}"):
            VoiceBank(packs, source).pack("af_sky")
        with pytest.raises(VoiceError, match=f"not among the 1 available voices; {fix}"):
            VoiceBank(packs, source).training_voices("british", ())


@pytest.mark.real
def test_stock_voices_and_sets_have_the_expected_sizes(models: ModelSet) -> None:
    bank = models.voices
    assert len(bank.names) == 54
    assert set(TEST_VOICES) <= set(bank.names)
    sizes = {name: len(bank.training_voices(name, VAL)) for name in VOICE_SETS}
    assert sizes == {"original": 5, "american": 17, "british": 5, "english": 22, "all": 43}
    with pytest.raises(ConfigError, match="reserved for the final evaluation"):
        bank.training_voices("original", ("hm_omega",))
    with pytest.raises(ConfigError, match="hm_omega is a test voice too"):
        bank.training_voices(("hm_omega",), VAL)
    # Rows of a voice differ, which is why an encoder takes the phoneme count as input.
    pack = bank.pack("af_heart")
    assert torch.nn.functional.cosine_similarity(pack[9, 128:], pack[399, 128:], dim=0) < 0.9


def test_a_name_tells_accent_and_sex_or_nothing() -> None:
    assert voice_traits("af_heart") == {"accent": "american", "sex": "female"}
    assert voice_traits("zm_yunxi") == {"accent": "mandarin", "sex": "male"}
    for name in ("mix-3", "found-12", "xf_other", "ax_other", "af", "afx_heart"):
        assert voice_traits(name) == {}
