"""Evaluation on recordings of people: speaker identity, and the distance of the recordings from the training clips.

A person's true style is unknown, so only the voice can be compared: each predictor's style for a recording speaks one
test sentence, with its own durations.

Dimensions: R recordings, L layers, T feature frames, D Whisper channels, S = 256 style, E speaker embedding.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, is_silent, load_audio
from nuanced_core.data.dataset import Dataset
from nuanced_core.errors import AudioError
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.comparison import Floats, SpeakerEmbedder
from nuanced_core.evaluation.metrics import as_json, estimate
from nuanced_core.evaluation.predictors import StylePredictors, load_export, open_dataset, render_clips
from nuanced_core.evaluation.test_split import held_out_sentences, held_out_utterances
from nuanced_core.judges.identity import Resemblyzer
from nuanced_core.progress import progress_bar
from nuanced_core.sound_files import SOUND_SUFFIXES, looks_like_sound

__all__ = ["evaluate_clips", "evaluate_recordings", "find_recordings"]

logger = logging.getLogger(__name__)

MIN_SECONDS = 3.0  # the halves of a recording are compared, and Resemblyzer embeds windows of 1.6 s
MAX_SECONDS = 600.0  # of a longer recording its beginning is evaluated, and the rest not decoded


@dataclass(frozen=True)
class _Result:
    """Measures of one recording."""

    file: str
    distance: float
    cosines: Mapping[str, float]  # by predictor, of its speech and the recording
    other_speaker: float  # mean cosine of the test voices and the recording
    same_speaker: float  # cosine of the two halves of the recording

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "distance": self.distance,
            "identity": {name: self._identity(cosine) for name, cosine in self.cosines.items()},
        }

    def _identity(self, cosine: float) -> float | None:
        values = (np.array([x]) for x in (cosine, self.other_speaker, self.same_speaker))
        identity = float(metrics.speaker_identity(*values))
        return None if np.isnan(identity) else identity


def evaluate_clips(model: str | Path, clips: str | Path, *, source: str = "auto") -> dict[str, Any]:
    """Evaluate an exported encoder on recordings of people, see ``evaluate_recordings``.

    Args:
        model: folder that ``nuanced export`` wrote.
        clips: folder of recordings, or one recording.
        source: of the model files: auto, hub, packages, or a folder.

    Raises:
        NuancedError: a model file or the extra ``eval`` is missing, or no recording can be used.
    """
    encoder, run = load_export(model)
    files, embed = find_recordings(Path(clips)), Resemblyzer(source)
    dataset = open_dataset(model, encoder.config.whisper, source)
    predictors = StylePredictors(encoder, run, dataset)
    return {"model": str(model), **evaluate_recordings(predictors, dataset, files, embed)}


def find_recordings(place: Path) -> list[Path]:
    """Return the sound files of a folder, sorted by name; or a file, whatever its name is.

    A file is one if its name ends like that of a sound file, in lower or upper case, or has no ending and libsndfile
    recognises its content; so files that cannot be read are among them. Hidden files and subfolders are passed over.

    Raises:
        AudioError: the folder does not exist or cannot be read, or holds no sound file.
    """
    try:
        if place.is_file():
            return [place]
        if not place.is_dir():
            raise AudioError(f"{place}: no such folder; name one that holds recordings")
        entries = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise AudioError(f"{place}: cannot be read ({error.strerror}); check its permissions") from None
    if files := [path for path in entries if looks_like_sound(path)]:
        for folder in (path for path in entries if path.suffix.lower() in SOUND_SUFFIXES and path.is_dir()):
            logger.info("%s: is a folder; passed over", folder)
        return files
    for folder in entries:
        with suppress(OSError):  # a file, or a folder that cannot be read
            if any(looks_like_sound(path) for path in folder.iterdir()):
                raise AudioError(
                    f"{place}: holds no recordings itself, but folders that do, such as {folder.name}; name one of "
                    "these, or put all recordings into one folder"
                )
    raise AudioError(f"{place}: holds no sound file ({', '.join(SOUND_SUFFIXES[:7])}, …); put recordings in it")


def evaluate_recordings(
    predictors: StylePredictors, dataset: Dataset, files: Sequence[Path], embed: SpeakerEmbedder
) -> dict[str, Any]:
    """Evaluate predictors on recordings of people.

    ``identity`` is the mean cosine of the speaker embeddings of a predictor's speech and of each half of the recording,
    scaled so that 0 is the mean of the test voices that speak the same sentence, and 1 the cosine of the two halves. So
    0 is what a Kokoro voice reaches by chance; 1 is hard to reach, since the halves share microphone and room.
    ``distance`` is that of the recording's pooled features from the mean training clip, in units of the training clips'
    own root mean square distance. The 95 % intervals are over recordings. Of a recording of more than 10 minutes the
    beginning is used.

    Returns:
        The report that ``nuanced evaluate --clips DIR --json`` prints, without ``model``. ``skipped`` has the name of
        each file that cannot be read, is silent, or is shorter than 3 s, and the reason.

    Raises:
        AudioError: no file could be used.
    """
    text, phonemes = next(iter(held_out_sentences(dataset.models.phonemizer, 2).items()))
    clips = render_clips(dataset, held_out_utterances(dataset.models.voices, {text: phonemes}))
    test_voices = torch.stack([embed(clip.audio, KOKORO_RATE).double() for clip in clips])
    results: list[_Result] = []
    skipped: list[tuple[Path, str]] = []
    with progress_bar("evaluating recordings", len(files)) as advance:
        for file in files:
            try:
                results.append(_evaluate_recording(predictors, dataset, file, phonemes, embed, test_voices))
            except AudioError as error:
                skipped.append((file, str(error)))
            advance()
    if not results:
        if len(skipped) == 1:
            raise AudioError(skipped[0][1])
        for _, reason in skipped:
            logger.warning("%s", reason)
        raise AudioError(f"none of {len(skipped)} recordings can be used; the first: {skipped[0][1]}")
    if skipped:
        logger.warning("%d of %d recordings were skipped; the report says why", len(skipped), len(files))
    bounds = _column([r.other_speaker for r in results]), _column([r.same_speaker for r in results])
    return {
        "rows": {
            name: as_json(
                {"identity": estimate(metrics.speaker_identity, _column([r.cosines[name] for r in results]), *bounds)}
            )
            for name in results[0].cosines
        },
        "clips": [result.to_json() for result in results],
        "skipped": [{"file": file.name, "reason": reason.removeprefix(f"{file}: ")} for file, reason in skipped],
        "text": text,
        "whisper": predictors.encoder.config.whisper,
    }


def _evaluate_recording(
    predictors: StylePredictors,
    dataset: Dataset,
    file: Path,
    phonemes: str,
    embed: SpeakerEmbedder,
    test_voices: Tensor,
) -> _Result:
    """Evaluate predictors on one recording; ``test_voices`` are speaker embeddings (voices, E)."""
    audio = load_audio(file, WHISPER_RATE, MAX_SECONDS)
    if len(audio) < MIN_SECONDS * WHISPER_RATE:
        seconds = len(audio) / WHISPER_RATE
        raise AudioError(f"{file}: {seconds:.1f} s is too short to identify a voice; record at least {MIN_SECONDS:g} s")
    if any(is_silent(half) for half in audio.tensor_split(2)):
        raise AudioError(f"{file}: one half is silent, and the halves are compared; cut off the silence")
    halves = torch.stack([embed(half, WHISPER_RATE).double() for half in audio.tensor_split(2)])  # (2, E)
    styles, distance = predictors.of_recording(dataset.models, audio, len(phonemes))
    return _Result(
        file=file.name,
        distance=distance,
        cosines={
            name: float((halves @ embed(dataset.say(phonemes, style), KOKORO_RATE).double()).mean())
            for name, style in styles.items()
        },
        other_speaker=float((halves @ test_voices.T).mean()),
        same_speaker=float(halves[0] @ halves[1]),
    )


def _column(values: Sequence[float]) -> Floats:
    return np.array(values)[:, None]  # (R, 1)
