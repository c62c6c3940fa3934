"""Conversion of a Whisper model from CTranslate2's ``model.bin`` (version 6) to an openai-whisper checkpoint.

Dimensions: n_state width of the model, n_ctx positions. ``ModelSpec._serialize`` of CTranslate2 defines the layout of
the file: little-endian numbers, and strings with their length and a final NUL.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError

__all__ = ["read", "whisper_checkpoint"]

Array = npt.NDArray[Any]

_VERSION = 6
_DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # indexed by the type byte


def read(data: bytes) -> dict[str, Array]:
    """Parse a ``model.bin`` and return its variables by name, including aliases.

    Raises:
        WeightsError: the file is damaged or has another version.
    """
    reader = _Reader(data)
    try:
        if (version := reader.number("I")) != _VERSION:
            raise WeightsError(
                f"CTranslate2 model: version is {version}, only {_VERSION} is supported; use the source hub or a folder"
            )
        reader.string()  # class of the spec
        reader.number("I")  # revision of the spec
        variables = dict(reader.variable() for _ in range(reader.number("I")))
        for _ in range(reader.number("I")):
            alias, target = reader.string(), reader.string()
            variables[alias] = variables[target]
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise WeightsError(
            f"CTranslate2 model: damaged at byte {reader.position} ({error}); use the source hub or a folder"
        ) from error
    return variables


def whisper_checkpoint(variables: dict[str, Array]) -> dict[str, Any]:
    """Return ``{"dims": ..., "model_state_dict": ...}``, the format that ``whisper.load_model`` reads.

    The tensors keep the precision of the file, which is float16 in the packages.

    Raises:
        WeightsError: a variable of a Whisper model is missing, or has another shape.
    """
    import torch

    try:
        state = _encoder_state(variables) | _decoder_state(variables)
        n_mels, n_audio_state = variables["encoder/conv1/weight"].shape[1::-1]
        n_vocab, n_text_state = variables["decoder/embeddings/weight"].shape
        dims = {
            "n_mels": int(n_mels),
            "n_audio_ctx": len(variables["encoder/position_encodings/encodings"]),
            "n_audio_state": int(n_audio_state),
            "n_audio_head": int(variables["encoder/num_heads"]),
            "n_audio_layer": _layer_count(variables, "encoder"),
            "n_vocab": int(n_vocab),
            "n_text_ctx": len(variables["decoder/position_encodings/encodings"]),
            "n_text_state": int(n_text_state),
            "n_text_head": int(variables["decoder/num_heads"]),
            "n_text_layer": _layer_count(variables, "decoder"),
        }
    except KeyError as error:
        raise WeightsError(
            f"CTranslate2 model: {error} is missing, so it is not a Whisper model; use the source hub or a folder"
        ) from error
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"CTranslate2 model: a variable has another shape than Whisper's ({error}); use the source hub or a folder"
        ) from error
    tensors = {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}
    return {"dims": dims, "model_state_dict": tensors}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self._data, self.position)
        self.position += struct.calcsize("<" + code)
        return int(value)

    def string(self) -> str:
        length = self.number("H")
        return self._read(length)[:-1].decode()  # without the NUL

    def variable(self) -> tuple[str, Array]:
        name = self.string()
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = _DTYPES[self.number("B")]
        return name, np.frombuffer(self._read(self.number("I")), dtype).reshape(shape)

    def _read(self, length: int) -> bytes:
        block = self._data[self.position : self.position + length]
        if len(block) < length:
            raise ValueError(f"{length} bytes expected, {len(block)} left")
        self.position += length
        return block


def _layer_count(variables: dict[str, Array], side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2})


def _encoder_state(variables: dict[str, Array]) -> dict[str, Array]:
    state = {"encoder.positional_embedding": variables["encoder/position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        state |= _linear(variables, f"encoder/{name}", f"encoder.{name}")
    for layer in range(_layer_count(variables, "encoder")):
        state |= _block(variables, f"encoder/layer_{layer}", f"encoder.blocks.{layer}")
    return state | _norm(variables, "encoder/layer_norm", "encoder.ln_post")


def _decoder_state(variables: dict[str, Array]) -> dict[str, Array]:
    state = {
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
        "decoder.positional_embedding": variables["decoder/position_encodings/encodings"],
    }
    for layer in range(_layer_count(variables, "decoder")):
        old, new = f"decoder/layer_{layer}", f"decoder.blocks.{layer}"
        state |= _block(variables, old, new)
        state |= _norm(variables, f"{old}/attention/layer_norm", f"{new}.cross_attn_ln")
        state |= _linear(variables, f"{old}/attention/linear_0", f"{new}.cross_attn.query")
        state |= _split_projections(variables, f"{old}/attention/linear_1", f"{new}.cross_attn", ("key", "value"))
        state |= _linear(variables, f"{old}/attention/linear_2", f"{new}.cross_attn.out")
    return state | _norm(variables, "decoder/layer_norm", "decoder.ln")


def _block(variables: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    return {
        **_norm(variables, f"{old}/self_attention/layer_norm", f"{new}.attn_ln"),
        **_split_projections(variables, f"{old}/self_attention/linear_0", f"{new}.attn", ("query", "key", "value")),
        **_linear(variables, f"{old}/self_attention/linear_1", f"{new}.attn.out"),
        **_norm(variables, f"{old}/ffn/layer_norm", f"{new}.mlp_ln"),
        **_linear(variables, f"{old}/ffn/linear_0", f"{new}.mlp.0"),
        **_linear(variables, f"{old}/ffn/linear_1", f"{new}.mlp.2"),
    }


def _norm(variables: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    return {f"{new}.weight": variables[f"{old}/gamma"], f"{new}.bias": variables[f"{old}/beta"]}


def _linear(variables: dict[str, Array], old: str, new: str) -> dict[str, Array]:
    return {f"{new}.weight": variables[f"{old}/weight"], f"{new}.bias": variables[f"{old}/bias"]}


def _split_projections(variables: dict[str, Array], old: str, new: str, names: tuple[str, ...]) -> dict[str, Array]:
    """Split projections that CTranslate2 concatenates along the output, (len(names) * n_state, n_state)."""
    state = {}
    weights = np.split(variables[f"{old}/weight"], len(names))
    biases = np.split(variables[f"{old}/bias"], len(names))
    for name, weight, bias in zip(names, weights, biases, strict=True):
        state[f"{new}.{name}.weight"] = weight
        if name != "key":  # the key projection of Whisper has no bias; CTranslate2 stores zeros
            state[f"{new}.{name}.bias"] = bias
    return state
