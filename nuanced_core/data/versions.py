"""Versions of a clip: as it is, an augmented copy of it, or degraded by a condition."""

from typing import NamedTuple

from torch import Tensor

from nuanced_core.audio import WHISPER_RATE
from nuanced_core.config.settings import Augment, Condition
from nuanced_core.hashing import derived_seed
from nuanced_core.hearing.augmentation import augmented, degraded

__all__ = ["CLEAN", "NO_COPIES", "AugmentedCopy", "Version", "heard_version", "is_clean", "version_key"]

CLEAN = (0,)  # the version without changes
NO_COPIES = Augment(copies=0)


class AugmentedCopy(NamedTuple):
    """The n-th augmented copy of a clip, with the settings that define it."""

    settings: Augment
    number: int  # from 1


# What is heard of a clip: 0 or "clean" is the clip itself, n > 0 its n-th augmented copy with the settings of whoever
# asks, another string the condition that ``degraded`` applies.
Version = int | Condition | AugmentedCopy


def is_clean(version: Version) -> bool:
    """Return whether a version is the clip itself."""
    return version in (0, "clean")


def version_key(version: Version, augment: Augment) -> list[object]:
    """Return what distinguishes a version from the clip itself, as parts of a key."""
    if is_clean(version):
        return []
    if isinstance(version, str):
        return [version]
    settings, number = _copy(version, augment)
    return [settings.model_dump(mode="json", exclude={"copies"}), number]


def heard_version(audio: Tensor, version: Version, augment: Augment, key: str) -> Tensor:
    """Return a version of audio (samples,) at 16 kHz; everything random in it depends on ``key``, that of the clip."""
    if is_clean(version):
        return audio
    if isinstance(version, str):
        return degraded(audio, WHISPER_RATE, version, derived_seed(key, version))
    settings, number = _copy(version, augment)
    return augmented(audio, WHISPER_RATE, settings, derived_seed(key, number))


def _copy(version: int | AugmentedCopy, augment: Augment) -> AugmentedCopy:
    return version if isinstance(version, AugmentedCopy) else AugmentedCopy(augment, version)
