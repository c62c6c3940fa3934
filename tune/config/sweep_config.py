"""The configuration of a sweep: one YAML file with the sections of a run, ``search`` and ``sweep``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nuanced_core.config.settings import RunConfig, Settings
from nuanced_core.config.validation import dotted_names, spelling_hint, validate
from nuanced_core.config.yaml_files import apply_overrides, read_yaml
from nuanced_core.errors import ConfigError
from tune.config.dimension import Range
from tune.config.places import with_absolute_places, without_own_database
from tune.config.secrets import check_no_secrets, masked
from tune.config.space import MOST_COUNTED, SEED, Space
from tune.config.sweep_settings import SweepSettings

__all__ = [
    "SETTINGS_FILE",
    "SweepConfig",
    "as_override",
    "load",
    "load_run",
    "load_sweep_config",
    "parse_sweep",
    "run_with_absolute_places",
    "with_absolute_overrides",
]

SETTINGS_FILE = "sweep.yaml"  # in the folder of each sweep

# "record" is the provenance that a sweep adds to its sweep.yaml; it is ignored, so that such a file can be run again.
_SWEEP_SECTIONS = ("search", "sweep", "record")


@dataclass(frozen=True)
class SweepConfig:
    """The configuration of a sweep: the run that trials vary, the search space, and the settings of the search."""

    run: RunConfig
    search: Space
    sweep: SweepSettings

    def with_gpus_per_trial(self, share: float) -> "SweepConfig":
        """Return the configuration with ``share`` GPUs for each trial, in place of ``gpus_per_trial: auto``."""
        # Without a GPU no GPU hours are used.
        sweep = self.sweep.model_copy(update={"gpus_per_trial": share, **({} if share else {"gpu_hours": None})})
        return replace(self, run=_with_device(self.run, "cuda" if share else "cpu"), sweep=sweep)

    def with_memory_per_trial(self, memory: float | Literal["auto"] | None) -> "SweepConfig":
        """Return the configuration with another ``memory_per_trial``, in GB."""
        return replace(self, sweep=self.sweep.model_copy(update={"memory_per_trial": memory}))

    def runs_to_prepare(self) -> list[RunConfig]:
        """Return runs that cover every combination of models and data that trials need, without repeats."""
        return self.search.variants(self.run)

    def check_can_continue(self, previous: "SweepConfig") -> None:
        """Check that new trials can be compared with those of ``previous``, and that the sampler can learn from those.

        Raises:
            ConfigError: one line that names the setting, its previous and its new value.
        """
        fixed = {
            "objective": (previous.run.objective, self.run.objective),
            **{
                f"data.{name}": (getattr(previous.run.data, name), getattr(self.run.data, name))
                for name in (*_VALIDATION_DATA, *(_VALIDATION_PEOPLE if self.run.objective.judges_people else ()))
            },
            "sweep.objectives": (previous.sweep.objectives, self.sweep.objectives),
        }
        # A database or shared storage may have moved, or its URL may now be in the environment; whether the new place
        # holds the trials is checked where it is opened.
        if (previous.sweep.storage is None) != (self.sweep.storage is None):
            fixed["sweep.storage"] = (previous.sweep.storage, self.sweep.storage)
        for name, (old, new) in fixed.items():
            if old != new:
                change = masked(f"was {old}, would be {new}")
                raise ConfigError(f"{name}: {change}: trials could not be compared; start a new sweep")
        if self.sweep.storage is None and self.sweep.study_name != previous.sweep.study_name:
            change = f"was {previous.sweep.study_name}, would be {self.sweep.study_name}"
            raise ConfigError(f"sweep.study_name: {change}: the study keeps its name; leave it as it was")
        if (previous.sweep.shared is None) != (self.sweep.shared is None):
            change = masked(f"was {previous.sweep.shared}, would be {self.sweep.shared}")
            raise ConfigError(
                f"sweep.shared: {change}: unfinished trials would not find their checkpoints; keep the previous value"
            )
        self.search.check_can_continue(previous.search)

    def with_absolute_places(self, folder: Path) -> "SweepConfig":
        """Return the configuration of a new sweep in ``folder``, with every place absolute."""
        return parse_sweep(with_absolute_places(self.as_dict(), folder), str(folder / SETTINGS_FILE))

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, in the form that ``parse_sweep`` takes."""
        return {
            **self.run.model_dump(mode="json"),
            "search": self.search.as_dict(),
            "sweep": self.sweep.model_dump(mode="json"),
        }


