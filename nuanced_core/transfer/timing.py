"""Durations as in a recording: the frames of each phoneme, so that words take the time that they took.

Dimensions: N tokens (phonemes, and a boundary token at either end); a frame is 25 ms.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND
from nuanced_core.transfer.words import Word

__all__ = ["speech_frames", "timed_frames"]

SEGMENT_BOUNDS = 0.5, 2.2  # of the factor on the durations of a whole segment
WORD_BOUNDS = 0.6, 1.7  # of a word's own factor, relative to its segment's
# Whisper's times of a word are this uncertain, in seconds: the own factor of a word as long as this counts half.
UNCERTAINTY = 0.2
MOST_EDGE_FRAMES = 10  # of the silence before the first word and after the last one
LONGEST_PAUSE = 60  # frames of the punctuation between two words


def timed_frames(durations: Tensor, owners: Sequence[int], words: Sequence[Word]) -> Tensor:
    """Return the frames (N,) of the tokens of a segment whose words have times.

    The segment's durations are scaled to the time from its first to its last word, within ``SEGMENT_BOUNDS``; those of
    each word are drawn towards its own time, the more the longer it is; the punctuation between two words gets the
    pause that was there.

    Args:
        durations: (N,) frames of each token as predicted.
        owners: (N,) index of each token's word, -1 for boundaries, spaces and punctuation.
        words: of the segment.
    """
    wanted = durations.double().cpu().clone()
    owner = torch.tensor(owners)
    spoken = [index for index in range(len(words)) if bool((owner == index).any())]
    if not spoken:
        return _rounded(wanted)
    places = {index: torch.nonzero(owner == index)[:, 0] for index in spoken}
    first, last = int(places[spoken[0]][0]), int(places[spoken[-1]][-1])
    predicted = float(wanted[first : last + 1].sum())
    total = FRAMES_PER_SECOND * (words[spoken[-1]].end - words[spoken[0]].start)
    whole = _between(total / predicted, SEGMENT_BOUNDS)
    for index in spoken:
        seconds = words[index].end - words[index].start
        own = max(seconds, 1e-3) * FRAMES_PER_SECOND / float(wanted[places[index]].sum()) / whole
        wanted[places[index]] *= whole * _between(own ** (seconds / (seconds + UNCERTAINTY)), WORD_BOUNDS)
    for before, after in pairwise(spoken):
        gap = slice(int(places[before][-1]) + 1, int(places[after][0]))
        pause = FRAMES_PER_SECOND * (words[after].start - words[before].end)
        silence = float(wanted[gap].sum())
        if silence > 0:
            # A space alone is a boundary of words, not a pause: it may only grow to what a pause needs.
            least = whole * silence if gap.stop - gap.start == 1 else gap.stop - gap.start
            wanted[gap] *= min(max(pause, float(least)), LONGEST_PAUSE) / silence
    # Pauses and bounds may have changed the sum; the words make up for it.
    inside = torch.zeros(len(owners), dtype=torch.bool)
    inside[first : last + 1] = owner[first : last + 1] >= 0
    rest = whole * predicted - float(wanted[first : last + 1][~inside[first : last + 1]].sum())
    wanted[inside] *= _between(rest / float(wanted[inside].sum()), WORD_BOUNDS)
    for edge in (slice(0, first), slice(last + 1, len(owners))):
        wanted[edge] *= min(1.0, MOST_EDGE_FRAMES / max(float(wanted[edge].sum()), 1e-6))
    return _rounded(wanted)


def speech_frames(token_frames: Tensor, owners: Sequence[int]) -> tuple[int, int]:
    """Return the frame at which the first word of a segment begins, and that at which the last one has ended.

    Args:
        token_frames: (N,).
        owners: as for ``timed_frames``; without a word, all tokens but the boundaries count.
    """
    ends = token_frames.cumsum(dim=0)
    spoken = [place for place, word in enumerate(owners) if word >= 0] or [1, len(owners) - 2]
    return int(ends[spoken[0]] - token_frames[spoken[0]]), int(ends[spoken[-1]])


def _between(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _rounded(wanted: Tensor) -> Tensor:
    """Round durations (N,) to at least 1 frame; what rounding adds or takes is made up for at the next token."""
    frames, carry = [], 0.0
    for value in wanted.tolist():
        count = max(1, round(value + carry))
        carry = _between(value + carry - count, (-2.0, 2.0))
        frames.append(count)
    return torch.tensor(frames)
