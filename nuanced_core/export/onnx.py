"""A StyleEncoder as an ONNX file: Whisper features and phoneme counts → styles.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, E channels of the speaker's description, S = 256.
"""

import json
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError
from nuanced_core.kokoro.model import PACK_ROWS

__all__ = ["ONNX_FILE", "TOLERANCE", "example_inputs", "write_onnx"]

ONNX_FILE = "encoder.onnx"
TOLERANCE = 1e-4  # greatest difference of a style's channel between the module and the file
OPSET = 17


def example_inputs(encoder: StyleEncoder, batch: int = 2, frames: int = 50, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs of an encoder by their names in the file.

    They are ``features`` (B, L, T, D), ``mask`` (B, T), of which the last item's second half is padding,
    ``phoneme_counts`` (B,) and, if E is not 0, ``speaker`` (B, E).
    """
    generator = torch.Generator().manual_seed(seed)
    config = encoder.config
    mask = torch.ones(batch, frames, dtype=torch.bool)
    mask[-1, frames // 2 :] = False
    inputs = {
        "features": torch.randn(batch, len(config.layers), frames, config.channels, generator=generator),
        "mask": mask,
        "phoneme_counts": torch.randint(1, PACK_ROWS, (batch,), generator=generator),
    }
    if config.speaker_channels:
        inputs["speaker"] = torch.randn(batch, config.speaker_channels, generator=generator)
    return inputs


def write_onnx(encoder: StyleEncoder, file: Path) -> None:
    """Write an encoder as ONNX, after a comparison with the module by ONNX's reference implementation.

    Inputs are those of ``example_inputs``, of any B and T; the output is ``styles`` (B, S). The metadata property
    ``style_encoder`` is the configuration as JSON, which names Whisper's model and layers.

    Raises:
        ConfigError: the file differs from the module.
        OSError: the file cannot be written.
    """
    encoder = encoder.cpu().eval()
    data = _traced(encoder)
    difference = _difference(encoder, data)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"--onnx: the styles of the file differ by {difference:.2g} from the module's, more than {TOLERANCE}; "
            "leave --onnx out, and report these settings as a bug"
        )
    file.write_bytes(data)


def _traced(encoder: StyleEncoder) -> bytes:
    import onnx

    inputs = example_inputs(encoder)
    axes = {name: {0: "batch"} for name in inputs} | {"styles": {0: "batch"}}
    axes["features"][2] = axes["mask"][1] = "frames"
    with tempfile.TemporaryDirectory(prefix="nuanced-onnx-") as folder, warnings.catch_warnings():
        # The exporter that is based on torch.export needs onnxscript, a further dependency.
        warnings.simplefilter("ignore")
        file = Path(folder) / ONNX_FILE
        torch.onnx.export(
            encoder,
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=["styles"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(file)
    onnx.helper.set_model_props(model, {"style_encoder": json.dumps(encoder.config.to_dict())})
    return bytes(model.SerializeToString())


@torch.no_grad()
def _difference(encoder: StyleEncoder, data: bytes) -> float:
    """Return the greatest difference for a clip of another length than that of the export."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    inputs = example_inputs(encoder, batch=3, frames=31, seed=1)
    (found,) = ReferenceEvaluator(onnx.load_from_string(data)).run(
        None, {name: tensor.numpy() for name, tensor in inputs.items()}
    )
    return float((torch.from_numpy(found) - encoder(*inputs.values())).abs().max())
