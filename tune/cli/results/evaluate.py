"""``nuanced evaluate``: measure an exported encoder on voices that no sweep used."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import Json, Source, expand_home

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", callback=expand_home, help="Folder of the encoder.")] = Path(
        "models/default"
    ),
    as_json: Json = False,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=expand_home, help="Recordings of people instead of the test split."),
    ] = None,
    sentences: Annotated[
        int | None, typer.Option(metavar="N", help="Sentences of each test voice (default: 3).")
    ] = None,
    identity: Annotated[
        bool | None,
        typer.Option(
            "--identity/--no-identity",
            help="Take the measures that need the extra 'eval' (default: if it is installed).",
        ),
    ] = None,
    degraded: Annotated[
        bool | None,
        typer.Option(
            "--degraded/--no-degraded",
            help="Also encode the clips with noise, over the telephone and in a room (default: yes).",
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also write the results into the model's folder: card and evaluation.json.")
    ] = False,
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

    from tune.show.evaluation_tables import tables, write_card

    if card:
        write_card(model, report)
    if as_json:
        print(json.dumps(report, indent=2))
        return

    from rich.console import Console

    console = Console()
    with console.capture() as text:  # printed by print, which reports a closed pipe
        console.print(*tables(report), sep="\n")
    print(text.get(), end="")
