"""Checks of whether this machine, or each node of a cluster, has what a sweep needs."""

import importlib
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FEATURE_FRAME, WHISPER_RATE
from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import NuancedError, one_line
from nuanced_core.hearing.whisper_features import feature_shape
from nuanced_core.kokoro.voices import STOCK_VOICES, VoiceBank
from nuanced_core.machine_limits import memory_limit
from nuanced_core.paths import user_path
from nuanced_core.text.phonemes import make_phonemizer
from nuanced_core.training.memory import SECONDS_PER_PHONEME, estimated_memory
from nuanced_core.weights.store import cache_dir, cached
from tune.cluster.disk import OUTPUTS_FIX, check_disk, free_bytes, trials_disk_bytes
from tune.cluster.fingerprint import package_versions
from tune.cluster.machines import Resources, check_fit, concurrency_limit, concurrent_trials, local_resources
from tune.cluster.node_preparation import check_nodes, storage_probe
from tune.cluster.nodes import ANSWER_SECONDS, on_nodes
from tune.cluster.ray_runtime import check_local_ray, temporary_parent
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_settings import SweepSettings
from tune.trial.resources import with_estimated_memory, with_whole_gpus

__all__ = ["Finding", "examine", "examine_nodes"]

CACHE_FIX = "name another folder with NUANCED_CACHE, or render fewer clips (mixes, augment.copies)"
MEAN_SENTENCE = 5.0  # seconds; mean length of the built-in sentences
_PYTHONS = ((3, 10), (3, 12))
# An installed package may still fail to import, such as a torchaudio that was built for another torch.
_IMPORTED_MODULES = ("torch", "torchaudio", "ray", "optuna", "tensorboard", "soundfile", "whisper", "kokoro")


@dataclass(frozen=True)
class Finding:
    """The result of one check; with a ``problem``, no sweep can run."""

    name: str
    value: str
    problem: str | None = None


def examine(config: SweepConfig | RunConfig | None = None) -> list[Finding]:
    """Check this machine for the sweep or run in ``config``, or for the default settings."""
    machine = local_resources()
    run, sweep, runs = _parts(config, [machine])
    return [
        _python(),
        *_packages(),
        *_machine(sweep, machine),
        *_gpu_memory(run, sweep, machine),
        *_model_files(runs),
        *_voices(run),
        _phonemizer(),
        _ray(),
        _disk("disk of outputs", user_path(sweep.outputs), trials_disk_bytes(sweep)),
        _disk("disk of cache", cache_dir(), _cache_bytes(runs), CACHE_FIX),
    ]


def examine_nodes(machines: Sequence[Resources], config: SweepConfig | RunConfig | None = None) -> list[Finding]:
    """Check each node of a joined cluster, and the cluster as a whole, for the sweep or run in ``config``."""
    run, sweep, runs = _parts(config, machines)
    cores, gpus = (sum(getattr(machine, name) for machine in machines) for name in ("cpus", "gpus"))
    value = f"{len(machines)} nodes, {cores} CPU cores, {gpus} GPUs: {_concurrency(sweep, machines)}"
    findings = [Finding("cluster", value, _problem(lambda: check_fit(sweep, machines)))]
    problems: dict[Resources, str] = {}
    try:
        folder = SharedFolder(sweep.shared) if sweep.shared else SharedFolder(sweep.outputs, "sweep.outputs")
        with storage_probe(folder) as probe:
            problems = check_nodes(machines, probe)
    except NuancedError as error:
        findings.append(Finding("shared folder", sweep.shared or sweep.outputs, str(error)))
    for machine, found in on_nodes(machines, _examine_node, run, runs, timeout=ANSWER_SECONDS).items():
        value = f"{machine.cpus} CPU cores, {machine.gpus} GPUs, {(machine.memory or 0) / 1e9:.1f} GB for trials"
        findings.append(Finding(machine.name, value, problems.get(machine)))
        if not isinstance(found, NuancedError):  # else the node does not answer, which its problem above says
            findings += [replace(finding, name=f"{machine.name} {finding.name}") for finding in found]
    return [*findings, _disk("disk of outputs", user_path(sweep.outputs), trials_disk_bytes(sweep))]


