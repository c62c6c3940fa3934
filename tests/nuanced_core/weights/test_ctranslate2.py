"""nuanced_core.weights.ctranslate2: the parser, on files from an independent writer of the format."""

import numpy as np
import pytest

from nuanced_core.errors import WeightsError
from nuanced_core.weights import ctranslate2
from tests.nuanced_core.weights.ctranslate2_writer import as_ctranslate2, ctranslate2_file

VARIABLES = {
    "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3) / 7,
    "b/bias": np.array([1.5, -2.5], np.float32),
    "heads": np.array(6, np.int16),
    "quantized": np.array([[-128, 127]], np.int8),
}


def test_all_types_and_shapes_are_read():
    read = ctranslate2.read(ctranslate2_file(VARIABLES, {"c/weight": "a/weight"}))
    assert list(read) == [*VARIABLES, "c/weight"]
    for name, value in VARIABLES.items():
        assert read[name].dtype == value.dtype and read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)
    np.testing.assert_array_equal(read["c/weight"], VARIABLES["a/weight"])


def test_a_truncated_file_is_an_error():
    data = ctranslate2_file(VARIABLES, {"c/weight": "a/weight"})
    for length in range(len(data)):
        with pytest.raises(WeightsError):
            ctranslate2.read(data[:length])


def test_another_version_is_an_error():
    with pytest.raises(WeightsError, match="version is 5, only 6"):
        ctranslate2.read(b"\5\0\0\0" + bytes(100))


def test_a_model_other_than_whisper_is_an_error():
    with pytest.raises(WeightsError, match="missing"):
        ctranslate2.whisper_checkpoint(VARIABLES)


def test_query_key_and_value_are_split_in_this_order(tiny):
    state = ctranslate2.whisper_checkpoint(ctranslate2.read(as_ctranslate2(tiny.whisper)))["model_state_dict"]
    expected = tiny.checkpoint["model_state_dict"]
    assert state.keys() == expected.keys()
    assert "encoder.blocks.0.attn.key.bias" not in state
    for name, value in state.items():
        np.testing.assert_array_equal(value.numpy(), expected[name].numpy(), err_msg=name)
