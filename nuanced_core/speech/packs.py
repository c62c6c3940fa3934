"""Voice packs as files, by name, and as mixes: read, written, blended, and with one half of another voice.

A pack is (510, 1, 256) float32: row ``n - 1`` is the style for ``n`` phonemes, channels 0 to 127 are timbre, the others
prosody.
"""

import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from nuanced_core.errors import ConfigError, DiskError, VoiceError, one_line
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE, TIMBRE_SIZE
from nuanced_core.kokoro.voices import VoiceBank

__all__ = [
    "PACK_SUFFIXES",
    "PackFormat",
    "blend",
    "check_output",
    "pack_bytes",
    "pack_format",
    "parse_weights",
    "read_pack",
    "resolve_voice",
    "scale_offset",
    "with_half",
    "write_pack",
]

PackFormat = Literal["pt", "npz", "bin", "npy"]
PACK_SUFFIXES = tuple(f".{name}" for name in get_args(PackFormat))
SHAPE = (PACK_ROWS, 1, STYLE_SIZE)
BYTES = PACK_ROWS * STYLE_SIZE * 4  # of a .bin file
LARGEST = 1 << 30  # bytes; stock voices take 0.5 MB, all of them in one .npz 28 MB
LARGEST_VOICE = 64 << 20  # bytes of one voice in an archive, unpacked
_ROUNDING = 1e-9  # of a sum of shares
_FIX = "give a pack of Kokoro-82M v1.0, such as 'nuanced voice' writes"
# A member of a mix, and its weight in brackets.
_MEMBER = re.compile(r"(?P<name>[^()]+?)\s*(?:\(\s*(?P<weight>[^()]*)\s*\))?")


def read_pack(path: str | Path) -> Tensor:
    """Read a pack (510, 1, 256), float32, from a file.

    - ``.pt``: a tensor, as Kokoro's own voices are; loaded without running code.
    - ``.npy``; ``.npz`` with one voice, or ``FILE.npz:NAME`` for one of several.
    - ``.bin``: 510 × 256 little-endian float32 values, as kokoro-js has them.

    Raises:
        VoiceError: the file is missing, cannot be read, holds code or other objects, or has another shape, integers,
            or values that are not finite.
    """
    file, _, member = str(path).partition(".npz:")
    if member:
        path = f"{file}.npz"
    path = Path(path)
    if path.suffix.lower() not in PACK_SUFFIXES:
        raise VoiceError(f"{path}: a pack's name ends with {', '.join(PACK_SUFFIXES)}; {_FIX}")
    if not path.is_file():
        raise VoiceError(f"{path}: no such file; {_FIX}")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise VoiceError(f"{path}: {size >> 20} MiB is too large for a pack; {_FIX}")
        with path.open("rb") as opened:
            values = _READERS[cast("PackFormat", path.suffix.lower()[1:])](path, opened, member)
    except OSError as error:
        raise VoiceError(f"{path}: cannot be read ({error.strerror or error}); {_FIX}") from None
    except VoiceError:
        raise
    except Exception as error:  # of any type: of damaged files torch, NumPy, zipfile and zlib raise whatever they meet
        raise VoiceError(f"{path}: not a pack ({one_line(error, 120)}); {_FIX}") from None
    return _checked(path, values)


def _checked(path: Path, values: Tensor) -> Tensor:
    shape = tuple(values.shape)
    if shape not in (SHAPE, (PACK_ROWS, STYLE_SIZE)):
        raise VoiceError(f"{path}: shape {shape} is not that of a pack, {SHAPE}; {_FIX}")
    plain = values.layout == torch.strided and values.device.type == "cpu" and values.is_floating_point()
    if not plain or not torch.isfinite(values).all():
        raise VoiceError(f"{path}: a pack has finite floating-point numbers, this file has others; {_FIX}")
    return values.detach().float().reshape(SHAPE).clone()


def _read_pt(path: Path, file: BinaryIO, member: str) -> Tensor:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            _check_sizes(path, archive.infolist())
    file.seek(0)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise VoiceError(f"{path}: holds code or objects beside numbers, or is damaged; not loaded; {_FIX}") from None
    if not isinstance(found, Tensor):
        raise VoiceError(f"{path}: holds a {type(found).__name__} instead of a tensor; {_FIX}")
    return found


