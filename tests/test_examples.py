"""examples/*.ipynb: executed with few videos, by nbclient if it is installed, otherwise cell by cell."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "examples" / "quickstart.ipynb"
SMALL = {"VIDEOS": 30, "EPOCHS": 1}


def small_notebook() -> dict[str, Any]:
    """The notebook with small parameters."""
    notebook: dict[str, Any] = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    text = "".join(cell["source"])
    for name, value in SMALL.items():
        text, count = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
        assert count == 1
    cell["source"] = text
    return notebook


def test_quickstart_runs_from_the_first_cell_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = small_notebook()
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel"):
        import nbclient
        import nbformat

        node = nbformat.reads(json.dumps(notebook), as_version=4)
        nbclient.NotebookClient(node, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [one for cell in node.cells if cell.cell_type == "code" for one in cell.outputs]
        text = "".join(one.get("text", "") for one in outputs)
    else:
        names: dict[str, Any] = {"__name__": "__main__"}
        for cell in cells:
            exec(compile("".join(cell["source"]), QUICKSTART.name, "exec"), names)
        text = capsys.readouterr().out
    assert "'mask': (2, 4, 4)" in text
    assert re.search(r"top-1 [\d.]+ % of \d+ test videos; chance is 16\.7 %", text)
    assert "features (" in text
    assert {path.name for path in (tmp_path / "quickstart").glob("*.safetensors")} == {
        "pretrained.safetensors",
        "classifier.safetensors",
    }


def test_notebook_has_no_outputs() -> None:
    cells = json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
