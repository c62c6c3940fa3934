"""``nuanced reply``: a language model's answer to a recording, spoken in its speaker's style."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import Source, expand_home

__all__ = ["reply"]

_KEY = "OPENAI_API_KEY"

Recording = Annotated[
    Path, typer.Argument(metavar="IN", callback=expand_home, show_default=False, help="What was said, in English.")
]
Out = Annotated[
    Path, typer.Argument(metavar="OUT", callback=expand_home, show_default=False, help="WAV file of the answer.")
]
Llm = Annotated[str, typer.Option(metavar="URL", help="Address of an OpenAI-compatible API; mostly it ends with /v1.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="The language model there.")]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What the model is told beforehand, instead of the default.")
]
Key = Annotated[
    str | None,
    typer.Option(metavar="env:NAME", help="Environment variable with the API's key (default: $OPENAI_API_KEY)."),
]
Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=1, help="How long the answer may take to begin or to go on.")
]
Usual = Annotated[
    Path | None,
    typer.Option(
        metavar="CLIP",
        callback=expand_home,
        help="The speaker's usual way of speaking, against which rate, pitch and loudness are measured (default: the "
        "mean of IN); with it IN may be shorter than 3 s.",
    ),
]
Speed = Annotated[float, typer.Option(metavar="S", help="Speed of the answer, 0.5 to 2.")]
Encoder = Annotated[Path, typer.Option(metavar="DIR", callback=expand_home, help="Folder of the encoder.")]


def reply(
    recording: Recording,
    out: Out,
    llm: Llm,
    model: Model,
    system: System = None,
    key: Key = None,
    timeout: Timeout = 120.0,
    usual: Usual = None,
    speed: Speed = 1.0,
    encoder: Encoder = Path("models/default"),
    source: Source = "auto",
) -> None:
    """Answer a recording by a language model, in the style of its speaker.

    Examples:
      nuanced reply in.wav out.wav --llm http://localhost:8080/v1 --model llama3
    """
    secret = _secret(key)

    from nuanced_core.audio import write_audio
    from nuanced_core.dialogue.chat import ChatEndpoint
    from nuanced_core.dialogue.reply import SYSTEM
    from nuanced_core.dialogue.reply import reply as answer
    from nuanced_core.speech.models import SpeechModels
    from nuanced_core.speech.packs import check_output
    from nuanced_core.speech.speaking import FASTEST, SLOWEST

    endpoint = ChatEndpoint(llm, model, secret, timeout)
    check_output(out)
    if not SLOWEST <= speed <= FASTEST:
        raise ConfigError(f"--speed {speed:g}: give {SLOWEST:g} to {FASTEST:g}")
    for path in (recording, *([] if usual is None else [usual])):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
    speech = SpeechModels.load(encoder, source)
    made = answer(speech, recording, endpoint, system=SYSTEM if system is None else system, usual=usual, speed=speed)
    write_audio(out, made.audio)
    for line in (*made.notes, f"heard: {made.heard}", f"answer: {made.text}", str(out)):
        print(line)


def _secret(key: str | None) -> str | None:
    """Return the value of ``env:NAME``, by default that of $OPENAI_API_KEY, if there is one."""
    from tune.config.secrets import from_environment, is_variable

    if key is None:
        return os.environ.get(_KEY, "").strip() or None
    if not is_variable(key):
        raise ConfigError("--key: give env:NAME, since other users see the arguments of a command")
    return from_environment(key, "--key")
