"""The layout is the architecture: docs/architecture.md gives the order, this enforces it."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cifar_flax"
# A module may import those of earlier rows. Leaves know nothing of each other.
ROWS = [
    {"errors", "convolution", "norm"},
    {"cli", "config", "files", "interrupts"},
    {"augment", "cam", "data", "devices", "metrics", "model", "optim", "plots"},
    {"step"},
    {"checkpoint", "program", "rundir", "weights"},
    {"loop", "profiling"},
    {"explanation"},
    {"interop", "report"},
    {"outputs"},
]


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports when it is itself imported."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "cifar_flax":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_flax."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cifar_flax.")}
    return names


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set.union(*ROWS)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_imports_point_downward(row):
    allowed = set.union(set(), *ROWS[:row])
    for name in ROWS[row]:
        permitted = allowed - {"config"} if row == 2 else allowed  # leaves take plain arguments
        assert own_imports(PACKAGE / f"{name}.py") <= permitted, name


def test_only_plots_imports_matplotlib():
    users = [
        path.stem
        for path in PACKAGE.glob("*.py")
        if "import matplotlib" in path.read_text() or "from matplotlib" in path.read_text()
    ]
    assert users == ["plots"]


def test_help_answers_quickly_and_without_jax():
    code = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: pass\nassert 'jax' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True, capture_output=True)
    assert time.perf_counter() - start < 1.5


@pytest.mark.slow
def test_nothing_imports_tensorflow_or_torch():
    modules = ", ".join(f"cifar_flax.{name}" for row in ROWS for name in row)
    code = f"import sys, {modules}\nassert not {{'tensorflow', 'torch', 'tensorflow_datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
