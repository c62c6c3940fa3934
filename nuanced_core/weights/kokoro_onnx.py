"""Conversion of Kokoro-82M's int8 ONNX export to the state dicts that KModel loads.

The weights are dequantized: value = scale * (quantized - zero point). The export shares equal initializers between
nodes, so scales and zero points are found through the nodes that read them, never by name.
Dimensions: h LSTM hidden size, k kernel size.
"""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError, one_line

__all__ = ["check_loads", "kokoro_config", "state_dicts"]

Array = npt.NDArray[Any]

_GROUPS = ("bert", "bert_encoder", "predictor", "text_encoder", "decoder")
_PREDICTOR_PARTS = ("F0", "N", "F0_proj", "N_proj", "shared")  # their names in the export lack ``predictor``
_CONVOLUTIONS_WITHOUT_WEIGHT_NORM = ("F0_proj", "N_proj", "noise_convs.0", "noise_convs.1")
_MOST_HIDDEN = 4096  # channels of BERT, of which Kokoro-82M has 768: the square of a file's number is allocated
_FIX = "fetch it again, or use the source hub or a folder"
_IOFC_TO_IFGO = (0, 2, 3, 1)  # from the gate order of ONNX to that of PyTorch


def kokoro_config(vocab: dict[str, int]) -> dict[str, Any]:
    """Return the contents of Kokoro-82M's config.json with the given phoneme vocabulary."""
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
    """Convert the export to the five state dicts of float32 tensors that KModel loads, by KModel's names.

    Parameters that the export lacks are added: BERT's pooler, which Kokoro never calls, as zeros, and the affine part
    of the instance norms, which is the identity, as ones and zeros.

    Raises:
        WeightsError: it is no ONNX file, is damaged, or has other nodes and constants than that export.
    """
    import onnx

    try:
        return _converted(_Graph(onnx.load_from_string(onnx_bytes).graph))
    except WeightsError:
        raise
    except Exception as error:  # of any type: protobuf and onnx raise their own; names and shapes are of the file
        reason = one_line(error)
        raise WeightsError(f"Kokoro's ONNX: damaged ({type(error).__name__}: {reason}); {_FIX}") from error


def _converted(graph: "_Graph") -> dict[str, dict[str, Any]]:
    import torch

    weights = dict(graph.named_constants())
    for node in graph.nodes:
        weights.update(_node_weights(graph, node))
    for name in [name for name in weights if re.search(r"\.(norm\d|adain\d\.\d)\.fc\.bias$", name)]:
        channels = len(weights[name]) // 2
        norm = name.removesuffix("fc.bias") + "norm."
        weights[norm + "weight"] = np.ones(channels, np.float32)
        weights[norm + "bias"] = np.zeros(channels, np.float32)
    hidden = len(weights["bert.encoder.embedding_hidden_mapping_in.bias"])
    if hidden > _MOST_HIDDEN:
        raise WeightsError(f"Kokoro's ONNX: BERT has {hidden} channels, more than {_MOST_HIDDEN}; {_FIX}")
    weights["bert.pooler.weight"] = np.zeros((hidden, hidden), np.float32)
    weights["bert.pooler.bias"] = np.zeros(hidden, np.float32)

    groups: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    for name, value in sorted(weights.items()):
        group, _, rest = name.partition(".")
        groups[group][rest] = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
    return groups


def check_loads(config: Path, model: Path) -> None:
    """Check that KModel loads exactly the parameters of the file, and that all are finite.

    KModel itself does not report names that differ: it loads the matching parameters and leaves the others random.

    Raises:
        WeightsError: a parameter is missing, unknown, not loaded, or not finite, or its weight norm gives NaN.
    """
    import torch
    from kokoro import KModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's warnings about weight_norm and dropout do not concern users
        kmodel = KModel(repo_id="hexgrad/Kokoro-82M", config=str(config), model=str(model))
    for group, saved in torch.load(model, map_location="cpu", weights_only=True).items():
        loaded = getattr(kmodel, group).state_dict()
        if differing := sorted(saved.keys() ^ loaded.keys()):
            raise WeightsError(f"{model.name}: {group} has missing or unknown parameters: {', '.join(differing[:5])}")
        for name, value in saved.items():
            if not torch.equal(value, loaded[name]) or not value.isfinite().all():
                raise WeightsError(f"{model.name}: {group}.{name} was not loaded or is not finite")
            # Weight norm divides the direction by its length.
            if name.endswith("weight_v") and (value.flatten(1).norm(dim=1) == 0).any():
                raise WeightsError(f"{model.name}: {group}.{name} has a row of zeros, which becomes NaN")


