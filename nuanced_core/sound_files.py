"""Reading of sound files in all formats that libsndfile knows, and in others if the program ffmpeg is installed.

The format is recognised by a file's content, not by its name. torchaudio's own reader is not used: since version 2.9 it
needs TorchCodec and the libraries of FFmpeg.
"""

import io
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from nuanced_core.errors import AudioError

__all__ = ["SOUND_SUFFIXES", "is_sound_file", "looks_like_sound", "read_sound", "sound_blocks", "sound_seconds"]

logger = logging.getLogger(__name__)

Samples = npt.NDArray[np.float32]

# Endings of names, in lower case: formats that libsndfile reads, then formats that need ffmpeg.
SOUND_SUFFIXES = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".w64", ".rf64", ".sph", ".voc",
    ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".webm", ".mka", ".mkv", ".weba", ".wma", ".amr", ".ac3",
    ".wv", ".ape",
)  # fmt: skip
# (offset, first bytes, name) of formats that libsndfile does not read.
_FFMPEG_FORMATS = (
    (4, b"ftyp", "an MPEG-4 file (m4a, mp4, mov)"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"0&\xb2u", "a Windows Media file (wma)"),
    (0, b"\xff\xf1", "an AAC file"),
    (0, b"\xff\xf9", "an AAC file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"\x0bw", "an AC-3 file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio file (ape)"),
)
# Demuxers of ffmpeg that read one file. A playlist, which others read, would name further files of this machine.
_DEMUXERS = (
    "wav,w64,flac,ogg,mp3,aiff,au,caf,voc,mov,matroska,asf,aac,amr,amrnb,amrwb,ac3,eac3,dts,wv,ape,tta,tak,avi,flv,"
    "mpeg,mpegts"
)
_MALFORMED = 3  # libsndfile's code for a damaged file of a known format
_BLOCK = 1 << 16  # samples of each channel that are decoded at once
MAX_RATE = 768_000  # Hz, of the finest recordings; a block of a second is as large as a header says
# A damaged header may promise a thousand. No format with so many estimates its length, as MP3 does.
_MANY_CHANNELS = 8
_UNKNOWN_LENGTH = 1 << 62  # libsndfile reports at least as many samples if the header does not say how many there are
# Programs that write to a pipe cannot fill in the size afterwards: they promise 0 bytes, or more than this (2 GB).
_UNKNOWN_SIZE = 0x7F00_0000  # bytes
# Less that is missing is not reported: some writers count the header in, and the length of MP3 is estimated.
_MIN_MISSING_SECONDS = 0.05
# Lines of libsndfile's log about a chunk of samples, or else a whole file (W64, RF64), that is shorter than it says.
_CUT_CHUNK = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)


def read_sound(path: Path) -> tuple[Samples, int]:
    """Read a sound file as float32 samples (T, channels); return them and the sampling rate in Hz.

    A file that holds less than its header promises is read as far as it goes, with a warning.

    Raises:
        AudioError: the file is missing or empty, or its format cannot be read.
    """
    start = _first_bytes(path)
    try:
        return _read_with_libsndfile(path)
    except soundfile.LibsndfileError as error:
        if not shutil.which("ffmpeg"):
            raise _unreadable(path, start, error) from None
    return _read_with_ffmpeg(path)


def sound_blocks(path: Path, seconds: float) -> Iterator[tuple[Samples, int]]:
    """Yield a sound file's samples (t, channels) from start to end in blocks, each with the rate in Hz.

    Memory does not grow with the length of the file; what only ffmpeg reads is converted to a temporary file first.
    The samples are those of ``read_sound``.

    Args:
        seconds: of each block; the last one may be shorter.

    Raises:
        AudioError: as ``read_sound``.
    """
    start = _first_bytes(path)
    try:
        with _opened(path, _Sequential) as sound:
            _check_rate(path, sound)
            found = False
            for block in _sequential_blocks(path, sound, seconds):
                found = True
                yield block, sound.samplerate
        if not found:
            yield read_sound(path)
        return
    except soundfile.LibsndfileError as error:
        if not shutil.which("ffmpeg"):
            raise _unreadable(path, start, error) from None
    with TemporaryDirectory() as folder:
        decoded = Path(folder) / "decoded.wav"
        _convert_with_ffmpeg(path, str(decoded))
        with _Sequential(str(decoded)) as sound:
            for block in _sequential_blocks(path, sound, seconds):
                yield block, sound.samplerate


