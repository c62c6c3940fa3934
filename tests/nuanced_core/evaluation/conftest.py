"""Evaluations with the fakes in place of Kokoro, Whisper, the speaker encoder and the pitch tracker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from nuanced_core.data import rendering
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.evaluation import recordings, test_split
from nuanced_core.evaluation.test_split import evaluate_encoder, held_out_utterances
from nuanced_core.export.folder import export_encoder
from nuanced_core.training.run import BEST, start_run
from tests.fakes import fake_models, held_out_models, random_encoder


class SplitSetup:
    """Evaluations of one random encoder on the test split, with various settings of the run that trained it."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.folder, self.run = folder, run
        self.models = held_out_models(folder / "voices")
        self.encoder = random_encoder(self.models, run)

    def report(self, *overrides: str, **options: Any) -> dict[str, Any]:
        run = validate(RunConfig, apply_overrides(self.run.model_dump(mode="json"), overrides), "test")
        dataset = Dataset(self.models, self.folder / "cache")  # type: ignore[arg-type]
        return evaluate_encoder(self.encoder, run, dataset, sentences=2, **options)

    def clips(self, texts: list[str]) -> list[Clip]:
        """Each test voice speaking each text, rendered without the evaluation's own cache."""
        utterances = held_out_utterances(self.models.voices, {text: self.models.phonemizer(text) for text in texts})
        return Dataset(self.models, self.folder / "separate").clips(utterances)  # type: ignore[arg-type]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render in this process, as other processes would load the real models."""
    monkeypatch.setattr(rendering, "worker_count", lambda requests, models: 1)


@pytest.fixture
def setup(tmp_path: Path, tiny_run: RunConfig, one_process: None) -> SplitSetup:
    return SplitSetup(tmp_path, tiny_run)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Total and finished items of each progress bar of an evaluation, by description."""
    found: dict[str, tuple[int, int]] = {}

    @contextmanager
    def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
        found[description] = total, 0

        def advance() -> None:
            found[description] = total, found[description][1] + 1

        yield advance

    for module in (test_split, recordings):
        monkeypatch.setattr(module, "progress_bar", progress_bar)
    return found


@pytest.fixture
def exported(tmp_path: Path, tiny_run: RunConfig) -> Path:
    """The export of an encoder that was trained for one step."""
    models = fake_models(tmp_path / "training_voices")
    run = start_run(tiny_run, tmp_path / "run", lambda *reported: None, models, tmp_path / "cache_of_run")
    run.train_step()
    run.best_loss = 1.0
    run.save(tmp_path / "run" / BEST)
    return export_encoder(tmp_path / "run" / BEST, tmp_path / "model")
