"""The report of a sweep: one HTML file that needs nothing else, made of what ``LoadedSweep`` reads."""

import json
import logging
import math
import os
import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nuanced_core.errors import ConfigError, DiskError
from tune.analysis.listening import read_listening
from tune.analysis.loaded import LoadedSweep, load_sweep
from tune.analysis.sections import (
    baselines_table,
    best_settings,
    failures,
    provenance,
    summary,
    time_table,
    trials_table,
)
from tune.config.secrets import masked

__all__ = ["REPORT_FILE", "render_report", "write_report"]

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"  # in the folder of a sweep
MOST_BYTES = 14_500_000  # of a report
_BYTES_PER_TRIAL = 2_000  # its row in the table
_PAGE_COLORS = ("paper_bgcolor", "plot_bgcolor", "template", "title")  # the page has its own


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the sweep in ``folder`` atomically and return its path.

    Args:
        out: the HTML file; ``report.html`` in ``folder`` if None.

    Raises:
        ConfigError: ``folder`` holds no sweep, or ``out`` is a folder.
        DiskError: the file cannot be written.
    """
    file = folder / REPORT_FILE if out is None else out
    if file.is_dir():
        raise ConfigError(f"{file}: a folder; name the HTML file to write, such as {file / REPORT_FILE}")
    page = render_report(load_sweep(folder))
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise DiskError(f"{file}: cannot be written: {error.strerror}; name another file with -o") from None
    finally:
        part.unlink(missing_ok=True)
    return file


def render_report(sweep: LoadedSweep) -> str:
    """Return the report of a sweep as an HTML page that makes no request."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tune.analysis", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    drawn = {id(figure): figure_json(figure) for figure in (*sweep.figures.values(), *sweep.slices.values())}
    environment.filters["figure"] = lambda figure: drawn[id(figure)]
    used = len(plotly) + sum(map(len, drawn.values())) + _BYTES_PER_TRIAL * len(sweep.frozen)
    environment.filters["number"] = number
    environment.filters["metric"] = metric
    loader = environment.loader
    assert loader is not None
    style, script = (Markup(loader.get_source(environment, name)[0]) for name in ("style.css", "script.js"))
    leading = [(trial.number, sweep.trial_folder(trial.number)) for trial in sweep.leading[:10]]
    return environment.get_template("report.html").render(
        name=sweep.folder.absolute().name,
        state=sweep.status["state"],
        made=datetime.now(timezone.utc).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00") + " UTC",
        version=version("nuanced-speech"),
        style=style,
        script=script,
        plotly=Markup(plotly),
        summary=summary(sweep),
        baselines=baselines_table(sweep),
        figures=sweep.figures,
        slices=sweep.slices,
        importance=sweep.importance,
        conditional=[] if sweep.config is None else _conditional(sweep),
        trials=trials_table(sweep),
        pareto=sweep.status["pareto"],
        times=time_table(sweep),
        best=best_settings(sweep),
        listening=read_listening(leading, max(0, MOST_BYTES - used)),
        failures=failures(sweep),
        provenance=provenance(sweep),
        commands=_commands(sweep),
    )


def _conditional(sweep: LoadedSweep) -> list[str]:
    assert sweep.config is not None
    return [name for name, dimension in sweep.config.search.dimensions.items() if dimension.when]


def _commands(sweep: LoadedSweep) -> dict[str, str]:
    """What to type to go on, by what it does."""
    folder = str(sweep.folder)
    found = {}
    if sweep.status["state"] == "interrupted":
        found["Go on with this sweep"] = ["nuanced", "sweep", "--resume", folder]
    commit = str(sweep.record.get("git_commit") or "").removesuffix("-dirty")
    if commit:
        found["Take the code that it ran with"] = ["git", "checkout", commit]
    settings = str(sweep.folder / "sweep.yaml")
    found["Run it again"] = ["nuanced", "sweep", settings, "--name", f"{sweep.folder.absolute().name}-again"]
    if sweep.best is not None:
        models = str(Path("models") / sweep.folder.absolute().name)
        found["Export the best encoder"] = ["nuanced", "export", folder, "-o", models]
    found["See the curves"] = ["tensorboard", "--logdir", str(sweep.folder / "trials")]
    return {title: masked(shlex.join(command)) for title, command in found.items()}


def figure_json(figure: go.Figure) -> Markup:
    """Return a figure as JSON for a script element: no text in it ends the element."""
    data: dict[str, Any] = json.loads(figure.to_json())
    layout = {name: value for name, value in data["layout"].items() if name not in _PAGE_COLORS}
    text = json.dumps({"data": data["data"], "layout": layout}, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def number(value: Any, digits: int = 4) -> str:
    """Return a value as text: a number with few digits, a list as JSON, nothing for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return json.dumps(value) if isinstance(value, list | Mapping) else str(value)


def metric(value: Any) -> str:
    """Return a metric with four digits, the last ones also if they are 0."""
    return f"{value:#.4g}" if isinstance(value, float) and not math.isnan(value) else number(value)
