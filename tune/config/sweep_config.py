"""The settings of a sweep: one YAML file holds a run's sections, what is searched, and how."""

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

__all__ = ["SETTINGS_FILE", "SweepConfig", "as_override", "load", "load_run", "load_sweep"]

SETTINGS_FILE = "sweep.yaml"  # in the folder of a sweep

# "record" is what a finished sweep's sweep.yaml adds to its settings, so that such a file can be run again.
_SWEEP_SECTIONS = ("search", "sweep", "record")


@dataclass(frozen=True)
class SweepConfig:
    """One sweep, whole: the run that its trials vary, what they vary, and how they are chosen."""

    run: RunConfig
    search: Space
    sweep: SweepSettings

    def on_gpus(self, share: float) -> "SweepConfig":
        """With so many GPUs for each trial, in the place of ``gpus_per_trial: auto``."""
        sweep = self.sweep.model_copy(update={"gpus_per_trial": share})
        return replace(self, run=_on_device(self.run, "cuda" if share else "cpu"), sweep=sweep)

    def runs_to_prepare(self) -> list[RunConfig]:
        """The runs whose data and models the trials need, each combination once."""
        return self.search.variants(self.run)

    def check_extends(self, before: "SweepConfig") -> None:
        """Refuse what trials of ``before`` and trials of this sweep could not be compared by, or sampled from.

        Raises:
            ConfigError: one line that names the setting, what it was and what it would be.
        """
        fixed = {
            "objective": (before.run.objective, self.run.objective),
            **{
                f"data.{name}": (getattr(before.run.data, name), getattr(self.run.data, name))
                for name in ("val_voices", "val_sentences", "val_sentences_per_voice", "max_phonemes", "seed")
            },
            "sweep.objectives": (before.sweep.objectives, self.sweep.objectives),
            "sweep.storage": (before.sweep.storage, self.sweep.storage),
        }
        for name, (old, new) in fixed.items():
            if old != new:
                raise ConfigError(f"{name}: was {old}, would be {new}: trials could not be compared; begin a new sweep")
        if before.sweep.shared != self.sweep.shared:
            raise ConfigError(
                f"sweep.shared: was {before.sweep.shared}, would be {self.sweep.shared}: trials in flight would not "
                "find their checkpoints; leave it as it was"
            )
        self.search.check_extends(before.search)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, in the form that ``load_sweep`` reads."""
        return {
            **self.run.model_dump(mode="json"),
            "search": self.search.as_dict(),
            "sweep": self.sweep.model_dump(mode="json"),
        }


class _SweepSection(Settings):
    """The section under its name, so that errors say ``sweep.trials``."""

    sweep: SweepSettings = SweepSettings()


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in the YAML file ``path`` with ``section.name=value`` overrides, all of it checked.

    Raises:
        ConfigError: one line that names the file, the first wrong setting and the nearest right name.
    """
    run_data, search_data, sweep_data = _read(path, overrides)
    run = validate(RunConfig, run_data, str(path))
    sweep = validate(_SweepSection, {"sweep": sweep_data}, str(path)).sweep
    run = _on_its_device(run, sweep, str(path))
    search = Space.parse(search_data, run, str(path))
    _refuse_fixed_and_searched(search, overrides)
    return SweepConfig(run, search, sweep)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run in ``path``, which may be a sweep's file: what concerns the search is left out.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    return validate(RunConfig, _read(path, overrides)[0], str(path))


def load(path: Path) -> SweepConfig | RunConfig:
    """What ``path`` describes: a sweep if it says what is searched, else one run.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    return load_sweep(path) if read_yaml(path).get("search") else load_run(path)


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """What the file says about the run, the search and the sweep."""
    data = apply_overrides(read_yaml(path), overrides)
    sections = [*RunConfig.model_fields, *_SWEEP_SECTIONS]
    names = [*sections, *dotted_names(RunConfig), *dotted_names(_SweepSection)]
    for name in data:
        if name not in sections:
            raise ConfigError(f"{path}: {name}: unknown setting; {spelling_hint(name, names)}")
    run = {name: value for name, value in data.items() if name not in _SWEEP_SECTIONS}
    sweep = data.get("sweep")
    return run, data.get("search"), {} if sweep is None else sweep


def _on_its_device(run: RunConfig, sweep: SweepSettings, place: str) -> RunConfig:
    """``run`` on what its trials are given, so that driver and trials render for the same device."""
    if sweep.gpus_per_trial == "auto":
        return run
    given = "cuda" if sweep.gpus_per_trial else "cpu"
    if run.train.device not in ("auto", given):
        raise ConfigError(
            f"{place}: train.device: {run.train.device!r}: sweep.gpus_per_trial {sweep.gpus_per_trial:g} gives each "
            f"trial {given!r}; take auto, or change sweep.gpus_per_trial"
        )
    return _on_device(run, given)


def _on_device(run: RunConfig, device: str) -> RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"device": device})})


def _refuse_fixed_and_searched(search: Space, overrides: Sequence[str]) -> None:
    """A searched setting that the user also fixes would silently not be fixed."""
    fixed: Mapping[str, str] = {o.partition("=")[0].strip(): o.partition("=")[2] for o in overrides}
    for name in search.names:
        if name in fixed:
            raise ConfigError(
                f"--set {name}={fixed[name]}: this setting is searched; "
                f"take it out of the search with --set search.{name}=null"
            )


def as_override(name: str, value: str | float | None) -> str:
    """``name=value`` for the overrides, whatever characters the value holds."""
    return f"{name}={json.dumps(value)}"
