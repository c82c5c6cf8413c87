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
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "+"}
LOGIC = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is"}
LOGIC |= {"and": "or", "or": "and", "===": "!==", "!==": "===", "&&": "||", "||": "&&"}
CALLS = {"min": "max", "any": "all", "argmax": "argmin", "mean": "sum", "zeros": "ones", "floor": "ceil"}
CALLS |= {other: name for name, other in CALLS.items()}
WORDS = {"True": "False", "False": "True"}
SCRIPT_WORDS = {"rows": "columns", "columns": "rows", ".true": ".predicted", ".predicted": ".true"}
SCRIPT_WORDS |= {"true": "false", "false": "true", "low": "high", "high": "low"}


def _one_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


# Patterns, and what a match becomes. In the code that they search, NUL is in place of what is left alone, as a string.
CHANGES: list[tuple[str, Callable[[re.Match], str]]] = [
    (rf"(?<=[\w)\]] )({_one_of(ARITHMETIC)})(?= [\w(\[-])", lambda x: ARITHMETIC[x[0]]),
    (rf"(?<=[\w)\]\0] )({_one_of(LOGIC)})(?= [\w(\[\0-])", lambda x: LOGIC[x[0]]),
    (rf"((?<=\.)({_one_of(CALLS)})|\b(min|max|any|all))(?=\()", lambda x: CALLS[x[0]]),
    (r"(?<=\w)\*\*(?=\w)", lambda x: "*"),
    (r"\bnot |(?<![\w)\]] )(?<=[ (\[:])-(?=\w)", lambda x: ""),
    (r"(?<=\S) if ([^\0]+?) else ", lambda x: f" if not ({x[1]}) else "),
    (r"(?<![\w.#])\d+(?![\w.%])", lambda x: str(int(x[0]) + 1)),
    (r"(?<![\w.])\d+\.\d+\b", lambda x: str(2 * float(x[0]))),
    (r"(?<=\w\[)[\w.]+(?=:[\],])", lambda x: "0"),
    (r"(?<=\w\[:)[\w.]+(?=\])", lambda x: f"1 + {x[0]}"),
    (
        r"(?<!isinstance\()(?<!\bmin\()(?<!\bmax\()(?<=\w\()([A-Za-z_][\w.]*), ([A-Za-z_][\w.]*)(?=[,)])",
        lambda x: f"{x[2]}, {x[1]}",
    ),
]
LOOKS = re.compile("figsize|fontsize|dpi|linewidth|alpha|rotation|markersize|shrink|zorder|indent|strict")
Change = tuple[int, int, int, str]  # a line from 1, its first and last column in bytes, and what replaces these

# The tests that belong to a file, besides those of its own name: the first entry that its path begins with.
MISUSE, LOOP = "tests/test_misuse.py", "tests/training/test_loop.py"
EXPLAINING = [f"tests/explaining/test_{name}.py" for name in ("artefacts", "evaluation", "report")]
TESTS = {
    "explaining/page/live.js": ["tests/explaining/test_live.py"],
    "explaining/page/network.js": ["tests/explaining/test_live.py"],
    "explaining/page/pictures.js": ["tests/explaining/test_own.py", "tests/explaining/test_pages.py"],
    "explaining/page/": [f"tests/explaining/test_{name}.py" for name in ("pages", "report", "live")],
    "explaining/": [*EXPLAINING, "tests/e2e/test_explain.py"],
    "plots.py": [*EXPLAINING, "tests/e2e/test_explain.py"],
    "commands/data.py": ["tests/data", MISUSE],
    "commands/figure.py": ["tests/explaining/test_figures.py", MISUSE],
    "commands/pictures.py": ["tests/explaining/test_own.py", MISUSE],
    "commands/sweep.py": ["tests/training/test_sweep.py", MISUSE],
    "commands/train.py": ["tests/test_commands.py", MISUSE, "tests/e2e/test_train.py"],
    **{key: ["tests/interop", MISUSE] for key in ("commands/import", "commands/export", "commands/publish")},
    "commands/": ["tests/test_commands.py", MISUSE, "tests/e2e/test_explain.py", "tests/e2e/test_own_data.py"],
    "training/": ["tests/training/test_program.py", LOOP],
    "network/": ["tests/network"],
    "interop/": ["tests/interop", MISUSE],
    "data/": ["tests/data", MISUSE],
    "distributed.py": ["tests/e2e/test_distributed.py"],
    "": ["tests/test_commands.py", "tests/training/test_program.py", MISUSE, LOOP],
}


