"""What ``tests.fuzz`` damages and reads: small valid files of each format that this project reads."""

import io
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from whisper.model import ModelDimensions, Whisper

from nuanced_core.audio import load_audio
from nuanced_core.config.settings import RunConfig
from nuanced_core.data.cache import Cache
from nuanced_core.encoder.checkpoint import Checkpoint, encoder_of_checkpoint, write_checkpoint
from nuanced_core.encoder.pretrained import CONFIG_FILE, WEIGHTS_FILE
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.kokoro import voices
from nuanced_core.people.corpus import find_people
from nuanced_core.sound_files import looks_like_sound, sound_blocks
from nuanced_core.speech.packs import read_pack
from nuanced_core.weights import ctranslate2, folder, kokoro_onnx
from tests.nuanced_core.encoder.small_encoders import small_encoder
from tests.nuanced_core.weights.ctranslate2_writer import as_ctranslate2
from tests.tune.analysis.made_sweeps import made_sweep
from tune.analysis.loaded import load_sweep
from tune.analysis.trial_files import read_curves
from tune.config.sweep_config import load
from tune.search.journal import STUDY_FILE, repair_journal

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """A format, and what reads it."""

    name: str
    file: str  # its name; other files may be beside it
    originals: Callable[[Path], Sequence[bytes]]  # given a folder for what they are made of
    read: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = bytes  # puts what was damaged into an intact container


def _pack() -> np.ndarray:
    return np.linspace(-1, 1, 510 * 256, dtype=np.float32).reshape(510, 1, 256)


def _saved(value: object) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def _pack_pt(_: Path) -> list[bytes]:
    return [_PT]


def _pickle_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _with_pickle(pickle: bytes) -> bytes:
    """Return a ``.pt`` of a pack with another ``data.pkl``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_PT)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


_PT = _saved(torch.from_numpy(_pack()))


def _npy(_: Path) -> list[bytes]:
    np.save(plain := io.BytesIO(), _pack())
    np.save(half := io.BytesIO(), np.asfortranarray(_pack()[:, 0].astype(np.float16)))
    return [plain.getvalue(), half.getvalue()]


def _npz(_: Path) -> list[bytes]:
    np.savez(plain := io.BytesIO(), me=_pack())
    np.savez_compressed(packed := io.BytesIO(), me=np.zeros((510, 1, 256), np.float32))
    return [plain.getvalue(), packed.getvalue()]


def _in_npz(npy: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("me.npy", npy)
    return out.getvalue()


def _whisper() -> Whisper:
    dims = dict(n_mels=5, n_audio_ctx=6, n_audio_state=8, n_audio_head=2, n_audio_layer=1)  # noqa: C408
    dims |= dict(n_vocab=11, n_text_ctx=7, n_text_state=8, n_text_head=2, n_text_layer=1)  # noqa: C408
    return Whisper(ModelDimensions(**dims)).half()


def _whisper_pt(_: Path) -> list[bytes]:
    encoder = {"n_audio_layer": 4, "n_audio_state": 384}
    return [_saved({"dims": encoder, "model_state_dict": {"a": torch.zeros(3, 4)}})]


def _onnx(_: Path) -> list[bytes]:
    """Make a graph that has a node of each kind that the importer knows."""
    int8, floats = np.int8, np.float32
    constants: dict[str, np.ndarray] = {
        "encoder.bert.encoder.embedding_hidden_mapping_in.bias": np.zeros(3, floats),
        "encoder.predictor.norm1.fc.bias": np.zeros(4, floats),
        "w": np.ones((2, 3), int8), "k": np.ones((2, 3, 1), int8), "f": np.ones((2, 3, 1), floats),
        "rows": np.ones((4, 2), int8), "m": np.ones((2, 3), floats), "s": np.ones(1, floats), "z": np.zeros(1, int8),
        "lw": np.ones((2, 2, 4), int8), "lr": np.ones((2, 1, 4), int8), "lb": np.ones((2, 8), floats),
        "ls": np.ones((2, 1), floats), "lz": np.zeros((2, 1), int8),
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("MatMulInteger", ["x", "w", "xz", "z"], ["y1"], name="/encoder/bert/fc/MatMul"),
        make("Cast", ["y1"], ["y2"], to=TensorProto.FLOAT),
        make("Mul", ["xs", "s"], ["ss"]),
        make("Mul", ["y2", "ss"], ["y3"]),
        make("ConvInteger", ["x", "k", "xz", "z"], ["c1"], name="/decoder/decoder/conv/Conv"),
        make("Mul", ["c1", "ss"], ["c2"]),
        make("Conv", ["x", "f"], ["c3"], name="/encoder/F0_proj/Conv"),
        make("Gather", ["rows", "i"], ["g1"], name="/encoder/text_encoder/embedding/Gather"),
        make("DequantizeLinear", ["g1", "s", "z"], ["g2"]),
        make("MatMul", ["x", "m"], ["m1"], name="/encoder/bert_encoder/MatMul"),
        make(
            "DynamicQuantizeLSTM",
            ["x", "lw", "lr", "lb", "", "h", "c", "", "ls", "lz", "ls", "lz"],
            ["l1"],
            name="/encoder/shared/LSTM",
        ),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", [], [], tensors)
    return [helper.make_model(graph).SerializeToString()]


def _checkpoint(where: Path) -> list[bytes]:
    encoder = small_encoder()
    run = RunConfig().model_dump(mode="json")
    state = {0: {"exp_avg": torch.zeros(3)}}
    config = encoder.config.to_dict()
    write_checkpoint(
        where / "made", Checkpoint(1, 2, 1.5, 1, {"val/loss": 1.75}, config, run, encoder.state_dict(), state)
    )
    return [(where / "made").read_bytes()]


def _exported(where: Path, damaged: str) -> list[bytes]:
    """Make an exported folder, whose weights' hash is not checked, so that damage is found by reading them."""
    encoder = small_encoder()
    files = {
        WEIGHTS_FILE: save(encoder.state_dict()),
        CONFIG_FILE: json.dumps({"style_encoder": encoder.config.to_dict(), "sha256": {"kokoro": "ab"}}).encode(),
    }
    (where / "now").mkdir(exist_ok=True)
    for name, data in files.items():
        (where / "now" / name).write_bytes(data)
    return [files[damaged]]


