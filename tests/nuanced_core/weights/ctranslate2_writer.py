"""A writer of CTranslate2's format, independent of the parser under test."""

import struct

import numpy as np
from whisper.model import Whisper


def ctranslate2_file(variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    """Return a ``model.bin``, written from the description of the format."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    out = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", types[value.dtype.name], value.nbytes) + value.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(string(alias) + string(target) for alias, target in aliases.items())


def as_ctranslate2(model: Whisper) -> bytes:
    """Convert a Whisper model as CTranslate2's converter does."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def linear(new: str, *old: str) -> None:
        out[f"{new}/weight"] = np.concatenate([state[f"{o}.weight"] for o in old])
        zeros = np.zeros(model.dims.n_text_state, np.float16)
        out[f"{new}/bias"] = np.concatenate([state.get(f"{o}.bias", zeros) for o in old])

    def norm(new: str, old: str) -> None:
        out[f"{new}/gamma"], out[f"{new}/beta"] = state[f"{old}.weight"], state[f"{old}.bias"]

    for side, layers in (("encoder", model.dims.n_audio_layer), ("decoder", model.dims.n_text_layer)):
        out[f"{side}/num_heads"] = np.array(2, np.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.positional_embedding"]
        for i in range(layers):
            new, old = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            norm(f"{new}/self_attention/layer_norm", f"{old}.attn_ln")
            linear(f"{new}/self_attention/linear_0", *(f"{old}.attn.{n}" for n in ("query", "key", "value")))
            linear(f"{new}/self_attention/linear_1", f"{old}.attn.out")
            norm(f"{new}/ffn/layer_norm", f"{old}.mlp_ln")
            linear(f"{new}/ffn/linear_0", f"{old}.mlp.0")
            linear(f"{new}/ffn/linear_1", f"{old}.mlp.2")
            if side == "decoder":
                norm(f"{new}/attention/layer_norm", f"{old}.cross_attn_ln")
                linear(f"{new}/attention/linear_0", f"{old}.cross_attn.query")
                linear(f"{new}/attention/linear_1", f"{old}.cross_attn.key", f"{old}.cross_attn.value")
                linear(f"{new}/attention/linear_2", f"{old}.cross_attn.out")
    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    out["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    return ctranslate2_file(out, {"decoder/projection/weight": "decoder/embeddings/weight"})
