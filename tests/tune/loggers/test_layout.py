"""tune.loggers.layout: the page of custom scalars as TensorBoard's plugin answers for it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from werkzeug.test import Client

from tune.cluster.shared_storage import SharedFolder
from tune.loggers.layout import LAYOUT_RUN, write_layout
from tune.loggers.tensorboard import TensorBoardReport

# What a run reports, by the titles of the charts that show it.
SHOWN = {
    "loss, and that of the baselines": ["val/loss", "baseline/loss", "nearest/loss", "ridge/loss", "oracle/loss"],
    "spectral loss (stft)": ["val/stft", "oracle/stft"],
    "style loss": ["val/style"],
    "identity": ["val/identity"],
    "pitch": ["val/pitch"],
    "sex": ["val_groups/sex_female/loss", "val_groups/sex_male/loss"],
    "accent": ["val_groups/accent_british/loss"],
    "condition": ["val_groups/condition_noise/loss"],
    "total loss": ["loss/total"],
    "terms": ["loss/style", "loss/stft"],
    "weighted terms": ["weighted/style"],
    "weights of Whisper's layers": ["layers/0", "layers/3"],
    "norm by part": ["gradient/pooling"],
    "steps per second": ["train/steps_per_second"],
    "peak memory (GB)": ["train/peak_memory_gb"],
}


def answers(logdir: Path) -> Any:
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(logdir))
    runs.Reload()
    plugins: dict[str, Any] = {}
    data = MultiplexerDataProvider(runs, str(logdir))
    context = TBContext(data_provider=data, logdir=str(logdir), plugin_name_to_instance=plugins)
    plugins["scalars"] = ScalarsPlugin(context)
    apps = CustomScalarsPlugin(context).get_plugin_apps()

    def get(route: str, **query: str) -> Any:
        return json.loads(Client(apps[f"/{route}"]).get("/", query_string=query).text)

    return get


def test_each_chart_shows_the_scalars_that_it_is_named_by_and_no_others(tmp_path: Path) -> None:
    write_layout(tmp_path)
    with TensorBoardReport(tmp_path / "0") as report:
        report(1, {name: 1.0 for names in SHOWN.values() for name in names})
    get = answers(tmp_path)
    charts = {chart["title"]: chart for category in get("layout")["category"] for chart in category["chart"]}
    assert SHOWN.keys() <= charts.keys()
    for title, names in SHOWN.items():
        found: set[str] = set()
        for tag in charts[title]["multiline"]["tag"]:
            answer = get("scalars", tag=tag, run="0")
            assert answer["regex_valid"], tag
            found |= answer["tag_to_events"].keys()
        assert found == set(names), title


def test_a_layout_is_written_once_and_an_outdated_one_is_replaced(tmp_path: Path) -> None:
    write_layout(tmp_path)
    (file,) = (tmp_path / LAYOUT_RUN).iterdir()
    written = file.stat().st_mtime_ns
    write_layout(tmp_path)
    assert [f.stat().st_mtime_ns for f in (tmp_path / LAYOUT_RUN).iterdir()] == [written]
    file.rename(file.with_name("events.out.tfevents.0123"))
    write_layout(tmp_path)
    assert list((tmp_path / LAYOUT_RUN).iterdir()) == [file]


def test_shared_storage_has_it_too(tmp_path: Path) -> None:
    write_layout(tmp_path / "here", SharedFolder(str(tmp_path / "there")))
    (here,), (there,) = ((tmp_path / place / LAYOUT_RUN).iterdir() for place in ("here", "there"))
    assert here.name == there.name and here.read_bytes() == there.read_bytes()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trials").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        write_layout(tmp_path / "trials")
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "Custom Scalars" in caplog.text
