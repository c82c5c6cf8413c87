"""The folders are the architecture: what each room may know of the others, and of itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cifar_flax"
GROUND = {"errors", "config", "cli", "files", "execution", "machine", "distributed", "plots"}
# A room may import the ground floor and the rooms before it.
ROOMS = ["data", "network", "training", "explaining", "interop", "commands"]
FACE = {"api"}  # what `import cifar_flax` offers: it knows all rooms but the commands
# A method that draws what its class holds, by a module that knows the class: imported when it is called.
CALLED_LATE = {("cifar_flax.explaining.analysis", "cifar_flax.explaining.outputs")}
# The mathematics: pure functions of plain arguments, which know of no config and no machine.
PURE = {
    "data": {"augment", "spec"},
    "network": {"model", "forms", "cpu/norm", "cpu/convolution", "cpu/operations"},
    "training": {"metrics", "optim", "step"},
    "explaining": {"agreement", "cam", "calibration", "corruptions", "faithfulness", "slices"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.parent.name != "pytorch"
}


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """What a file imports of this package, as dotted names; without those inside its functions unless `lazy`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_flax"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cifar_flax."))


def test_the_folders_are_the_rooms():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == GROUND | FACE


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room):
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    assert "In: " in docstring and "Out: " in docstring


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way_between_rooms(room):
    allowed = GROUND | set(ROOMS[: ROOMS.index(room) + 1])
    for path in (PACKAGE / room).rglob("*.py"):
        assert {name.split(".")[1] for name in imports(path)} <= allowed, path.name


def test_the_ground_floor_stands_alone():
    for name in GROUND:
        known = {imported.split(".")[1] for imported in imports(PACKAGE / f"{name}.py", lazy=False)}
        assert known <= {"errors", "files", "machine"}, name


def test_modules_do_not_import_each_other():
    found = {name: [f"{each}." for each in imports(path)] for name, path in MODULES.items()}
    graph = {
        name: {
            target
            for target in MODULES
            if any(each.startswith(f"{target}.") for each in found[name])
            and target != name
            and (name, target) not in CALLED_LATE
        }
        for name, path in MODULES.items()
        if path.stem != "__init__"
    }
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"


@pytest.mark.parametrize("room", PURE)
def test_mathematics_knows_no_config(room):
    for name in PURE[room]:
        known = {imported.split(".")[1] for imported in imports(PACKAGE / room / f"{name}.py", lazy=False)}
        assert not known & {"config", "execution", "machine", "files"}, name


def test_private_names_stay_in_their_file():
    for path in MODULES.values():
        private = [name for name in imports(path) if name.rsplit(".", 1)[1].startswith("_")]
        tree = ast.parse(path.read_text())
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in MODULES
        }
        private += [
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in modules and node.attr.startswith("_")
        ]
        assert not private, path.name


def test_pictures_are_drawn_in_two_places():
    text = {name: path.read_text() for name, path in MODULES.items()}
    users = {name for name in text if re.search(r"^(import|from) matplotlib", text[name], re.MULTILINE)}
    assert users == {"cifar_flax.plots", "cifar_flax.explaining.drawing"}


@pytest.mark.slow
def test_nothing_imports_tensorflow_or_torch():
    names = ", ".join(name for name, path in MODULES.items() if path.stem not in ("__init__", "__main__"))
    code = f"import sys, {names}\nassert not {{'tensorflow', 'torch', 'tensorflow_datasets'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
