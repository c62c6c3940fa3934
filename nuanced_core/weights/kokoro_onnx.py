"""Kokoro-82M's int8 ONNX export turned into the state dicts that KModel loads.

The weights are de-quantized once: value = scale * (quantized - zero point). The export de-duplicated its
initializers, so scales and zero points are found through the graph (which node reads them), never by name.
Dimensions: h = LSTM hidden size; k = kernel size.
"""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError

__all__ = ["check_loads", "kokoro_config", "state_dicts"]

Array = npt.NDArray[Any]

_GROUPS = ("bert", "bert_encoder", "predictor", "text_encoder", "decoder")
_PREDICTOR_PARTS = ("F0", "N", "F0_proj", "N_proj", "shared")  # the export calls them without `predictor`
_PLAIN_CONVOLUTIONS = ("F0_proj", "N_proj", "noise_convs.0", "noise_convs.1")  # without weight norm
_IOFC_TO_IFGO = (0, 2, 3, 1)  # ONNX gate order to PyTorch's


def kokoro_config(vocab: dict[str, int]) -> dict[str, Any]:
    """Return Kokoro-82M's config.json, with the phoneme vocabulary put in."""
    return {
        "istftnet": {
            "upsample_kernel_sizes": [20, 12],
            "upsample_rates": [10, 6],
            "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20,
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_initial_channel": 512,
        },
        "dim_in": 64,
        "dropout": 0.2,
        "hidden_dim": 512,
        "max_conv_dim": 512,
        "max_dur": 50,
        "multispeaker": True,
        "n_layer": 3,
        "n_mels": 80,
        "n_token": 178,
        "style_dim": 128,
        "text_encoder_kernel_size": 5,
        "plbert": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 2048,
            "max_position_embeddings": 512,
            "num_hidden_layers": 12,
            "dropout": 0.1,
        },
        "vocab": vocab,
    }


def state_dicts(onnx_bytes: bytes) -> dict[str, dict[str, Any]]:
    """Return the five state dicts of float32 tensors that KModel loads, under KModel's own names.

    BERT's pooler, which Kokoro never calls and the export lacks, is zeros; the affine part of the instance
    norms, which the export dropped as the identity, is ones and zeros.
    """
    import onnx
    import torch

    graph = _Graph(onnx.load_from_string(onnx_bytes).graph)
    weights = dict(graph.named())
    for node in graph.nodes:
        weights.update(_weights_of(graph, node))
    for name in [name for name in weights if re.search(r"\.(norm\d|adain\d\.\d)\.fc\.bias$", name)]:
        channels = len(weights[name]) // 2
        norm = name.removesuffix("fc.bias") + "norm."
        weights[norm + "weight"] = np.ones(channels, np.float32)
        weights[norm + "bias"] = np.zeros(channels, np.float32)
    hidden = len(weights["bert.encoder.embedding_hidden_mapping_in.bias"])
    weights["bert.pooler.weight"] = np.zeros((hidden, hidden), np.float32)
    weights["bert.pooler.bias"] = np.zeros(hidden, np.float32)

    groups: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    for name, value in sorted(weights.items()):
        group, _, rest = name.partition(".")
        groups[group][rest] = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
    return groups


def check_loads(config: Path, model: Path) -> None:
    """Raise WeightsError unless KModel has exactly the parameters of the file, all finite and without NaN.

    KModel itself does not say when names disagree: it loads what fits and keeps random numbers for the rest.
    """
    import torch
    from kokoro import KModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's notes on weight_norm and dropout are not for our users
        kmodel = KModel(repo_id="hexgrad/Kokoro-82M", config=str(config), model=str(model))
    for group, saved in torch.load(model, map_location="cpu", weights_only=True).items():
        loaded = getattr(kmodel, group).state_dict()
        if differing := sorted(saved.keys() ^ loaded.keys()):
            raise WeightsError(f"{model.name}: {group} lacks or has too much: {', '.join(differing[:5])}")
        for name, value in saved.items():
            if not torch.equal(value, loaded[name]) or not value.isfinite().all():
                raise WeightsError(f"{model.name}: {group}.{name} was not loaded or is not finite")
            # The direction of a weight norm is divided by its length.
            if name.endswith("weight_v") and (value.flatten(1).norm(dim=1) == 0).any():
                raise WeightsError(f"{model.name}: {group}.{name} has a row of zeros, which becomes NaN")