# Settings of ``data`` that decide what trials are compared by.
_VALIDATION_DATA = ("val_voices", "val_sentences", "val_sentences_per_voice", "max_phonemes", "seed")
_VALIDATION_PEOPLE = ("people", "people_recordings", "people_seconds")


class _SweepSection(Settings):
    """The ``sweep`` section under its name, so that errors name ``sweep.trials`` rather than ``trials``."""

    sweep: SweepSettings = SweepSettings()


def load_sweep_config(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and validate the sweep in the YAML file ``path``, with ``section.name=value`` overrides.

    Raises:
        ConfigError: one line that names the file, the first invalid setting and the closest valid name.
    """
    data = read_yaml(path)
    return parse_sweep(without_own_database(data) if "record" in data else data, str(path), overrides)


def parse_sweep(data: Mapping[str, Any], place: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Validate the sweep in ``data``, as read by ``read_yaml``; its ``record`` section is ignored.

    Args:
        place: the file that ``data`` was read from, for error messages.
        overrides: ``section.name=value`` settings, applied to ``data``.

    Raises:
        ConfigError: as ``load_sweep_config``.
    """
    run_data, search_data, sweep_data = _sections(data, place, overrides)
    run = validate(RunConfig, run_data, place)
    sweep = validate(_SweepSection, {"sweep": sweep_data}, place).sweep
    run = _on_trial_device(run, sweep, place)
    search = Space.parse(search_data, run, place)
    _refuse_fixed_and_searched(search, overrides)
    # A sweep that a sampler was accepted for is still read and resumed.
    saved = data.get("sweep") if "record" in data else None
    accepted = saved.get("sampler") if isinstance(saved, Mapping) else None
    _check_sampler(sweep, search, place, accepted)
    return SweepConfig(run, search, sweep)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate the run in ``path``, whose ``search`` and ``sweep`` sections, if any, are ignored.

    Raises:
        ConfigError: as ``load_sweep_config``; or an override is of one of these sections.
    """
    for override in overrides:
        if override.split(".")[0] in _SWEEP_SECTIONS:
            raise ConfigError(f"--set {override}: a single run has no such section; leave it out, or run a sweep")
    return _parse_run(read_yaml(path), str(path), overrides)


def load(path: Path) -> SweepConfig | RunConfig:
    """Read and validate a file: a sweep if it has a ``search`` section, else a run.

    Raises:
        ConfigError: as ``load_sweep_config``.
    """
    data = read_yaml(path)
    return parse_sweep(data, str(path)) if data.get("search") else _parse_run(data, str(path), ())


def _parse_run(data: Mapping[str, Any], place: str, overrides: Sequence[str]) -> RunConfig:
    return validate(RunConfig, _sections(data, place, overrides)[0], place)


def _sections(data: Mapping[str, Any], place: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """Apply the overrides and return the sections of the run, the search section and the sweep section."""
    check_no_secrets(apply_overrides({}, overrides), "--set")
    if "record" not in data:  # else a sweep has written it, perhaps before passwords were refused
        check_no_secrets(data, place)
    data = apply_overrides(dict(data), overrides)
    sections = [*RunConfig.model_fields, *_SWEEP_SECTIONS]
    names = [*sections, *dotted_names(RunConfig), *dotted_names(_SweepSection)]
    for name in data:
        if name not in sections:
            raise ConfigError(f"{place}: {name}: unknown setting; {spelling_hint(name, names)}")
    run = {name: value for name, value in data.items() if name not in _SWEEP_SECTIONS}
    sweep = data.get("sweep")
    return run, data.get("search"), {} if sweep is None else sweep


def _on_trial_device(run: RunConfig, sweep: SweepSettings, place: str) -> RunConfig:
    """Set ``train.device`` to the device of the trials, so that the driver renders clips for the same device."""
    if sweep.gpus_per_trial == "auto":
        return run
    device = "cuda" if sweep.gpus_per_trial else "cpu"
    if run.train.device not in ("auto", device):
        raise ConfigError(
            f"{place}: train.device: {run.train.device!r}: sweep.gpus_per_trial {sweep.gpus_per_trial:g} gives each "
            f"trial {device!r}; take auto, or change sweep.gpus_per_trial"
        )
    return _with_device(run, device)


def _with_device(run: RunConfig, device: str) -> RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"device": device})})


def _refuse_fixed_and_searched(search: Space, overrides: Sequence[str]) -> None:
    """Refuse an override of a searched setting, because the search would silently ignore it."""
    fixed: Mapping[str, str] = {o.partition("=")[0].strip(): o.partition("=")[2] for o in overrides}
    for name in search.names:
        if name in fixed:
            raise ConfigError(
                f"--set {name}={fixed[name]}: this setting is searched; "
                f"take it out of the search with --set search.{name}=null"
            )


def _check_sampler(sweep: SweepSettings, search: Space, place: str, accepted: str | None) -> None:
    """Refuse a sampler that could not search the space, and repeats whose seed is searched.

    Args:
        accepted: sampler that the sweep has begun with, perhaps before it was refused.

    Raises:
        ConfigError: one line that names both settings.
    """
    sampler = f"{place}: sweep.sampler: {sweep.sampler}:"
    if sweep.sampler == "grid" and search.unlimited:
        raise ConfigError(
            f"{sampler} search.{search.unlimited[0]} is a range of floats without a step, which has no end of values; "
            "give it a step, or list its values"
        )
    if sweep.sampler == "grid" and search.all_params(MOST_COUNTED) is None:
        raise ConfigError(
            f"{sampler} the search space has more than {MOST_COUNTED} combinations; list fewer values, or take tpe"
        )
    has_free_range = any(isinstance(d, Range) and not d.when for d in search.dimensions.values())
    if sweep.sampler == "cmaes" and accepted != "cmaes" and not has_free_range:
        raise ConfigError(
            f"{sampler} learns only about ranges without a condition, and search has none, so it would sample at "
            "random; take tpe, gp or random"
        )
    if sweep.repeats > 1 and SEED in search.dimensions:
        place = f"{place}: sweep.repeats"
        raise ConfigError(f"{place}: {sweep.repeats}: varies {SEED}, which is searched; drop one of the two")


def run_with_absolute_places(config: RunConfig) -> RunConfig:
    """Return the settings of a run with every place absolute."""
    return validate(RunConfig, with_absolute_places(config.model_dump(mode="json"), Path()), "settings")


def with_absolute_overrides(overrides: Sequence[str], folder: Path, previous: SweepConfig) -> list[str]:
    """Return overrides of a sweep in ``folder`` with every place absolute, except those that ``previous`` names so."""
    run, sweep, sentences = previous.run, previous.sweep, previous.search.dimensions.get("data.sentences")
    known: list[Any] = [run.models.source, run.data.sentences, run.data.val_sentences, sweep.storage, sweep.shared]
    keep = {value for value in (*known, *getattr(sentences, "values", ())) if isinstance(value, str)}
    found = []
    for override in overrides:
        given = apply_overrides({}, [override])
        value: Any = with_absolute_places(given, folder, keep)
        if value != given:
            name = override.partition("=")[0].strip()
            for key in name.split("."):
                value = value[key]
            override = as_override(name, value)
        found.append(override)
    return found


def as_override(name: str, value: Any) -> str:
    """Return the override ``name=value``, quoted so that the value may hold any characters."""
    # YAML has no pairs of surrogates, which JSON escapes a character such as an emoji by.
    text = re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", json.dumps(value, ensure_ascii=False))
    return f"{name}={text}"
