"""Export of a checkpoint's encoder to a folder that can be loaded and shared: weights, configuration, model card."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from nuanced_core.encoder.checkpoint import read_checkpoint
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, DiskError

__all__ = ["export_encoder"]

CARD = """---
license: mit
library_name: nuanced-speech
base_model: hexgrad/Kokoro-82M
tags: [text-to-speech, style-encoder, kokoro, whisper]
---

# {name}

A StyleEncoder of Nuanced Speech: it predicts the Kokoro-82M style of a clip's voice from the states of Whisper
{whisper} (layers {layers}).

```python
from nuanced_core import StyleEncoder

encoder = StyleEncoder.from_pretrained("{name}")
```

| | |
|---|---|
{rows}

{training} Use the voice of a living person only with their consent. Kokoro-82M and the speaker encoders are
Apache-2.0, Whisper is MIT.
"""
_ON_VOICES = "Trained on Kokoro's own voices: recordings of people differ a lot from them."
_ON_PEOPLE = "Trained on Kokoro's own voices, and on recordings of people: {people}."


def export_encoder(checkpoint: Path, out: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the encoder of a checkpoint to a new folder and return the folder.

    It contains ``model.safetensors``, ``config.json`` and ``README.md``. It is written atomically, after a test that
    the encoder can be loaded again. Of the folder of recordings that it was trained on, only the name is kept.

    Args:
        out: the new folder.
        facts: scores and origin, which are written to ``config.json`` and to the card.

    Raises:
        ConfigError: ``out`` exists, or the checkpoint's encoder is of another version of this project.
        WeightsError: the checkpoint is missing or damaged.
        DiskError: ``out`` cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; give another folder, or remove it")
    source = read_checkpoint(checkpoint)
    best_loss = source.best_loss if math.isfinite(source.best_loss) else None
    config = {
        "style_encoder": source.style_encoder,
        "run": _without_place(source.run),
        "nuanced_speech": version("nuanced-speech"),
        "facts": {"epoch": source.epoch, "val/loss": best_loss, **(facts or {})},
    }
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_file(source.encoder, part / "model.safetensors")
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_card(out.name, config), encoding="utf-8")
        StyleEncoder.from_pretrained(part)
        part.rename(out)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _without_place(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings without the place of its people, which is of no use to others."""
    data = dict(run["data"])
    if data.get("people"):
        data["people"] = Path(data["people"]).name
    return {**run, "data": data}


def _card(name: str, config: Mapping[str, Any]) -> str:
    style_encoder = config["style_encoder"]
    rows = {
        **{f"{part}.{k}": v for part in ("features", "encoder") for k, v in style_encoder[part].items()},
        "training voices": config["run"]["data"]["voices"],
        "validation voices": config["run"]["data"]["val_voices"],
        **config["facts"],
    }
    people = config["run"]["data"].get("people")
    return CARD.format(
        name=name,
        training=_ON_PEOPLE.format(people=people) if people else _ON_VOICES,
        whisper=style_encoder["whisper"],
        layers=", ".join(str(n) for n in style_encoder["layers"]),
        rows="\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
    )


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
