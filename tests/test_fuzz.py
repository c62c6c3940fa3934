"""Damaged files: a few hundred for each target of ``tests.fuzz``, and those that once were not refused in one line."""

import io
import logging
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load_from_string
from tensorboard.summary.writer.record_writer import masked_crc32c

from nuanced_core.config.yaml_files import read_yaml
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import AudioError, ConfigError, NuancedError, VoiceError, WeightsError
from nuanced_core.kokoro import voices
from nuanced_core.sound_files import read_sound, sound_blocks
from nuanced_core.speech.packs import read_pack
from nuanced_core.weights import ctranslate2, kokoro_onnx
from tests.fuzz import damaged, fuzz
from tests.fuzz_targets import TARGETS, Target
from tune.analysis.trial_files import read_curves
from tune.search.journal import STUDY_FILE

COUNT = 150


@pytest.fixture
def _quiet() -> Iterator[None]:
    """No log: it names what is in damaged files, which pytest-xdist cannot pass on if it is not UTF-8."""
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch and NumPy
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    found = fuzz(TARGETS[name], tmp_path, COUNT, seed=1)
    assert not found.failures, found.failures[0].problem
    assert found.inputs == found.refused + found.accepted == COUNT


def test_a_wrong_reader_is_found_out(tmp_path: Path) -> None:
    def read(file: Path) -> None:
        if (data := file.read_bytes()) != b"a valid file":
            raise (KeyError("a"), WeightsError("two\nlines"), WeightsError("one line"))[len(data) % 3]

    found = fuzz(Target("wrong", "a", lambda _: [b"a valid file"], read), tmp_path, 200, seed=0)
    problems = {failure.problem.partition(":")[0] for failure in found.failures}
    assert problems == {"KeyError"}  # line breaks are escaped by NuancedError itself
    assert 0 < found.refused < 200


def test_damage_is_the_same_for_a_seed_and_changes_the_file() -> None:
    data = bytes(range(256)) * 4
    first, again = ([damaged(data, random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == again
    assert sum(one != data for one in first) > 40


def test_an_error_shows_what_is_in_a_file_in_one_line() -> None:
    assert str(WeightsError("a\nb\x1b[2J ə\udcff")) == "a\\nb\\x1b[2J ə\\udcff"


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(name: str, data: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def saved(value: object) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def broken_deflate() -> bytes:
    whole = bytearray(zipped("me.npy", npy("(510, 1, 256)", bytes(510 * 256 * 4))))
    whole[40:60] = bytes(20)
    return bytes(whole)


PACKS = {
    "an unfinished header": ("a.npy", npy("(510, (1, 256)")),
    "a huge shape": ("a.npy", npy("(1000000000000, 1, 256)")),
    "a shape beyond 64 bits": ("a.npy", npy(f"({10**30}, 256)")),
    "an unfinished header in an archive": ("a.npz", zipped("me.npy", npy("(510, (1, 256)"))),
    "a member that is no array": ("a.npz", zipped("me.npy", b"none")),
    "damaged compressed data": ("a.npz", broken_deflate()),
    "a large voice, packed small": ("a.npz", zipped("me.npy", npy("(20000000,)", bytes(80_000_000)))),
    "a large member, packed small": ("a.pt", zipped("archive/data/0", bytes(80_000_000))),
    "a pickle that pops nothing": ("a.pt", b"0."),
    "a tensor without numbers": ("a.pt", saved(torch.empty(510, 1, 256, device="meta"))),
    "a sparse tensor": ("a.pt", saved(torch.zeros(510, 1, 256).to_sparse())),
}


@pytest.mark.parametrize("what", PACKS)
def test_a_wrong_pack_is_refused(what: str, tmp_path: Path) -> None:
    name, data = PACKS[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VoiceError, match=name):
        read_pack(tmp_path / name)


def test_a_stock_voice_with_an_unfinished_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy("(510, (1, 256)"))
    with pytest.raises(VoiceError, match=r"a\.npy: not a voice pack"):
        voices.read_pack(tmp_path / "a.npy")


def edited_onnx(folder: Path, edit: Callable[[object], object]) -> bytes:
    model = load_from_string(TARGETS["onnx"].originals(folder)[0])
    edit(model.graph)
    return model.SerializeToString()


def _circle(graph) -> None:  # type: ignore[no-untyped-def]
    next(node for node in graph.node if node.op_type == "Cast").output[0] = "y1"


def _other_file(graph) -> None:  # type: ignore[no-untyped-def]
    graph.initializer[0].data_location = 1
    graph.initializer[0].external_data.add(key="location", value="/etc/hostname")


def _many_channels(graph) -> None:  # type: ignore[no-untyped-def]
    bias = next(tensor for tensor in graph.initializer if tensor.name.endswith("mapping_in.bias"))
    bias.dims[0], bias.raw_data = 200_000, bytes(800_000)


def _wide_scale(graph) -> None:  # type: ignore[no-untyped-def]
    scale = next(tensor for tensor in graph.initializer if tensor.name == "s")
    scale.dims[:], scale.raw_data = [5_000, 1, 1], bytes(20_000)


@pytest.mark.parametrize("edit", [_circle, _other_file, _many_channels, _wide_scale])
def test_a_wrong_onnx_is_refused(edit: Callable[[object], object], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="ONNX"):
        kokoro_onnx.state_dicts(edited_onnx(tmp_path, edit))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"channels": 4', b'"channels": 9223372036854775807'),
        (b'"channels": 4', b'"channels": 1000000000'),
        (b'"width": 8', b'"width": 8192'),
        (b'"tiny.en"', b"[" * 5_000),
        (b'"pooling"', b'"po\\nol"'),
    ],
)
def test_a_wrong_configuration_of_an_export_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    (config,) = TARGETS["export-config"].originals(tmp_path)
    assert old in config
    (tmp_path / "now" / "config.json").write_bytes(config.replace(old, new))
    with pytest.raises(NuancedError) as caught:
        StyleEncoder.from_pretrained(tmp_path / "now")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"op_code":0', b'"op_code":99', "after line 0"),
        (b'"op_code":4', b'"op_code":"4"', "after line"),
        (b'"intermediate_value":1.25', b'"intermediate_value":"a"', "'a' for a number"),
        (b'"study_name"', b'"\xff"', "utf-8"),
        (b'"directions":[1]', b'"directions":[0]', "does not minimise"),
        (b'"directions":[1]', b'"directions":[]', "does not minimise"),
        (b'"param_value_internal":', b'"param_value_internal":-1', "is invalid value"),
        (b'"param_name":"encoder.width"', b'"param_name":5', "5 for a setting's name"),
        (b'"user_attr":{"params":', b'"user_attr":{"p":', "lacks its settings"),
        (b'"step 17: nan"', b'"step 17: \\ud800"', "surrogates"),
        (b'"op_code":4', b'"op_code":' + b"[" * 5_000, "Recursion"),
    ],
)
def test_a_damaged_journal_is_refused_with_its_place(old: bytes, new: bytes, problem: str, tmp_path: Path) -> None:
    (journal,) = TARGETS["journal"].originals(tmp_path)
    assert old in journal
    file = tmp_path / "now" / STUDY_FILE
    file.write_bytes(journal.replace(old, new, 1))
    with pytest.raises(ConfigError, match=problem):
        TARGETS["journal"].read(file)


