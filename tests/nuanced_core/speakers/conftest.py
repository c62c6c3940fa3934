"""The real speaker encoders, fetched once into the user's cache."""

from collections.abc import Callable

import pytest

from nuanced_core.speakers.encoders import SpeakerEncoder, load_speaker_encoder
from nuanced_core.weights.fetch import fetch_speaker_encoder


@pytest.fixture(scope="package")
def encoders() -> Callable[[str], SpeakerEncoder]:
    """A function that returns a speaker encoder by name, on the CPU."""
    loaded: dict[str, SpeakerEncoder] = {}

    def encoder(name: str) -> SpeakerEncoder:
        if name not in loaded:
            loaded[name] = load_speaker_encoder(fetch_speaker_encoder(name).path, name)
        return loaded[name]

    return encoder
