"""The errors that a user can mend; each class knows the exit code of the command that raised it.

A message is one line that names the value, the place and the fix.
"""

__all__ = [
    "AudioError",
    "ConfigError",
    "DiskError",
    "NuancedError",
    "StoppedError",
    "TextError",
    "TrainingError",
    "VoiceError",
    "WeightsError",
]


class NuancedError(Exception):
    """Base of every error that is told in one line instead of a traceback."""

    exit_code = 2


class ConfigError(NuancedError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class WeightsError(NuancedError):
    """A model file cannot be had, or is not the file that it should be."""


class VoiceError(NuancedError):
    """A voice is unknown, or its pack is not of shape (510, 1, 256)."""


class TextError(NuancedError):
    """A text holds nothing to say, or more than Kokoro can say at once."""


class AudioError(NuancedError):
    """An audio file cannot be read, is empty, or is silent."""


class DiskError(NuancedError):
    """A folder cannot be written, or its disk is full."""


class StoppedError(NuancedError):
    """A run was asked to stop; it wrote a checkpoint and can go on from it."""

    exit_code = 130


class TrainingError(NuancedError):
    """A run went wrong after it had started: a non-finite loss, say."""

    exit_code = 1
