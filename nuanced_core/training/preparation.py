"""Preparation of runs: fetch their models, render their clips, compute their features and baselines, each once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.cache import Cache, cache_limit, format_size
from nuanced_core.data.dataset import Dataset, resolve_layers
from nuanced_core.data.model_set import ModelSet, loaded_models, resolve_device
from nuanced_core.data.rendering import RenderJob, RenderRequest, make_job, merge_requests, render_jobs
from nuanced_core.data.utterances import Split, Utterance, plan_utterances
from nuanced_core.data.versions import Version
from nuanced_core.hearing.whisper_features import feature_shape
from nuanced_core.people.corpus import find_people
from nuanced_core.training.people import hear_people
from nuanced_core.training.run_setup import load_people_validation, load_validation
from nuanced_core.training.surrogates import find_voices, load_surrogates
from nuanced_core.training.validation import validation_inputs
from nuanced_core.weights.store import cache_dir

__all__ = ["prepare"]

logger = logging.getLogger(__name__)


def prepare(configs: Sequence[RunConfig]) -> list[ModelSet]:
    """Fetch the models, render all clips and compute the baselines of some runs, except for what is cached.

    Windows of clips are rendered when a step first uses them: short runs use few of them. If the cache is larger than
    $NUANCED_CACHE_LIMIT, entries that none of the runs needs are removed, the least recently used first.

    Returns:
        The models of each run.

    Raises:
        NuancedError: a model file, a voice or a sentence is missing, or the cache cannot be written.
    """
    limit = cache_limit()
    runs = [_plan(config) for config in configs]
    render_jobs(_render_jobs(runs))
    for run in runs:
        _compute_baselines(run)
    if limit is not None:
        _prune(limit, Cache(cache_dir()))
    return [run.dataset.models for run in runs]


@dataclass(frozen=True)
class _PlannedRun:
    config: RunConfig
    dataset: Dataset
    utterances: Split


def _plan(config: RunConfig) -> _PlannedRun:
    if config.data.people is not None:
        find_people(config.data.people)  # raises AudioError, before models are fetched
    models = loaded_models(config.models, resolve_device(config.train.device))
    if models.whisper_file.name == config.models.whisper:  # refused before anything is rendered, where that is known
        resolve_layers(config.features.layers, feature_shape(config.models.whisper)[0], config.models.whisper)
    utterances = plan_utterances(config.data, config.mixes, models.voices, models.phonemizer)
    return _PlannedRun(config, Dataset(models, cache_dir(), config.augment, config.clip_parts), utterances)


def _render_jobs(runs: Sequence[_PlannedRun]) -> list[RenderJob]:
    """Return one job for all runs with the same models, without the clips and features that are cached."""
    by_models: dict[tuple[str, str, str], list[_PlannedRun]] = {}
    for run in runs:
        models = run.dataset.models
        key = models.kokoro_files.sha256, models.whisper_file.sha256, str(models.device)
        by_models.setdefault(key, []).append(run)
    jobs = []
    for group in by_models.values():
        parts = dict.fromkeys(part for run in group for part in run.dataset.parts)
        dataset = Dataset(group[0].dataset.models, cache_dir(), parts=tuple(parts))
        requests = merge_requests([request for run in group for request in _missing(run)], dataset)
        jobs.append(make_job(requests, dataset))
    return jobs


def _missing(run: _PlannedRun) -> list[RenderRequest]:
    """Return requests for the clips that a run lacks: training clips with copies, validation clips as the encoder
    gets them."""
    dataset, utterances = run.dataset, run.utterances
    copies = dataset.with_settings(dataset.versions)
    requests = [RenderRequest(u, copies) for u in dataset.missing(utterances.train, copies)]
    voices = [utterance.voice for utterance in utterances.validation]
    for index, condition in validation_inputs(voices, run.config.objective.conditions):
        versions: tuple[Version, ...] = ("clean", condition)
        requests += [RenderRequest(u, versions) for u in dataset.missing([utterances.validation[index]], versions)]
    return requests


def _compute_baselines(run: _PlannedRun) -> None:
    dataset = run.dataset
    dataset.missing(run.utterances.train, dataset.versions)  # marks the entries that workers wrote as used
    first_clip = dataset.clips(run.utterances.validation[:1])[0]
    dataset.layers(run.config.features.layers, first_clip)  # raises ConfigError if Whisper lacks one
    *_, fitted = load_validation(run.config, dataset, run.utterances)
    hearing = hear_people(run.config, dataset)
    if run.config.has_surrogate:
        clips = dataset.clips(run.utterances.train)
        found = find_voices(run.config, dataset, clips, hearing, partial(_render, dataset))
        load_surrogates(run.config, dataset, [*clips, *found.clips])
    if hearing is not None:
        load_people_validation(run.config, dataset, hearing, run.utterances.validation, fitted)


def _render(dataset: Dataset, utterances: Sequence[Utterance]) -> None:
    versions = dataset.with_settings(dataset.versions)
    missing = dataset.missing(utterances, dataset.versions)
    render_jobs([make_job([RenderRequest(u, versions) for u in missing], dataset)])


def _prune(limit: int, cache: Cache) -> None:
    removed = cache.prune(limit)
    if removed:
        logger.info("cache: removed %d entries, %s", len(removed), format_size(sum(entry.bytes for entry in removed)))
    left = sum(entry.bytes for entry in cache.entries())
    if left > limit:
        logger.warning("cache: %s are needed, more than NUANCED_CACHE_LIMIT, %s", format_size(left), format_size(limit))
