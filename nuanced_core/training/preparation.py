"""What a run needs before it starts: model files fetched, clips rendered and heard, baselines scored, each once."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.cache import Cache, cache_limit, format_size
from nuanced_core.data.dataset import Dataset, Version
from nuanced_core.data.model_set import ModelSet, loaded_models, resolve_device
from nuanced_core.data.rendering import RenderRequest, render, worker_count
from nuanced_core.data.utterances import plan
from nuanced_core.training.losses import MelSTFTLoss
from nuanced_core.training.validation import Validation, baseline_pack, validation_inputs
from nuanced_core.weights.store import cache_dir

__all__ = ["prepare"]

logger = logging.getLogger(__name__)


def prepare(configs: Sequence[RunConfig]) -> list[ModelSet]:
    """Fetch the models, render all clips and compute the baselines of some runs; what is cached is not repeated.

    Windows are rendered when a step first hears them: short runs hear few of them. Beyond $NUANCED_CACHE_LIMIT,
    entries that none of the runs needs are removed, the least recently used first.

    Raises:
        NuancedError: a model file, a voice or a sentence is missing, or the cache cannot be written.
    """
    limit = cache_limit()
    prepared = [_prepare(config) for config in configs]
    if limit is not None:
        _keep_below(limit, Cache(cache_dir()))
    return prepared


def _prepare(config: RunConfig) -> ModelSet:
    models = loaded_models(config.models, str(resolve_device(config.train.device)))
    dataset = Dataset(models, cache_dir(), config.augment)
    train_utterances, val_utterances = plan(config.data, config.mixes, models.voices, models.phonemizer)
    orders = [RenderRequest(u, dataset.versions) for u in dataset.missing(train_utterances, dataset.versions)]
    for index, condition in validation_inputs([u.voice for u in val_utterances], config.objective.conditions):
        versions: tuple[Version, ...] = ("clean", condition)
        orders += [RenderRequest(u, versions) for u in dataset.missing([val_utterances[index]], versions)]
    workers = worker_count(len(orders), models)
    if workers > 1:  # they load the models themselves: what this process has loaded is left out
        render(orders, partial(Dataset, replace(models), dataset.folder, dataset.augment), workers)
    else:
        render(orders, lambda: dataset, 1)
    dataset.missing(train_utterances, dataset.versions)  # what workers rendered counts as used by this process too
    val_clips = dataset.clips(val_utterances)
    dataset.layers(config.features.layers, val_clips[0])
    mel = MelSTFTLoss().to(models.device)
    Validation(dataset, val_clips, config.objective, mel).baselines(baseline_pack(config, models))
    return models


def _keep_below(limit: int, cache: Cache) -> None:
    removed = cache.prune(limit)
    if removed:
        logger.info("cache: removed %s entries, %s", len(removed), format_size(sum(entry.bytes for entry in removed)))
    left = sum(entry.bytes for entry in cache.entries())
    if left > limit:
        logger.warning("cache: %s are needed, more than NUANCED_CACHE_LIMIT, %s", format_size(left), format_size(limit))
