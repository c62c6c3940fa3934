"""``nuanced evaluate``: measure an exported encoder on voices that no sweep used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import Json, Source, expand_home

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
    sentences: Sentences = None,
    identity: Identity = None,
    degraded: Degraded = None,
    card: Card = False,
    source: Source = "auto",
) -> None:
    """Evaluate an exported encoder on voices that no sweep used, or on recordings.

    Examples:
      nuanced evaluate models/quickstart --card
      nuanced evaluate models/quickstart --clips recordings --json
    """
    if clips is not None:
        given = {"sentences": sentences, "degraded": degraded, "identity": identity, "card": card or None}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"--{name}: concerns the test split; leave it out with --clips")

        from nuanced_core.evaluation.recordings import evaluate_clips

        report = evaluate_clips(model, clips, source=source)
    else:
        from nuanced_core.evaluation.test_split import evaluate_test_split

        report = evaluate_test_split(
            model,
            source=source,
            sentences=3 if sentences is None else sentences,
            identity=identity,
            robustness=degraded is not False,
        )
    if card:
        from tune.show.evaluation_tables import write_card

        write_card(model, report)
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