def wav(rate: int, channels: int, samples: int) -> bytes:
    data = bytes(samples * channels)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * channels & 0xFFFF_FFFF, channels, 8)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + struct.pack("<4sI", b"data", len(data)) + data
    )


def test_a_rate_that_no_recording_has_is_refused_before_memory_is_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(800_000_000, 2, 100))
    for read in (read_sound, lambda file: next(sound_blocks(file, 10.0))):
        with pytest.raises(AudioError, match="800000000 Hz"):
            read(tmp_path / "a.wav")


def test_blocks_of_a_small_file_with_a_thousand_channels_are_small(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(384_000, 1_000, 50))
    (block, rate), *others = sound_blocks(tmp_path / "a.wav", 10.0)
    assert block.shape == (50, 1_000) and rate == 384_000 and not others
    assert block.base is None or block.base.nbytes < 300e6


@pytest.mark.parametrize("text", ["a: " + "[" * 5_000, "a: {low: null, high: 1}\n" + "b: " + "{a: " * 900 + "}" * 900])
def test_yaml_that_is_nested_too_deeply_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12)), "more than"),
        ("a: &a [*a]", "an alias of what it is in"),
        ("a: &a {b: *a}", "an alias of what it is in"),
    ],
)
def test_aliases_that_stand_for_too_much_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_yaml(tmp_path / "a.yaml")


def test_other_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: [1, 2]}\nc: {d: *a}")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2]}, "c": {"d": {"b": [1, 2]}}}


def test_a_range_without_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("search: {train.learning_rate: {low: null, high: 1}}")
    with pytest.raises(ConfigError, match="has no low"):
        TARGETS["yaml"].read(tmp_path / "a.yaml")


@pytest.mark.parametrize("length", [1 << 40, 1 << 62, (1 << 64) - 1])
def test_events_are_read_up_to_a_record_that_says_it_is_huge(length: int, tmp_path: Path) -> None:
    (whole,) = TARGETS["events"].originals(tmp_path)
    size = struct.pack("<Q", length)
    file = tmp_path / TARGETS["events"].file
    file.write_bytes(whole + size + struct.pack("<I", masked_crc32c(size)) + b"abc")
    assert len(read_curves({0: tmp_path})) == 10


@pytest.mark.parametrize("name", ["encoder/num_heads", "encoder/conv1/weight", "decoder/embeddings/weight"])
def test_a_variable_of_another_shape_is_no_whisper(name: str, tmp_path: Path) -> None:
    variables = ctranslate2.read(TARGETS["ctranslate2"].originals(tmp_path)[0])
    with pytest.raises(WeightsError, match="another shape"):
        ctranslate2.whisper_checkpoint({**variables, name: np.zeros(3, np.float16)})


@pytest.mark.parametrize(
    "data",
    [
        zipped("archive/data/0", bytes(80_000_000)),
        zipped("archive/data/0", b"abc").replace(b"PK\1\2", b"PK\0\0"),
        saved(torch.zeros(510, 1, 256).to_sparse()),
        saved(torch.empty(510, 1, 256, device="meta")),
    ],
    ids=["packed small", "no directory", "sparse", "no numbers"],
)
def test_a_wrong_voice_in_a_folder_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "now" / "voices" / "me.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"me\.pt: not a"):
        TARGETS["folder-pt"].read(file)


def test_a_checkpoint_of_whisper_that_is_a_broken_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.en.pt").write_bytes(pickle.PROTO + b"\x02a.")
    with pytest.raises(WeightsError, match=r"tiny\.en\.pt"):
        TARGETS["whisper-pt"].read(tmp_path / "tiny.en.pt")
