import subprocess
import sys

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.training.memory import estimated_memory, installed_memory, peak_memory

CPU = torch.device("cpu")


def _estimated(**train: object) -> int:
    return estimated_memory(validate(RunConfig, {"train": train, "data": {"max_phonemes": 60}}, "x"))


def test_peak_memory_includes_allocated_tensors() -> None:
    script = (
        "import torch; from nuanced_core.training.memory import peak_memory; cpu = torch.device('cpu');"
        "before = peak_memory(cpu); held = torch.ones(500_000_000); print(peak_memory(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(2e9, rel=0.2)


def test_estimate_grows_with_speech_and_shrinks_with_checkpointing() -> None:
    small, large = _estimated(spoken=1, window_frames=40), _estimated(spoken=8, window_frames=80)
    assert small < large
    assert small < _estimated(spoken=8, window_frames=80, checkpointing=True) < large
    assert _estimated(spoken=2, window_frames="full") > _estimated(spoken=2, window_frames=80)


def test_default_step_is_estimated_below_2_5_gb() -> None:
    assert estimated_memory(RunConfig()) < 2.5e9


def test_installed_memory_is_larger_than_that_of_a_process() -> None:
    assert peak_memory(CPU) < installed_memory(CPU) < 2**44


@pytest.mark.real
def test_real_step_uses_no_more_than_estimated() -> None:
    """Measured for the default step with real weights, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "[2, 40, false]"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output.split()[-1]) * 1e9 < 1.1 * _estimated(spoken=2, window_frames=40)