class _Graph:
    """An ONNX graph with its constants as arrays and the way from a value to its maker and its readers."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.nodes: list[Any] = list(graph.node)
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._maker = {output: node for node in self.nodes for output in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def named(self) -> Iterable[tuple[str, Array]]:
        """Yield the float constants that kept their parameter's name: biases, norms, Snake alphas."""
        for name, value in self.constants.items():
            match = re.fullmatch(r"(?:encoder|decoder)\.(.*\.(?:bias|weight|gamma|beta|alpha[12]\.\d))", name)
            if match and value.dtype == np.float32:
                yield match[1], value

    def weight_scale(self, node: Any) -> Array:
        """Return the constant factor that the integer result of `node` is multiplied by."""
        value = node.output[0]
        while True:
            (reader,) = self._readers[value]
            if reader.op_type == "Mul":
                break
            value = reader.output[0]
        factor = next(name for name in reader.input if name != value)
        product = self._maker[factor]  # scale of the activations * scale of the weight
        return next(self.constants[name] for name in product.input if name in self.constants)

    def embedding_scale(self, node: Any) -> tuple[Array, Array]:
        """Return the scale and zero point of a quantized Gather."""
        (reader,) = self._readers[node.output[0]]
        return self.constants[reader.input[1]], self.constants[reader.input[2]]


def _weights_of(graph: _Graph, node: Any) -> dict[str, Array]:
    """Return the parameters that a node holds, by KModel's names; none for a node without weights."""
    if node.op_type == "DynamicQuantizeLSTM":
        return _lstm(graph, node)
    if len(node.input) < 2:
        return {}
    constant = graph.constants.get(node.input[0 if node.op_type == "Gather" else 1])
    module = _module(node.name)
    if constant is None or constant.ndim < 2 or ".stft" in module:
        return {}
    if node.op_type == "MatMulInteger":  # (in, out), one scale per column
        zero = graph.constants[node.input[3]]
        return {f"{module}.weight": _dequantize(constant, graph.weight_scale(node), zero).T}
    if node.op_type == "ConvInteger":  # (out, in, k), one scale
        zero = graph.constants[node.input[3]]
        return _convolution(module, _dequantize(constant, graph.weight_scale(node), zero))
    if node.op_type in {"Conv", "ConvTranspose"}:
        return _convolution(module, constant)
    if node.op_type == "Gather" and constant.dtype == np.int8:  # (rows, width)
        return {f"{module}.weight": _dequantize(constant, *graph.embedding_scale(node))}
    if node.op_type == "MatMul":  # (in, out)
        return {f"{module}.weight": constant.T}
    return {}


def _dequantize(quantized: Array, scale: Array, zero: Array) -> Array:
    return scale * (quantized.astype(np.float32) - zero.astype(np.float32))


def _convolution(module: str, weight: Array) -> dict[str, Array]:
    if module.endswith(_PLAIN_CONVOLUTIONS):
        return {f"{module}.weight": weight}
    # Weight norm, w = g v / |v| (Salimans and Kingma 2016), with v = w and g = |w| for each first index.
    length = np.sqrt(np.square(weight, dtype=np.float64).sum(axis=(1, 2), keepdims=True)).astype(np.float32)
    # A row that quantized to zeros has no direction: any v with g = 0 says the same without 0 / 0.
    return {f"{module}.weight_g": length, f"{module}.weight_v": np.where(length > 0, weight, np.float32(1))}


def _lstm(graph: _Graph, node: Any) -> dict[str, Array]:
    """Return the weights of a two-directional DynamicQuantizeLSTM, W (2, in, 4h), R (2, h, 4h), B (2, 8h)."""
    _, w, r, b, _, _, _, _, w_scale, w_zero, r_scale, r_zero = [graph.constants.get(i) for i in node.input]
    if w is None or r is None or b is None or w_scale is None or r_scale is None:
        raise WeightsError(f"{node.name}: an LSTM without constant weights; this ONNX export is not a known one")
    if w_zero is None or r_zero is None:
        raise WeightsError(f"{node.name}: an LSTM without zero points; this ONNX export is not a known one")
    module, weights = _module(node.name), {}
    for direction, suffix in enumerate(("", "_reverse")):
        w_bias, r_bias = np.split(b[direction], 2)
        w_float = _dequantize(w[direction], w_scale[direction], w_zero[direction]).T  # (4h, in)
        r_float = _dequantize(r[direction], r_scale[direction], r_zero[direction]).T  # (4h, h)
        for name, value in (
            ("weight_ih", w_float),
            ("weight_hh", r_float),
            ("bias_ih", w_bias),
            ("bias_hh", r_bias),
        ):
            gates = np.split(value, 4)
            weights[f"{module}.{name}_l0{suffix}"] = np.concatenate([gates[i] for i in _IOFC_TO_IFGO])
    return weights


def _module(node_name: str) -> str:
    """Return KModel's name of the module that a node belongs to.

    The node's path is the module's, led by `encoder` or `decoder`, with each list's element after its list
    (`cnn.0/cnn.0.0`) and a count on a module that is called again (`ffn_2`: ALBERT's shared layer).
    """
    parts: list[str] = []
    for part in node_name.strip("/").split("/")[1:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(part)
    module = ".".join(parts)
    if module.startswith("bert.encoder."):
        module = re.sub(r"_\d+(?=\.|$)", "", module)
    return f"predictor.{module}" if module.split(".")[0] in _PREDICTOR_PARTS else module
