"""``nuanced convert``: speech to speech."""

from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.text.phonemes import excerpt
from tune.cli.common.options import Source, expand_home

__all__ = ["convert"]

Recording = Annotated[
    Path, typer.Argument(metavar="IN", callback=expand_home, show_default=False, help="Recording of English speech.")
]
Target = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", callback=expand_home, show_default=False, help="File to write: .wav, .flac, .mp3 or .ogg."
    ),
]
Model = Annotated[Path, typer.Option(metavar="DIR", callback=expand_home, help="Folder that 'nuanced export' wrote.")]
Window = Annotated[float, typer.Option(metavar="S", help="Longest segment with a style of its own, in seconds.")]
Hold = Annotated[
    float, typer.Option(metavar="0…1", help="How far styles are drawn towards the whole clip's; 1: one for all.")
]
Timing = Annotated[
    str, typer.Option(metavar="source|kokoro", help="Durations of words as in IN, or as Kokoro predicts them.")
]
Contour = Annotated[
    float, typer.Option(metavar="0…1", help="Share of IN's own F0 and energy, moved to the voice's mean.")
]
Text = Annotated[str | None, typer.Option(metavar="TEXT", help="The words of IN, instead of Whisper's.")]
Voice = Annotated[
    str | None, typer.Option(metavar="NAME|PACK", help="Timbre of another voice, which speaks the way IN was spoken.")
]
Transcript = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=expand_home, help="JSON file to write: words, times and styles."),
]
Whisper = Annotated[str, typer.Option(metavar="NAME", help="Whisper model that transcribes.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]


def convert(
    recording: Recording,
    target: Target,
    model: Model = Path("models/default"),
    window: Window = 6.0,
    hold: Hold = 0.5,
    timing: Timing = "source",
    contour: Contour = 0.7,
    text: Text = None,
    voice: Voice = None,
    transcript: Transcript = None,
    whisper: Whisper = "base",
    source: Source = "auto",
    device: Device = "auto",
) -> None:
    """Speak the words of a recording again, the way they were said.

    Examples:
      nuanced convert me.wav kokoro.wav
      nuanced convert me.wav heart.mp3 --voice af_heart --transcript me.json
    """
    from nuanced_core.speech.conversion import convert as convert_speech
    from nuanced_core.speech.models import SpeechModels

    done = convert_speech(
        recording,
        target,
        speech=lambda: SpeechModels.load(model, source, device),
        window=window,
        hold=hold,
        timing=timing,  # type: ignore[arg-type]  # convert checks it
        contour=contour,
        text=text,
        voice=voice,
        transcript=transcript,
        whisper=whisper,
    )
    print(f"{target}: {done.seconds:.1f} s in {len(done.segments)} segments: {excerpt(done.text, 200)}")
