"""The quickstart notebook runs from top to bottom, with fewer steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent.parent / "examples" / "quickstart.ipynb"


@pytest.mark.filterwarnings("ignore")  # those of the kernel's own
def test_the_notebook_runs_and_shows_the_inversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "STEPS = 900" in cell.source]
    settings.source = settings.source.replace("STEPS = 900", "STEPS = 3")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown: list[dict[str, Any]] = [
        output["data"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output
    ]
    assert any("3 of 3 steps" in str(data.get("text/html", "")) for data in shown)
    assert sum("image/png" in data for data in shown) == 2  # the curves and the samples
    assert any("torch.Size([4, 1, 28, 28])" in data.get("text/plain", "") for data in shown)


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
