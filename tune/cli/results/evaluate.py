"""``nuanced evaluate``: measure an exported encoder on voices that no sweep used, or on recordings of people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import Json, Source, expand_home

if TYPE_CHECKING:
    from nuanced_core.config.settings import SpeakerEncoderName
    from nuanced_core.evaluation.people import EvaluatedSplit

__all__ = ["evaluate"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", callback=expand_home, help="Folder of the encoder.")]
Clips = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=expand_home,
        help="Recordings of people, a folder or one file, instead of the test split. Files that cannot be used are "
        "listed with the reason; the exit code is 0 if at least one was evaluated.",
    ),
]
People = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=expand_home,
        help="A folder of recordings for each person, instead of the test split: what Kokoro speaks in their voices is "
        "compared with them. More measures need the extra 'eval'.",
    ),
]
Refine = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        min=1,
        help="With --people: also refine each voice, in rounds on the encoder's surrogate, if it has one, and then by "
        "gradient steps, at most STEPS.",
    ),
]
RefineBy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="With --refine: a speaker encoder that refines, campplus or resemblyzer; the default is both.",
    ),
]
Inversion = Annotated[
    bool,
    typer.Option("--inversion", help="With --people: also find each voice without the encoder, as a ceiling; slow."),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="test|validation|all",
        help="With --people: which of the speakers (default: test); all, if nothing was trained on them.",
    ),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="With --people: the first N of them (default: all).")]
Samples = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        callback=expand_home,
        help="With --people: write what was heard and what is spoken, as WAV files, to this new folder.",
    ),
]
Sentences = Annotated[int | None, typer.Option(metavar="N", help="Sentences of each test voice (default: 3).")]
Identity = Annotated[
    bool | None,
    typer.Option(
        "--identity/--no-identity",
        help="Take the measures that need the extra 'eval' (default: if it is installed).",
    ),
]
Degraded = Annotated[
    bool | None,
    typer.Option(
        "--degraded/--no-degraded",
        help="Also encode the clips with noise, over the telephone and in a room (default: yes).",
    ),
]
Card = Annotated[
    bool, typer.Option("--card", help="Also write the results into the model's folder: card and evaluation.json.")
]


def evaluate(
    model: Model = Path("models/default"),
    as_json: Json = False,
    clips: Clips = None,
    people: People = None,
    refine: Refine = None,
    refine_by: RefineBy = None,
    inversion: Inversion = False,
    split: Split = None,
    limit: Limit = None,
    samples: Samples = None,
    sentences: Sentences = None,
    identity: Identity = None,
    degraded: Degraded = None,
    card: Card = False,
    source: Source = "auto",
) -> None:
    """Evaluate an exported encoder on voices that no sweep used, or on recordings.

    Examples:
      nuanced evaluate models/quickstart --card
      nuanced evaluate models/quickstart --people people --refine 20
    """
    if clips is not None and people is not None:
        raise ConfigError("--people, --clips: give one of them; they are different evaluations")
    of_split = {"sentences": sentences, "identity": identity}
    of_people: dict[str, object] = {"refine": refine, "refine-by": refine_by or None, "inversion": inversion or None}
    of_people |= {"split": split, "limit": limit, "samples": samples}
    if people is not None:
        _refuse(of_split, "concerns the test split; leave it out with --people")

        from nuanced_core.evaluation.people import PeopleSettings, evaluate_people

        by = _refine_by(refine, refine_by)
        settings = PeopleSettings(_split(split), limit, refine, inversion, degraded is not False, samples, by)
        report = evaluate_people(model, people, settings, source=source)
    elif clips is not None:
        _refuse(of_people, "concerns --people; leave it out with --clips")
        of_split |= {"degraded": degraded, "card": card or None}
        _refuse(of_split, "concerns the test split; leave it out with --clips")

        from nuanced_core.evaluation.recordings import evaluate_clips

        report = evaluate_clips(model, clips, source=source)
    else:
        _refuse(of_people, "concerns --people; give that too, or leave it out")

        from nuanced_core.evaluation.test_split import evaluate_test_split

        report = evaluate_test_split(
            model,
            source=source,
            sentences=3 if sentences is None else sentences,
            identity=identity,
            robustness=degraded is not False,
        )
    _show(report, model if card else None, as_json)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError for the first option that was given."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name}: {reason}")


def _refine_by(steps: int | None, names: list[str] | None) -> tuple["SpeakerEncoderName", ...]:
    from nuanced_core.config.settings import SpeakerEncoderName

    known = get_args(SpeakerEncoderName)
    if names and steps is None:
        raise ConfigError("--refine-by: says how --refine STEPS refines; give that too, or leave it out")
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--refine-by: {name!r}: choose from {', '.join(known)}")
    return tuple(name for name in known if not names or name in names)


def _split(name: str | None) -> "EvaluatedSplit":
    from nuanced_core.evaluation.people import EvaluatedSplit

    if name is None:
        return "test"
    if name in get_args(EvaluatedSplit):
        return cast("EvaluatedSplit", name)
    raise ConfigError(f"--split: {name!r}: choose test, validation, or all if nothing was trained on these people")


def _show(report: Mapping[str, Any], card: Path | None, as_json: bool) -> None:
    """Print a report, after writing it into the model's folder ``card``, if there is one."""
    if card is not None:
        from tune.show.evaluation_tables import write_card

        write_card(card, report)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_tables(report)


def _print_tables(report: Mapping[str, Any]) -> None:
    from rich.console import Console

    from tune.show.evaluation_tables import tables

    console = Console()
    with console.capture() as text:  # print() raises BrokenPipeError, which Rich would turn into exit code 1
        console.print(*tables(report), sep="\n")
    print(text.get(), end="")
