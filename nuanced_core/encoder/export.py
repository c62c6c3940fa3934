"""From a checkpoint to a folder that can be used and given away: weights, configuration and a card."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.errors import ConfigError, DiskError, WeightsError

__all__ = ["export_encoder"]

CARD = """---
license: mit
library_name: nuanced-speech
base_model: hexgrad/Kokoro-82M
tags: [text-to-speech, style-encoder, kokoro, whisper]
---

# {name}

A StyleEncoder of Nuanced Speech: it hears a clip through Whisper {whisper} (layers {layers}) and says in which
Kokoro-82M style its voice speaks.

```python
from nuanced_core import StyleEncoder

encoder = StyleEncoder.from_pretrained("{name}")
```

| | |
|---|---|
{rows}

Trained on Kokoro's own voices: recordings of people lie far from them. Use the voice of a living person only with
their consent. Kokoro-82M is Apache-2.0, Whisper is MIT.
"""


def export_encoder(checkpoint: Path, out: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the encoder of a checkpoint as ``model.safetensors``, ``config.json`` and ``README.md``; returns ``out``.

    ``facts`` (scores, where it came from) are kept in ``config.json`` and shown on the card. The folder appears
    whole or not at all, and is loaded again before it does.

    Raises:
        ConfigError: ``out`` exists, or the checkpoint is of another version.
        WeightsError: the checkpoint is missing or damaged.
        DiskError: ``out`` cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; give another folder, or remove it")
    try:
        with safe_open(checkpoint, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {
                name.removeprefix("encoder."): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (no mapping)
                if name.startswith("encoder.")
            }
    except FileNotFoundError:
        raise WeightsError(f"{checkpoint}: no such checkpoint; has a trial finished an epoch?") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{checkpoint}: not a checkpoint: {error}") from None
    StyleEncoderConfig.from_dict(progress["style_encoder"], str(checkpoint))
    facts = {"epoch": progress["epoch"], "val/loss": progress["best_loss"], **(facts or {})}
    config = {
        "style_encoder": progress["style_encoder"],
        "run": progress["run"],
        "nuanced_speech": version("nuanced-speech"),
        "facts": facts,
    }
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        save_file(tensors, part / "model.safetensors")
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_card(out.name, config), encoding="utf-8")
        StyleEncoder.from_pretrained(part)
        part.rename(out)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _card(name: str, config: Mapping[str, Any]) -> str:
    style_encoder = config["style_encoder"]
    rows = {
        **{f"{part}.{k}": v for part in ("features", "encoder") for k, v in style_encoder[part].items()},
        "training voices": config["run"]["data"]["voices"],
        "validation voices": config["run"]["data"]["val_voices"],
        **config["facts"],
    }
    return CARD.format(
        name=name,
        whisper=style_encoder["whisper"],
        layers=", ".join(str(n) for n in style_encoder["layers"]),
        rows="\n".join(f"| {key} | {_shown(value)} |" for key, value in rows.items()),
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
