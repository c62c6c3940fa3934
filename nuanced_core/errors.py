"""Errors that a user can fix, with the exit code of the command that raises them.

A message is one line that names the value, the place and the fix.
"""

__all__ = [
    "AudioError",
    "ConfigError",
    "DiskError",
    "EndpointError",
    "NuancedError",
    "StoppedError",
    "TextError",
    "TrainingError",
    "VoiceError",
    "WeightsError",
    "one_line",
]


def one_line(error: BaseException, most: int | None = 200) -> str:
    """Return what a library's error says, in one line of at most ``most`` characters; else the name of its type."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class NuancedError(Exception):
    """Base class of the errors that the command line shows as one line instead of a traceback."""

    exit_code = 2

    def __str__(self) -> str:
        """Return the message; line breaks and control characters, which names in files may have, as ``\\n``."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class ConfigError(NuancedError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another."""


class WeightsError(NuancedError):
    """A model file cannot be fetched, or is not the expected file."""


class VoiceError(NuancedError):
    """A voice is unknown, or its pack is not of shape (510, 1, 256)."""


class TextError(NuancedError):
    """A text has no words, or more phonemes than Kokoro speaks at once."""


class AudioError(NuancedError):
    """An audio file cannot be read, is empty, or is silent."""


class DiskError(NuancedError):
    """A folder cannot be written, or its disk is full."""


class EndpointError(NuancedError):
    """A server elsewhere cannot be reached, refuses a request, or gives no answer that can be used."""


class StoppedError(NuancedError):
    """A run stopped on request; it wrote a checkpoint and can be resumed from it."""

    exit_code = 130


class TrainingError(NuancedError):
    """A run failed after it had started, for example because of a non-finite loss."""

    exit_code = 1
