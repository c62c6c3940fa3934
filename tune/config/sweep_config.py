"""The configuration of a sweep: one YAML file with the sections of a run, ``search`` and ``sweep``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nuanced_core.config.settings import RunConfig, Settings
from nuanced_core.config.validation import dotted_names, spelling_hint, validate
from nuanced_core.config.yaml_files import apply_overrides, read_yaml
from nuanced_core.errors import ConfigError
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings

__all__ = ["SETTINGS_FILE", "SweepConfig", "as_override", "load", "load_run", "load_sweep", "parse_sweep"]

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
        sweep = self.sweep.model_copy(update={"gpus_per_trial": share})
        return replace(self, run=_with_device(self.run, "cuda" if share else "cpu"), sweep=sweep)

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
                for name in ("val_voices", "val_sentences", "val_sentences_per_voice", "max_phonemes", "seed")
            },
            "sweep.objectives": (previous.sweep.objectives, self.sweep.objectives),
            "sweep.storage": (previous.sweep.storage, self.sweep.storage),
        }
        for name, (old, new) in fixed.items():
            if old != new:
                raise ConfigError(f"{name}: was {old}, would be {new}: trials could not be compared; start a new sweep")
        if previous.sweep.shared != self.sweep.shared:
            raise ConfigError(
                f"sweep.shared: was {previous.sweep.shared}, would be {self.sweep.shared}: unfinished trials would not "
                "find their checkpoints; keep the previous value"
            )
        self.search.check_can_continue(previous.search)

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, in the form that ``parse_sweep`` takes."""
        return {
            **self.run.model_dump(mode="json"),
            "search": self.search.as_dict(),
            "sweep": self.sweep.model_dump(mode="json"),
        }


class _SweepSection(Settings):
    """The ``sweep`` section under its name, so that errors name ``sweep.trials`` rather than ``trials``."""

    sweep: SweepSettings = SweepSettings()


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and validate the sweep in the YAML file ``path``, with ``section.name=value`` overrides.

    Raises:
        ConfigError: one line that names the file, the first invalid setting and the closest valid name.
    """
    return parse_sweep(read_yaml(path), str(path), overrides)


def parse_sweep(data: Mapping[str, Any], place: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Validate the sweep in ``data``, as read by ``read_yaml``; its ``record`` section is ignored.

    Args:
        place: the file that ``data`` was read from, for error messages.
        overrides: ``section.name=value`` settings, applied to ``data``.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    run_data, search_data, sweep_data = _sections(data, place, overrides)
    run = validate(RunConfig, run_data, place)
    sweep = validate(_SweepSection, {"sweep": sweep_data}, place).sweep
    run = _on_trial_device(run, sweep, place)
    search = Space.parse(search_data, run, place)
    _refuse_fixed_and_searched(search, overrides)
    return SweepConfig(run, search, sweep)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate the run in ``path``, whose ``search`` and ``sweep`` sections, if any, are ignored.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    return _parse_run(read_yaml(path), str(path), overrides)


def load(path: Path) -> SweepConfig | RunConfig:
    """Read and validate a file: a sweep if it has a ``search`` section, else a run.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    data = read_yaml(path)
    return parse_sweep(data, str(path)) if data.get("search") else _parse_run(data, str(path), ())


def _parse_run(data: Mapping[str, Any], place: str, overrides: Sequence[str]) -> RunConfig:
    return validate(RunConfig, _sections(data, place, overrides)[0], place)


def _sections(data: Mapping[str, Any], place: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """Apply the overrides and return the sections of the run, the search section and the sweep section."""
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


def as_override(name: str, value: str | float | None) -> str:
    """Return the override ``name=value``, quoted so that the value may hold any characters."""
    return f"{name}={json.dumps(value)}"
