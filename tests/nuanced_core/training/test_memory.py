import subprocess
import sys

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.machine_limits import memory_limit
from nuanced_core.training.memory import MEMORY_SETTINGS, estimated_host_memory, estimated_memory, peak_memory

CPU = torch.device("cpu")


def _estimated(**train: object) -> int:
    return estimated_memory(validate(RunConfig, {"train": train, "data": {"max_phonemes": 60}}, "x"))


@pytest.mark.slow
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


def test_estimate_grows_with_people_and_what_is_spoken_in_their_voices() -> None:
    def estimated(data: dict[str, object], **loss: float) -> int:
        return estimated_memory(validate(RunConfig, {"data": data, "loss": loss, "train": {"spoken": 1}}, "x"))

    people: dict[str, object] = {"people": "people"}
    assert estimated({}) < estimated(people) < estimated(people, speaker=1.0)
    assert estimated(people, surrogate=1.0) < estimated(people, surrogate=1.0, speaker=1.0) < 3e9
    assert estimated(people, pitch=1.0) > estimated(people, pitch=1.0, surrogate=1.0)
    assert estimated({**people, "people_seconds": 60}) > estimated(people)


def test_default_step_is_estimated_below_2_5_gb() -> None:
    assert estimated_memory(RunConfig()) < 2.5e9


def test_the_memory_limit_is_larger_than_a_process() -> None:
    assert peak_memory(CPU) < memory_limit() < 2**44


def test_a_run_on_a_gpu_takes_less_of_the_machines_memory() -> None:
    cpu, gpu = (validate(RunConfig, {"train": {"device": device, "spoken": 8}}, "x") for device in ("cpu", "cuda"))
    assert estimated_host_memory(cpu) == estimated_memory(cpu)
    assert 1.5e9 < estimated_host_memory(gpu) < estimated_memory(gpu)
    larger = validate(RunConfig, {"train": {"device": "cuda", "batch_size": 64}}, "x")
    assert estimated_host_memory(larger) > estimated_host_memory(gpu)


def test_only_the_memory_settings_change_the_estimate() -> None:
    """Each other number of a run, when doubled, leaves it as it is."""
    default, changed = RunConfig(), 0
    for section, settings in default.model_dump().items():
        for name, value in settings.items():
            if (
                f"{section}.{name}".startswith(MEMORY_SETTINGS)
                or isinstance(value, bool)
                or not isinstance(value, int | float)
            ):
                continue
            model = getattr(default, section).model_copy(update={name: value * 2})
            assert estimated_memory(default.model_copy(update={section: model})) == estimated_memory(default), name
            changed += 1
    assert changed > 20


@pytest.mark.slow
def test_an_estimate_does_not_load_torch_dynamo() -> None:
    """It would take seconds, at the start of every sweep."""
    script = """
import sys
from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.training.memory import estimated_memory
for encoder in ({"pooling": "attentive"}, {"pooling": "queries"}, {"output": "blend"}, {"output": "span"}):
    estimated_memory(validate(RunConfig, {"encoder": encoder}, "x"))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.real
def test_real_step_uses_no_more_than_estimated() -> None:
    """Measured for the default step with real weights, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--row", "[2, 40, false]"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output.split()[-1]) * 1e9 < 1.1 * _estimated(spoken=2, window_frames=40)
