"""``nuanced voice``: a voice pack from clips of a person."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.paths import user_path
from tune.cli.common.options import EncoderFolder, Source, expand_home

if TYPE_CHECKING:
    from nuanced_core.refinement.person import Judge
    from nuanced_core.speech.models import SpeechModels

__all__ = ["voice"]

logger = logging.getLogger(__name__)

STRONGEST = 3.0

Clips = Annotated[
    list[Path],
    typer.Argument(
        metavar="CLIP…", show_default=False, help="Recordings of one person, together 3 s to 10 min, of any format."
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="PACK", callback=expand_home, help="Pack to write: .pt, .npz, .bin.")
]
Refine = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        help="Refine the voice by gradient steps through Kokoro, for about so long. It is judged by seconds of the "
        "clips that are kept out, and the better voice is written.",
    ),
]
Blend = Annotated[
    str | None,
    typer.Option(
        metavar="VOICE=SHARE,…",
        help="Blend other voices in, such as af_heart=0.3,bm_lewis=0.1; the rest is the clips'.",
    ),
]
Strength = Annotated[
    float, typer.Option(metavar="S", help="Scale the offset from the mean voice: 0 is the mean, 1 as found, at most 3.")
]
KeepProsody = Annotated[str | None, typer.Option(metavar="VOICE", help="Speak with the prosody of this voice or pack.")]
KeepTimbre = Annotated[str | None, typer.Option(metavar="VOICE", help="Speak with the timbre of this voice or pack.")]
Format = Annotated[
    str | None, typer.Option(metavar="pt|npz|bin", help="Format of the pack (default: as its name ends).")
]


def voice(
    clips: Clips,
    out: Out,
    model: EncoderFolder = Path("models/default"),
    refine: Refine = None,
    blend: Blend = None,
    strength: Strength = 1.0,
    keep_prosody: KeepProsody = None,
    keep_timbre: KeepTimbre = None,
    format: Format = None,
    source: Source = "auto",
) -> None:
    """Write the voice of a person as a pack that Kokoro speaks with.

    A .pt is for kokoro, an .npz for kokoro-onnx, a .bin for kokoro-js. The strength is applied first, then the blend;
    a half that is kept replaces that of the result.

    Examples:
      nuanced voice me.wav -o my_voice.pt
      nuanced voice one.wav two.mp3 -o my_voice.pt --refine 2 --blend af_heart=0.3
    """
    from nuanced_core.speech import packs

    _check_options(refine, strength, keep_prosody, keep_timbre)
    shares = packs.parse_weights(blend) if blend else {}
    packs.pack_format(out, format)
    packs.check_output(out)

    from nuanced_core.speech.models import SpeechModels
    from nuanced_core.speech.voices import refine_voice, voice_from_clips

    speech = SpeechModels.load(model, source)
    bank = speech.models.voices
    halves = {"prosody": keep_prosody, "timbre": keep_timbre}
    kept = {half: packs.resolve_voice(name, bank) for half, name in halves.items() if name is not None}
    others = {name: packs.resolve_voice(name, bank) for name in shares}
    found = voice_from_clips(speech, [user_path(path) for path in clips])
    for note in found.notes:
        logger.warning("%s", note)
    if refine is not None:
        found = refine_voice(speech, found, refine, _judge(speech, source))
    pack = packs.scale_offset(found.pack, speech.encoder.mean_pack, strength)
    pack = packs.blend(pack, shares, others)
    if "prosody" in kept:
        pack = packs.with_half(pack, kept["prosody"], "prosody")
    if "timbre" in kept:
        pack = packs.with_half(pack, kept["timbre"], "timbre")
    packs.write_pack(out, pack, format)
    if found.refinement:
        print(found.refinement)
    print(f"{out}: a voice from {found.seconds:.1f} s of speech")


def _check_options(refine: float | None, strength: float, keep_prosody: str | None, keep_timbre: str | None) -> None:
    if refine is not None and not (math.isfinite(refine) and refine > 0):
        raise ConfigError(f"--refine: {refine:g}: give a number of minutes above 0")
    if not 0 <= strength <= STRONGEST:
        raise ConfigError(f"--strength: {strength:g} is not between 0 and {STRONGEST:g}")
    if keep_prosody is not None and keep_timbre is not None:
        raise ConfigError("--keep-prosody, --keep-timbre: together leave nothing of the clips; give one of them")


def _judge(speech: "SpeechModels", source: str) -> "Judge":
    """Return the d-vector as the judge of a refinement by both speaker encoders; without it, the default judge."""
    from nuanced_core.judges.dvector import DVector
    from nuanced_core.refinement.person import Judge, default_judge

    try:
        return Judge("a d-vector", DVector(source), ("campplus", "resemblyzer"))
    except (ConfigError, WeightsError) as error:
        logger.info("%s: Resemblyzer judges instead, and CAM++ alone refines", error)
        return default_judge(speech.models)
