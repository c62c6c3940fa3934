"""Stock voices: names, named sets, and packs with one style per phoneme count.

A pack has 510 rows; row ``n - 1`` is the style for ``n`` phonemes. Rows differ, so a voice is not a single vector.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nuanced_core.config.validation import spelling_hint
from nuanced_core.errors import ConfigError, VoiceError, one_line
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE

__all__ = ["STOCK_VOICES", "TEST_VOICES", "VOICE_SETS", "VoiceBank", "read_pack", "voice_traits"]

STOCK_VOICES = 54  # number of voices of Kokoro-82M v1.0

# Reserved for the final evaluation: no sweep trains on them or selects by them.
TEST_VOICES = (
    "af_river", "am_onyx", "bf_lily", "bm_fable", "em_santa", "hm_omega", "jf_nezumi", "pf_dora", "zm_yunxia",
)  # fmt: skip

# By the first letter of a voice's name; the second one says its sex.
ACCENTS = {
    "a": "american", "b": "british", "e": "spanish", "f": "french", "h": "hindi", "i": "italian", "j": "japanese",
    "p": "portuguese", "z": "mandarin",
}  # fmt: skip
SEXES = {"f": "female", "m": "male"}

# Full names, or first letters of names.
VOICE_SETS: dict[str, tuple[str, ...]] = {
    "original": ("am_michael", "am_fenrir", "af_nicole", "af_bella", "af_heart"),
    "american": ("a",),
    "british": ("b",),
    "english": ("a", "b"),
    "all": tuple(ACCENTS),
}


def voice_traits(name: str) -> dict[str, str]:
    """Return the ``accent`` and ``sex`` that a stock voice's name tells, such as american and female of ``af_heart``.

    What the name of another voice does not tell is missing.
    """
    prefix = name.partition("_")[0] if "_" in name else ""
    if len(prefix) != 2 or prefix[0] not in ACCENTS or prefix[1] not in SEXES:
        return {}
    return {"accent": ACCENTS[prefix[0]], "sex": SEXES[prefix[1]]}


def read_pack(path: Path) -> Tensor:
    """Read a pack (510, 256) from a ``.npy`` file of shape (510, 1, 256) or (510, 256).

    Raises:
        VoiceError: the file cannot be read, or has another shape, integers, or values that are not finite.
    """
    shape = (PACK_ROWS, 1, STYLE_SIZE)
    fix = "give the .npy file of a voice of Kokoro-82M v1.0; 'nuanced weights' has them"
    try:
        pack = np.load(path, allow_pickle=False)
    except Exception as error:  # of any type: NumPy tokenizes the header of a damaged file
        raise VoiceError(f"{path}: not a voice pack ({one_line(error)}); {fix}") from None
    if not isinstance(pack, np.ndarray):  # of a zip archive
        raise VoiceError(f"{path}: not a voice pack, but a PyTorch file or an archive of several arrays; {fix}")
    if pack.shape not in (shape, (PACK_ROWS, STYLE_SIZE)):
        raise VoiceError(f"{path}: shape {pack.shape} is not that of a voice pack, {shape}; {fix}")
    if pack.dtype.kind != "f" or not np.isfinite(pack).all():
        raise VoiceError(f"{path}: a voice pack has finite floating-point numbers, this file has others; {fix}")
    return torch.from_numpy(pack.astype(np.float32)).reshape(PACK_ROWS, STYLE_SIZE)


class VoiceBank:
    """Available voice packs by name, each read on first use.

    Args:
        packs: path of each voice's pack (see ``nuanced_core.weights.fetch.fetch_voices``).
        source: where they come from (hub, packages or folder); errors about a missing voice say how to add it.
    """

    def __init__(self, packs: Mapping[str, Path], source: str = "packages") -> None:
        self._paths = dict(sorted(packs.items()))
        self._fix = (
            "put its pack into the folder voices/ of models.source"
            if source == "folder"
            else "install npm, or connect to the hub, and run 'nuanced weights'"
        )
        self._packs: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all available voices, sorted."""
        return tuple(self._paths)

    def pack(self, name: str, setting: str = "voice") -> Tensor:
        """Return a voice's pack (510, 256); errors name ``setting`` as the place of the name.

        Raises:
            VoiceError: the voice is unknown, or its file is not a pack.
        """
        if name not in self._paths:
            few = f"; only {len(self.names)} are available: {self._fix}"
            hint = few if len(self.names) < STOCK_VOICES else ""
            raise VoiceError(f"{setting}: {name!r} is not a voice; {spelling_hint(name, self.names)}{hint}")
        if name not in self._packs:
            self._packs[name] = read_pack(self._paths[name])
        return self._packs[name]

    def style(self, name: str, phoneme_count: int) -> Tensor:
        """Return a voice's style (256,) for a phoneme count; counts above 510 use the last row."""
        return self.pack(name)[min(phoneme_count, PACK_ROWS) - 1]

    def mean_pack(self, names: tuple[str, ...]) -> Tensor:
        """Return the *mean voice* of some voices: the mean of their packs, (510, 256)."""
        return torch.stack([self.pack(name) for name in names]).mean(dim=0)

    def training_voices(self, voices: str | tuple[str, ...], val_voices: tuple[str, ...]) -> tuple[str, ...]:
        """Resolve the setting ``data.voices`` to names of voices, without repeats.

        A named set is resolved to its members that are neither validation nor test voices.

        Raises:
            VoiceError: a voice or a set is unknown, or voices of a set are not available.
            ConfigError: a listed voice is a validation or a test voice, a validation voice is a test voice, or the
                list is empty.
        """
        for name in val_voices:
            self.pack(name, "data.val_voices")
            if name in TEST_VOICES:
                raise ConfigError(
                    f"data.val_voices: {name} is a test voice, reserved for the final evaluation; choose another"
                )
        if isinstance(voices, str):
            if voices not in VOICE_SETS:
                raise VoiceError(
                    f"data.voices: {voices!r} is not a set of voices; {spelling_hint(voices, [*VOICE_SETS])}"
                )
            held_out = {*val_voices, *TEST_VOICES}
            members = VOICE_SETS[voices]
            chosen = tuple(n for n in self.names if (n in members or n[0] in members) and n not in held_out)
            missing = [n for n in members if len(n) > 1 and n not in self.names]
            if missing or not chosen:
                lacking = ", ".join(missing) or f"all of {voices!r}"
                raise VoiceError(
                    f"data.voices: {lacking} not among the {len(self.names)} available voices; {self._fix}"
                )
            return chosen
        for name in voices:
            self.pack(name, "data.voices")
        for kind, others in (("validation voice", val_voices), ("test voice", TEST_VOICES)):
            both = sorted(set(voices) & set(others))
            if both:
                raise ConfigError(
                    f"data.voices: {', '.join(both)} is a {kind} too; a held-out voice must not be trained on: "
                    "remove it from one of the two"
                )
        if not voices:
            raise ConfigError("data.voices: the list is empty; name at least one voice or a set")
        return tuple(dict.fromkeys(voices))
