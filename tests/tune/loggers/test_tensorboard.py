"""tune.loggers.tensorboard: event files as TensorBoard's own reader sees them."""

import io
import time
from pathlib import Path

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.audio import metadata

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import TrainingError
from nuanced_core.exhibits.exhibit import Picture, Sound
from tests.tune import toy
from tests.tune.sweep.test_driver import Swept, config_of
from tests.tune.toy import expected_loss
from tune.cluster.shared_storage import SharedFolder
from tune.config.space import Space
from tune.loggers.clients.media import wav
from tune.loggers.tensorboard import EVENT_FILE, TensorBoardReport, encode_summaries
from tune.trial.protocol import Report, Run
from tune.trial.trainable import StyleEncoderTrial


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def sounds(folder: Path, name: str) -> list[tuple[int, bytes]]:
    """Step and WAV file of each, by the reader that TensorBoard's server has."""
    events = PluginEventAccumulator(str(folder)).Reload()
    return [(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors(name)]


def test_scalars_are_read_back_at_their_steps(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(1, {"val/loss": 2.0, "loss/total": 3.0})
        report(5, {"val/loss": 1.5})
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(1, 2.0), (5, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(1, 3.0)]


def test_sounds_are_wav_and_pictures_are_the_png_as_it_was(tmp_path: Path) -> None:
    sound, picture = toy.exhibits()
    assert isinstance(sound, Sound) and isinstance(picture, Picture)
    with TensorBoardReport(tmp_path) as report:
        report(7, {"val/loss": 2.0}, (sound, picture))
    events = read(tmp_path)
    ((step, content),) = sounds(tmp_path, sound.name)
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert (step, rate) == (7, 24000) and soundfile.info(io.BytesIO(content)).subtype == "PCM_16"
    data = metadata.parse_plugin_metadata(events.SummaryMetadata(sound.name).plugin_data.content)
    assert data.encoding == metadata.Encoding.Value("WAV")
    assert torch.allclose(torch.from_numpy(samples), sound.audio, atol=1e-4)
    (image,) = events.Images(picture.name)
    assert (image.step, image.width, image.height) == (7, 16, 8)
    assert image.encoded_image_string == picture.png


def test_a_sound_that_is_too_loud_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    content = wav(torch.tensor([2.0, -2.0, 0.5]), 8000)
    samples, _ = soundfile.read(io.BytesIO(content))
    assert samples.tolist() == pytest.approx([1.0, -1.0, 0.5], abs=1e-3)


def test_a_resumed_run_is_one_curve_also_in_sounds_and_pictures(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        for step in (10, 20, 30):
            report(step, {"val/loss": 1.0}, toy.exhibits(0.1))
    with TensorBoardReport(tmp_path) as report:  # from the checkpoint of step 10
        for step in (20, 30):
            report(step, {"val/loss": 2.0}, toy.exhibits(0.2))
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(10, 1.0), (20, 2.0), (30, 2.0)]
    spoken = sounds(tmp_path, "listen/af_nova/spoken")
    loudest = [abs(soundfile.read(io.BytesIO(content))[0]).max() for _, content in spoken]
    assert [step for step, _ in spoken] == [10, 20, 30] and loudest == pytest.approx([0.1, 0.2, 0.2], abs=1e-2)
    assert [e.step for e in events.Images("look/af_nova/mel")] == [10, 20, 30]


@pytest.mark.parametrize("behind", [0, 3, 86_400])  # seconds
def test_a_run_that_goes_on_when_the_clock_is_behind_in_a_process_of_a_lower_number_is_one_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    now = time.time()
    for process, clock, steps in ((9000, now, (10, 20)), (11, now - behind, (20, 30))):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        with TensorBoardReport(tmp_path) as report:
            for step in steps:
                report(step, {"loss": float(process)})
    monkeypatch.undo()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(10, 9000), (20, 11), (30, 11)]


def test_points_are_written_in_time_without_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [time.monotonic()]
    monkeypatch.setattr("tune.loggers.tensorboard.time.monotonic", lambda: clock[0])
    report = TensorBoardReport(tmp_path)
    for step in (1, 2):
        clock[0] += 7
        report(step, {"val/loss": 2.0})
    assert [e.step for e in read(tmp_path).Scalars("val/loss")] == [1, 2]
    report.close()


def test_a_flush_shows_everything_before_the_end(tmp_path: Path) -> None:
    report = TensorBoardReport(tmp_path)
    report(1, {"val/loss": 2.0})
    report.flush()
    assert [e.step for e in read(tmp_path).Scalars("val/loss")] == [1]
    report.close()


def test_summaries_are_read_from_a_file_that_was_written_and_appended_to(tmp_path: Path) -> None:
    def points(name: str, *values: float) -> list[tuple[int, Summary]]:
        return [(n, Summary(value=[Summary.Value(tag=name, simple_value=v)])) for n, v in enumerate(values)]

    file = tmp_path / EVENT_FILE
    file.write_bytes(encode_summaries(points("a", 1.0, 2.0)))
    with file.open("ab") as more:
        more.write(encode_summaries(points("b", 3.0), begins_file=False))
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(0, 1.0), (1, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("b")] == [(0, 3.0)]


def test_a_row_beside_the_curves_purges_none_of_them(tmp_path: Path) -> None:
    with TensorBoardReport(tmp_path) as report:
        report(1, {"val/loss": 2.0})
        report(5, {"val/loss": 1.5})
    (last,) = tmp_path.iterdir()
    row = (0, Summary(value=[Summary.Value(tag="best/val/loss", simple_value=1.5)]))
    last.with_name(f"{last.name}.hparams").write_bytes(encode_summaries([row]))
    events = read(tmp_path)
    assert [e.step for e in events.Scalars("val/loss")] == [1, 5]
    assert [e.value for e in events.Scalars("best/val/loss")] == [1.5]


def test_each_trial_of_a_sweep_has_its_curves(mixed: Swept) -> None:
    result, _ = mixed
    for trial in result.status["trials"]:
        events = read(result.folder / "trials" / str(trial["number"]))
        config = config_of(result, trial["number"])
        epochs = range(1, trial["epochs"] + 1)
        curve = [(e.step, e.value) for e in events.Scalars("val/loss")][: len(epochs)]
        assert curve == [(10 * n, pytest.approx(expected_loss(config, n))) for n in epochs]


def test_what_a_trial_reported_is_on_the_disk_before_it_says_that_it_failed(tmp_path: Path) -> None:
    """TensorBoard reads a file no further once there is a later one, which the driver writes for an ended trial."""

    def start_run(config: RunConfig, folder: Path, report: Report) -> Run:
        report(3, {"loss/total": 2.0})
        raise TrainingError("step 4: loss/total is nan")

    space = Space.parse({"encoder.width": [64, 128]}, RunConfig(), "a.yaml")
    trial = StyleEncoderTrial.__new__(StyleEncoderTrial)
    asked = {"number": 0, "folder": str(tmp_path / "0"), "params": {"encoder.width": 64}, "gpus": 0.0}
    storage = SharedFolder(str(tmp_path))
    trial.setup(asked, start_run=start_run, run=RunConfig(), search=space, threads=1, storage=storage)
    assert trial.step() == {"done": True, "error": "step 4: loss/total is nan"}
    assert [e.step for e in read(tmp_path / "0").Scalars("loss/total")] == [3]
    trial.cleanup()