class _Graph:
    """An ONNX graph: its constants as arrays, and the producer and the consumers of each value."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.nodes: list[Any] = list(graph.node)
        if outside := [i.name for i in graph.initializer if i.external_data]:
            raise WeightsError(f"Kokoro's ONNX: {outside[0]!r} is in another file, which is not read; {_FIX}")
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        self._producers = {output: node for node in self.nodes for output in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def named_constants(self) -> Iterable[tuple[str, Array]]:
        """Yield the float constants that have the name of their parameter: biases, norms, Snake alphas."""
        for name, value in self.constants.items():
            match = re.fullmatch(r"(?:encoder|decoder)\.(.*\.(?:bias|weight|gamma|beta|alpha[12]\.\d))", name)
            if match and value.dtype == np.float32:
                yield match[1], value

    def weight_scale(self, node: Any) -> Array:
        """Return the constant factor by which the integer result of ``node`` is multiplied."""
        value = node.output[0]
        seen: set[str] = set()
        while True:
            if value in seen:
                raise WeightsError(f"Kokoro's ONNX: {value!r} is computed from itself; {_FIX}")
            seen.add(value)
            (consumer,) = self._consumers[value]
            if consumer.op_type == "Mul":
                break
            value = consumer.output[0]
        factor = next(name for name in consumer.input if name != value)
        product = self._producers[factor]  # scale of the activations * scale of the weight
        return next(self.constants[name] for name in product.input if name in self.constants)

    def embedding_scale(self, node: Any) -> tuple[Array, Array]:
        """Return the scale and zero point of a quantized Gather."""
        (consumer,) = self._consumers[node.output[0]]
        return self.constants[consumer.input[1]], self.constants[consumer.input[2]]


def _node_weights(graph: _Graph, node: Any) -> dict[str, Array]:
    """Return the parameters of a node by KModel's names; none for a node without weights."""
    if node.op_type == "DynamicQuantizeLSTM":
        return _lstm_weights(graph, node)
    if len(node.input) < 2:
        return {}
    constant = graph.constants.get(node.input[0 if node.op_type == "Gather" else 1])
    module = _module_name(node.name)
    if constant is None or constant.ndim < 2 or ".stft" in module:
        return {}
    if node.op_type == "MatMulInteger":  # (in, out), one scale per column
        zero = graph.constants[node.input[3]]
        return {f"{module}.weight": _dequantize(constant, graph.weight_scale(node), zero).T}
    if node.op_type == "ConvInteger":  # (out, in, k), one scale
        zero = graph.constants[node.input[3]]
        return _convolution_weights(module, _dequantize(constant, graph.weight_scale(node), zero))
    if node.op_type in {"Conv", "ConvTranspose"}:
        return _convolution_weights(module, constant)
    if node.op_type == "Gather" and constant.dtype == np.int8:  # (rows, width)
        return {f"{module}.weight": _dequantize(constant, *graph.embedding_scale(node))}
    if node.op_type == "MatMul":  # (in, out)
        return {f"{module}.weight": constant.T}
    return {}


def _dequantize(quantized: Array, scale: Array, zero: Array) -> Array:
    if np.broadcast_shapes(quantized.shape, scale.shape, zero.shape) != quantized.shape:
        raise WeightsError(f"Kokoro's ONNX: scales {scale.shape} do not fit weights {quantized.shape}; {_FIX}")
    return scale * (quantized.astype(np.float32) - zero.astype(np.float32))


def _convolution_weights(module: str, weight: Array) -> dict[str, Array]:
    if module.endswith(_CONVOLUTIONS_WITHOUT_WEIGHT_NORM):
        return {f"{module}.weight": weight}
    # Weight norm, w = g v / |v| (Salimans and Kingma 2016), with v = w and g = |w| for each first index.
    length = np.sqrt(np.square(weight, dtype=np.float64).sum(axis=(1, 2), keepdims=True)).astype(np.float32)
    # A row that quantized to zeros has no direction: with g = 0, any other v gives the same weights, without 0 / 0.
    return {f"{module}.weight_g": length, f"{module}.weight_v": np.where(length > 0, weight, np.float32(1))}


def _lstm_weights(graph: _Graph, node: Any) -> dict[str, Array]:
    """Return the weights of a bidirectional DynamicQuantizeLSTM, W (2, in, 4h), R (2, h, 4h), B (2, 8h)."""
    _, w, r, b, _, _, _, _, w_scale, w_zero, r_scale, r_zero = [graph.constants.get(i) for i in node.input]
    if w is None or r is None or b is None or w_scale is None or r_scale is None:
        raise WeightsError(f"{node.name}: the LSTM has no constant weights; this ONNX export is not supported")
    if w_zero is None or r_zero is None:
        raise WeightsError(f"{node.name}: the LSTM has no zero points; this ONNX export is not supported")
    module, weights = _module_name(node.name), {}
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


def _module_name(node_name: str) -> str:
    """Return KModel's name of the module to which a node belongs.

    The path of a node is that of its module after ``encoder`` or ``decoder``. An element of a list follows its list
    (``cnn.0/cnn.0.0``), and a module that is called repeatedly has a counter (``ffn_2``: ALBERT's shared layer).
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
