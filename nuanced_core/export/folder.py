"""Export of a checkpoint's encoder to a folder that can be loaded and shared: weights, configuration, card, samples."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save

from nuanced_core.encoder.checkpoint import read_checkpoint
from nuanced_core.encoder.pretrained import CONFIG_FILE, KOKORO, WEIGHTS_FILE
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.exhibits.listening import LISTENING
from nuanced_core.export.card import model_card
from nuanced_core.export.onnx import ONNX_FILE, write_onnx
from nuanced_core.hashing import hash_bytes
from nuanced_core.weights import manifest, store

__all__ = ["export_encoder"]

MOST_SAMPLES = 2  # clips in a card


def export_encoder(
    checkpoint: Path,
    out: Path,
    facts: Mapping[str, Any] | None = None,
    *,
    hashes: Mapping[str, str] | None = None,
    onnx: bool = False,
) -> Path:
    """Write the encoder of a checkpoint to a new folder and return the folder.

    It contains ``model.safetensors``, ``config.json``, ``README.md`` and, if the checkpoint's run has listening clips,
    ``samples/``. It is written atomically, after a test that the encoder can be loaded again. Of the folder of
    recordings that it was trained on, only the name is kept.

    Args:
        out: the new folder.
        facts: scores and origin, which are written to ``config.json`` and to the card.
        hashes: SHA-256 of the model files that it was trained with, as ``ModelSet.hashes`` names them; that of Kokoro
            is written to ``config.json`` and compared when the encoder is used.
        onnx: also write ``encoder.onnx``, see ``write_onnx``.

    Raises:
        ConfigError: ``out`` exists, the checkpoint's encoder is of another version of this project, or it cannot be
            written as ONNX.
        WeightsError: the checkpoint is missing or damaged.
        DiskError: ``out`` cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; give another folder, or remove it")
    source = read_checkpoint(checkpoint)
    best_loss = source.best_loss if math.isfinite(source.best_loss) else None
    weights = save(source.encoder)
    config = {
        "style_encoder": source.style_encoder,
        "run": _without_place(source.run),
        "nuanced_speech": version("nuanced-speech"),
        "facts": {"epoch": source.epoch, "val/loss": best_loss, **(facts or {})},
        **_origin((hashes or {}).get(KOKORO), weights),
    }
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        # safetensors' own writer makes a file that only its owner can read, whatever the umask.
        (part / WEIGHTS_FILE).write_bytes(weights)
        (part / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        samples = _copy_samples(checkpoint.parent.parent / LISTENING, part)
        (part / "README.md").write_text(model_card(out.name, config, samples), encoding="utf-8")
        encoder = StyleEncoder.from_pretrained(part)
        if onnx:
            write_onnx(encoder, part / ONNX_FILE)
        part.rename(out)
    except (OSError, SafetensorError) as error:
        raise DiskError(f"{out}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _origin(kokoro: str | None, weights: bytes) -> dict[str, Any]:
    """Return the hashes of weights and Kokoro, and Kokoro's source if its hash tells that."""
    found = {"sha256": {WEIGHTS_FILE: hash_bytes(weights)}}
    if kokoro is not None:
        found["sha256"][KOKORO] = kokoro
        if source := _kokoro_source(kokoro):
            found["sources"] = {KOKORO: source}
    return found


def _kokoro_source(sha256: str) -> str | None:
    """Return hub or packages if the Kokoro with this hash is from there and checked, None if that is not known."""
    if sha256 == manifest.HUB_MODEL[1]:
        return "hub"
    converted = store.find(KOKORO, "packages")
    return "packages" if converted is not None and sha256 in converted.sha256.values() else None


def _copy_samples(listening: Path, part: Path) -> list[dict[str, Any]]:
    """Copy the sounds of the first clips of stock voices into ``samples/``; return their entries for the card.

    Clips of people are left out: their recordings may not be passed on without a word of their licence. So are samples
    that cannot be read, which an encoder does not need.

    Raises:
        OSError: ``part`` cannot be written.
    """
    try:
        clips = json.loads((listening / f"{LISTENING}.json").read_text(encoding="utf-8"))["clips"]
    except (OSError, ValueError, KeyError):
        return []
    samples: list[dict[str, Any]] = []
    # A person's clip has no reference, since a person has no true style.
    for clip in [clip for clip in clips if "reference" in clip["files"]]:
        try:
            names = {kind: Path(name).name for kind, name in clip["files"].items()}
            sounds = {name: (listening / name).read_bytes() for name in names.values()}
        except OSError:
            continue
        (part / "samples").mkdir(exist_ok=True)
        for name, sound in sounds.items():
            (part / "samples" / name).write_bytes(sound)
        files = {kind: f"samples/{name}" for kind, name in names.items()}
        samples.append({"voice": clip["voice"], "condition": clip["condition"], "files": files})
        if len(samples) == MOST_SAMPLES:
            break
    return samples


def _without_place(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings without the place of its people, which is of no use to others."""
    data = dict(run["data"])
    if data.get("people"):
        data["people"] = Path(data["people"]).name
    return {**run, "data": data}
