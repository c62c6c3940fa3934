"""``nuanced mix``: a chosen mix of voices as a pack."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import Source, expand_home

__all__ = ["mix"]


def mix(
    expression: Annotated[
        str,
        typer.Argument(
            metavar="EXPR",
            show_default=False,
            help="Voices and pack files with weights, which are divided by their sum: af_bella(2)+af_sky(1).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PACK", callback=expand_home, help="Pack to write: .pt, .npz, .bin.")
    ],
    format: Annotated[
        str | None, typer.Option(metavar="pt|npz|bin", help="Format of the pack (default: as its name ends).")
    ] = None,
    source: Source = "auto",
) -> None:
    """Mix voices, and write the mix as a voice pack.

    Examples:
      nuanced mix "af_bella(2)+af_sky(1)" -o mix.pt
      nuanced mix "my_voice.pt+bm_lewis(0.5)" -o mix.bin
    """
    from nuanced_core.kokoro.voices import VoiceBank
    from nuanced_core.speech.packs import check_output, pack_format, resolve_voice, write_pack
    from nuanced_core.weights.fetch import fetch_voices

    pack_format(out, format)
    check_output(out)
    files = fetch_voices(source)
    write_pack(out, resolve_voice(expression, VoiceBank(files.packs, files.source)), format)
    print(f"{out}: {expression}")
