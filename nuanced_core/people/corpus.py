"""Recordings of people in folders, one for each speaker, split by speaker into training, validation and test.

LibriSpeech, LibriTTS, VCTK and one's own recordings are laid out like this:

    FOLDER/103/1240/103-1240-0000.flac
    FOLDER/p225/p225_001_mic1.flac
    FOLDER/anna/anything.wav

A level more above the speakers' folders, such as ``train-clean-100``, is recognised where the names of files say which
folder is the speaker's, as those of the public corpora do.
"""

import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nuanced_core.errors import AudioError
from nuanced_core.paths import user_path
from nuanced_core.sound_files import SOUND_SUFFIXES, looks_like_sound

__all__ = ["SPLITS", "Corpus", "PeopleSplit", "check_speakers", "find_people", "split_of"]

logger = logging.getLogger(__name__)

PeopleSplit = Literal["train", "validation", "test"]
SPLITS: tuple[PeopleSplit, ...] = get_args(PeopleSplit)
TEST_PERCENT, VALIDATION_PERCENT = 15, 12

MIN_SPEAKERS = 4
MANY_FOLDERS = 10  # in an only folder: they are of speakers, since hardly anybody's recordings are in so many
NAMED = 3  # folders or files that a message names
# Speakers of LibriSpeech, LibriTTS (103) and VCTK (p225, s5) and the beginnings of their files' names.
_PUBLIC_SPEAKER = re.compile(r"\d{2,5}|[ps]\d{1,3}")
_PUBLIC_FILE = re.compile(r"(\d{2,5}|[ps]\d{1,3})[-_]\d+(?:[-_]|$)")


@dataclass(frozen=True)
class Corpus:
    """Sound files by speaker, sorted by name, and the folder that holds the speakers' folders."""

    folder: Path
    speakers: Mapping[str, tuple[Path, ...]]

    def of_splits(self, *splits: PeopleSplit) -> "Corpus":
        """Return the speakers of some splits."""
        return Corpus(self.folder, {name: files for name, files in self.speakers.items() if split_of(name) in splits})


def split_of(speaker: str) -> PeopleSplit:
    """Return the split of a speaker, by a hash of the name: it does not change when speakers are added."""
    number = int(hashlib.sha256(os.fsencode(speaker)).hexdigest()[:8], 16) % 100
    if number < TEST_PERCENT:
        return "test"
    return "validation" if number < TEST_PERCENT + VALIDATION_PERCENT else "train"


def find_people(folder: str | Path, *, place: str = "data.people", for_training: bool = True) -> Corpus:
    """Find the recordings in a folder that holds a folder for each speaker.

    Sound files count at any depth below a speaker's folder, as ``looks_like_sound`` recognises them. Hidden files and
    folders are passed over.

    Args:
        folder: a leading ``~`` is replaced by the home folder.
        place: the setting or option that names the folder, for errors.
        for_training: whether too few speakers for training and validation are an error.

    Raises:
        AudioError: the folder is missing, cannot be read, holds no sound or no folders with sound, has the speakers'
            folders at different depths, or holds too few speakers.
    """
    root = user_path(folder)
    where = f"{place}: {root}"
    _check_folder(root, where)
    files = [path.relative_to(root) for path in _sound_files(root, where)]
    if not files:
        raise AudioError(f"{where}: holds no sound file ({', '.join(SOUND_SUFFIXES[:7])}, …); put recordings in it")
    loose = [path for path in files if len(path.parts) == 1]
    nested = [path for path in files if len(path.parts) > 1]
    if not nested:
        raise AudioError(
            f"{where}: holds sound files ({_named(loose)}), but no folders; move the recordings of each speaker into a "
            "folder of its own in it"
        )
    if loose:
        logger.warning("%s: %d sound files in no speaker's folder are left out: %s", where, len(loose), _named(loose))
    depth = _speaker_depth(nested, where)
    speakers: defaultdict[str, list[Path]] = defaultdict(list)
    for path in nested:
        speakers[path.parts[depth]].append(root / path)
    if for_training:
        check_speakers(speakers, where, _deeper_folders(root, nested))
    return Corpus(root, {name: tuple(sorted(speakers[name])) for name in sorted(speakers)})


