"""What a run needs before it starts: model files fetched, clips rendered and heard, baselines scored, each once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from nuanced_core.cache import Cache, cache_limit, shown_size
from nuanced_core.config import Models, RunConfig
from nuanced_core.dataset import Dataset, Version, plan
from nuanced_core.evaluation import Validation, heard_for
from nuanced_core.losses import MelSTFTLoss
from nuanced_core.model_set import ModelSet, resolve_device
from nuanced_core.rendering import Order, render, worker_count
from nuanced_core.weights import cache_dir

__all__ = ["baseline_pack", "loaded_models", "prepare"]

Say = Callable[[str], None]


def prepare(configs: Sequence[RunConfig], say: Say) -> list[ModelSet]:
    """Fetch the models, render all clips and compute the baselines of some runs; what is cached is not repeated.

    Windows are rendered when a step first hears them: short runs hear few of them. Beyond $NUANCED_CACHE_LIMIT,
    entries that none of the runs needs are removed, the least recently used first.

    Raises:
        NuancedError: a model file, a voice or a sentence is missing, or the cache cannot be written.
    """
    limit = cache_limit()
    prepared = [_prepare(config, say) for config in configs]
    if limit is not None:
        _keep_below(limit, Cache(cache_dir()), say)
    return prepared


def _prepare(config: RunConfig, say: Say) -> ModelSet:
    models = loaded_models(config.models, str(resolve_device(config.train.device)), say)
    dataset = Dataset(models, cache_dir(), config.augment)
    train_utterances, val_utterances = plan(config.data, config.mixes, models.voices, models.phonemizer)
    orders = [Order(u, dataset.versions) for u in dataset.missing(train_utterances, dataset.versions)]
    for index, condition in heard_for([u.voice for u in val_utterances], config.objective.conditions):
        versions: tuple[Version, ...] = ("clean", condition)
        orders += [Order(u, versions) for u in dataset.missing([val_utterances[index]], versions)]
    workers = worker_count(len(orders), models)
    if workers > 1:  # they load the models themselves: what this process has loaded is left out
        render(orders, partial(Dataset, replace(models), dataset.folder, dataset.augment), workers, say)
    else:
        render(orders, lambda: dataset, 1, say)
    dataset.missing(train_utterances, dataset.versions)  # what workers rendered counts as used by this process too
    val_clips = dataset.clips(val_utterances)
    dataset.layers(config.features.layers, val_clips[0])
    mel = MelSTFTLoss().to(models.device)
    Validation(dataset, val_clips, config.objective, mel).baselines(baseline_pack(config, models))
    return models


def _keep_below(limit: int, cache: Cache, say: Say) -> None:
    removed = cache.prune(limit)
    if removed:
        say(f"cache: removed {len(removed)} entries, {shown_size(sum(entry.bytes for entry in removed))}")
    left = sum(entry.bytes for entry in cache.entries())
    if left > limit:
        say(f"cache: {shown_size(left)} are needed, more than NUANCED_CACHE_LIMIT, {shown_size(limit)}")


_loaded: dict[tuple[Models, str], ModelSet] = {}


def loaded_models(settings: Models, device: str, say: Say = lambda line: None) -> ModelSet:
    """The models of this process: loading Kokoro takes longer than a short trial should."""
    if (settings, device) not in _loaded:
        _loaded[settings, device] = ModelSet.fetch(settings, device, say)
    return _loaded[settings, device]


def baseline_pack(config: RunConfig, models: ModelSet) -> Tensor:
    """The mean voice, of all voices that may be trained on: the same for every trial, whatever it trains on."""
    voices = models.voices
    return voices.mean_pack(voices.training_voices("all", config.data.val_voices))
