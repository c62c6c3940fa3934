"""Checkpoints: the file format, and damaged, missing and outdated files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder import checkpoint as checkpoint_module
from nuanced_core.encoder.checkpoint import Checkpoint, encoder_of_checkpoint, read_checkpoint, write_checkpoint
from nuanced_core.errors import ConfigError, DiskError, WeightsError
from tests.nuanced_core.encoder.small_encoders import small_encoder


@pytest.fixture
def checkpoint() -> Checkpoint:
    """A checkpoint of a small encoder after a step of AdamW."""
    encoder = small_encoder()
    optimizer = torch.optim.AdamW(encoder.parameters())
    sum(parameter.square().sum() for parameter in encoder.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return Checkpoint(
        epoch=2,
        step=40,
        best_loss=1.5,
        best_epoch=1,
        scalars={"val/loss": 1.75},
        style_encoder=encoder.config.to_dict(),
        run=RunConfig().model_dump(mode="json"),
        encoder=encoder.state_dict(),
        optimizer=optimizer.state_dict()["state"],
    )


def _same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoint_is_read_as_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", checkpoint)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert _same_tensors(found.encoder, checkpoint.encoder)
    assert found.optimizer.keys() == checkpoint.optimizer.keys() != set()
    for index, state in found.optimizer.items():
        assert _same_tensors(state, checkpoint.optimizer[index])
    assert replace(found, encoder={}, optimizer={}) == replace(checkpoint, encoder={}, optimizer={})


def test_format_is_that_of_earlier_versions(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", checkpoint)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert list(metadata) == ["progress"]
    progress = json.loads(metadata["progress"])
    assert list(progress) == ["epoch", "step", "best_loss", "best_epoch", "scalars", "style_encoder", "run"]
    assert progress["best_loss"] == 1.5 and progress["run"] == checkpoint.run
    assert {"encoder.mean_pack", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq", "optimizer.0.step"} <= names


def test_infinite_loss_is_null_in_the_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, best_loss=math.inf, optimizer={}))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["progress"])["best_loss"] is None
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.best_loss == math.inf and found.optimizer == {}


def test_missing_and_damaged_files_are_errors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(WeightsError, match=r"a\.safetensors: no such checkpoint"):
        read_checkpoint(file)
    write_checkpoint(file, checkpoint)
    whole = file.read_bytes()
    for contents in (b"", b"junk" * 10, whole[: len(whole) // 2]):
        file.write_bytes(contents)
        with pytest.raises(WeightsError, match=r"a\.safetensors: not a checkpoint: .*; remove it"):
            read_checkpoint(file)
    progress = {"style_encoder": checkpoint.style_encoder}
    for metadata in ({}, {"progress": "{"}, {"progress": json.dumps(progress)}):
        save_file(checkpoint.encoder, file, metadata)
        with pytest.raises(WeightsError, match="not a checkpoint"):
            read_checkpoint(file)


def test_encoder_of_another_version_is_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, style_encoder={"whisper": "tiny.en"}))
    with pytest.raises(ConfigError, match=r"a\.safetensors: .*not a StyleEncoder of this version"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_failed_write_leaves_the_old_file(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "a.safetensors", checkpoint)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(DiskError, match=r"a\.safetensors: cannot be written: .*No space left"):
        write_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, epoch=3))
    assert read_checkpoint(tmp_path / "a.safetensors").epoch == 2


def test_the_encoder_of_a_checkpoint_is_that_which_was_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", checkpoint)
    encoder = encoder_of_checkpoint(tmp_path / "a.safetensors")
    assert not encoder.training
    assert _same_tensors(dict(encoder.state_dict()), checkpoint.encoder)


def test_weights_of_another_encoder_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name, *_ = checkpoint.encoder
    others = {key: tensor for key, tensor in checkpoint.encoder.items() if key != name}
    write_checkpoint(tmp_path / "a.safetensors", replace(checkpoint, encoder=others))
    with pytest.raises(WeightsError, match=r"a\.safetensors: its weights do not fit"):
        encoder_of_checkpoint(tmp_path / "a.safetensors")