def check_speakers(names: Collection[str], where: str, hint: str = "", minimum: int = MIN_SPEAKERS) -> None:
    """Check that there are enough speakers, and among them some for training and some for validation.

    Args:
        where: beginning of the error's message.
        hint: what to do if there are fewer than ``minimum``.

    Raises:
        AudioError: there are not.
    """
    if len(names) < minimum:
        count = f"{len(names)} speaker{'s' if len(names) > 1 else ''} ({_named(sorted(names))})"
        hint = hint or "add a folder of recordings for each of some more"
        raise AudioError(f"{where}: only {count}; at least {minimum} are needed: {hint}")
    by_split = {split: sorted(name for name in names if split_of(name) == split) for split in SPLITS}
    needed: tuple[tuple[PeopleSplit, str], ...] = (("train", "training"), ("validation", "validation"))
    for split, purpose in needed:
        if not by_split[split]:
            chosen = max(by_split.values(), key=len)[0]
            renamed = next(name for n in range(2, 10_000) if split_of(name := f"{chosen}-{n}") == split)
            raise AudioError(
                f"{where}: none of the {len(names)} speakers is for {purpose}, which a hash of their names decides: "
                f"add speakers, or rename a folder, for example {chosen} to {renamed}"
            )


def _check_folder(root: Path, where: str) -> None:
    try:
        if not root.is_dir():
            problem = "is a file" if root.is_file() else "no such folder"
            raise AudioError(f"{where}: {problem}; name a folder that holds a folder of recordings for each speaker")
        if not any(root.iterdir()):
            raise AudioError(f"{where}: is empty; put a folder of recordings for each speaker in it")
    except OSError as error:
        raise AudioError(f"{where}: cannot be read ({error.strerror}); check its permissions") from None


def _sound_files(root: Path, where: str) -> Iterator[Path]:
    """Yield the sound files below a folder, at any depth; links to folders are followed once."""
    seen: set[str] = set()
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable.append):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            yield from (path for name in sorted(names) if looks_like_sound(path := Path(folder, name)))
        seen.add(real)
    if unreadable:
        named = _named([str(error.filename) for error in unreadable])
        logger.warning("%s: %d folders cannot be read and are left out: %s", where, len(unreadable), named)


def _speaker_depth(paths: Sequence[Path], where: str) -> int:
    """Return at which place in the parts of paths, relative to the corpus, the speakers' folders are.

    Raises:
        AudioError: the names of files do not agree about it.
    """
    examples = {_named_depth(path): path for path in paths}
    depths = {depth for depth in examples if depth is not None}
    if not depths - {0}:
        return _depth_below_only_folder(paths, where)
    deep = examples[max(depths)]
    if len(examples) > 1:
        other = next(path for depth, path in examples.items() if depth != max(depths))
        raise AudioError(
            f"{where}: by the names of its files, {Path(*deep.parts[: max(depths) + 1])} is a speaker's folder, but "
            f"those in {other.parts[0]} are at another depth; {_name_one(deep.parts[: max(depths)])}"
        )
    (depth,) = depths
    parents: dict[str, Path] = {}
    for path in paths:
        parent, speaker = Path(*path.parts[:depth]), path.parts[depth]
        if parents.setdefault(speaker, parent) != parent:
            raise AudioError(
                f"{where}: by the names of its files, {speaker} is a speaker, but has folders in {parents[speaker]} "
                f"and in {parent}; {_name_one(parent.parts)}"
            )
    logger.info("%s: the speakers are the folders in %s", where, _named(sorted({str(p) for p in parents.values()})))
    return depth


def _name_one(parts: Sequence[str]) -> str:
    return f"name a folder whose own folders are the speakers, such as {Path(*parts)} in it"


def _named_depth(path: Path) -> int | None:
    """Return which part of a path is a speaker of a public corpus by the file's name; None: it has another name."""
    found = _PUBLIC_FILE.match(path.stem)
    if found is None or found[1] not in path.parts[:-1] or not _PUBLIC_SPEAKER.fullmatch(found[1]):
        return None
    return path.parts.index(found[1])


def _depth_below_only_folder(paths: Sequence[Path], where: str) -> int:
    """Return 1 if the paths have one first folder that holds many with sound, and no sound itself; otherwise 0."""
    first = {path.parts[0] for path in paths}
    second = {path.parts[1] for path in paths}
    if len(first) == 1 and len(second) >= MANY_FOLDERS and all(len(path.parts) > 2 for path in paths):
        logger.info("%s: the speakers are the folders in %s", where, *first)
        return 1
    return 0


def _deeper_folders(root: Path, paths: Sequence[Path]) -> str:
    """Return what to do where the folders of too few speakers hold folders, which may be the speakers."""
    inner: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        if len(path.parts) > 2:
            inner[path.parts[0]].add(path.parts[1])
    most = max(inner, key=lambda name: len(inner[name]), default=None)
    if most is None or len(inner[most]) < 2:
        return ""
    return f"add a folder for each of some more, or, if the folders in {most} are the speakers, name {root / most}"


def _named(items: Sequence[object]) -> str:
    """Return the first few items, and whether there are more."""
    return ", ".join(map(str, items[:NAMED])) + (", …" if len(items) > NAMED else "")
