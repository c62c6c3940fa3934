"""Nuanced Speech's core: from the sound of a voice to a Kokoro style, trained through Kokoro."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nuanced_core.encoder.style_encoder import StyleEncoder

__all__ = ["StyleEncoder"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `nuanced --help` need not wait for torch.
    if name == "StyleEncoder":
        from nuanced_core.encoder.style_encoder import StyleEncoder

        return StyleEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
