"""Do the tests notice a wrong line? Plants faults of one line in a copy of the checkout, runs the tests there: JSON.

    python benchmarks/faults.py --json docs/results/faults.json           draws 40 faults and tries them
    python benchmarks/faults.py --json docs/results/faults.json --again   tries the same faults on what is there now

The first call draws 30 faults of Python and 10 of the report's script by a seed. First a line is drawn that computes
or chooses something, then a change of it: an operator, a number, a sign, the order of arguments, a variable of the
same type. Messages, checks that raise, types and the looks of a picture are left out. A fault is noticed if a test of
those that belong to its file fails within `--limit` seconds.
"""

import argparse
import ast
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*"}
COMPARISONS = {"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "is": "is not", "is not": "is"}
TWINS = {"min": "max", "any": "all", "argmax": "argmin", "mean": "sum", "zeros": "ones", "floor": "ceil"}
TWINS |= {other: name for name, other in TWINS.items()}
LOOKS = {"figsize", "fontsize", "dpi", "linewidth", "alpha", "rotation", "markersize", "shrink", "zorder", "indent"}
IN_SCRIPT = [(" + ", " - "), (" * ", " / "), (" < ", " <= "), (" > ", " >= "), ("===", "!=="), ("&&", "||")]
IN_SCRIPT += [
    ("Math.min", "Math.max"),
    ("true", "false"),
    ("rows", "columns"),
    (".true", ".predicted"),
    ("low", "high"),
]

# The tests that belong to a file, besides those of its own name: the first entry that its path begins with.
E2E, ARTEFACTS = "tests/e2e/test_explain.py", "tests/explaining/test_artefacts.py"
PAGE, LIVE = "tests/explaining/test_report.py", "tests/explaining/test_live.py"
PAGES = "tests/explaining/test_pages.py"
EVALUATION, MISUSE, LOOP = "tests/explaining/test_evaluation.py", "tests/test_misuse.py", "tests/training/test_loop.py"
OWN = ["tests/explaining/test_own.py", f"{E2E}::test_pictures_of_ones_own_are_explained_and_broken_ones_named"]
TESTS = {
    "explaining/page/live.js": [LIVE],
    "explaining/page/network.js": [LIVE],
    "explaining/page/pictures": [*OWN, PAGES],
    "explaining/page/": [PAGES, PAGE, LIVE],
    "explaining/own": OWN,
    "explaining/people.py": [ARTEFACTS, f"{E2E}::test_what_people_say_is_in_manifest_and_report", PAGE],
    "explaining/calibration.py": [EVALUATION],
    "explaining/evaluation.py": [EVALUATION, f"{E2E}::test_an_evaluation_is_in_files_pictures_and_report"],
    "explaining/faithfulness.py": [EVALUATION],
    "explaining/measures.py": [EVALUATION],
    "explaining/": [ARTEFACTS, PAGE, E2E],
    "plots.py": [ARTEFACTS, EVALUATION, E2E],
    "commands/sweep.py": ["tests/training/test_sweep.py", MISUSE],
    "commands/": ["tests/test_commands.py", MISUSE, "tests/e2e/test_train.py"],
    "training/sweep.py": [],
    "training/profiling.py": [],
    "training/checkpoint.py": [LOOP],
    "training/": ["tests/training/test_program.py", LOOP],
    "network/": ["tests/network"],
    "interop/": ["tests/interop", MISUSE],
    "data/": ["tests/data", MISUSE],
    "config.py": ["tests/training/test_program.py", MISUSE],
    "machine.py": [],
    "distributed.py": ["tests/e2e/test_distributed.py"],
    "": ["tests/test_commands.py", MISUSE, LOOP],
}


class Fault(NamedTuple):
    """A line of a file, counted from 1, as it is and as it is made."""

    file: str
    line: int
    before: str
    after: str


# ---- what can be changed -------------------------------------------------------------------------


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one that compute or choose something."""
    skipped = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
    for name, value in ast.iter_fields(node):
        if name in ("decorator_list", "annotation", "returns", "defaults", "kw_defaults", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, skipped):
                continue
            if isinstance(child, ast.keyword) and child.arg in LOOKS:
                continue
            if isinstance(child, ast.If) and any(isinstance(x, ast.Raise) for x in child.body):
                continue
            yield child
            yield from _children(child)


def _changes(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Line from 1, first and last column, and what replaces these, for all changes of a Python file."""

    def between(left: ast.expr, right: ast.expr) -> tuple[int, int, int, str] | None:
        if left.end_lineno != right.lineno:
            return None
        text = lines[right.lineno - 1][left.end_col_offset : right.col_offset]
        return right.lineno, left.end_col_offset or 0, right.col_offset, text

    def whole(node: ast.expr, text: str) -> Iterator[tuple[int, int, int, str]]:
        if node.lineno == node.end_lineno:
            yield node.lineno, node.col_offset, node.end_col_offset or 0, text

    for node in _children(tree):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and (at := between(node.left, node.right)):
            if not any(isinstance(x, ast.JoinedStr | ast.List) or _is_text(x) for x in (node.left, node.right)):
                yield *at[:3], re.sub(r"\*\*|//|[-+*/%]", OPERATORS[type(node.op)], at[3])
        elif isinstance(node, ast.Compare) and (at := between(node.left, node.comparators[0])):
            if (sign := at[3].strip(" ()")) in COMPARISONS:
                yield *at[:3], at[3].replace(sign, COMPARISONS[sign])
        elif isinstance(node, ast.BoolOp) and (at := between(*node.values[:2])):
            sign = "and" if isinstance(node.op, ast.And) else "or"
            yield *at[:3], at[3].replace(sign, {"and": "or", "or": "and"}[sign])
        elif isinstance(node, ast.UnaryOp):
            yield from whole(node, ast.unparse(node.operand))
        elif isinstance(node, ast.IfExp):
            yield from whole(node, ast.unparse(ast.IfExp(node.test, node.orelse, node.body)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield from whole(node, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield from whole(node, str(node.value + 1 if isinstance(node.value, int) else 2 * node.value))
        elif isinstance(node, ast.Slice) and (bound := node.upper if node.lower is None else node.lower):
            if node.step is None and (node.lower is None) != (node.upper is None):
                yield from whole(bound, "0") if node.lower else whole(bound, f"1 + {ast.unparse(bound)}")
        elif isinstance(node, ast.Call):
            name = node.func
            if isinstance(name, ast.Attribute) and name.attr in TWINS and name.lineno == name.end_lineno:
                yield name.lineno, name.end_col_offset - len(name.attr), name.end_col_offset, TWINS[name.attr]
            if isinstance(name, ast.Name) and name.id in TWINS:
                yield from whole(name, TWINS[name.id])
            same_kind = all(isinstance(x, ast.Name | ast.Attribute) for x in node.args[:2])
            if len(node.args) >= 2 and same_kind and ast.unparse(name) != "isinstance":
                swapped = ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords)
                yield from whole(node, ast.unparse(swapped))
        elif isinstance(node, ast.FunctionDef):
            yield from _of_the_same_type(node)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _of_the_same_type(function: ast.FunctionDef) -> Iterator[tuple[int, int, int, str]]:
    """Arguments replaced by another of the same type."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    types = {x.arg: ast.unparse(x.annotation) for x in arguments if x.annotation is not None}
    for node in (found for statement in function.body for found in _children(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in types:
            for name in [name for name in types if name != node.id and types[name] == types[node.id]][:1]:
                yield node.lineno, node.col_offset, node.end_col_offset or 0, name


def _script_changes(text: str) -> Iterator[tuple[int, int, int, str]]:
    """The same for a script; strings and comments are left out."""
    for number, line in enumerate(text.splitlines(), start=1):
        code = re.sub(r'"stroke-width": \d|"[^"]*"|/\*.*|//.*|</?\w+>', lambda found: " " * len(found[0]), line)
        code = re.sub(r"(^|\})([^{}`]*?)(\$\{|`)", lambda x: x[0] if "=" in x[2] else " " * len(x[0]), code)
        if line.startswith(("   ", "/*")) and "*/" in line:
            continue
        for a, b in IN_SCRIPT:
            for old, new in ((a, b), (b, a)):
                for found in re.finditer(re.escape(old) + (r"\b" if old[-1].isalpha() else ""), code):
                    yield number, *found.span(), new
        for found in re.finditer(r"(?<![\w.#])\d+(?![\w.%])", code):
            yield number, *found.span(), str(int(found[0]) + 1)


def draw(root: Path, rng: random.Random, python: int, script: int) -> list[Fault]:
    """Faults of so many lines of Python and of JavaScript."""
    by_kind: list[dict[tuple[str, int], list[str]]] = [{}, {}]
    package = root / "cifar_flax"
    for path in sorted(package.rglob("*.py")):
        if "pytorch" not in path.parts:
            lines = path.read_text().splitlines()
            for change in _changes(ast.parse(path.read_text()), lines):
                _add(by_kind[0], path.relative_to(root).as_posix(), lines, *change)
    for path in sorted((package / "explaining" / "page").glob("*.js")):
        lines = path.read_text().splitlines()
        for change in _script_changes(path.read_text()):
            _add(by_kind[1], path.relative_to(root).as_posix(), lines, *change)
    faults = []
    for found, count in zip(by_kind, (python, script), strict=True):
        for file, line in sorted(rng.sample(sorted(found), count)):
            before = (root / file).read_text().splitlines()[line - 1]
            faults.append(Fault(file, line, before, rng.choice(found[file, line])))
    return faults


def _add(found: dict, file: str, lines: list[str], line: int, first: int, last: int, new: str) -> None:
    old = lines[line - 1].encode()  # columns of `ast` count bytes
    made = (old[:first] + new.encode() + old[last:]).decode()
    twice = re.compile(r"\b(\w+), \1\b")  # as [rows, rows]: no script at all
    if made != lines[line - 1] and len(twice.findall(made)) == len(twice.findall(lines[line - 1])):
        found.setdefault((file, line), []).append(made)


# ---- trying it -----------------------------------------------------------------------------------


def tests_of(root: Path, file: str) -> list[str]:
    """The tests that belong to a file of the package."""
    path = Path(file).relative_to("cifar_flax")
    own = (Path("tests") / path.with_name(f"test_{path.stem}.py")).as_posix()
    others = next(tests for start, tests in TESTS.items() if path.as_posix().startswith(start))
    return [test for test in dict.fromkeys([own, *others]) if is_there(root, test)]


def is_there(root: Path, test: str) -> bool:
    """Whether there is such a file of tests, and in it the function that is named, if one is."""
    name, _, function = test.partition("::")
    path = root / name
    return path.is_file() and f"def {function}(" in path.read_text() if function else path.exists() and bool(name)


def plant(root: Path, fault: Fault) -> str | None:
    """Changes the line, wherever it now is; returns the file's text as it was, or None where there is no such line."""
    path = root / fault.file
    if not path.exists():
        return None
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.rstrip("\n") == fault.before]
    if not places:
        return None
    place = min(places, key=lambda i: abs(i + 1 - fault.line))
    lines[place] = fault.after + "\n"
    path.write_text("".join(lines))
    return text


def is_noticed(root: Path, fault: Fault, limit: float, first: str = "") -> dict:
    """Runs the tests of a planted fault, `first` before the others: whether one fails, which, and after how long."""
    text = plant(root, fault)
    if text is None:
        return {"noticed": None, "by": "the line is gone"}
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    # In a session of its own, so that what the tests have started ends with them.
    process = subprocess.Popen(
        [*command, *([first] if is_there(root, first) else []), *tests_of(root, fault.file)],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
        failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", said, re.MULTILINE)
        found = {"noticed": process.returncode != 0, "by": failed[1] if failed else ""}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = {"noticed": False, "by": f"no test had failed after {limit:.0f} s"}
    finally:
        (root / fault.file).write_text(text)
    return found | {"seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the results, read again by --again")
    parser.add_argument("--again", action="store_true", help="try the faults of the file on what is there now")
    parser.add_argument("--missed", action="store_true", help="with --again: only those that were not noticed before")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--count", type=int, nargs=2, default=(30, 10), help="of Python and of JavaScript (30 10)")
    parser.add_argument("--commit", default="HEAD", help="what the copy is of (HEAD)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for the tests of one fault (300)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        archive = subprocess.run(["git", "archive", flags.commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(root, filter="data")
        if flags.again:
            content = json.loads(flags.json.read_text())
        else:
            drawn = draw(root, random.Random(flags.seed), *flags.count)
            content = {"seed": flags.seed, "faults": [fault._asdict() for fault in drawn]}
        key = "after_mending" if flags.again else "before_mending"
        for entry in tqdm(content["faults"], desc="faults", disable=None):
            if flags.missed and entry["before_mending"]["noticed"]:
                continue
            fault = Fault(*(entry[name] for name in Fault._fields))
            entry[key] = is_noticed(root, fault, flags.limit, entry.get("before_mending", {}).get("by", ""))
            flags.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            print(f"{fault.file}:{fault.line} {entry[key]}\n  {fault.before}\n  {fault.after}", flush=True)


if __name__ == "__main__":
    main()