def _examine_node(run: RunConfig, runs: list[RunConfig]) -> list[Finding]:
    """Run on a node; reserves none of its GPUs, which may be busy."""
    return [
        *(finding for finding in _packages() if finding.problem),
        *_model_files(runs),
        *(finding for finding in (*_voices(run), _phonemizer()) if finding.problem),
        _disk("disk of cache", cache_dir(), _cache_bytes(runs), CACHE_FIX),
    ]


def _parts(
    config: SweepConfig | RunConfig | None, machines: Sequence[Resources]
) -> tuple[RunConfig, SweepSettings, list[RunConfig]]:
    """Return the run, the sweep's settings, and all runs whose models and data the trials need."""
    if isinstance(config, SweepConfig):
        config, _ = with_whole_gpus(config, machines)
        config = with_estimated_memory(config, machines)
        return config.run, config.sweep, config.runs_to_prepare()
    run = config or RunConfig()
    return run, SweepSettings(trials=1, memory_per_trial=estimated_memory(run) / 1e9), [run]


def _python() -> Finding:
    low, high = _PYTHONS
    supported = low <= sys.version_info[:2] <= high
    problem = None if supported else f"needs {low[0]}.{low[1]} to {high[0]}.{high[1]}"
    return Finding("python", platform.python_version(), problem)


def _packages() -> Iterator[Finding]:
    for package, version in package_versions().items():
        yield Finding(package, version)
    for module in _IMPORTED_MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            yield Finding(module, "does not load", reason[:200])


def _machine(sweep: SweepSettings, machine: Resources) -> Iterator[Finding]:
    import torch

    names = {torch.cuda.get_device_name(n) for n in range(machine.gpus)}
    value = f"{machine.cpus} CPU cores, {machine.gpus} GPUs {', '.join(sorted(names))}".strip()
    without_memory = sweep.model_copy(update={"memory_per_trial": None})
    problem = _problem(lambda: check_fit(without_memory, [machine]))
    yield Finding("machine", value, problem)
    left = (machine.memory or 0) / 1e9
    needed = f" of about {sweep.memory / 1e9:.1f} GB" if sweep.memory else ""
    value = f"{memory_limit() / 1e9:.1f} GB, {left:.1f} GB for trials{needed}"
    # The same check as before a sweep, which also looks at what the line above is about.
    yield Finding(
        "memory",
        f"{value}: {_concurrency(sweep, [machine])}",
        None if problem else _problem(lambda: check_fit(sweep, [machine])),
    )


def _concurrency(sweep: SweepSettings, machines: Sequence[Resources]) -> str:
    """Say how many trials fit at a time, and why no more, as a sweep does when it starts."""
    sweep = sweep.model_copy(update={"trials": None})
    return f"{concurrent_trials(sweep, machines)} trials fit at a time ({concurrency_limit(sweep, machines)})"


