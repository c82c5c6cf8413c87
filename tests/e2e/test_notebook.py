"""The notebook runs from its first cell to its last, and is kept with its outputs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def test_it_has_ten_cells_and_their_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 10 and [cell["execution_count"] for cell in cells] == list(range(1, 11))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "display_data" in kinds and "error" not in kinds


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("nbmake", reason="needs nbmake: the group test")
    shutil.copy(NOTEBOOK, tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbmake", NOTEBOOK.name, "--override-ini", "addopts="]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-3000:]