def sound_seconds(path: Path) -> float:
    """Return how long a sound file is by its header, or by its size if that does not say so, without decoding it.

    Hours of sound would not fit into memory. 0: it is not known, or the file cannot be read.
    """
    try:
        with _opened(path) as sound:
            return float(sound.frames / sound.samplerate) if sound.frames < _UNKNOWN_LENGTH else 0.0
    except (OSError, soundfile.LibsndfileError):
        return 0.0


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file without seeking: soundfile seeks after each block otherwise, which disturbs the decoder of MP3."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(path: Path, reader: type[soundfile.SoundFile] = soundfile.SoundFile) -> Iterator[soundfile.SoundFile]:
    """Open a sound file; the sizes of a WAV file whose writer could not fill them in are mended."""
    # Given a descriptor instead of a name, soundfile does not judge by the name: it refuses to read NAME.raw.
    with path.open("rb") as file, reader(file.fileno(), closefd=False) as sound:
        if sound.frames or (position := _unknown_size(path)) is None:
            yield sound
            return
    with path.open("rb") as file, reader(_Mended(file, position)) as sound:
        yield sound


def _sequential_blocks(path: Path, sound: soundfile.SoundFile, seconds: float) -> Iterator[Samples]:
    length = max(1, round(seconds * sound.samplerate))
    if sound.channels > _MANY_CHANNELS and sound.frames < _UNKNOWN_LENGTH:
        length = min(length, max(sound.frames, _BLOCK))
    read, complete = 0, True
    while True:
        block = np.full((length, sound.channels), np.nan, np.float32)
        try:
            count = len(sound.read(out=block))
        except soundfile.LibsndfileError:
            written = np.flatnonzero(~np.isnan(block[:, 0]))
            count, complete = (int(written[-1]) + 1 if len(written) else 0), False
        read += count
        if count:
            yield block[:count]
        if count < length or not complete:
            break
    promised = _promised_seconds(sound, read)
    if promised - read / sound.samplerate > _MIN_MISSING_SECONDS:
        got = read / sound.samplerate
        logger.warning("%s: is cut off or damaged: only %.1f s of %.1f s could be read", path, got, promised)


def _check_rate(path: Path, sound: soundfile.SoundFile) -> None:
    if sound.samplerate > MAX_RATE:
        raise AudioError(
            f"{path}: its rate is {sound.samplerate} Hz by its header, which no recording has; copy or export "
            "it again, at 16 kHz"
        )


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise AudioError(f"{path}: {_open_problem(path, error)}") from None
    if not start:
        raise AudioError(f"{path}: is empty (0 bytes); copy it again, or record it again")
    return start


def _unreadable(path: Path, start: bytes, error: soundfile.LibsndfileError) -> AudioError:
    """Return the error of a file that neither libsndfile nor, since it is not installed, ffmpeg reads."""
    for offset, magic, name in _FFMPEG_FORMATS:
        if start[offset:].startswith(magic):
            return AudioError(
                f"{path}: is {name}, which only ffmpeg reads; install ffmpeg, or convert it: "
                f"ffmpeg -i '{path.name}' '{path.stem}.wav'"
            )
    if error.code == _MALFORMED:
        return AudioError(f"{path}: is damaged or cut off, so that nothing of it can be read; copy it again")
    reason = str(error.error_string).strip(" .")
    return AudioError(f"{path}: not a sound file that can be read ({reason}); convert it to WAV")


def is_sound_file(path: Path) -> bool:
    """Return whether libsndfile recognises the content of a file."""
    try:
        with path.open("rb") as file, soundfile.SoundFile(file.fileno(), closefd=False):
            return True
    except (OSError, soundfile.LibsndfileError):
        return False


def looks_like_sound(path: Path) -> bool:
    """Return whether a file is to be read as sound: its name ends like that of a sound file, in lower or upper case, or
    has no ending and libsndfile recognises its content; so files that cannot be read are among them. Hidden files and
    folders are not."""
    if path.name.startswith(".") or path.is_dir():
        return False
    return path.suffix.lower() in SOUND_SUFFIXES or (path.suffix == "" and is_sound_file(path))


def _open_problem(path: Path, error: OSError) -> str:
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which does not exist; copy the file itself"
    if path.is_dir():
        return "is a folder; name a sound file"
    if isinstance(error, FileNotFoundError):
        return "no such file; give a WAV, FLAC, OGG or MP3 file"
    return f"cannot be opened ({error.strerror}); check its permissions"


def _read_with_libsndfile(path: Path) -> tuple[Samples, int]:
    with _opened(path) as sound:
        _check_rate(path, sound)
        rate: int = sound.samplerate
        samples = _decode(sound)
        seconds, promised = len(samples) / rate, _promised_seconds(sound, len(samples))
        if promised - seconds > _MIN_MISSING_SECONDS:
            logger.warning("%s: is cut off or damaged: only %.1f s of %.1f s could be read", path, seconds, promised)
        elif sound.format == "OGG" and _ogg_is_cut(path):
            logger.warning("%s: is cut off: it ends before its stream does; %.1f s were read", path, seconds)
        return samples, rate


