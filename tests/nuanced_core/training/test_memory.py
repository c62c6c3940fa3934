import subprocess
import sys

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.training.memory import estimated_memory, installed_memory, peak_memory

CPU = torch.device("cpu")


def _foretold(**train: object) -> int:
    return estimated_memory(validate(RunConfig, {"train": train, "data": {"max_phonemes": 60}}, "x"))


def test_peak_memory_grows_with_what_a_process_holds() -> None:
    script = (
        "import torch; from nuanced_core.training.memory import peak_memory; cpu = torch.device('cpu');"
        "before = peak_memory(cpu); held = torch.ones(500_000_000); print(peak_memory(cpu) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(2e9, rel=0.2)


def test_more_speech_takes_more_and_checkpointing_less() -> None:
    small, large = _foretold(spoken=1, window_frames=40), _foretold(spoken=8, window_frames=80)
    assert small < large
    assert small < _foretold(spoken=8, window_frames=80, checkpointing=True) < large
    assert _foretold(spoken=2, window_frames="full") > _foretold(spoken=2, window_frames=80)


def test_the_default_step_fits_into_two_and_a_half_gigabytes() -> None:
    assert estimated_memory(RunConfig()) < 2.5e9


def test_installed_memory_is_that_of_the_machine() -> None:
    assert peak_memory(CPU) < installed_memory(CPU) < 2**44


@pytest.mark.real
def test_a_real_trial_takes_no_more_than_was_foretold() -> None:
    """The default step on real weights, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "[2, 40, false]"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output.split()[-1]) * 1e9 < 1.1 * _foretold(spoken=2, window_frames=40)