def _read_npy(path: Path, file: BinaryIO, member: str) -> Tensor:
    found = np.load(file, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        raise VoiceError(f"{path}: is an archive; rename it to .npz")
    return _tensor(path, found)


def _read_npz(path: Path, file: BinaryIO, member: str) -> Tensor:
    found = np.load(file, allow_pickle=False)
    if isinstance(found, np.ndarray):
        raise VoiceError(f"{path}: is one array; rename it to .npy")
    names = [*found.files]
    if not member and len(names) != 1:
        some = _shown(names[:3])
        raise VoiceError(f"{path}: has {len(names)} voices ({some}, …); name one: {path}:{_shown(names[:1]) or 'NAME'}")
    if member and member not in names:
        raise VoiceError(f"{path}: has no voice {member!r}; it has {_shown(names[:5])}")
    chosen = member or names[0]
    _check_sizes(path, [info for info in found.zip.infolist() if info.filename in (chosen, f"{chosen}.npy")])
    values = found[chosen]
    if not isinstance(values, np.ndarray):
        raise VoiceError(f"{path}: its member {_shown([chosen])} is no array; {_FIX}")
    return _tensor(path, values)


def _read_bin(path: Path, file: BinaryIO, member: str) -> Tensor:
    data = file.read(BYTES + 1)
    if len(data) != BYTES:
        size = path.stat().st_size
        raise VoiceError(f"{path}: {size} bytes are not the {BYTES} of {PACK_ROWS} × {STYLE_SIZE} float32; {_FIX}")
    return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32)).reshape(SHAPE)


_READERS: dict[PackFormat, Callable[[Path, BinaryIO, str], Tensor]] = {
    "pt": _read_pt,
    "npz": _read_npz,
    "bin": _read_bin,
    "npy": _read_npy,
}


