"""``nuanced export``: a trained encoder as a folder that can be loaded, on the hub, and as ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import expand_home

__all__ = ["export"]


def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            callback=expand_home,
            show_default=False,
            help="Folder of a sweep, of one run, or of an encoder that is exported already.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", callback=expand_home, help="Folder to create."),
    ] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", help="This trial instead of the best.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write encoder.onnx.")] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload the folder to this repository of the Hugging Face hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create the repository as private.")] = False,
) -> None:
    """Export a sweep's best encoder as a folder that can be loaded.

    Examples:
      nuanced export outputs/quickstart -o models/quickstart --onnx
      nuanced export models/quickstart --push me/quickstart
    """
    if private and push is None:
        raise ConfigError("--private: concerns --push; give that too, or leave it out")
    if push is not None:
        from nuanced_core.export.hub import check_repository

        check_repository(push)
    exported = _complete_export(folder, out, trial, onnx) if _is_export(folder) else _new(folder, out, trial, onnx)
    if push is not None:
        from nuanced_core.export.hub import push_to_hub

        print(f"{push_to_hub(exported, push, private=private)}: {exported}")


def _is_export(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _new(folder: Path, out: Path | None, trial: int | None, onnx: bool) -> Path:
    from tune.trial.checkpoints import best_checkpoint

    chosen = best_checkpoint(folder, trial)
    if out is None:
        raise ConfigError("--out: name the folder to create")

    from nuanced_core.export.folder import export_encoder
    from tune.trial.checkpoints import recorded_hashes

    export_encoder(chosen.file, out, chosen.facts, hashes=recorded_hashes(folder), onnx=onnx)
    print(f"{out}: the encoder of {chosen.file}")
    return out


def _complete_export(folder: Path, out: Path | None, trial: int | None, onnx: bool) -> Path:
    """Add what an existing export lacks."""
    for option, value in (("out", out), ("trial", trial)):
        if value is not None:
            raise ConfigError(f"--{option}: {folder} is exported already; leave it out, or give the sweep's folder")
    if onnx:
        from nuanced_core.encoder.style_encoder import StyleEncoder
        from nuanced_core.errors import DiskError
        from nuanced_core.export.onnx import ONNX_FILE, write_onnx

        file = folder / ONNX_FILE
        try:
            write_onnx(StyleEncoder.from_pretrained(folder), file)
        except OSError as error:
            raise DiskError(f"{file}: cannot be written: {error.strerror}") from None
        print(file)
    return folder