def _journal(where: Path) -> list[bytes]:
    shutil.rmtree(where / "now", ignore_errors=True)
    made_sweep(where / "now", [([1.5, 0.5], "complete"), ([1.5], "step 17: nan"), ([1.25], "running")], is_light=True)
    return [(where / "now" / STUDY_FILE).read_bytes()]


def _read_journal(file: Path) -> None:
    repair_journal(file.parent)
    load_sweep(file.parent).trials()


def _yaml(where: Path) -> list[bytes]:
    configs = Path(__file__).parents[1] / "configs"
    shutil.copytree(configs, where / "now", dirs_exist_ok=True)  # some extend others
    return [path.read_bytes() for path in sorted(configs.glob("*.yaml"))]


def _sound(format: str, *subtypes: str) -> Callable[[Path], list[bytes]]:
    def originals(_: Path) -> list[bytes]:
        time = np.arange(6_000) / 24_000
        samples = 0.4 * np.sin(2 * np.pi * 440 * time + 5 * np.sin(20 * time))
        made = []
        for subtype, channels in itertools.product(subtypes, (1, 2)):
            if subtype == "GSM610" and channels == 2:
                continue  # it is mono
            buffer = io.BytesIO()
            soundfile.write(buffer, np.stack([samples] * channels, axis=1), 24_000, format=format, subtype=subtype)
            made.append(buffer.getvalue())
        return made

    return originals


def _read_sound(file: Path) -> None:
    looks_like_sound(file.with_suffix(""))
    for _ in sound_blocks(file, 0.1):
        pass
    load_audio(file)


def _records(events: Sequence[bytes]) -> bytes:
    writer = RecordWriter(buffer := io.BytesIO())
    for event in events:
        writer.write(event)
    return buffer.getvalue()


def _events() -> list[bytes]:
    values = [[Summary.Value(tag=tag, simple_value=step / 2) for tag in ("val/loss", "a")] for step in range(5)]
    made = [Event(wall_time=1e9, step=step, summary=Summary(value=value)) for step, value in enumerate(values)]
    return [event.SerializeToString() for event in [Event(wall_time=1e9, file_version="brain.Event:2"), *made]]


_DIGIT = itertools.count()
_KEY = "ab" * 32


def _entry(_: Path) -> list[bytes]:
    made = Cache(_ / "made").save("clips", _KEY, {"audio": torch.arange(9.0), "n": torch.tensor([3])})
    assert made
    return [next((_ / "made").rglob("*.safetensors")).read_bytes()]


