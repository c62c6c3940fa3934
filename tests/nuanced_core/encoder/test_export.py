"""Export of a checkpoint to a folder with weights, configuration and model card."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from nuanced_core import StyleEncoder
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.encoder.export import export_encoder
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.training.run import BEST, Run, start_run
from tests.nuanced_core.encoder.small_encoders import SPACE


@pytest.fixture(params=SPACE["output"])
def exported(
    tmp_path: Path, fakes: SimpleNamespace, tiny_run: RunConfig, request: pytest.FixtureRequest
) -> tuple[Run, Path]:
    data = apply_overrides(tiny_run.model_dump(mode="json"), [f"encoder.output={request.param}"])
    config = validate(RunConfig, data, "tiny")
    run = start_run(config, tmp_path / "run", lambda *reported: None, fakes, tmp_path / "cache")  # type: ignore[arg-type]
    run.run_epoch()
    return run, export_encoder(tmp_path / "run" / BEST, tmp_path / "models" / "mine", {"val/skill": 0.25})


def test_exported_encoder_gives_the_same_styles(exported: tuple[Run, Path]) -> None:
    run, folder = exported
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["mine"]
    encoder = StyleEncoder.from_pretrained(folder)
    assert encoder.config.encoder == run.config.encoder and encoder.config.features == run.config.features
    batch = run.data.validation_batch
    inputs = (batch.features, batch.mask, batch.phoneme_counts)
    torch.testing.assert_close(encoder(*inputs), run.encoder.eval()(*inputs))
    config = json.loads((folder / "config.json").read_text())
    assert config["style_encoder"]["whisper"] == "tiny.en"
    assert config["facts"]["val/skill"] == 0.25
    card = (folder / "README.md").read_text()
    assert "# mine" in card and "| val/skill | 0.25 |" in card


def test_export_raises_for_an_existing_folder_or_an_invalid_checkpoint(
    exported: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = exported
    with pytest.raises(ConfigError, match="exists"):
        export_encoder(run.folder / BEST, folder)
    with pytest.raises(WeightsError, match="no such checkpoint"):
        export_encoder(tmp_path / "none.safetensors", tmp_path / "new")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        export_encoder(tmp_path / "junk.safetensors", tmp_path / "new")
    old = json.dumps({"style_encoder": {"whisper": "tiny.en", "layers": [1], "channels": 4}})
    save_file({"encoder.mean_pack": torch.zeros(510, 256)}, tmp_path / "old.safetensors", {"progress": old})
    with pytest.raises(ConfigError, match=r"old\.safetensors: encoder: .*not a StyleEncoder of this version"):
        export_encoder(tmp_path / "old.safetensors", tmp_path / "new")
    assert not (tmp_path / "new").exists()
