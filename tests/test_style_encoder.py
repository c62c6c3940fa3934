import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core import StyleEncoder
from nuanced_core.config import Encoder, RunConfig
from nuanced_core.dataset import Dataset
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.export import export_encoder
from nuanced_core.pooling import POOLINGS
from nuanced_core.style_encoder import ACTIVATIONS, FeatureStatistics, StyleEncoderConfig
from nuanced_core.training import BEST, Run


def _encoder(**settings: object) -> StyleEncoder:
    torch.manual_seed(0)
    encoder = StyleEncoder(StyleEncoderConfig(Encoder(**{"width": 8, **settings}), "tiny.en", (1, 2), 4))
    generator = torch.Generator().manual_seed(1)
    statistics = FeatureStatistics(torch.randn(2, 4, generator=generator), torch.rand(2, 4, generator=generator) + 1)
    encoder.calibrate(statistics, torch.randn(510, 256, generator=generator), torch.rand(256, generator=generator))
    return encoder


def _clips() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features = torch.randn(3, 2, 7, 4, generator=torch.Generator().manual_seed(2))
    return features, torch.arange(7) < torch.tensor([[7], [4], [1]]), torch.tensor([1, 40, 600])


def test_untrained_it_is_the_mean_voice_for_the_phoneme_count() -> None:
    encoder = _encoder()
    torch.testing.assert_close(encoder(*_clips()), encoder.mean_pack[[0, 39, 509]])


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_padding_never_matters(pooling: str, activation: str) -> None:
    encoder = _encoder(pooling=pooling, activation=activation, depth=3).eval()
    torch.nn.init.normal_(encoder.head.weight)
    features, mask, counts = _clips()
    styles = encoder(features, mask, counts)
    alone = encoder(features[1:2, :, :4], mask[1:2, :4], counts[1:2])
    torch.testing.assert_close(styles[1:2], alone)
    assert (styles[0] - styles[1]).abs().max() > 1e-3


def test_a_pack_has_a_row_per_phoneme_count() -> None:
    encoder = _encoder().eval()
    torch.nn.init.normal_(encoder.head.weight)
    features, mask, _ = _clips()
    pack = encoder.pack(features[:1], mask[:1])
    assert pack.shape == (510, 1, 256)
    for count in (1, 77, 510):
        torch.testing.assert_close(pack[count - 1], encoder(features[:1], mask[:1], torch.tensor([count])))


@pytest.fixture
def exported(tmp_path: Path, fakes: SimpleNamespace, tiny_run: RunConfig) -> tuple[Run, Path]:
    run = Run(tiny_run, Dataset(fakes, tmp_path / "cache"), tmp_path / "run", lambda step, scalars: None)
    run.run_epoch()
    return run, export_encoder(tmp_path / "run" / BEST, tmp_path / "models" / "mine", {"val/skill": 0.25})


def test_an_exported_encoder_says_the_same(exported: tuple[Run, Path]) -> None:
    run, folder = exported
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]
    encoder = StyleEncoder.from_pretrained(folder)
    batch = run._val_batch
    inputs = (batch.features, batch.mask, batch.phoneme_counts)
    torch.testing.assert_close(encoder(*inputs), run.encoder.eval()(*inputs))
    config = json.loads((folder / "config.json").read_text())
    assert config["style_encoder"]["whisper"] == "tiny.en"
    assert config["facts"]["val/skill"] == 0.25
    card = (folder / "README.md").read_text()
    assert "# mine" in card and "| val/skill | 0.25 |" in card


def test_export_refuses_what_exists_and_what_is_no_checkpoint(exported: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = exported
    with pytest.raises(ConfigError, match="exists"):
        export_encoder(run.folder / BEST, folder)
    with pytest.raises(WeightsError, match="no such checkpoint"):
        export_encoder(tmp_path / "none.safetensors", tmp_path / "new")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        export_encoder(tmp_path / "junk.safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_encoder_is_told(exported: tuple[Run, Path], tmp_path: Path) -> None:
    _, folder = exported
    with pytest.raises(WeightsError, match="no such file"):
        StyleEncoder.from_pretrained(tmp_path)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(WeightsError, match="does not fit"):
        StyleEncoder.from_pretrained(folder)
    config.write_text(text.replace('"pooling": "mean"', '"pooling": "men"'))
    with pytest.raises(ConfigError, match="pooling"):
        StyleEncoder.from_pretrained(folder)
    config.write_text("{")
    with pytest.raises(ConfigError, match="not a StyleEncoder's configuration"):
        StyleEncoder.from_pretrained(folder)