def _read_entry(file: Path) -> None:
    """Read a cache entry under a new key, since a process hashes a tensor once."""
    key = f"{next(_DIGIT):064x}"
    cache = Cache(file.parent / "cache")
    place = cache.folder / "clips" / key[:2] / f"{key}.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    file.replace(place)
    try:
        cache.names("clips", key)
        cache.load("clips", key, ["audio"])
        cache.load("clips", key)
        cache.verify()
        cache.entries()
    finally:
        place.unlink(missing_ok=True)


_PEOPLE = b"103/1240/103-1240-0000.flac\n1088/134315/1088-134315-0001.flac\np225/p225_001_mic1.flac\nanna/a.wav\nb/c/d"


def _read_people(file: Path) -> None:
    """Make the files that a list names, in a new folder, and look for people there."""
    root = file.parent / "people"
    shutil.rmtree(root, ignore_errors=True)
    for line in file.read_bytes().replace(b"\0", b"").split(b"\n")[:40]:
        parts = [part[:200] for part in line.split(b"/")[:8] if part not in (b"", b".", b"..")]
        path = root.joinpath(*map(os.fsdecode, parts))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"RIFF")
        except OSError:  # a folder and a file of one name
            continue
    find_people(root)


def _voices_folder(file: Path) -> None:
    into = file.parents[1] / "into"
    into.mkdir(exist_ok=True)
    folder.fill_voices(file.parents[1], into)


_ALL = [
    Target("onnx", "model.onnx", _onnx, lambda file: kokoro_onnx.state_dicts(file.read_bytes())),
    Target(
        "ctranslate2", "model.bin", lambda _: [as_ctranslate2(_whisper())],
        lambda file: ctranslate2.whisper_checkpoint(ctranslate2.read(file.read_bytes())),
    ),
    Target("whisper-pt", "tiny.en.pt", _whisper_pt, lambda file: folder.check_whisper(file, "tiny.en")),
    Target("pack-pt", "me.pt", _pack_pt, read_pack),
    Target("pack-pt-pickle", "me.pt", lambda _: [_pickle_of(_PT)], read_pack, _with_pickle),
    Target("pack-npy", "me.npy", _npy, read_pack),
    Target("pack-npz", "me.npz", _npz, read_pack),
    Target("pack-npz-inside", "me.npz", _npy, read_pack, _in_npz),
    Target("pack-bin", "me.bin", lambda _: [_pack().tobytes()], read_pack),
    Target("stock-npy", "af_heart.npy", _npy, voices.read_pack),
    Target("folder-npy", "voices/me.npy", _npy, _voices_folder),
    Target("folder-pt", "voices/me.pt", _pack_pt, _voices_folder),
    Target("folder-bin", "voices/me.bin", lambda _: [_pack().tobytes()], _voices_folder),
    Target("checkpoint", "best.safetensors", _checkpoint, encoder_of_checkpoint),
    Target(
        "export-config", CONFIG_FILE, lambda where: _exported(where, CONFIG_FILE),
        lambda file: StyleEncoder.from_pretrained(file.parent),
    ),
    Target(
        "export-weights", WEIGHTS_FILE, lambda where: _exported(where, WEIGHTS_FILE),
        lambda file: StyleEncoder.from_pretrained(file.parent),
    ),
    Target("journal", STUDY_FILE, _journal, _read_journal),
    Target("yaml", "sweep.yaml", _yaml, load),
    Target("wav", "a.wav", _sound("WAV", "PCM_16", "FLOAT", "ULAW", "GSM610"), _read_sound),
    Target("flac", "a.flac", _sound("FLAC", "PCM_16"), _read_sound),
    Target("ogg", "a.ogg", _sound("OGG", "VORBIS", "OPUS"), _read_sound),
    Target("mp3", "a.mp3", _sound("MP3", "MPEG_LAYER_III"), _read_sound),
    Target("aiff", "a.aiff", _sound("AIFF", "PCM_16"), _read_sound),
    Target(
        "events", "events.out.tfevents.1", lambda _: [_records(_events())], lambda file: read_curves({0: file.parent})
    ),
    Target(
        "events-inside", "events.out.tfevents.1", lambda _: _events()[1:], lambda file: read_curves({0: file.parent}),
        lambda event: _records([_events()[0], event, _events()[2]]),
    ),
    Target("cache", "entry", _entry, _read_entry),
    Target("people", "list", lambda _: [_PEOPLE], _read_people),
]  # fmt: skip
TARGETS = {target.name: target for target in _ALL}
