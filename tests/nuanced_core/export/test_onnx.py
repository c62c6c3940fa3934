"""Encoders as ONNX files, run by ONNX Runtime and compared with the modules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError
from nuanced_core.export import onnx as exporter
from nuanced_core.export.folder import export_encoder
from nuanced_core.export.onnx import TOLERANCE, example_inputs, write_onnx
from tests.nuanced_core.encoder.small_encoders import randomised_encoder

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

VARIANTS: list[dict[str, Any]] = [
    {"pooling": "mean", "output": "offset", "combine": "mix", "phoneme_count": "embedding"},
    {
        "pooling": "mean_std",
        "output": "span",
        "channel": "mean_std",
        "bound": 4.0,
        "speaker": "campplus",
        "pitch": True,
    },
    {"pooling": "max", "output": "blend", "residual_bound": 0.5, "trunk": "separate", "normalisation": "batch"},
    {"pooling": "attentive", "output": "span", "heads": 3, "channel": "mean", "phoneme_count": "none"},
    {"pooling": "attentive_stats", "output": "blend", "normalisation": "layer", "depth": 3, "residual": True},
    {"pooling": "queries", "output": "offset", "heads": 2, "frame_width": 6},
    {"pooling": "gru", "output": "span"},
    {"pooling": "mean_std", "surrogate_steps": 5, "surrogate_anchor": 0.3, "speaker": "campplus", "pitch": True},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_the_file_agrees_with_the_module_for_clips_of_any_number_and_length(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    encoder = randomised_encoder(**settings)
    if settings["pooling"] == "gru":
        for weights in encoder.pooling.parameters():  # as large as those of a new GRU; larger ones are chaotic
            torch.nn.init.uniform_(weights, -0.09, 0.09)
    if encoder.surrogate is not None:
        for buffer in (encoder.surrogate.points, encoder.surrogate.coefficients, encoder.surrogate.mean):
            torch.nn.init.normal_(buffer, std=0.5)
    write_onnx(encoder, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["style_encoder"]) == encoder.config.to_dict()
    for batch, frames in ((1, 4), (3, 200)):
        inputs = example_inputs(encoder, batch, frames, seed=2)
        (found,) = session.run(["styles"], {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = encoder(*inputs.values())
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE)


def test_a_file_that_differs_from_the_module_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = exporter._traced

    def traced_wrongly(encoder: StyleEncoder) -> bytes:
        encoder.mean_pack += 0.01
        data = traced(encoder)
        encoder.mean_pack -= 0.01
        return data

    monkeypatch.setattr(exporter, "_traced", traced_wrongly)
    with pytest.raises(ConfigError, match=r"differ by 0\.01"):
        export_encoder(checkpoint, tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a run"]
    monkeypatch.setattr(exporter, "_traced", traced)
    assert (export_encoder(checkpoint, tmp_path / "out", onnx=True) / "encoder.onnx").stat().st_size > 1000