class Fault(NamedTuple):
    """A line of a file, counted from 1, as it is and as it is made."""

    file: str
    line: int
    before: str
    after: str


# ---- what can be changed -------------------------------------------------------------------------


def _changes(code: list[str], words: dict[str, str]) -> Iterator[Change]:
    """All changes of lines in which what is to be left alone is blank."""
    for pattern, change in [*CHANGES, (rf"(?<!\w)({_one_of(words)})\b", lambda x: words[x[0]])]:
        for number, line in enumerate(code, start=1):
            for found in re.finditer(pattern, line):
                yield number, *found.span(), change(found)


def _left_alone(node: ast.AST) -> list[Any]:
    """The nodes, of one and its fields, that compute and choose nothing: messages, checks, types, looks."""
    fields = ("annotation", "returns", "decorator_list", "bases", "defaults", "kw_defaults")
    found = [getattr(node, name, None) for name in fields]
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    is_check = isinstance(node, ast.If) and any(isinstance(x, ast.Raise) for x in node.body)
    is_look = isinstance(node, ast.keyword) and LOOKS.fullmatch(str(node.arg))
    kinds = ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.arg
    alone = [node] if is_text or is_check or is_look or isinstance(node, kinds) else []
    return [x for part in (alone, *found) for x in (part if isinstance(part, list) else [part]) if x is not None]


def _python_changes(text: str) -> Iterator[Change]:
    """All changes of a Python file."""
    tree = ast.parse(text)
    code = [line.encode().decode("latin-1") for line in text.splitlines()]  # columns of `ast` count bytes
    for node in (found for parent in ast.walk(tree) for found in _left_alone(parent)):
        for i in range(node.lineno - 1, node.end_lineno):
            first = node.col_offset if i == node.lineno - 1 else 0
            last = node.end_col_offset if i == node.end_lineno - 1 else len(code[i])
            code[i] = code[i][:first] + "\0" * (last - first) + code[i][last:]
    yield from _changes([re.sub("#.*", "", line) for line in code], WORDS)
    # Arguments replaced by another of the same type.
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        arguments = [*function.args.args, *function.args.kwonlyargs]
        types = {x.arg: ast.unparse(x.annotation) for x in arguments if x.annotation is not None}
        for node in (found for statement in function.body for found in ast.walk(statement)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in types:
                others = [x for x in types if x != node.id and types[x] == types[node.id]]
                if others and code[node.lineno - 1].startswith(node.id, node.col_offset):
                    yield node.lineno, node.col_offset, node.col_offset + len(node.id), others[0]


def _script_changes(text: str) -> Iterator[Change]:
    """All changes of a file of JavaScript."""

    def blank(found: re.Match) -> str:
        return "\0" * len(found[0])

    code = []
    for line in text.encode().decode("latin-1").split("\n"):
        line = re.sub(r'"stroke-width": \d|"[^"]*"|/\*.*|//.*|</?\w+>|function \w*\(.*?\)', blank, line)
        line = re.sub(r"(^|\})([^{}`]*?)(\$\{|`)", lambda x: x[0] if "=" in x[2] else blank(x), line)  # of templates
        code.append("" if "*/" in line or line.startswith("import ") else line)
    yield from _changes(code, SCRIPT_WORDS)


def _faults(root: Path, path: Path, changes: Iterable[Change]) -> Iterator[Fault]:
    lines = path.read_text().split("\n")
    twice = re.compile(r"\b(\w+), \1\b")  # as [rows, rows]: no script at all
    for number, first, last, new in changes:
        before = lines[number - 1]
        after = (before.encode()[:first] + new.encode() + before.encode()[last:]).decode()
        if after != before and len(twice.findall(after)) == len(twice.findall(before)):
            yield Fault(path.relative_to(root).as_posix(), number, before, after)


def draw(root: Path, rng: random.Random, python: int, script: int) -> list[Fault]:
    """Faults of so many lines of Python and of JavaScript."""
    package = root / "cifar_flax"
    modules = [path for path in sorted(package.rglob("*.py")) if "pytorch" not in path.parts]
    scripts = sorted((package / "explaining" / "page").glob("*.js"))
    drawn = []
    for paths, changes, count in ((modules, _python_changes, python), (scripts, _script_changes, script)):
        by_line: dict[tuple[str, int], list[Fault]] = {}
        for path in paths:
            for fault in _faults(root, path, changes(path.read_text())):
                by_line.setdefault((fault.file, fault.line), []).append(fault)
        drawn += [rng.choice(by_line[place]) for place in sorted(rng.sample(sorted(by_line), count))]
    return drawn


# ---- trying it -----------------------------------------------------------------------------------


def tests_of(root: Path, file: str) -> list[str]:
    """The tests that belong to a file of the package."""
    path = Path(file).relative_to("cifar_flax")
    own = (Path("tests") / path.with_name(f"test_{path.stem}.py")).as_posix()
    others = next(tests for start, tests in TESTS.items() if path.as_posix().startswith(start))
    return [test for test in dict.fromkeys([own, *others]) if (root / test).exists()]


def plant(root: Path, fault: Fault) -> str | None:
    """Changes the line, wherever it now is; returns the file's text as it was, or None where there is no such line."""
    path = root / fault.file
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if line.rstrip("\n") == fault.before]
    if not places:
        return None
    place = min(places, key=lambda i: abs(i + 1 - fault.line))
    lines[place] = fault.after + "\n"
    path.write_text("".join(lines))
    return text


