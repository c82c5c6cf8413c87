"""The Python in the documents runs as it stands."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = [
    pytest.param(block, id=f"{path.name} {i}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_python_in_the_documents_runs(block, tmp_path, monkeypatch):
    """And gives numbers: what it names at the end is finite."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "block", "exec"), names)
    arrays = [x for x in names.values() if isinstance(x, np.ndarray | jax.Array) and np.issubdtype(x.dtype, np.number)]
    assert arrays and all(np.isfinite(x).all() for x in arrays)


def test_the_rows_of_a_table_have_as_many_cells():
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for table in re.findall(r"(?:^ *\|.*\n)+", path.read_text(), re.MULTILINE):
            header, ruler, *rows = table.splitlines()
            assert set(ruler) <= set("|-: "), f"{path.name}: {header}"
            for row in (ruler, *rows):
                assert row.count("|") == header.count("|"), f"{path.name}: {row}"


def test_links_between_the_documents_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
