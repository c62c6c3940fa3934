"""Options and arguments that several commands share, and the rules between them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from nuanced_core.errors import ConfigError
from nuanced_core.paths import user_path

if TYPE_CHECKING:
    from tune.cluster.machines import Machines

__all__ = [
    "Address",
    "ConfigFile",
    "EncoderFolder",
    "Insecure",
    "Json",
    "Name",
    "Outputs",
    "Overrides",
    "Source",
    "SweepFolder",
    "Temp",
    "check_new_or_resumed",
    "expand_home",
    "machines",
]

P = TypeVar("P", Path, str)


def expand_home(path: P | None) -> P | None:
    """Replace a leading ``~`` of an argument by the home folder, where the shell left it: ``--out=~/folder``.

    The folders ``.`` and ``..`` get their names.
    """
    if path is None or not (str(path).startswith("~") or isinstance(path, Path)):
        return path
    return type(path)(user_path(path))


ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", callback=expand_home, show_default=False, help="YAML file of settings."),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the new folder in the outputs (default: the file's name)."),
]
Outputs = Annotated[
    str | None,
    typer.Option(metavar="DIR", callback=expand_home, help="Folder of the outputs (default: outputs)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a setting, such as train.epochs=3; may be repeated.",
    ),
]
SweepFolder = Annotated[
    Path, typer.Argument(metavar="DIR", callback=expand_home, show_default=False, help="Folder of the sweep.")
]
EncoderFolder = Annotated[
    Path, typer.Option("--model", metavar="DIR", callback=expand_home, help="Folder of the encoder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Source = Annotated[
    str,
    typer.Option(
        metavar="SOURCE", callback=expand_home, help="Where model files come from: auto, hub, packages, or a folder."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="auto|HOST:PORT", help="Join this Ray cluster instead of using this machine alone."),
]
Temp = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        callback=expand_home,
        help="Folder for Ray's temporary files (default: $RAY_TMPDIR, or the system's).",
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Join the cluster even if it has no authentication.")]


def machines(address: str | None, insecure: bool, temp: str | None = None) -> "Machines":
    """Return the cluster at ``address``, or this machine if it is None, with Ray's temporary folder in ``temp``.

    Raises:
        ConfigError: ``insecure`` without an address, or ``temp`` with one.
    """
    from tune.cluster.machines import JoinedCluster, ThisMachine

    if address is not None:
        if temp is not None:
            raise ConfigError("--temp: a joined cluster has its own folder (ray start --temp-dir); leave it out")
        return JoinedCluster(address, insecure)
    if insecure:
        raise ConfigError("--insecure: concerns a cluster that is joined; give --address too, or leave it out")
    return ThisMachine(temp)


def check_new_or_resumed(config: Path | None, resume: Path | None, *, name: str | None, outputs: str | None) -> None:
    """Check that a command is given either the settings of a new folder or an existing folder to resume.

    Raises:
        ConfigError: both or neither are given, or an option for a new folder comes with ``--resume``.
    """
    if (config is None) == (resume is None):
        raise ConfigError("give either CONFIG or --resume DIR")
    for option, value in (("name", name), ("outputs", outputs)):
        if resume is not None and value is not None:
            raise ConfigError(f"--{option}: a folder that is resumed keeps its name and place; leave it out")
