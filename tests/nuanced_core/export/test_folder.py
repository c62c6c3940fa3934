"""Export of a checkpoint to a folder with weights, configuration and model card."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from nuanced_core import StyleEncoder
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.errors import ConfigError, DiskError, WeightsError
from nuanced_core.exhibits.listening import ListeningClip, write_listening
from nuanced_core.export.folder import export_encoder
from nuanced_core.training.run import BEST, Run, start_run
from tests.fakes import VOICES
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


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_exported_files_have_the_mode_of_the_umask(umask: int, mode: int, checkpoint: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        folder = export_encoder(checkpoint, tmp_path / "out")
    finally:
        os.umask(before)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors"), mode
    )


def test_weights_that_are_cut_off_or_changed_are_refused_and_older_folders_are_loaded(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = export_encoder(checkpoint, tmp_path / "out", hashes={"kokoro": "k" * 64, "phonemizer": "espeak"})
    weights, config = folder / "model.safetensors", folder / "config.json"
    content, data = weights.read_bytes(), json.loads(config.read_text())
    assert data["sha256"] == {"model.safetensors": hashlib.sha256(content).hexdigest(), "kokoro": "k" * 64}
    for damaged in (content[:-8], content[:100], content[:-1] + bytes([content[-1] ^ 1])):
        weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"model\.safetensors: SHA-256 .* cut off or changed"):
            StyleEncoder.from_pretrained(folder)
    weights.write_bytes(content)
    del data["sha256"]
    config.write_text(json.dumps(data))
    StyleEncoder.from_pretrained(folder)
    weights.write_bytes(content[:-8])
    with pytest.raises(WeightsError, match="cut off, or no safetensors file"):
        StyleEncoder.from_pretrained(folder)
    torch.save({"mean_pack": torch.zeros(510, 256)}, weights)  # which would have to be unpickled
    with pytest.raises(WeightsError, match="cut off, or no safetensors file"):
        StyleEncoder.from_pretrained(folder)


def test_samples_of_stock_voices_are_in_the_card_and_those_of_people_are_not(checkpoint: Path, tmp_path: Path) -> None:
    kinds = ("heard", "spoken", "mean", "nearest")
    sounds = {kind: (torch.zeros(2400), 24_000) for kind in kinds}
    person = ListeningClip("a person", "reader 7", "clean", "Red door.", "af_heart", sounds)
    stock = ListeningClip("a voice", "af_sky", "room", "Red door.", "af_heart", sounds | {"reference": sounds["heard"]})
    write_listening(checkpoint.parent.parent / "listening", [person, stock], epoch=1, step=3, val_loss=1.0)
    folder = export_encoder(checkpoint, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert '| af_sky | room | <audio controls src="samples/1_heard.mp3"></audio> |' in card and "reader 7" not in card
    names = {f"1_{kind}.mp3" for kind in (*kinds, "reference")}
    assert {file.name for file in (folder / "samples").iterdir()} == names
    assert "## Consent" in card and "## Training data and licences" in card


@pytest.mark.parametrize(("missing", "left"), [(0, [1, 2]), (2, [0, 1])])
def test_a_clip_whose_sounds_cannot_be_read_is_left_out(
    checkpoint: Path, tmp_path: Path, missing: int, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = {kind: (torch.zeros(2400), 24_000) for kind in ("heard", "spoken", "reference")}
    clips = [ListeningClip("a voice", voice, "room", "Red door.", "af_heart", sounds) for voice in VOICES[:3]]
    listening = checkpoint.parent.parent / "listening"
    write_listening(listening, clips, epoch=1, step=3, val_loss=1.0)
    (listening / f"{missing}_spoken.mp3").unlink()
    folder = export_encoder(checkpoint, tmp_path / "out")
    expected = {f"{clip}_{kind}.mp3" for clip in left for kind in sounds}
    assert {file.name for file in (folder / "samples").iterdir()} == expected
    card = (folder / "README.md").read_text()
    assert [f"| {voice} | room |" in card for voice in VOICES[:3]] == [clip in left for clip in range(3)]

    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.parent.name == "samples":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskError, match=r"new: cannot be written: .*No space left"):
        export_encoder(checkpoint, tmp_path / "new")
    assert not (tmp_path / "new").exists()