def _check_sizes(path: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    if (size := sum(info.file_size for info in members)) > LARGEST_VOICE:
        raise VoiceError(f"{path}: {size >> 20} MiB when unpacked is too large for a pack; {_FIX}")


def _shown(names: Iterable[str]) -> str:
    return " ".join(", ".join(names).split())


def _tensor(path: Path, values: np.ndarray) -> Tensor:
    if values.dtype.kind != "f":
        raise VoiceError(f"{path}: a pack has finite floating-point numbers, this file has {values.dtype}; {_FIX}")
    return torch.from_numpy(values.astype(np.float32))


def pack_format(path: Path, name: str | None = None) -> PackFormat:
    """Return the format of a pack to be written: ``name``, or that of the path's suffix.

    Raises:
        ConfigError: there is no such format.
    """
    known = get_args(PackFormat)
    if name is None:
        name = path.suffix.lower()[1:]
        if name not in known:
            raise ConfigError(f"{path}: its name says no format; end it with .pt, .npz or .bin, or give --format")
    if name not in known:
        raise ConfigError(f"--format: {name!r} is not a format of packs; choose from {', '.join(known)}")
    return cast("PackFormat", name)


def write_pack(path: Path, pack: Tensor, format: str | None = None) -> None:
    """Write a pack (510, 1, 256) atomically; see ``read_pack`` for the formats, by default that of the path's suffix.

    An ``.npz`` has one voice, named like the file, as kokoro-onnx wants it.

    Raises:
        ConfigError: there is no such format.
        VoiceError: the pack has another shape, or values that are not finite.
        DiskError: the file cannot be written.
    """
    kind = pack_format(path, format)
    values = _checked(path, pack.detach().cpu())
    check_output(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(pack_bytes(values, kind, path.stem))
        part.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def pack_bytes(pack: Tensor, format: PackFormat, name: str) -> bytes:
    """Return a pack (510, 1, 256) as a file of a format; an ``.npz`` calls the voice ``name``."""
    values, file = pack.detach().float().cpu(), io.BytesIO()
    if format == "pt":
        torch.save(values, file)
    elif format == "npz":
        # As np.savez, which takes no voice called "file". The name of a file may be no UTF-8.
        member = name.encode("utf-8", "replace").decode() + ".npy"
        with zipfile.ZipFile(file, "w") as archive, archive.open(member, "w", force_zip64=True) as opened:
            np.lib.format.write_array(opened, values.numpy(), allow_pickle=False)
    elif format == "npy":
        np.save(file, values.numpy())
    else:
        file.write(values.numpy().astype("<f4").tobytes())
    return file.getvalue()


def check_output(path: Path) -> None:
    """Check that a file can be written to a path, before anything long is computed for it.

    Raises:
        DiskError: it is a folder, or its folder is missing or cannot be written.
    """
    try:
        if path.is_dir():
            raise DiskError(f"{path}: is a folder; name a file in it")
        if not path.parent.is_dir():
            raise DiskError(f"{path}: there is no folder {path.parent}; create it, or name another")
        if not os.access(path.parent, os.W_OK):
            raise DiskError(f"{path}: the folder {path.parent} cannot be written; name another")
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from None


def resolve_voice(name: str | Path, bank: VoiceBank) -> Tensor:
    """Return the pack (510, 1, 256) of a stock voice, of a pack file, or of a mix such as ``af_bella(2)+af_sky(1)``.

    The members of a mix are stock voices or pack files; their weights, 1 without brackets, are divided by their sum.

    Raises:
        VoiceError: there is no such voice, the file is not a pack, or the mix is not understood.
    """
    text = str(name).strip()
    if text in bank.names:
        return bank.pack(text).unsqueeze(1).clone()
    if _is_pack_path(text):
        return read_pack(text)
    if "+" not in text and "(" not in text:
        return bank.pack(text).unsqueeze(1)  # raises, and names similar voices
    members = [_member(text, part) for part in text.split("+")]
    total = sum(weight for _, weight in members)
    if not math.isfinite(total) or total <= 0:
        raise VoiceError(f"mix {text!r}: its weights add up to {total:g}; give weights above 0")
    packs = [weight / total * resolve_voice(voice, bank) for voice, weight in members]
    return torch.stack(packs).sum(dim=0)


def _is_pack_path(text: str) -> bool:
    file = text.partition(".npz:")[0] + ".npz" if ".npz:" in text else text
    if Path(file).suffix.lower() not in PACK_SUFFIXES:
        return False
    return "+" not in text or Path(file).is_file()


def _member(mix: str, part: str) -> tuple[str, float]:
    form = "write it like af_bella(2)+af_sky(1)"
    match = _MEMBER.fullmatch(part.strip())
    if match is None:
        raise VoiceError(f"mix {mix!r}: {part.strip()!r} is not a voice with a weight; {form}")
    weight = match["weight"]
    if weight is None:
        return match["name"], 1.0
    return match["name"], _number(weight, f"mix {mix!r}: the weight {weight!r} of {match['name']}", form)


def _number(text: str, place: str, form: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise VoiceError(f"{place} is not a number of at least 0; {form}")
    return value


def parse_weights(text: str) -> dict[str, float]:
    """Parse the shares of voices in a blend, such as ``af_heart=0.3,bm_lewis=0.1``.

    Raises:
        VoiceError: it is not understood, a voice is there twice, or the shares add up to more than 1.
    """
    form = "write it like af_heart=0.3,bm_lewis=0.1"
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise VoiceError(f"blend {text!r}: {part.strip()!r} has no voice or no share; {form}")
        if name in shares:
            raise VoiceError(f"blend {text!r}: {name} is there twice; {form}")
        shares[name] = _number(value, f"blend {text!r}: the share {value!r} of {name}", form)
    if (total := sum(shares.values())) > 1 + _ROUNDING:
        raise VoiceError(f"blend {text!r}: the shares add up to {total:.9g}; the rest is the voice itself: at most 1")
    return shares


def blend(pack: Tensor, shares: Mapping[str, float], voices: Mapping[str, Tensor]) -> Tensor:
    """Return a pack (510, 1, 256) with shares of other voices (510, 1, 256), by name; the rest is the pack itself."""
    mixed = max(0.0, 1 - sum(shares.values())) * pack
    for name, share in shares.items():
        mixed = mixed + share * voices[name].to(pack)
    return mixed


def scale_offset(pack: Tensor, mean_pack: Tensor, strength: float) -> Tensor:
    """Return a pack (510, 1, 256) whose offset from the mean voice (510, 256) is ``strength`` times as large."""
    mean = mean_pack.to(pack).reshape(SHAPE)
    return mean + strength * (pack - mean)


def with_half(pack: Tensor, other: Tensor, half: Literal["timbre", "prosody"]) -> Tensor:
    """Return a pack (510, 1, 256) with one half of another one (510, 1, 256)."""
    channels = slice(0, TIMBRE_SIZE) if half == "timbre" else slice(TIMBRE_SIZE, STYLE_SIZE)
    mixed = pack.clone()
    mixed[..., channels] = other.to(pack)[..., channels]
    return mixed
