"""Sounds and pictures as a run reports them, beside its scalars."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Exhibit", "Picture", "Sound"]


@dataclass(frozen=True)
class Sound:
    """A sound: ``audio`` (samples,) from -1 to 1, at ``rate`` Hz."""

    name: str  # with "/" between its groups, as a scalar's
    audio: Tensor
    rate: int


@dataclass(frozen=True)
class Picture:
    """A picture as the bytes of a PNG file."""

    name: str  # with "/" between its groups, as a scalar's
    png: bytes
    width: int  # pixels
    height: int


Exhibit = Sound | Picture
