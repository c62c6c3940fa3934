"""The model card of an exported encoder, in the form that the Hugging Face hub shows."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["loading_line", "model_card"]

_CARD = """---
license: mit
library_name: nuanced-speech
pipeline_tag: audio-to-audio
base_model: hexgrad/Kokoro-82M
tags: [text-to-speech, style-encoder, kokoro, whisper, voice-cloning]
---

# {name}

A StyleEncoder of Nuanced Speech: it predicts the Kokoro-82M style of a clip's voice from the states of Whisper
{whisper} (layers {layers}).

```python
from nuanced_core import StyleEncoder

{loading}
```

| | |
|---|---|
{rows}

## Training data and licences

{training} Kokoro-82M and the speaker encoders are Apache-2.0, Whisper is MIT.

## Consent

It imitates voices. Use the voice of a living person only with their consent, and say of what it speaks that it is
synthetic.
{samples}"""
_ON_VOICES = "Trained on Kokoro's own voices: recordings of people differ a lot from them."
_ON_PEOPLE = "Trained on Kokoro's own voices, and on recordings of people: {people}. Their licence is theirs."
_SAMPLES = """
## Samples

Validation voices, which it was not trained on: what it heard, and what Kokoro speaks in the predicted style and in the
true one.

| voice | condition | heard | predicted | true style |
|---|---|---|---|---|
{rows}
"""
_SAMPLE_KINDS = ("heard", "spoken", "reference")


def loading_line(place: str) -> str:
    """Return the line of Python that loads the encoder from a folder or from OWNER/NAME on the hub."""
    return f'encoder = StyleEncoder.from_pretrained("{place}")'


def model_card(name: str, config: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the card as Markdown.

    Args:
        name: of the folder.
        config: the content of ``config.json``.
        samples: entries with ``voice``, ``condition`` and ``files``, the paths of sounds by kind.
    """
    style_encoder = config["style_encoder"]
    rows = {
        **{f"{part}.{k}": v for part in ("features", "encoder") for k, v in style_encoder[part].items()},
        "training voices": config["run"]["data"]["voices"],
        "validation voices": config["run"]["data"]["val_voices"],
        **config["facts"],
    }
    people = config["run"]["data"].get("people")
    return _CARD.format(
        name=name,
        loading=loading_line(name),
        training=_ON_PEOPLE.format(people=people) if people else _ON_VOICES,
        whisper=style_encoder["whisper"],
        layers=", ".join(str(n) for n in style_encoder["layers"]),
        rows="\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        samples=_SAMPLES.format(rows="\n".join(_sample_row(sample) for sample in samples)) if samples else "",
    )


def _sample_row(sample: Mapping[str, Any]) -> str:
    sounds = [f'<audio controls src="{sample["files"][kind]}"></audio>' for kind in _SAMPLE_KINDS]
    return f"| {' | '.join([sample['voice'], sample['condition'], *sounds])} |"


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
