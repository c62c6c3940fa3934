"""Loading an encoder from a folder, checks of its configuration, and the shipped encoder."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nuanced_core import StyleEncoder
from nuanced_core.audio import resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.pretrained import check_models
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.encoder.style_encoder import StyleEncoderConfig
from nuanced_core.errors import ConfigError, WeightsError
from tests.nuanced_core.encoder.small_encoders import PAIRWISE, SPACE, randomised_encoder, small_clips, small_config

SHIPPED = Path(__file__).parents[3] / "models" / "default"


def save(encoder: StyleEncoder, folder: Path) -> None:
    """Write the weights and the configuration of an encoder as an export does."""
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"style_encoder": encoder.config.to_dict()}))


@pytest.mark.parametrize("settings", PAIRWISE[:10], ids=lambda s: "-".join(str(v) for v in s.values()))
def test_saved_encoder_loads_with_equal_weights_and_configuration(settings: dict[str, Any], tmp_path: Path) -> None:
    encoder = randomised_encoder(**settings)
    save(encoder, tmp_path)
    loaded = StyleEncoder.from_pretrained(tmp_path)
    assert loaded.config == encoder.config
    torch.testing.assert_close(loaded(*small_clips()), encoder(*small_clips()), rtol=0, atol=0)


def test_invalid_configuration_raises() -> None:
    data = small_config(pooling="queries").to_dict()
    assert StyleEncoderConfig.from_dict(json.loads(json.dumps(data)), "x") == small_config(pooling="queries")
    for change, message in (
        ({"voices": None}, "voices"),
        ({"voices": "5"}, "voices"),
        ({"layers": []}, "layers"),
        ({"channel": 3}, "channel: unknown setting"),
        ({"encoder": {**small_config().encoder.model_dump(), "widht": 3}}, "encoder.widht: unknown setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            StyleEncoderConfig.from_dict({**data, **change}, "x")
    old = {name: value for name, value in data.items() if name not in ("features", "voices")}
    with pytest.raises(ConfigError, match=r"x: features: .*field required; not a StyleEncoder of this version"):
        StyleEncoderConfig.from_dict(old, "x")


@pytest.mark.parametrize("output", SPACE["output"])
def test_invalid_folder_raises(output: str, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    save(randomised_encoder(output=output, pooling="mean"), folder)
    StyleEncoder.from_pretrained(folder)
    with pytest.raises(WeightsError, match="no such file"):
        StyleEncoder.from_pretrained(tmp_path)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: does not fit config\.json: .*size mismatch"
    ) as refused:
        StyleEncoder.from_pretrained(folder)
    assert len(str(refused.value)) < 300 + len(str(folder))
    config.write_text(text.replace('"pooling": "mean"', '"pooling": "men"'))
    with pytest.raises(ConfigError, match=r"config\.json: encoder\.pooling"):
        StyleEncoder.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(ConfigError, match="not a StyleEncoder's configuration"):
        StyleEncoder.from_pretrained(folder)


def test_shipped_encoder_is_small_and_its_card_matches_its_report() -> None:
    encoder = StyleEncoder.from_pretrained(SHIPPED)
    assert encoder.config.whisper == "tiny.en"
    assert (SHIPPED / "model.safetensors").stat().st_size < 11_000_000
    report = json.loads((SHIPPED / "evaluation.json").read_text())
    assert f"| {report['rows']['encoder']['style_cosine']:.3f} ±" in (SHIPPED / "README.md").read_text()


@pytest.mark.real
def test_shipped_encoder_generalises_to_held_out_voices(models: ModelSet, tmp_path: Path) -> None:
    encoder = StyleEncoder.from_pretrained(SHIPPED)
    phonemes = "ʃi ˈoʊpənd ðə ˈoʊld dˈɔɹ ænd lˈʊkt ɪntʊ ðə ɡˈɑɹdən."
    cosines = []
    for voice in ("af_sky", "am_puck"):
        style = models.voices.style(voice, len(phonemes))
        with torch.no_grad():
            text = models.kokoro.encode_text([phonemes])
            prosody = models.kokoro.prosody(text, style[None])
            audio = models.kokoro.speak(text, prosody, style[None], [0]).item(0)
            pack = encoder.pack_of(pooled_recording(encoder, models, resample(audio, 24_000, 16_000)))[:, 0]
        row = len(phonemes) - 1
        of_mean = torch.cosine_similarity(encoder.mean_pack[row], style, dim=0)
        assert torch.cosine_similarity(pack[row], style, dim=0) > of_mean + 0.05
        cosines.append(torch.cosine_similarity(pack[row], pack[300], dim=0))
    assert max(cosines) < 0.99  # rows differ, as those of stock voices do


@pytest.mark.parametrize(
    ("recorded", "source", "used", "used_source", "fits"),
    [
        (None, None, "a", "folder", True),  # of an earlier version
        ("a", None, "a", "folder", True),
        ("a", "packages", "b", "hub", True),  # two files of Kokoro-82M v1.0
        ("a", None, "b", "hub", True),  # with a warning
        ("a", "packages", "b", "folder", False),
        ("a", None, "b", "folder", False),
        ("a", "folder", "b", "hub", False),
    ],
)
def test_another_kokoro_is_refused(
    recorded: str | None, source: str | None, used: str, used_source: str, fits: bool
) -> None:
    config: dict[str, Any] = {"style_encoder": {"whisper": "tiny.en"}}
    config |= {"sha256": {"kokoro": recorded}} if recorded else {}
    config |= {"sources": {"kokoro": source}} if source else {}
    models = SimpleNamespace(
        kokoro_files=SimpleNamespace(sha256=used, source=used_source),
        whisper_file=SimpleNamespace(name="tiny.en", sha256="w", source="hub"),
    )
    if fits:
        check_models("folder", config, models)
    else:
        with pytest.raises(WeightsError, match="folder: its styles are of the Kokoro with SHA-256 a, but"):
            check_models("folder", config, models)
    models.whisper_file.name = "base.en"
    with pytest.raises(WeightsError, match=r"reads the features of Whisper tiny\.en, not of base\.en"):
        check_models("folder", config, models)
