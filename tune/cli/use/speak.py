"""``nuanced speak``: a text of any length spoken in a voice, to a file or a player."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nuanced_core.errors import ConfigError, TextError
from nuanced_core.paths import user_path
from tune.cli.common.options import EncoderFolder, Source, expand_home

if TYPE_CHECKING:
    from torch import Tensor

    from nuanced_core.audio import WriteSamples
    from nuanced_core.speech.models import SpokenModels

__all__ = ["speak"]

logger = logging.getLogger(__name__)

LARGEST_TEXT = 20_000_000  # bytes


def speak(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE|-", show_default=False, help="What is spoken: a text, a UTF-8 text file, or - for stdin."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|-",
            callback=expand_home,
            help="Sound file to write: .wav, .flac, .ogg or .mp3; - writes WAV to stdout while it is spoken.",
        ),
    ],
    voice: Annotated[
        str | None,
        typer.Option(metavar="VOICE", help="A stock voice, a pack file, or a mix such as af_bella(2)+af_sky(1)."),
    ] = None,
    like: Annotated[
        list[Path] | None, typer.Option(metavar="CLIP", help="Speak like the person in this clip; may be repeated.")
    ] = None,
    speed: Annotated[float, typer.Option(metavar="S", help="0.5 to 2; 1 is the voice's own speed.")] = 1.0,
    model: EncoderFolder = Path("models/default"),
    source: Source = "auto",
) -> None:
    """Speak a text of any length.

    Examples:
      nuanced speak "Good morning." -o out.wav --voice my_voice.pt
      nuanced speak book.txt -o - --like me.wav | ffplay -nodisp -
    """
    from nuanced_core.speech.speaking import FASTEST, SLOWEST, Speaker
    from nuanced_core.text.splitting import split_sentences

    if (voice is None) == (not like):
        raise ConfigError("give either --voice or --like, which says who speaks")
    if not SLOWEST <= speed <= FASTEST:
        raise ConfigError(f"--speed: {speed:g} is not between {SLOWEST:g} and {FASTEST:g}")
    _check_out(out)
    words = _read_text(text)
    sentences = len(split_sentences(words))
    speech, pack = _voice(voice, like or [], model, source)
    spoken = Speaker(speech).say(words, pack, speed=speed)
    from nuanced_core.audio import KOKORO_RATE
    from nuanced_core.progress import progress_bar

    samples = 0
    with _writer(out) as write, progress_bar("speaking", sentences) as advance:
        for audio in spoken:
            write(audio)
            samples += len(audio)
            advance()
    if out != "-":
        print(f"{out}: {samples / KOKORO_RATE:.1f} s of speech")


def _check_out(out: str) -> None:
    from nuanced_core.audio import sound_format
    from nuanced_core.speech.packs import check_output

    if out != "-":
        sound_format(Path(out))
        check_output(Path(out))
    elif sys.stdout.isatty():
        raise ConfigError("-o -: the sound would be printed in the terminal; pipe it to a player, or name a file")


def _read_text(text: str) -> str:
    """Return the text that an argument means: from stdin, from a file of this name, or the argument itself.

    Raises:
        TextError: a file is missing, too large, or not UTF-8.
    """
    if text == "-":
        return _decoded(sys.stdin.buffer.read(LARGEST_TEXT + 1), "stdin")
    try:
        path = Path(text).expanduser()
        if path.is_file():
            with path.open("rb") as file:
                return _decoded(file.read(LARGEST_TEXT + 1), text)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise TextError(f"{text}: cannot be read ({error.strerror}); check its permissions") from None
        return text  # too long for a file's name
    if path.suffix.lower() in (".txt", ".md") and len(text.split()) == 1:
        raise TextError(f"{text}: no such file; name a text file, or give the text itself")
    return text


def _decoded(data: bytes, place: str) -> str:
    if len(data) > LARGEST_TEXT:
        raise TextError(f"{place}: more than {LARGEST_TEXT // 1_000_000} MB of text; speak it in parts")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None


def _voice(voice: str | None, like: list[Path], model: Path, source: str) -> "tuple[SpokenModels, Tensor]":
    from nuanced_core.speech.models import SpeechModels, StockModels
    from nuanced_core.speech.packs import resolve_voice

    if voice is not None:
        stock = StockModels.load(source)
        return stock, resolve_voice(voice, stock.models.voices)

    from nuanced_core.speech.voices import voice_from_clips

    speech = SpeechModels.load(model, source)
    found = voice_from_clips(speech, [user_path(path) for path in like])
    for note in found.notes:
        logger.warning("%s", note)
    return speech, found.pack


@contextmanager
def _writer(out: str) -> "Iterator[WriteSamples]":
    from nuanced_core.audio import sound_writer, wav_stream

    if out == "-":
        yield wav_stream(sys.stdout.buffer)
        return
    with sound_writer(Path(out)) as write:
        yield write
