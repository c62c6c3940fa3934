"""Folders of small sweeps in every state, made through the ledger, without Ray; and listening clips made by hand."""

import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.encoder.checkpoint import Checkpoint, write_checkpoint
from nuanced_core.training.run import BEST
from tests.nuanced_core.encoder.small_encoders import small_encoder
from tune.config.sweep_config import SETTINGS_FILE, parse_sweep
from tune.loggers.tensorboard import TensorBoardReport
from tune.search.ledger import TrialLedger
from tune.search.study import open_study
from tune.show.status import mark
from tune.trial.protocol import CONFIG_FILE

RECORD = {
    "started": "2026-11-26T23:16:03+00:00",
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "versions": {"nuanced-speech": "0.1.0", "torch": "2.14.1"},
    "models": {"kokoro": "c0" * 32, "voice <b>": "ab" * 32},
}
SEARCH = """
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
  encoder.width: {low: 64, high: 512, log: true}
  encoder.pooling: [mean, attentive, queries]
  features.layers: [[1, 2], all]
  encoder.heads: {choices: [1, 2, 4], when: {encoder.pooling: [attentive, queries]}}
"""
# What happens to a trial: (val/loss of its epochs, how it ends); a text is why it failed.
Outcome = tuple[Sequence[float], str]


def made_sweep(
    folder: Path,
    outcomes: Sequence[Outcome],
    state: str = "finished",
    text: str = SEARCH,
    metrics: Callable[[float], dict[str, float]] = lambda loss: {},
    is_light: bool = False,
) -> Path:
    """Make the folder of a sweep with these trials, each with its settings, curves and, if complete, a checkpoint.

    A light one has no curves and no checkpoints.
    """
    folder.mkdir(parents=True)
    source = folder.with_suffix(".yaml")
    source.write_text(text)
    data = read_yaml(source)
    data["sweep"] = {"sampler": "random", "seed": 3, "trials": max(len(outcomes), 1), **data.get("sweep", {})}
    data["sweep"].setdefault("pruner", "none")
    config = parse_sweep(data, "made")
    write_yaml(folder / SETTINGS_FILE, {**config.as_dict(), "record": RECORD})
    study = open_study(folder, config.sweep, create=True)
    book = TrialLedger(study, config.search, config.run, folder / "trials", config.sweep)
    for outcome in outcomes:
        _run_trial(book, outcome, metrics, is_light)
    mark(study, state)
    book.save_used_time()
    return folder


def _run_trial(
    book: TrialLedger, outcome: Outcome, metrics: Callable[[float], dict[str, float]], is_light: bool
) -> None:
    losses, ending = outcome
    asked = book.ask()
    assert asked is not None
    number, folder = asked["number"], Path(asked["folder"])
    folder.mkdir(parents=True)
    write_yaml(folder / CONFIG_FILE, asked["run"])
    with nullcontext(lambda *_: None) if is_light else TensorBoardReport(folder) as board:
        for epoch, loss in enumerate(losses, start=1):
            scalars = {
                "val/loss": loss,
                "val/stft": loss / 2,
                "val/style": 1 / loss,
                "val/skill": 1 - loss / 2,
                "val/identity": 0.5 - loss / 4,
                "train/steps_per_second": 50.0,
                "baseline/loss": 2.0,
                "nearest/loss": 1.5,
                "ridge/loss": 1.25,
                "oracle/loss": 0.125,
                **metrics(loss),
            }
            board(10 * epoch, scalars)
            book.report(number, {"epoch": epoch, **scalars})
    if ending == "running":
        return
    if ending == "pruned":
        book._open[number].pruned = True
    elif ending != "complete":
        book.fail(number, ending)
    book.end(number)
    if ending == "complete" and not is_light:
        write_small_checkpoint(folder / BEST, asked["run"])


def write_small_checkpoint(file: Path, run: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    encoder = small_encoder()
    write_checkpoint(
        file,
        Checkpoint(
            epoch=1,
            step=10,
            best_loss=1.0,
            best_epoch=1,
            scalars={"val/loss": 1.0},
            style_encoder=encoder.config.to_dict(),
            run=run,
            encoder=encoder.state_dict(),
            optimizer={},
        ),
    )


def write_listening(trial: Path, names: Sequence[str] = ("af_nova in noise", "a person"), loss: float = 1.1) -> None:
    """Write the listening folder of a trial: a clip of a voice, and one of a person, who has no reference."""
    folder = trial / "listening"
    folder.mkdir(parents=True)
    clips = []
    for index, name in enumerate(names):
        keys = ["heard", "reference", "mean", "nearest", "spoken"]
        if "person" in name:
            keys.remove("reference")
        for n, key in enumerate(keys):
            write_sound(folder / f"{index}_{key}.mp3", 220 * (n + 1))
            write_picture(folder / f"{index}_{key}.png")
        clips.append(
            {
                "name": name,
                "voice": "af_nova",
                "condition": "noise",
                "text": "Is <this> the sentence?",
                "nearest_voice": "af_heart",
                "loss": loss,
                "files": {key: f"{index}_{key}.mp3" for key in keys},
                "spectrograms": {key: f"{index}_{key}.png" for key in keys},
            }
        )
    written = {"epoch": 4, "step": 160, "val_loss": 1.03, "clips": clips}
    (folder / "listening.json").write_text(json.dumps(written))


def write_sound(file: Path, hertz: float) -> None:
    time = np.arange(24000 * 2) / 24000
    soundfile.write(file, 0.1 * np.sin(2 * math.pi * hertz * time), 24000, format="MP3")


def write_picture(file: Path, width: int = 64, height: int = 24) -> None:
    """Write a grey gradient as PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes((x * 4 + y) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
