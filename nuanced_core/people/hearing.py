"""Hearing of people's recordings: some of each speaker's are chosen, heard by several processes, and kept in the cache.

What is unusable among many is left out, counted and named.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor

from nuanced_core.config.settings import Augment, Data
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.processes import Work, run_in_processes
from nuanced_core.data.rendering import worker_count
from nuanced_core.data.versions import NO_COPIES, Version
from nuanced_core.errors import AudioError
from nuanced_core.people.corpus import Corpus, PeopleSplit, check_speakers, split_of
from nuanced_core.people.recordings import HeardRecording, HearingSettings, RecordingHearer
from nuanced_core.progress import progress_bar
from nuanced_core.speakers.encoders import SPEAKER_ENCODERS

__all__ = ["Hearing", "hear"]

logger = logging.getLogger(__name__)

TRIES = 4  # times data.people_recordings: at most so many of a speaker's recordings are tried, if some are unusable
NAMED = 3  # recordings that the warning names


@dataclass(frozen=True)
class Hearing:
    """The recordings of people that can be used, sorted by speaker, and those that cannot, with the reasons."""

    recordings: tuple[HeardRecording, ...]
    skipped: tuple[tuple[Path, str], ...]
    hearer: RecordingHearer

    def of_split(self, split: PeopleSplit) -> tuple[HeardRecording, ...]:
        """Return the recordings of the speakers of one split."""
        return tuple(recording for recording in self.recordings if split_of(recording.speaker) == split)

    def audio(self, recording: HeardRecording) -> Tensor:
        """Return what is heard of a recording (samples,) at 16 kHz, see ``RecordingHearer.audio``."""
        return self.hearer.audio(recording)

    def states(self, recording: HeardRecording, layers: Sequence[int], version: Version = 0) -> Tensor:
        """Return Whisper's states (L, T, D) of a version of a recording, see ``RecordingHearer.states``."""
        return self.hearer.states(recording, layers, version)

    def part(self, recording: HeardRecording, name: str, version: Version = 0) -> Tensor:
        """Return the speaker embedding or the pitch of a version of a recording, see ``RecordingHearer.part``."""
        return self.hearer.part(recording, name, version)


def hear(
    people: Corpus | Mapping[str, Sequence[Path]],
    models: ModelSet,
    cache: Cache,
    settings: Data,
    *,
    augment: Augment = NO_COPIES,
    encoders: Sequence[str] = SPEAKER_ENCODERS,
    parts: Sequence[str] = (),
    for_training: bool = True,
    workers: int | None = None,
) -> Hearing:
    """Hear at most ``people_recordings`` of each speaker, chosen by a hash of their names, or find them in the cache.

    If a recording cannot be used, another one of the speaker takes its place. With several processes a script that
    calls this needs ``if __name__ == "__main__":``.

    Args:
        people: files by speaker.
        augment, encoders, parts: as in ``HearingSettings``.
        for_training: whether too few speakers for training and validation are an error.
        workers: number of processes; None: as many as are worth starting and fit into memory.

    Raises:
        AudioError: no recording can be used, or those that can are of too few speakers.
        DiskError, WeightsError: the cache cannot be written, or a model is not available.
    """
    heard = HearingSettings(settings.people_seconds, tuple(encoders), augment, tuple(parts))
    hearer = RecordingHearer(models, cache, heard)
    for name in hearer.encoders:
        models.speaker_sha256(name)  # fetched before there are several processes
    speakers = people.speakers if isinstance(people, Corpus) else people
    limit = settings.people_recordings
    waiting = {name: _by_hash(name, speakers[name])[: TRIES * limit] for name in sorted(speakers)}
    found: dict[str, list[HeardRecording]] = {name: [] for name in waiting}
    skipped: list[tuple[str, Path, str]] = []
    while batch := [(name, file) for name, files in waiting.items() for file in files[: limit - len(found[name])]]:
        waiting = {name: files[limit - len(found[name]) :] for name, files in waiting.items() if files}
        for (name, file), result in zip(batch, _hear_all(batch, hearer, workers), strict=True):
            if isinstance(result, str):
                skipped.append((name, file, result))
            else:
                found[name].append(result)
        waiting = {name: files for name, files in waiting.items() if files and len(found[name]) < limit}
    recordings = tuple(recording for name in found for recording in found[name])
    where = f"{people.folder}: people" if isinstance(people, Corpus) else "people"
    _report(where, {recording.speaker for recording in recordings}, len(recordings), skipped, for_training)
    return Hearing(recordings, tuple((file, reason) for _, file, reason in skipped), hearer)


def _by_hash(speaker: str, files: Sequence[Path]) -> list[Path]:
    """Return the files in an order that does not depend on where the corpus lies."""
    return sorted(files, key=lambda file: (hashlib.sha256(os.fsencode(f"{speaker}/{file.name}")).digest(), file))


def _hear_all(
    batch: Sequence[tuple[str, Path]], hearer: RecordingHearer, workers: int | None
) -> list[HeardRecording | str]:
    """Return each recording, or the reason why it cannot be used."""
    results = {file: hearer.find(file, speaker) for speaker, file in batch}
    missing = [file for file, result in results.items() if result is None]
    if missing:
        _compute(missing, hearer, worker_count(len(missing), hearer.models) if workers is None else workers)
        results |= {file: hearer.find(file, speaker) for speaker, file in batch if results[file] is None}
    return [results[file] or "it is no longer in the cache; run the command again" for _, file in batch]


def _compute(files: Sequence[Path], hearer: RecordingHearer, workers: int) -> None:
    logger.info("hearing %d recordings of people%s", len(files), f" in {workers} processes" if workers > 1 else "")
    with progress_bar("hearing people", len(files)) as advance:
        if workers > 1:
            # Workers load the models themselves: replace() drops those that this process has loaded.
            opened = partial(_open_worker, replace(hearer.models), hearer.cache.folder, hearer.settings)
            work = Work(opened, lambda name: f"hearing {name}", "hearing", "recordings")
            run_in_processes(work, map(str, files), workers, advance)
        else:
            for file in files:
                hearer.hear(file)
                advance()


def _open_worker(models: ModelSet, folder: Path, settings: HearingSettings) -> Callable[[str], None]:
    hearer = RecordingHearer(models, Cache(folder), settings)
    return lambda name: hearer.hear(Path(name))


def _report(
    where: str, names: Collection[str], count: int, skipped: Sequence[tuple[str, Path, str]], for_training: bool
) -> None:
    """Log what is left out in one line.

    Raises:
        AudioError: too little is left.
    """
    total = count + len(skipped)
    for _, file, reason in skipped:
        logger.debug("%s: left out: %s", file, reason)
    first = [f"{speaker}/{file.name} ({reason})" for speaker, file, reason in skipped[:NAMED]]
    named = ", ".join(first) + (", …" if len(skipped) > NAMED else "")
    if not names:
        raise AudioError(f"{where}: none of {total} recordings can be used: {named}")
    left_out = f"{len(skipped)} of {total} recordings cannot be used: {named}"
    if for_training:
        check_speakers(names, f"{where}: {left_out}; of the others" if skipped else where, minimum=2)
    if skipped:
        _warn_once(f"{where}: {left_out}")


@lru_cache(maxsize=1000)
def _warn_once(line: str) -> None:
    """Log a warning, not again for each run of a sweep that hears the same people."""
    logger.warning("%s", line)
