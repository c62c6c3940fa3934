"""Checkpoints of a training run: encoder and optimizer as safetensors, progress and settings as JSON metadata.

Tensors are named ``encoder.<name>`` and ``optimizer.<parameter>.<name>``. The metadata's only entry, ``progress``, is a
JSON object of the other fields of ``Checkpoint``.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.errors import DiskError, WeightsError, one_line

__all__ = ["Checkpoint", "encoder_of_checkpoint", "read_checkpoint", "write_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two steps."""

    epoch: int  # finished epochs
    step: int  # finished steps
    best_loss: float  # lowest val/loss, infinite before the first validation
    best_epoch: int  # the epoch after which it was reached
    scalars: dict[str, float]  # of the last finished epoch
    style_encoder: dict[str, Any]  # StyleEncoderConfig as JSON
    run: dict[str, Any]  # RunConfig as JSON
    encoder: dict[str, Tensor]  # its state_dict
    optimizer: dict[int, dict[str, Tensor]]  # its state by number of the parameter


def write_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        DiskError: it cannot be written.
    """
    tensors = {f"encoder.{name}": tensor for name, tensor in checkpoint.encoder.items()}
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    progress = {
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "best_loss": checkpoint.best_loss if math.isfinite(checkpoint.best_loss) else None,
        "best_epoch": checkpoint.best_epoch,
        "scalars": checkpoint.scalars,
        "style_encoder": checkpoint.style_encoder,
        "run": checkpoint.run,
    }
    part = file.with_name(file.name + ".part")
    try:
        contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contents, part, {"progress": json.dumps(progress)})
        part.replace(file)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{file}: cannot be written: {error}; free some disk") from None


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint that ``write_checkpoint`` wrote.

    Raises:
        WeightsError: the file is missing or damaged.
        ConfigError: the checkpoint's encoder is of another version of this project.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            progress = json.loads(opened.metadata()["progress"])
            StyleEncoderConfig.from_dict(progress["style_encoder"], str(file))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        best_loss = progress.pop("best_loss")
        encoder: dict[str, Tensor] = {}
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part == "encoder":
                encoder[rest] = tensor
            elif part == "optimizer":
                index, _, key = rest.partition(".")
                optimizer.setdefault(int(index), {})[key] = tensor
        return Checkpoint(
            best_loss=math.inf if best_loss is None else best_loss, encoder=encoder, optimizer=optimizer, **progress
        )
    except FileNotFoundError:
        raise WeightsError(f"{file}: no such checkpoint; has a trial finished an epoch?") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file}: not a checkpoint: {one_line(error)}; remove it to train from the start") from None


def encoder_of_checkpoint(file: Path) -> StyleEncoder:
    """Return the encoder of a checkpoint, in eval mode.

    Raises:
        WeightsError: the file is missing or damaged.
        ConfigError: the checkpoint's encoder is of another version of this project.
    """
    checkpoint = read_checkpoint(file)
    config = StyleEncoderConfig.from_dict(checkpoint.style_encoder, str(file))
    try:
        return StyleEncoder.from_weights(config, checkpoint.encoder)
    except ValueError as error:
        raise WeightsError(f"{file}: its weights do not fit its settings: {error}") from None
