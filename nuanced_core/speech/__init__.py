"""Speech with a trained encoder: a voice from clips, its pack, what Kokoro says in it, and the conversion of speech."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuanced_core.speech.conversion import convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    if name == "convert":
        from nuanced_core.speech.conversion import convert

        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
