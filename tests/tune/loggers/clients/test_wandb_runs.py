"""tune.loggers.clients.wandb_runs: runs of W&B's own client in offline mode, read back from its file."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tune import toy
from tune.loggers.clients.background import Reported

pytest.importorskip("wandb", reason="the extra wandb is not installed")

from wandb.proto import wandb_internal_pb2

from tune.loggers.clients.wandb_runs import WandbRun, is_offline_by_default

_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: protocol buffers in the framing of LevelDB's log."""
    content, place, part = file.read_bytes(), _FILE_HEADER, b""
    while place + _HEADER <= len(content):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
        _, length, kind = struct.unpack("<IHB", content[place : place + _HEADER])
        part += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def history(file: Path) -> list[dict[str, Any]]:
    rows = [record.history for record in records(file) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in rows]


def offline_runs(folder: Path, number: int = 1) -> list[Path]:
    """The files of that many runs, once W&B's own process has written them to their ends."""
    until = time.monotonic() + 20
    while True:
        files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
        ended = [any(record.HasField("exit") for record in records(file)) for file in files]
        if (len(ended) == number and all(ended)) or time.monotonic() > until:
            return files
        time.sleep(0.1)


@pytest.mark.slow
def test_without_a_login_a_run_is_written_to_the_trial_s_folder(tmp_path: Path) -> None:
    assert is_offline_by_default()
    run = WandbRun(tmp_path, "a/study", "toy", "toy-3", "abc-3", {"train.learning_rate": 1e-3})
    run.log([Reported(1, 0.0, {"loss/total": 3.0}), Reported(2, 0.0, {"loss/total": 2.0})])
    run.log([Reported(2, 0.0, {"val/loss": 1.5}, toy.exhibits())])
    run.close("pruned")
    (file,) = offline_runs(tmp_path)
    begun = next(record.run for record in records(file) if record.WhichOneof("record_type") == "run")
    assert (begun.run_id, begun.project, begun.run_group, begun.display_name) == ("abc-3", "a-study", "toy", "toy-3")
    assert {"/".join(u.nested_key) or u.key: u.value_json for u in begun.config.update}[
        "train.learning_rate"
    ] == "0.001"
    rows = history(file)
    assert [(row["_step"], row["loss/total"]) for row in rows] == [(1, 3.0), (2, 2.0)]
    assert rows[1]["val/loss"] == 1.5
    assert rows[1]["listen/af_nova/spoken/_type"] == "audio-file"
    assert rows[1]["look/af_nova/mel/_type"] == "image-file"
    media = {path.suffix: path.read_bytes() for path in file.parent.rglob("media/**/*") if path.is_file()}
    assert media[".png"] == toy.png(16, 8) and media[".wav"][:4] == b"RIFF"
    (ended,) = [record.exit for record in records(file) if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    summaries = [record.summary for record in records(file) if record.WhichOneof("record_type") == "summary"]
    assert {"state": '"pruned"'}.items() <= {u.key: u.value_json for s in summaries for u in s.update}.items()


@pytest.mark.slow
def test_a_resumed_trial_has_the_same_run_and_an_interrupted_one_is_preempted(tmp_path: Path) -> None:
    for number, state in enumerate(("interrupted", "failed")):
        run = WandbRun(tmp_path, "study", "toy", "toy-0", "abc-0", {})
        run.log([Reported(10 * number + 1, 0.0, {"val/loss": 1.0})])
        run.close(state)  # type: ignore[arg-type]
    files = offline_runs(tmp_path, 2)
    kinds = [[record.WhichOneof("record_type") for record in records(file)] for file in files]
    ids = {record.run.run_id for file in files for record in records(file) if record.HasField("run")}
    assert ids == {"abc-0"} and len(files) == 2
    assert ["preempting" in kind for kind in kinds] == [True, False]
    codes = [record.exit.exit_code for file in files for record in records(file) if record.HasField("exit")]
    assert codes == [1, 1]


def test_its_own_variables_say_where_a_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    assert not is_offline_by_default()
    WandbRun(tmp_path, "study", "toy", "toy-0", "abc-0", {}).close("complete")
    assert not (tmp_path / "wandb").exists() and len(offline_runs(tmp_path / "elsewhere")) == 1
