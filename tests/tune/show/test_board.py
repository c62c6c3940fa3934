"""``nuanced board``: TensorBoard as a browser asks it, on a sweep of the toy that reports sounds and pictures."""

import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile

from nuanced_core.errors import ConfigError
from tests.tune import toy
from tests.tune.conftest import sweep
from tune.loggers.tensorboard import TensorBoardReport
from tune.show.board import serve_board
from tune.sweep.driver import SweepResult

SHOWN = f"""
train: {{epochs: 2}}
search:
  train.learning_rate: {{low: 1.0e-5, high: 1.0e-1, log: true}}
  encoder.width: [{toy.SHOWS}, {toy.TRAINING_ERROR}]
sweep: {{trials: 3, sampler: random, seed: 1, pruner: none, memory_per_trial: null, enqueue: [
  {{encoder.width: {toy.SHOWS}}}, {{encoder.width: {toy.TRAINING_ERROR}}}, {{encoder.width: {toy.SHOWS}}}]}}
"""

Get = Callable[..., Any]


@pytest.fixture(scope="module")
def shown(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return sweep(SHOWN, tmp_path_factory.mktemp("shown"))[0]


@contextmanager
def board(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it printed."""
    command = ["board", str(folder), *(options or ("--port", "0"))]
    script = f"import sys; from tune.cli.app import main; sys.exit(main({command!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield process, line.split(" ")[0]
    finally:
        process.kill()
        process.communicate()


def getter(url: str) -> Get:
    def get(route: str, data: dict[str, Any] | None = None, **query: Any) -> Any:
        address = f"{url}data/{route}?{urllib.parse.urlencode(query)}"
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "text/plain"} if body else {})
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers["Content-Type"].startswith("application/json") else content

    return get


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 60
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.2)
    assert found
    return found


def test_it_serves_all_that_a_sweep_shows_on_loopback_until_ctrl_c(shown: SweepResult) -> None:
    with board(shown.folder) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        get = getter(url)
        # The data server reads the runs one after another.
        wait_for(lambda: {"0", "1", "2", "hparams", "layout"} <= set(get("runs")))
        wait_for(lambda: get("plugin/images/tags").get("2"))
        curve = get("plugin/scalars/scalars", run="0", tag="val/loss")
        assert [step for _, step, _ in curve] == [10, 20]
        charts = [chart["title"] for c in get("plugin/custom_scalars/layout")["category"] for chart in c["chart"]]
        assert "loss, and that of the baselines" in charts
        rows = get("plugin/custom_scalars/scalars", run="0", tag=r"(val|baseline|nearest|ridge|oracle)/loss$")
        assert set(rows["tag_to_events"]) == {"val/loss", "baseline/loss", "oracle/loss"}
        infos = get("plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]
        assert {"State", "encoder.width", "train.learning_rate"} == {info["name"] for info in infos}
        sounds = get("plugin/audio/audio", run="0", tag="listen/af_nova/spoken", sample=0)
        assert [sound["step"] for sound in sounds] == [10, 20]
        with urllib.request.urlopen(f"{url}data/plugin/audio/individualAudio?{sounds[0]['query']}") as answer:
            assert answer.headers["Content-Type"] == "audio/wav"
            assert soundfile.info(io.BytesIO(answer.read())).frames == 2400
        images = get("plugin/images/images", run="0", tag="look/af_nova/mel", sample=0)
        with urllib.request.urlopen(f"{url}data/plugin/images/individualImage?{images[0]['query']}") as answer:
            assert answer.read() == toy.png(16, 8)
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        port = int(url.rstrip("/").rpartition(":")[2])
        assert f"0100007F:{port:04X}" in {line.split()[1] for line in listening if line.split()[3] == "0A"}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_a_single_run_that_was_resumed_is_served_as_one_curve(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    for steps in ((10, 20, 30), (20, 30)):  # from the checkpoint of step 10
        with TensorBoardReport(tmp_path) as report:
            for step in steps:
                report(step, {"val/loss": 1.0}, toy.exhibits())
    with board(tmp_path) as (_, url):
        get = getter(url)
        wait_for(lambda: get("plugin/images/tags").get(".") and get("plugin/custom_scalars/layout"))
        assert [step for _, step, _ in get("plugin/scalars/scalars", run=".", tag="val/loss")] == [10, 20, 30]
        for plugin, tag in (("audio", "listen/af_nova/spoken"), ("images", "look/af_nova/mel")):
            found = get(f"plugin/{plugin}/{plugin}", run=".", tag=tag, sample=0)
            assert [shown["step"] for shown in found] == [10, 20, 30]


def test_what_cannot_be_served_is_a_config_error_of_one_line(shown: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither the folder of a sweep nor of a run"):
        serve_board(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: cannot be used \(.*in use\); choose another$"):
            serve_board(shown.folder, port=port)
    for host, wrong in (("127.0.0.1", 99999), ("nosuch.invalid", 6007)):
        with pytest.raises(ConfigError, match=rf"--host {host} --port {wrong}: .*") as caught:
            serve_board(shown.folder, host, wrong)
        assert "\n" not in str(caught.value)
