"""A start function for tests: the loss is a parabola of the learning rate, and the width says what goes wrong."""

import json
import math
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import DiskError, StoppedError, TrainingError
from nuanced_core.exhibits.exhibit import Exhibit, Picture, Sound
from tune.trial.protocol import Report

if TYPE_CHECKING:
    from tune.sweep.services import SweepServices
    from tune.trial.resources import Peak

# encoder.width → what happens in the second epoch.
TRAINING_ERROR, NAN, CRASH, KILLED = 101, 102, 103, 104
SLOW = 105  # its epochs take 3 s
RISING = 106  # its first epoch is the best one
KILLED_ONCE, DISK_FULL, OUT_OF_MEMORY = 107, 108, 109
SHOWS = 111  # reports a sound and a picture
BROKEN = 110  # fails while sweep.outputs holds a file "broken"
# The first epoch ends when so many trials have begun, or never: encoder.width - TOGETHER of them.
TOGETHER = 1000
PATIENCE = 240.0  # seconds that they wait for one another

_starts = 0  # in this process


class ToyRun:
    def __init__(self, config: RunConfig, folder: Path, report: Report) -> None:
        self.config, self.folder, self.report = config, folder, report
        self.epoch = 0
        self.scalars: dict[str, float] = {}
        self._best = (math.inf, 0)  # loss, epoch
        self._step = 0  # steps of the current epoch, of a slow run that was stopped between two
        self._file = folder / "checkpoint.json"
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            self.epoch, self.scalars, self._best = kept["epoch"], kept["scalars"], tuple(kept["best"])
            self._step = kept["step"]

    @property
    def finished(self) -> bool:
        train = self.config.train
        return self.epoch >= train.epochs or 0 < train.patience <= self.epoch - self._best[1]

    def run_epoch(self) -> dict[str, float]:
        self.epoch += 1
        if self.epoch == 2:
            self._go_wrong(self.config.encoder.width)
        if self.config.encoder.width == SLOW:
            self._dawdle()
        if self.config.encoder.width > TOGETHER and self.epoch == 1:
            self._wait_for(self.config.encoder.width - TOGETHER)
        loss = expected_loss(self.config, self.epoch)
        if self.config.encoder.width == NAN and self.epoch == 2:
            loss = math.nan
        self._best = min(self._best, (loss, self.epoch))
        scalars = {
            "val/loss": loss,
            "val/stft": loss / 2,
            "val/style": loss / 2,
            "val/skill": 1 - loss,
            "baseline/loss": 1.0,
            "baseline/stft": 0.5,
            "baseline/style": 0.5,
            "oracle/loss": 0.0,
            "oracle/stft": 0.0,
            "oracle/style": 0.0,
        }
        self.report(self.epoch * 10, scalars, exhibits() if self.config.encoder.width == SHOWS else ())
        self.scalars = scalars
        self._save(self.epoch)
        return scalars

    def close(self) -> None:
        (self.folder / "closed").touch()

    def _save(self, epoch: int) -> None:
        kept = {"epoch": epoch, "scalars": self.scalars, "best": self._best, "step": self._step}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(kept))
        part.replace(self._file)

    def _dawdle(self) -> None:
        """Thirty steps of 0.1 s, as of an epoch that takes long; the report may stop it between two.

        The file ``steps`` gets a line for each; a run that was stopped goes on with the next one.
        """
        for step in range(self._step, 30):
            time.sleep(0.1)
            with (self.folder / "steps").open("a") as file:
                file.write(f"{self.epoch} {step}\n")
            try:
                # Below the epoch's last step: what a killed process wrote of the epoch is purged by its first one.
                self.report(self.epoch * 10 - 9 + step * 9 // 30, {"loss/total": 1.0})
            except StoppedError:
                self._step = step + 1
                self._save(self.epoch - 1)
                raise
        self._step = 0

    def _wait_for(self, others: int) -> None:
        until = time.monotonic() + PATIENCE
        while len(list(self.folder.parent.glob("*/start.json"))) < others:
            if time.monotonic() > until:
                raise TrainingError(f"fewer than {others} trials run at a time")
            time.sleep(0.2)

    def _go_wrong(self, width: int) -> None:
        if width == BROKEN and (self.folder.parents[2] / "broken").exists():
            raise TrainingError("something is broken")
        if width == TRAINING_ERROR:
            raise TrainingError("step 17: loss/stft is nan; lower train.learning_rate")
        if width == CRASH:
            raise ValueError("two lines\nof a reason")
        if width == KILLED or (width == KILLED_ONCE and not (self.folder / "killed").exists()):
            (self.folder / "killed").touch()
            os._exit(1)
        if width == DISK_FULL:
            raise DiskError("last.safetensors: cannot be written: no space left")
        if width == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("CUDA out of memory")


def exhibits(value: float = 0.5) -> tuple[Exhibit, ...]:
    """A sound of 0.1 s, a sine of that amplitude, and a red picture."""
    audio = value * torch.sin(torch.arange(2400) * (2 * math.pi * 440 / 24000))
    return Sound("listen/af_nova/spoken", audio, 24000), Picture("look/af_nova/mel", png(16, 8), 16, 8)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff\0\0" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def expected_loss(config: RunConfig, epoch: int) -> float:
    """Best at a learning rate of 0.001; the epoch before the last is the best one."""
    distance = math.log10(config.train.learning_rate) + 3
    if config.encoder.width == RISING:
        return distance**2 + epoch
    late = 0.5 if epoch == config.train.epochs else 0.0
    return distance**2 + 1 / epoch + late


def start_run(config: RunConfig, folder: Path, report: Report) -> ToyRun:
    global _starts
    _starts += 1
    facts = {"pid": os.getpid(), "nth": _starts, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "node": _node()}
    part = folder / "start.part"
    part.write_text(json.dumps(facts))
    part.replace(folder / "start.json")  # whole or not at all: tests read it meanwhile
    return ToyRun(config, folder, report)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


class ToyPrepared:
    def hashes(self) -> dict[str, str]:
        return {"toy": "0" * 64}


def prepare(configs: Sequence[RunConfig]) -> list[ToyPrepared]:
    noted = os.environ.get("NUANCED_CACHE")
    if noted and _node():
        with (Path(noted) / "prepared").open("a") as file:
            file.write(f"{_node()}\n")
    return [ToyPrepared() for _ in configs]


def services(**others: Any) -> "SweepServices":
    from tune.sweep.services import SweepServices  # not in workers, which import this file

    return SweepServices(**{"start_run": start_run, "prepare": prepare, "measure": measure, **others})


def measure(start_run: object, run: RunConfig) -> "Peak":
    """A step that holds a fifth of a card of 24 GB."""
    from tune.trial.resources import CONTEXT, Peak

    return Peak(held=int(4.8e9 - CONTEXT), total=int(24e9))