def _decode(sound: soundfile.SoundFile) -> Samples:
    """Decode a file (T, channels), at once or, if its end is damaged or its length is unknown, in blocks."""
    if sound.frames < _UNKNOWN_LENGTH:
        try:
            # soundfile wants the number for formats in which it cannot seek, such as GSM 6.10.
            whole: Samples = sound.read(sound.frames, dtype="float32", always_2d=True)
            return whole
        except (soundfile.LibsndfileError, MemoryError):
            sound.seek(0)
    return _decode_in_blocks(sound)


def _decode_in_blocks(sound: soundfile.SoundFile) -> Samples:
    """Decode a file up to the first error; not for MP3, whose decoder soundfile disturbs by a seek after each block."""
    blocks: list[Samples] = []
    while True:
        block = np.full((_BLOCK, sound.channels), np.nan, np.float32)
        try:
            read = len(sound.read(out=block))
        except soundfile.LibsndfileError:
            # libsndfile has written what it decoded before the error, but does not say how much that is.
            written = np.flatnonzero(~np.isnan(block[:, 0]))
            blocks.append(block[: written[-1] + 1] if len(written) else block[:0])
            break
        blocks.append(block[:read])
        if read < _BLOCK:
            break
    return np.concatenate(blocks)


def _promised_seconds(sound: soundfile.SoundFile, decoded: int) -> float:
    """Return how long the file is by its header, or by its size if that is unknown."""
    frames = sound.frames if sound.frames < _UNKNOWN_LENGTH else decoded
    sizes = [(int(promised), int(held)) for promised, held in _CUT_CHUNK.findall(sound.extra_info)]
    # Of a whole file, the header is a small part.
    if sizes and sizes[-1][0] < _UNKNOWN_SIZE and sizes[-1][1] > 0:
        frames = max(frames, round(decoded * sizes[-1][0] / sizes[-1][1]))
    return float(frames / sound.samplerate)


def _unknown_size(path: Path) -> int | None:
    """Return where a WAV file has the size of its samples if that is 0 though something follows; None for others."""
    with path.open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return None
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                position = file.tell() - 4
                return position if size == 0 and file.read(1) else None
            file.seek(size + size % 2, io.SEEK_CUR)
    return None


class _Mended:
    """A WAV file with the largest size in place of the one at a position: libsndfile then reads up to the end.

    It has no name, by which soundfile would judge.
    """

    def __init__(self, file: BinaryIO, position: int) -> None:
        self._file, self._position = file, position
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        start = self._file.tell()
        found = bytearray(self._file.read(count))
        for position in range(max(start, self._position), min(start + len(found), self._position + 4)):
            found[position - start] = 0xFF
        return bytes(found)


def _ogg_is_cut(path: Path) -> bool:
    """Return whether the last page of an Ogg file is incomplete, or not marked as the last one (RFC 3533)."""
    largest = 27 + 255 + 255 * 255  # bytes of a page
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - largest))
        end = file.read()
    page = end[max(0, end.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 27 + len(segments) + sum(segments) or not segments or not page[5] & 4


def _read_with_ffmpeg(path: Path) -> tuple[Samples, int]:
    """Decode the first audio stream with the program ffmpeg, at its own rate and with its own channels."""
    with soundfile.SoundFile(io.BytesIO(_convert_with_ffmpeg(path, "pipe:1"))) as sound:
        return _decode(sound), sound.samplerate


def _convert_with_ffmpeg(path: Path, target: str) -> bytes:
    """Convert the first audio stream to a WAV file with the program ffmpeg; return it if ``target`` is ``pipe:1``."""
    # "file:" keeps ffmpeg from taking a name such as "http:a.m4a" for an address.
    source = ["-format_whitelist", _DEMUXERS, "-i", f"file:{path}", "-map", "0:a:0"]
    output = ["-c:a", "pcm_f32le", "-rf64", "auto"] if target != "pipe:1" else ["-c:a", "pcm_f32le"]
    command = ["ffmpeg", "-nostdin", "-v", "error", *source, *output, "-f", "wav", target]
    result = subprocess.run(command, capture_output=True, check=False)
    message = (result.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
    if result.returncode != 0 or (target == "pipe:1" and not result.stdout):
        raise AudioError(f"{path}: not a sound file that can be read (ffmpeg: {message}); convert it to WAV")
    if result.stderr:
        logger.warning("%s: may be damaged or cut off; ffmpeg: %s", path, message)
    return result.stdout