def is_noticed(root: Path, fault: Fault, limit: float) -> dict:
    """Runs the tests of a planted fault: whether one fails, which, and after how long."""
    text = plant(root, fault)
    if text is None:
        return {"noticed": None, "by": "the line is gone"}
    command = ["timeout", "--signal=KILL", f"{limit}", sys.executable, "-m", "pytest", "-x", "-q", "-n", "0"]
    command += ["-p", "no:cacheprovider", *tests_of(root, fault.file)]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    finally:
        (root / fault.file).write_text(text)
    seconds = time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", done.stdout, re.MULTILINE)
    found = {"noticed": done.returncode != 0, "by": failed[1] if failed else ""}
    if seconds >= limit:
        found = {"noticed": False, "by": f"no test had failed after {limit:.0f} s"}
    return found | {"seconds": round(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the results, read again by --again")
    parser.add_argument("--again", action="store_true", help="try the faults of the file on what is there now")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--count", type=int, nargs=2, default=(30, 10), help="of Python and of JavaScript (30 10)")
    parser.add_argument("--commit", default="HEAD", help="what the copy is of (HEAD)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one fault (600)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        root = Path(folder)
        archive = subprocess.run(["git", "archive", flags.commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", root], input=archive, check=True)
        if flags.again:
            content = json.loads(flags.json.read_text())
        else:
            drawn = draw(root, random.Random(flags.seed), *flags.count)
            content = {"seed": flags.seed, "faults": [fault._asdict() for fault in drawn]}
        key = "after_mending" if flags.again else "before_mending"
        for entry in tqdm(content["faults"], desc="faults", disable=None):
            fault = Fault(*(entry[name] for name in Fault._fields))
            entry[key] = is_noticed(root, fault, flags.limit)
            flags.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            print(f"{fault.file}:{fault.line} {entry[key]}\n  {fault.before}\n  {fault.after}", flush=True)


if __name__ == "__main__":
    main()
