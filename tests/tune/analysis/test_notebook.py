"""docs/notebooks/inspect.ipynb: kept without outputs, and run from its first to its last cell."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tune.analysis.made_sweeps import made_sweep

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "docs" / "notebooks" / "inspect.ipynb"


def test_the_notebook_is_valid_and_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_sweep(tmp_path / "toy", [([2 * loss, loss], "complete") for loss in (1.5, 1.25, 1.0, 1.75)])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert '"outputs/quickstart"' in first.source
    first.source = first.source.replace('"outputs/quickstart"', repr(str(folder)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = "".join(str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs)
    assert "finished, 4 trials" in texts
    assert "best trial (2)" in texts
    assert "<BestTrial 2: val/loss 1.0000>" in texts
    figures = [output for output in outputs if "text/html" in output.get("data", {})]
    assert sum("plotly" in output["data"]["text/html"].lower() for output in figures) >= 2
