"""Evaluation of people: what Kokoro speaks in their voices, as predicted from one recording, against their other ones.

All voices speak the same two sentences of the test split, with their own durations. Everything that takes long is kept
in the cache, piece by piece, so an evaluation that was interrupted continues where it was.

Dimensions: B sentences, S = 256 style.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, KOKORO_RATE, WHISPER_RATE, resample, write_audio
from nuanced_core.config.settings import RunConfig, SpeakerEncoderName
from nuanced_core.data.dataset import Dataset
from nuanced_core.errors import AudioError, ConfigError, DiskError
from nuanced_core.evaluation.people_report import PersonResult, judge_marks, people_report
from nuanced_core.evaluation.predictors import PICKED_BY, PersonPredictors, Voice, load_export, open_dataset
from nuanced_core.evaluation.test_split import PREFERRED_PHONEMES, held_out_sentences
from nuanced_core.hashing import content_key, derived_seed
from nuanced_core.hearing.augmentation import DEGRADATIONS, degraded
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.judges.panel import Embed, JudgePanel, Sound, load_panel
from nuanced_core.losses.people import PeopleTargets
from nuanced_core.people.corpus import Corpus, find_people
from nuanced_core.people.excerpts import Excerpt, Hear, Person, find_person, recording_hearer
from nuanced_core.people.measures import speech_frames
from nuanced_core.progress import progress_bar
from nuanced_core.refinement.refine import RefineSettings, refine
from nuanced_core.speakers.encoders import SPEAKER_ENCODERS
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import load_sentences
from nuanced_core.training.surrogates import load_frame

__all__ = ["INVERSION", "MIN_PEOPLE", "EvaluatedSplit", "PeopleEvaluation", "PeopleSettings", "evaluate_people"]

logger = logging.getLogger(__name__)

EvaluatedSplit = Literal["test", "validation", "all"]

FORMAT = "3"  # part of the keys: raise it when what is spoken, judged or refined changes
MIN_PEOPLE = 2  # each is compared with the others
SENTENCES = 2  # that each voice speaks
REFINEMENT_HELD_OUT = 3  # sentences that decide when a refinement stops
# What can be found in Kokoro's styles without an encoder, as a ceiling.
INVERSION = RefineSettings(rounds=0, steps=60, frames=80, learning_rate=0.1, check_every=10, patience=6)


@dataclass(frozen=True)
class PeopleSettings:
    """What is evaluated."""

    split: EvaluatedSplit = "test"  # of the corpus, by speaker; "all" is for people that no encoder was trained on
    limit: int | None = None  # number of people at most
    refine: int | None = None  # gradient steps of the refinement; None: no refinement
    inversion: bool = False  # whether to find each voice by gradient steps alone, from a stock voice
    degraded: bool = True  # whether the encoder also hears the recordings in noise, by telephone and in a room
    samples: Path | None = None  # folder that listening samples are written to
    refine_by: tuple[SpeakerEncoderName, ...] = RefineSettings().speaker_encoders

    @property
    def refinement(self) -> RefineSettings | None:
        """Settings of the refinement; None: there is none."""
        return None if self.refine is None else RefineSettings(steps=self.refine, speaker_encoders=self.refine_by)


def evaluate_people(
    model: str | Path, people: str | Path, settings: PeopleSettings | None = None, *, source: str = "auto"
) -> dict[str, Any]:
    """Evaluate an exported encoder on people, see ``PeopleEvaluation.report``.

    Args:
        model: folder that ``nuanced export`` wrote.
        people: folder with a folder of recordings for each person, see ``find_people``.
        settings: what is evaluated.
        source: of the model files: auto, hub, packages, or a folder.

    Raises:
        NuancedError: a model file is missing, there are fewer than two people that can be used, the folder of samples
            is not empty, or something cannot be written.
    """
    settings = settings or PeopleSettings()
    if settings.limit is not None and settings.limit < MIN_PEOPLE:
        raise ConfigError(f"limit: {settings.limit}: people are compared with each other; take at least {MIN_PEOPLE}")
    if settings.samples is not None:
        _check_new_folder(settings.samples)
    encoder, run = load_export(model)
    corpus = _people_of(find_people(people, place="people", for_training=False), settings.split)
    dataset = open_dataset(model, encoder.config.whisper, source)
    models = dataset.models
    embedders: dict[str, Embed] = {name: models.speaker_encoder(name).embed for name in SPEAKER_ENCODERS}
    versions = {name: models.speaker_sha256(name) for name in SPEAKER_ENCODERS} | {"words": models.whisper_file.sha256}
    panel = load_panel(embedders, versions, models.whisper_file.path, source=source, device=models.device)
    predictors = PersonPredictors(encoder, run, dataset)
    evaluation = PeopleEvaluation(predictors, run, dataset, panel, recording_hearer(models, dataset.cache), settings)
    return {"model": str(model), **evaluation.report(corpus)}


class PeopleEvaluation:
    """Evaluation of one encoder on people.

    Args:
        predictors: the voices that are compared.
        run: the settings of the run that trained the encoder.
        panel: the judges; ``PICKED_BY`` and the speaker encoders of refinements are among them.
        hear: checks recordings, and knows their speaking rate.
    """

    def __init__(
        self,
        predictors: PersonPredictors,
        run: RunConfig,
        dataset: Dataset,
        panel: JudgePanel,
        hear: Hear,
        settings: PeopleSettings,
    ) -> None:
        self.predictors, self.run, self.dataset, self.panel = predictors, run, dataset, panel
        self.hear, self.settings = hear, settings
        phonemizer = dataset.models.phonemizer
        self.sentences = held_out_sentences(phonemizer, SENTENCES)  # phonemes by text
        self.counts = torch.tensor([len(p) for p in self.sentences.values()], device=dataset.models.device)
        self.steps_on = _preferred(phonemizer, "train")
        self.stopped_by = _preferred(phonemizer, "validation")[:REFINEMENT_HELD_OUT]
        self.encoder_digest = _digest(predictors.encoder.state_dict().values())
        self.skipped: dict[Path, dict[str, str]] = {}  # recordings that cannot be used

    def report(self, corpus: Corpus) -> dict[str, Any]:
        """Evaluate people, each heard once and compared with the other recordings, or half with half of an only one.

        Returns:
            The report that ``nuanced evaluate --people --json`` prints, without ``model``: what ``people_report``
            returns, with ``marks`` (see ``judge_marks``), ``people``, ``split``, ``texts``, ``whisper`` and
            ``skipped``.

        Raises:
            AudioError: fewer than two people can be used.
            NuancedError: something else is missing, or cannot be written.
        """
        limit = self.settings.limit or len(corpus.speakers)
        results: list[PersonResult] = []
        with progress_bar("speaking in stock voices", len(self.predictors.names)) as advance:
            stock = {}
            for name in self.predictors.names:
                stock[name] = self._spoken_speaker(self.predictors.stock(name))
                advance()
        with progress_bar("evaluating people", min(limit, len(corpus.speakers))) as advance:
            for speaker in corpus.speakers:
                if len(results) == limit:
                    break
                if (person := self._person(corpus, speaker)) is not None:
                    results.append(self._evaluate(person, corpus))
                    advance()
        self._check_enough(results)
        if self.settings.samples is not None:
            self._write_samples(corpus, [result.speaker for result in results], self.settings.samples)
        marks = judge_marks(
            self.run,
            self.predictors.encoder.config,
            self.settings.refinement.speaker_encoders if self.settings.refinement else (),
            INVERSION.speaker_encoders,
        )
        found = people_report(results, stock)
        return {
            **found,
            "marks": {row: marks[row] for row in found["rows"] if row in marks},
            "people": str(corpus.folder),
            "split": self.settings.split,
            "texts": [*self.sentences],
            "whisper": self.predictors.encoder.config.whisper,
            "skipped": [*self.skipped.values()],
        }

    def _check_enough(self, results: Sequence[PersonResult]) -> None:
        skipped = [*self.skipped.values()]
        first = f"; the first left out: {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ""
        if len(results) < MIN_PEOPLE:
            raise AudioError(
                f"people: recordings of only {len(results)} people can be used, and each is compared with the others; "
                f"give those of at least {MIN_PEOPLE}{first}"
            )
        if skipped:
            logger.warning("%d recordings cannot be used, and are named in the report%s", len(skipped), first)

    def _person(self, corpus: Corpus, speaker: str) -> Person | None:
        """Return what of a person is heard and compared; None if no recording can be used."""
        person, skipped = find_person(speaker, corpus.speakers[speaker], self.hear)
        for excerpt in (person.heard, *person.compared) if person else ():
            try:
                self._heard(excerpt)
            except AudioError as error:  # such as a half that is silent
                person = None
                skipped = [*skipped, (excerpt.file, str(error))]
                break
        for file, reason in skipped:
            self.skipped[file] = {"speaker": speaker, "file": self._name(file, corpus), "reason": reason}
        return person

    def _name(self, file: Path, corpus: Corpus) -> str:
        return file.relative_to(corpus.folder).as_posix()

    def _evaluate(self, person: Person, corpus: Corpus) -> PersonResult:
        heard = self._heard(person.heard)
        voices, names, found = self._voices(person, heard)
        conditions = DEGRADATIONS if self.settings.degraded else ()
        return PersonResult(
            speaker=person.speaker,
            heard_file=self._name(person.heard.file, corpus),
            compared_files=tuple(self._name(excerpt.file, corpus) for excerpt in person.compared),
            heard=heard,
            rate=person.rate,
            compared=tuple(self._heard(excerpt) for excerpt in person.compared),
            rows={row: self._spoken(voice) for row, voice in voices.items()},
            degraded={condition: self._degraded(person.heard, condition) for condition in conditions},
            voices=names,
            seconds={row: seconds for row, (seconds, _) in found.items()},
            steps={row: steps for row, (_, steps) in found.items() if row != "encoder"},
        )

    def _voices(
        self, person: Person, heard: Sound
    ) -> tuple[dict[str, Voice], dict[str, str], dict[str, tuple[float, tuple[int, int]]]]:
        """Return the voice of each row, the stock voices among them, and the seconds and the steps that rows took."""
        embedding, audio = heard.embeddings[PICKED_BY], person.heard.audio
        names = {"nearest": self.predictors.nearest(embedding)}
        _ = self.dataset.models.whisper  # loaded before the time is taken
        started = time.perf_counter()
        encoded = self.predictors.encoded(audio)
        encoded(self.counts)
        found = {"encoder": (time.perf_counter() - started, (0, 0))}
        voices: dict[str, Voice] = {
            "mean": self.predictors.mean,
            "nearest": self.predictors.stock(names["nearest"]),
            "ridge": self.predictors.by_ridge(embedding),
            "encoder": encoded,
        }
        searches: list[tuple[str, Voice, str, RefineSettings]] = []
        if self.settings.refinement is not None:
            searches.append(("refined", encoded, self.encoder_digest, self.settings.refinement))
        if self.settings.inversion:
            pitch = float(clip_pitch(audio, WHISPER_RATE)[0])
            names["inversion"] = self.predictors.nearest_in_pitch(embedding, pitch)
            start = self.predictors.stock(names["inversion"])
            searches.append(("inversion", start, _digest([self.predictors.bank.pack(names["inversion"])]), INVERSION))
        for row, start, origin, settings in searches:
            voices[row], seconds, steps = self._refined(start, origin, person.heard, heard, settings)
            found[row] = seconds, steps
        return voices, names, found

    def _refined(
        self, start: Voice, origin: str, excerpt: Excerpt, heard: Sound, settings: RefineSettings
    ) -> tuple[Voice, float, tuple[int, int]]:
        """Return a refined voice, the seconds that it took, and its steps: those taken, and the one that was kept.

        ``origin`` identifies where the voice that is refined comes from, beside the excerpt.
        """
        models = self.dataset.models
        encoders = {name: self.panel.versions[name] for name in settings.speaker_encoders}
        sentences = self.steps_on, self.stopped_by
        key = content_key(
            "refined", FORMAT, origin, _digest([excerpt.audio]), settings.model_dump(mode="json"), encoders, sentences,
            models.kokoro_files.sha256, models.device.type, [*self.run.data.val_voices],
        )  # fmt: skip
        kept = self.dataset.cache.load("baselines", key)
        if kept is None:
            frame = load_frame(self.dataset, self.run.data.val_voices).to(models.device)
            pitch = clip_pitch(excerpt.audio, WHISPER_RATE)[None]
            target = PeopleTargets(
                {name: heard.embeddings[name][None].to(models.device) for name in settings.speaker_encoders},
                pitch.to(models.device),
                torch.full((1,), torch.nan, device=models.device),
            )
            surrogate = self.predictors.encoder.surrogate
            started = time.perf_counter()
            voice = refine(models, start, target, frame, *sentences, settings, surrogate=surrogate)
            measures = [time.perf_counter() - started, voice.steps, voice.best_step]
            tensors = {"offset": voice.offset, "measures": torch.tensor(measures, dtype=torch.float64)}
            kept = self.dataset.cache.save("baselines", key, tensors)
        offset = kept["offset"].to(models.device)
        seconds, taken, best = kept["measures"].tolist()
        return lambda counts: start(counts) + offset, seconds, (int(taken), int(best))

    def _heard(self, excerpt: Excerpt) -> Sound:
        hear = partial(self.panel.hear, excerpt.audio, WHISPER_RATE)
        return self._cached(hear, "heard", _digest([excerpt.audio]), self.panel.versions)

    def _spoken(self, voice: Voice) -> Sound:
        """Return what the judges say of the sentences in a voice, with the speaking rate."""

        def judge() -> Sound:
            audio = self._speak(voice)
            sound = self.panel.judge(audio, [*self.sentences])
            speech = sum(int(speech_frames(resample(one, KOKORO_RATE, WHISPER_RATE)).sum()) for one in audio)
            return replace(sound, rate=int(self.counts.sum()) * FRAMES_PER_SECOND / speech if speech else torch.nan)

        return self._cached(judge, "spoken", *self._speech_key(voice), self.panel.versions)

    def _spoken_speaker(self, voice: Voice) -> Sound:
        """Return the speaker embeddings alone of the sentences in a voice."""

        def judge() -> Sound:
            return Sound(self.panel.embed(torch.cat(self._speak(voice)), KOKORO_RATE))

        versions = {name: self.panel.versions[name] for name in self.panel.embedders}
        return self._cached(judge, "speaker", *self._speech_key(voice), versions)

    def _degraded(self, excerpt: Excerpt, condition: str) -> Sound:
        audio = degraded(excerpt.audio, WHISPER_RATE, condition, derived_seed(_digest([excerpt.audio]), condition))
        return self._spoken_speaker(self.predictors.encoded(audio))

    def _speak(self, voice: Voice) -> list[Tensor]:
        """Return the audio of each sentence in a voice, (samples,) at 24 kHz."""
        styles = voice(self.counts)  # (B, S)
        return [self.dataset.say(p, style[None]) for p, style in zip(self.sentences.values(), styles, strict=True)]

    def _speech_key(self, voice: Voice) -> tuple[object, ...]:
        models = self.dataset.models
        phonemes = [*self.sentences.items()]
        return models.kokoro_files.sha256, models.device.type, phonemes, _digest([voice(self.counts)])

    def _cached(self, compute: Callable[[], Sound], *parts: object) -> Sound:
        key = content_key("people", FORMAT, *parts)
        kept = self.dataset.cache.load("baselines", key)
        if kept is None:
            kept = self.dataset.cache.save("baselines", key, compute().to_tensors())
        return Sound.from_tensors(kept)

    def _write_samples(self, corpus: Corpus, speakers: Sequence[str], folder: Path) -> None:
        """Write what was heard and what is spoken of people to a new folder, all files or none."""
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            with progress_bar("writing samples", len(speakers)) as advance:
                for speaker in speakers:
                    if (person := self._person(corpus, speaker)) is not None:
                        self._write_samples_of(person, part)
                    advance()
            if folder.is_dir():
                folder.rmdir()
            part.rename(folder)
        except OSError as error:
            raise DiskError(f"{folder}: cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write_samples_of(self, person: Person, folder: Path) -> None:
        voices, _, _ = self._voices(person, self._heard(person.heard))
        write_audio(folder / f"{person.speaker}_heard.wav", person.heard.audio, WHISPER_RATE)
        for row in (row for row in ("mean", "nearest", "encoder", "refined") if row in voices):
            write_audio(folder / f"{person.speaker}_{row}.wav", torch.cat(self._speak(voices[row])), KOKORO_RATE)


def _people_of(corpus: Corpus, split: EvaluatedSplit) -> Corpus:
    """Return the people of a split.

    Raises:
        AudioError: there are fewer than two.
    """
    chosen = corpus if split == "all" else corpus.of_splits(split)
    if len(chosen.speakers) < MIN_PEOPLE:
        raise AudioError(
            f"people: {corpus.folder}: {len(chosen.speakers)} of its {len(corpus.speakers)} speakers are in the split "
            f"{split}, which a hash of their names decides, and {MIN_PEOPLE} are needed; add speakers, or choose "
            "another split: all, if nothing was trained on them"
        )
    return chosen


def _check_new_folder(folder: Path) -> None:
    """Check that a folder is not there, or empty; raises ConfigError, DiskError."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"samples: {folder}: exists and is not an empty folder; give another, or remove it")
    except OSError as error:
        raise DiskError(f"samples: {folder}: cannot be read: {error.strerror}") from None


def _preferred(phonemizer: Phonemizer, split: str) -> list[str]:
    """Return the phonemes of a split's sentences of 2 to 5 s, or of all if there are none."""
    phonemes = [phonemizer(text) for text in load_sentences(split)]
    return [p for p in phonemes if len(p) in PREFERRED_PHONEMES] or phonemes


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
