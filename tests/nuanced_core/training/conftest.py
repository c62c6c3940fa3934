"""Training runs with the fakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.exhibits.exhibit import Exhibit
from nuanced_core.training.run import Run, start_run


class RunFactory:
    """Starts runs with the fakes in one temporary folder and collects what they report."""

    def __init__(self, fakes: SimpleNamespace, config: RunConfig, folder: Path) -> None:
        self.fakes, self.config, self.folder = fakes, config, folder
        self.reported: list[tuple[int, Mapping[str, float]]] = []
        self.exhibits: list[tuple[int, Sequence[Exhibit]]] = []

    def __call__(self, name: str, *overrides: str) -> Run:
        """Start the run ``name``, or continue it, with some settings changed."""
        data = apply_overrides(self.config.model_dump(mode="json"), overrides)
        config = validate(RunConfig, data, name)
        return start_run(config, self.folder / name, self._report, self.fakes, self.folder / "cache")  # type: ignore[arg-type]

    def _report(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        self.reported.append((step, scalars))
        if exhibits:
            self.exhibits.append((step, exhibits))


@pytest.fixture
def new_run(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> RunFactory:
    return RunFactory(fakes, tiny_run, tmp_path)