def _gpu_memory(run: RunConfig, sweep: SweepSettings, machine: Resources) -> Iterator[Finding]:
    import torch

    if not sweep.gpus_per_trial:
        return
    if not torch.cuda.is_available():
        yield Finding("GPU memory", "no GPU was found")
        return
    installed, needed = torch.cuda.get_device_properties(0).total_memory, estimated_memory(run)
    fit = int(installed // needed)
    wanted = min(concurrent_trials(sweep, [machine]), int(1 / min(sweep.gpus, 1)))  # on each card
    value = f"{installed / 1e9:.0f} GB, about {needed / 1e9:.1f} GB a trial: {fit} trials fit at a time"
    problem = f"{wanted} would run; limit them with --set sweep.max_concurrent={fit}" if 0 < fit < wanted else None
    if fit == 0:
        problem = "not one trial fits; lower train.spoken or train.window_frames"
    yield Finding("GPU memory", value, problem)


def _model_files(runs: Sequence[RunConfig]) -> Iterator[Finding]:
    files = cached()
    whispers = sorted({run.models.whisper for run in runs})
    for asset in ("kokoro", "voices", *(f"whisper-{name}" for name in whispers)):
        of_asset = [file for file in files if file.name.startswith(f"{asset}/")]
        size = sum(file.bytes for file in of_asset) / 2**20
        sources = ", ".join(sorted({file.source for file in of_asset}))
        value = f"{len(of_asset)} files, {size:.0f} MiB, from {sources}" if of_asset else "not fetched yet"
        broken = [f for f in of_asset if not f.path.is_file() or f.path.stat().st_size != f.bytes]
        # A copy of a user's voices is made from their folder only.
        source = " --source FOLDER" if broken and broken[0].source.startswith("folder") else ""
        problem = f"{broken[0].path} is damaged; 'nuanced weights{source}' fetches it again" if broken else None
        yield Finding(f"{asset} files", value, problem)


def _voices(run: RunConfig) -> Iterator[Finding]:
    """Check that the fetched voices include those that the run names; that none is fetched yet is no problem."""
    packs = {file.path.stem: file.path for file in cached() if file.name.startswith("voices/")}
    if packs:
        bank = VoiceBank(packs)
        problem = _problem(lambda: _check_voices(bank, run))
        yield Finding("voices", f"{len(packs)} fetched", problem)


def _check_voices(bank: VoiceBank, run: RunConfig) -> None:
    bank.training_voices(run.data.voices, run.data.val_voices)


def _phonemizer() -> Finding:
    try:
        return Finding("phonemizer", make_phonemizer().name)
    except Exception as error:
        return Finding("phonemizer", "none", one_line(error))


def _ray() -> Finding:
    """Check what keeps Ray from starting on this machine, without starting it."""
    folder = temporary_parent()
    return Finding("Ray's files", f"{free_bytes(folder) / 2**30:.1f} GiB free ({folder})", _problem(check_local_ray))


def _disk(name: str, folder: Path, needed: int, fix: str = OUTPUTS_FIX) -> Finding:
    value = f"{free_bytes(folder) / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB needed ({folder})"
    return Finding(name, value, _problem(lambda: check_disk(folder, needed, fix)))


def _cache_bytes(runs: Sequence[RunConfig]) -> int:
    """Estimate the bytes that the audio and Whisper features of all clips take in an empty cache.

    A set of clips that several runs share counts once, with the largest number of clips.
    """
    largest: dict[str, int] = {}
    for run in runs:
        layers, channels = feature_shape(run.models.whisper)
        feature_bytes = layers * channels * 2 * WHISPER_RATE // SAMPLES_PER_FEATURE_FRAME  # per second, float16
        seconds = min(run.data.max_phonemes * SECONDS_PER_PHONEME, MEAN_SENTENCE)
        clip_bytes = int(seconds * (KOKORO_RATE * 4 + feature_bytes * (1 + run.augment.copies)))
        mixes, data = run.mixes, run.data
        voices = STOCK_VOICES if isinstance(data.voices, str) else len(data.voices)
        clips = voices * data.sentences_per_voice + len(data.val_voices) * data.val_sentences_per_voice
        kinds = {"stock": clips} | {
            kind: mixes.sentences * getattr(mixes, kind)
            for kind in ("blends", "half_blends", "swaps", "steps", "half_steps")
        }
        # The smaller number of mixes of a kind is part of the larger, so runs that differ only in it share clips.
        mix_settings = mixes.model_dump(exclude={*kinds})
        augmentation = run.augment.model_dump(exclude={"copies"})
        for kind, count in kinds.items():
            key = repr([kind, run.models, data.model_dump(), augmentation, {} if kind == "stock" else mix_settings])
            largest[key] = max(largest.get(key, 0), count * clip_bytes)
    return sum(largest.values())


def _problem(check: Callable[[], None]) -> str | None:
    """Return the message of the error that ``check`` raises, if any."""
    try:
        check()
    except NuancedError as error:
        return str(error)
    return None
